"""Every file of examples/ runs as it stands, prints what it claims, and names what to change for a real checkpoint."""

import ast
import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import transformers
from example_runs import EXAMPLES, right, run
from nbclient import NotebookClient
from PIL import Image

from vtc.eval import embedded
from vtc.eval.media.pages import KINDS

SCRIPTS = sorted(file.name for file in EXAMPLES.glob("*.py"))
NOTEBOOKS = sorted(file.name for file in EXAMPLES.glob("*.ipynb"))
#: Opens the comment that names the line to change.
MARK = "# for a real checkpoint"
#: Name of a script -> what its lines must be. One without a check of its own has to print something.
CHECKS: dict[str, Callable[[list[str]], None]] = {}


def check(name: str):
    return lambda function: CHECKS.setdefault(name, function)


@check("batch_qwen_vl.py")
def _(lines):
    rows = [re.fullmatch(r"row \d, (\d+) x (\d+): kept (\d+) of (\d+): (.+)", line) for line in lines]
    found = [row.groups() for row in rows if row]
    assert len(found) == 8 and len({(width, height) for width, height, *_ in found}) == 8
    for width, height, kept, given, _ in found:
        tokens = int(width) // 8 * (int(height) // 8)  # a token is 2 x 2 patches of 4 pixels
        assert int(given) == tokens and int(kept) == (tokens + 1) // 2
    assert len({answer for *_, answer in found}) > 6, "rows that say the same would agree with anything"
    assert lines[-1] == "8 of 8 rows say alone what they say in the batch"


@check("video.py")
def _(lines):
    pattern = r"(\w+)\S* +kept +(\d+) of 513, in each frame \[(.*)\]: \w+"
    found = [re.fullmatch(pattern, line).groups() for line in lines[1:]]
    kept = {name: int(count) for name, count, _ in found}
    frames = {name: [int(count) for count in counts.split(", ")] for name, _, counts in found}
    assert all(kept[name] - sum(counts) in (0, 1) for name, counts in frames.items()), "a newline is in no frame"
    assert frames["none"] == 8 * [64] and kept["divprune"] == 513 // 8 < kept["none"]
    assert set(frames["frame_stride"]) == {0, 64}, "whole frames"
    assert frames["evs"][0] == 64, "the first frame whole"
    assert 0 < kept["holitom"] < 513 // 8, "its inner stage takes of what is left"


@check("pixelprune_pages.py")
def _(lines):
    pattern = r"(\w+), threshold ([\d.]+)/255: kept (\d+) of 768 tokens \(\d+%\), made again within (\d+)/255"
    found = [re.fullmatch(pattern, line).groups() for line in lines]
    kept = {(kind, float(threshold)): int(count) for kind, threshold, count, _ in found}
    kinds = {kind for kind, _ in kept}
    assert kinds == {*KINDS} and len(found) == 2 * len(kinds)
    assert all(int(error) <= float(threshold) for _, threshold, _, error in found)
    assert all(kept[kind, 15.5] <= kept[kind, 0.0] < 768 for kind in kinds - {"scan", "photograph"})
    assert kept["slide", 0.0] < 768 / 3 and kept["scan", 15.5] < 0.8 * kept["scan", 0.0] == 0.8 * 768


@check("streaming.py")
def _(lines):
    found = [re.fullmatch(r"kept +(\d+) of 513 tokens \((\d+)%\): .+\? \w+", line) for line in lines]
    (first, still, second), shares = ([int(line[group]) for line in found] for group in (1, 2))
    assert shares == [round(100 * kept / 513) for kept in (first, still, second)]
    assert 0 < still < min(first, second), "where nothing happens less is left"


@check("own_method.py")
def _(lines):
    found = [re.fullmatch(r"(\w+).*: (\d+) of 18 right", line) for line in lines]
    counts = {row[1]: int(row[2]) for row in found if row}
    assert list(counts) == ["none", "divprune", "unusual"] and counts["divprune"] == right("divprune:keep=16", 18)
    assert 9 < counts["unusual"] < counts["none"], "better than guessing, which is a quarter"
    assert [line for line in lines if "tokens" in line] == 2 * ["  of the first picture: 16 of 256 tokens"]


@check("finetune_compressed.py")
def _(lines):
    steps = [line for line in lines if line.startswith("step")]
    assert len(steps) > 3 and all(line.endswith("16 visual tokens of 256") for line in steps)
    before, after = map(float, re.search(r": ([\d.]+) before, ([\d.]+) after", lines[-1]).groups())
    assert after < before - 0.02, "less than nothing was learned"


