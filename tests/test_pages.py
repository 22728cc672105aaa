"""The pages of documentation are what the code, the published numbers and a run say."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import vtc
from vtc import spec
from vtc.eval.cli import main
from vtc.eval.pages import command as pages
from vtc.eval.pages import docstring as page_docstring
from vtc.eval.pages import results as page_results
from vtc.eval.results.results import VERSION
from vtc.method import registry
from vtc.method.selector import Selector

COMMITTED = Path(__file__).parent.parent / "docs" / "methods"
TEXTS = pages.pages(pages.stored(COMMITTED))
METHOD_PAGES = [name for name in TEXTS if name != pages.INDEX]


def result(setting: str, right: int, tokens: float) -> dict:
    """One setting of a made-up run, with a key that pages don't show."""
    name, _, keep = setting.partition(":keep=")
    score = {"right": right, "asked": 20, "accuracy": right / 20, "interval_95": [right / 20 - 0.1, right / 20 + 0.1]}
    return {
        "setting": setting, "series": name, "keep": float(keep) if keep else None, "overall": score, "groups": {},
        "relative_accuracy": right / 19, "visual_tokens": 256.0, "kept_tokens": tokens, "equivalent_tokens": tokens,
        "decoder_speedup_ideal": 1.0, "flops": 1e9,
    }  # fmt: skip


@pytest.fixture
def run(tmp_path) -> Path:
    """The folder of a made-up run of three methods, one of them composed with another as well."""
    config = {"model": "embedded", "weights": "f00", "benchmark": "embedded/test", "dtype": "float32"}
    config |= {"batch_size": 8, "versions": {"vtc": "0.1.0"}, "threads": 1}
    rows = [("none", 19, 256.0), ("random:keep=0.5", 15, 128.0), ("random:keep=0.25", 13, 64.0)]
    rows += [("divprune:keep=0.5", 18, 128.0), ("divprune:keep=0.25", 17, 64.0), ("divprune+fastv", 9, 99.0)]
    results = {"version": VERSION, "config": config, "questions": 20, "failed": [], "blind": {"overall": 0.2}}
    results["settings"] = [result(*row) for row in rows]
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps(results))
    return folder


def test_committed_pages_are_those_that_the_code_writes():
    written = {file.name: file.read_text(encoding="utf-8") for file in COMMITTED.glob("*.md")}
    assert sorted(written) == sorted(TEXTS), "run `vtc pages`"
    for name, text in TEXTS.items():
        assert written[name] == text, f"{name} is not what the code says; run `vtc pages`"


def test_committed_curves_are_small_and_belong_to_the_numbers_beside_them():
    results = pages.stored(COMMITTED)
    measured = {row["series"].partition(":")[0] for row in results["settings"] if "+" not in row["series"]} - {"none"}
    curves = {file.stem: file.stat().st_size for file in COMMITTED.glob("*.png")}
    assert curves.keys() == measured | {"figure"}
    assert max(curves.values()) < 100_000


def test_every_method_has_a_page_that_the_index_links():
    assert {name.removesuffix(".md") for name in METHOD_PAGES} == set(registry.shipped())
    assert all(f"]({name})" in TEXTS[pages.INDEX] for name in METHOD_PAGES)


@pytest.mark.parametrize("page", METHOD_PAGES)
def test_what_a_page_says_to_type_works(page):
    name = page.removesuffix(".md")
    cls = registry.method_class(name)
    lines = re.findall(r"vtc\.patch\(model, (.+?)\)(?:  #.*)?\n", TEXTS[page])
    methods = [spec.parse(eval(line, {"vtc": vtc})) for line in lines]
    assert all(type(method) is cls for (method,) in methods)
    assert methods[0] == methods[1]
    assert [spec.parse(text) for text in re.findall(r"--compress (\S+)", TEXTS[page])] == [methods[0]]


@pytest.mark.parametrize("page", METHOD_PAGES)
def test_a_page_tells_every_field_and_every_pure_function(page):
    cls = registry.method_class(page.removesuffix(".md"))
    said = page_docstring.describe(cls)
    assert said.first
    for field in said.fields:
        assert field.text, f"{cls.__name__}: the docstring's Attributes don't tell {field.name}"
        assert f"| `{field.name}` | `{field.default}` |" in TEXTS[page]
    for signature, text in page_docstring.functions(cls):
        assert f"```python\n{signature}\n```" in TEXTS[page] and text in TEXTS[page]


