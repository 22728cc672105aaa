"""The table of every image-text-to-text class: it is whole, its numbers are its rows', its rows are what runs say."""

import re
import zlib

import pytest
import survey
import transformers
from covering import REST

HEADER = re.compile(r"transformers (\S+) has (\d+) of them: (\d+) work, (\d+) with methods that$")
ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \| (\S+) \| (\S+) \| (\S+) \| (.*) \|$")


def parsed():
    """The release that the table is of, its numbers, its rows (name -> cells) and its sentences (number -> text)."""
    lines = survey.written()
    release, *numbers = next(found for line in lines if (found := HEADER.match(line))).groups()
    rows = {found[1]: found.groups()[1:] for line in lines if (found := ROW.match(line))}
    sentences = dict(re.findall(r"^(\d+)\. (.+)$", "\n".join(lines), flags=re.M))
    return release, list(map(int, numbers)), rows, sentences


RELEASE, NUMBERS, ROWS, SENTENCES = parsed()
SAME = transformers.__version__ == RELEASE
HERE = [name for name in ROWS if name in survey.CLASSES and (name in survey.BUILT or name not in survey.TIMM)]
#: What `make test` runs again: every eighth, by a checksum of the name.
FEW = [name for name in HERE if zlib.crc32(name.encode()) % 8 == 0]


def test_each_class_has_a_row():
    if SAME:
        assert set(ROWS) == set(survey.CLASSES)
    assert all(survey.CLASSES.get(name, cells[0]) == cells[0] for name, cells in ROWS.items())


def test_the_numbers_are_those_of_the_rows():
    works = [cells for cells in ROWS.values() if cells[1] == "yes"]
    readers = [cells for cells in ROWS.values() if cells[3] == "yes"]
    assert [len(ROWS), len(works), len(readers)] == NUMBERS
    assert len(works) >= 60 and len(readers) >= 45
    for _, selector, prune, reader, status in ROWS.values():
        whole = "works" if selector == prune == reader == "yes" else "works, but" if selector == "yes" else "refused"
        assert status.partition(";")[0] == whole


def test_each_sentence_is_used_and_says_a_way_out():
    used = {cell for cells in ROWS.values() for cell in cells[1:4]} - {"yes"}
    assert used == set(SENTENCES)


def check(name):
    if not SAME and any("itself can't run it" in SENTENCES.get(cell, "") for cell in ROWS[name][1:4]):
        pytest.skip(f"{RELEASE} could not run it, another release may")
    row, (_, *cells, status) = survey.surveyed(name), ROWS[name]
    for text, cell in zip((row.selector, row.prune, row.reader), cells):
        found = text if text == "yes" else survey.general(text, name)
        assert found == (cell if cell == "yes" else SENTENCES[cell])
    assert row.padded == ("padded" not in status)


@pytest.mark.parametrize("name", FEW)
def test_a_row_is_what_a_run_says(name):
    check(name)


@REST
@pytest.mark.parametrize("name", [name for name in HERE if name not in FEW])
def test_every_other_row_is_too(name):
    check(name)


def test_a_wrong_method_is_no_row(monkeypatch):
    """Where a method gives something else, the survey stops there instead of writing 'yes'."""
    from vtc.ops.cut import Cut

    plain = Cut.take_all

    def shifted(self, values):
        if self.identity:
            return plain(self, values)
        return plain(Cut((self.index - 1).clamp_min(0), self.valid, self.length, self.padded), values)

    monkeypatch.setattr(Cut, "take_all", shifted)
    with pytest.raises(survey.WrongError, match="by hand"):
        survey.surveyed("llava")