@check("with_lmms_eval.py")
def _(lines):
    assert "lmms-eval is not installed here: vtc's own harness on the same task" in lines
    expected = right("divprune:keep=0.25", 6)
    assert lines[-1] == f"divprune:keep=0.25: {expected} of 6 right, with 64 of 256 visual tokens"


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_prints_what_it_claims(name):
    lines = run(name)
    assert lines
    if name in CHECKS:
        CHECKS[name](lines)


def executed(name: str, folder: Path) -> nbformat.NotebookNode:
    """A notebook as it is after all its cells ran, in a folder of its own."""
    notebook = nbformat.read(EXAMPLES / name, as_version=4)
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute()


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_runs_from_its_first_cell_to_its_last(name, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    outputs = [output for cell in executed(name, tmp_path).cells for output in cell.get("outputs", ())]
    text = "".join(output.get("text", "") for output in outputs if output.get("name") == "stdout")
    pictures = [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]
    if name == "first_steps.ipynb":
        assert "divprune:keep=0.25: 256 -> 64 visual tokens" in text
        shares = json.loads(re.search(r"'divprune': (\[.*?\])", text)[1])
        assert shares[1] == pytest.approx(right("divprune:keep=16", 18) / 18)
        assert len(pictures) == 3, "the picture, what was kept of it, and the curves"
        sizes = [Image.open(io.BytesIO(base64.b64decode(picture))).size for picture in pictures]
        assert sizes[1] == (2 * 448 + 8, 448)


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_is_committed_without_outputs(name):
    """Pictures of half a megabyte in each difference, and numbers that nobody holds."""
    for cell in json.loads((EXAMPLES / name).read_text())["cells"]:
        assert not cell.get("outputs") and cell.get("execution_count") is None


def source(name: str) -> str:
    """What a script says, or all cells of a notebook that are code."""
    if name.endswith(".py"):
        return (EXAMPLES / name).read_text()
    cells = nbformat.read(EXAMPLES / name, as_version=4).cells
    return "\n".join(cell.source for cell in cells if cell.cell_type == "code")


def change(name: str) -> tuple[str, str]:
    """Behind the mark: the code in the comment, and the line in whose place it goes."""
    lines = source(name).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith(MARK))
    end = next(i for i in range(begin, len(lines)) if not lines[i].startswith("#"))
    return "\n".join(line.removeprefix("#   ") for line in lines[begin + 1 : end]), lines[end]


def names_set(code: str) -> set[str]:
    """The names that some code gives a value."""
    nodes = ast.walk(ast.parse(code))
    return {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}


@pytest.mark.parametrize("name", SCRIPTS + NOTEBOOKS)
def test_it_names_the_line_to_change_and_what_to_put_there(name):
    """What is to be put there sets what that line sets, with a hub's id, by names that transformers has."""
    instead, line = change(name)
    assert names_set(line) and names_set(line) <= names_set(instead)
    assert re.search(r'"[\w.-]+/[\w.-]+"', instead), "the id of a checkpoint"
    for node in ast.walk(ast.parse(instead)):
        if isinstance(node, ast.ImportFrom):
            assert node.module == "transformers" and all(hasattr(transformers, each.name) for each in node.names)


@pytest.mark.parametrize("name", [name for name in SCRIPTS + NOTEBOOKS if "llava-1.5-7b" in change(name)[0]])
def test_what_is_put_there_loads_a_checkpoint_from_its_name(name):
    """The bundled model's folder in the place of the id: it is of the same family."""
    scope: dict = {}
    code = re.sub(r'"llava-hf/\S+"', repr(str(embedded.path())), change(name)[0])
    exec(code, scope)
    if "CHECKPOINT" not in scope:
        assert type(scope["model"]).__name__ == "LlavaForConditionalGeneration" and scope["processor"].tokenizer


def test_each_is_a_row_of_the_table_and_begins_with_what_it_shows():
    table = (EXAMPLES / "README.md").read_text()
    rows = re.findall(r"^\| \[(\S+)\]\((\S+)\) \| .{20,} \|$", table, re.M)
    assert sorted(rows) == sorted((name, name) for name in SCRIPTS + NOTEBOOKS)
    for name in SCRIPTS:
        about = ast.get_docstring(ast.parse(source(name)))
        assert f"python examples/{name}" in about and len(source(name).splitlines()) <= 65
    for name in NOTEBOOKS:
        assert nbformat.read(EXAMPLES / name, as_version=4).cells[0].source.startswith("# ")


def test_examples_need_nothing_of_the_tests():
    beside = {file.stem for file in Path(__file__).parent.glob("*.py")}
    for name in SCRIPTS + NOTEBOOKS:
        for node in ast.walk(ast.parse(source(name))):
            if isinstance(node, ast.Import | ast.ImportFrom):
                modules = [node.module] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names]
                assert not {str(module).partition(".")[0] for module in modules} & beside