@pytest.mark.parametrize("page", sorted(TEXTS))
def test_rows_of_a_table_have_as_many_cells_as_its_heading(page):
    for table in re.findall(r"(?:^\|.*\|\n)+", TEXTS[page], re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


@dataclass
class Example(Selector):
    """Keep what is bright.

    A longer story
    over two lines. https://arxiv.org/abs/1234.56789

    Budget: half of the paper's count, since
    it counts pairs.

    Attributes:
        keep: share; see
            elsewhere.
        alpha, beta: weights.
    """

    keep: float = 1 / 3
    alpha: float = 0.1
    beta: tuple = (1, 2)
    gamma: int = 0


POSITIONS = (
    '"packed" (survivors are numbered anew, without gaps) or "original" (each keeps the number that it had, by which a '
    "model may tell when and where it was seen). Models with several position axes (M-RoPE) always keep the original "
    "ones."
)
PER = (
    'what `keep` counts in: "input" (one image, or one video over all its frames), "frame" (each frame of a video by '
    'itself) or "row" (all images and videos of a row together, as for videos that reach the model as separate images).'
)


def test_a_docstring_is_taken_apart():
    said = page_docstring.describe(Example)
    assert said.first == "Keep what is bright."
    assert said.body == ("A longer story over two lines.",)
    assert said.budget == "Half of the paper's count, since it counts pairs."
    assert said.paper == "1234.56789"
    assert [(field.name, field.default, field.text) for field in said.fields] == [
        ("keep", "0.3333", "share; see elsewhere."),
        ("alpha", "0.1", "weights."),
        ("beta", "(1, 2)", "weights."),
        ("gamma", "0", ""),
        ("per", "'input'", PER),
        ("positions", "'packed'", POSITIONS),
    ]


def test_a_run_gives_numbers_and_curves_which_stay_without_it(run, tmp_path, capsys):
    output = tmp_path / "pages"
    output.mkdir()
    (output / "kcenter.png").write_bytes(b"of an earlier run")
    assert main(["pages", "--run", str(run), "--output", str(output)]) == 0
    page = (output / "divprune.md").read_text(encoding="utf-8")
    assert "| `divprune:keep=0.25` | 64.0 | 64.0 | 85.0 | 75.0–95.0 | 89.5 |" in page
    assert "| `random:keep=0.5` | 128.0 |" in page and "| `none` | 256.0 |" in page and "divprune+fastv" not in page
    assert "## On the bundled model" not in (output / "kcenter.md").read_text(encoding="utf-8")
    assert sorted(file.stem for file in output.glob("*.png")) == ["divprune", "figure", "random"]
    assert "(figure.png)" in (output / "README.md").read_text(encoding="utf-8")
    before = {file.name: file.read_bytes() for file in output.iterdir()}
    for file in output.glob("*.png"):
        file.unlink()  # drawn again of the numbers that were kept
    assert main(["pages", "--output", str(output)]) == 0
    assert {file.name: file.read_bytes() for file in output.iterdir()} == before


def test_without_a_run_there_are_pages_without_curves(tmp_path, capsys):
    assert main(["pages", "--output", str(tmp_path)]) == 0
    assert "without curves" in capsys.readouterr().out
    assert not any("On the bundled model" in file.read_text(encoding="utf-8") for file in tmp_path.iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == sorted(TEXTS)


def test_what_is_stored_beside_the_pages_is_enough_to_draw_from(run):
    results = page_results.of_run(run)
    assert "flops" not in results["settings"][0] and len(json.dumps(results)) < len((run / "results.json").read_text())
    mine = page_results.for_method(results, "divprune")
    assert [row["setting"] for row in mine["settings"]] == [
        "none", "random:keep=0.5", "random:keep=0.25", "divprune:keep=0.5", "divprune:keep=0.25",
    ]  # fmt: skip
    assert page_results.for_method(results, "kcenter") is None


@pytest.mark.parametrize("content", [None, "{", '{"version": 0, "settings": []}'])
def test_a_folder_without_results_is_refused_and_nothing_written(content, tmp_path, capsys):
    (tmp_path / "run").mkdir()
    if content is not None:
        (tmp_path / "run" / "results.json").write_text(content)
    assert main(["pages", "--run", str(tmp_path / "run"), "--output", str(tmp_path / "pages")]) == 2
    assert "--run" in capsys.readouterr().err
    assert not (tmp_path / "pages").exists()


def test_an_output_that_is_a_file_is_refused(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["pages", "--output", str(tmp_path / "file")]) == 2
    assert "--output" in capsys.readouterr().err
