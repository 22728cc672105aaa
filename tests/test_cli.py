"""The command line: light help, and every bad argument answered with a sentence and exit code 2."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from eval_runs import exit_code
from PIL import Image

from vtc.eval.bench.command import BENCHES
from vtc.eval.cli import COMMANDS, main
from vtc.eval.cli.table import Command


def test_help_names_every_command_and_imports_neither_torch_nor_transformers():
    """Of the package itself only its place is used here: what `import vtc` brings along is its own affair."""
    script = (
        "import sys\nfrom importlib.util import find_spec, module_from_spec\n"
        "sys.modules['vtc'] = module_from_spec(find_spec('vtc'))\n"
        "from vtc.eval.cli import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit:\n    pass\n"
        "print([name for name in ('torch', 'transformers', 'matplotlib') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert all(name in done.stdout for name in COMMANDS)
    assert done.stdout.endswith("[]\n")


def test_help_lists_each_command_once_under_its_heading(capsys):
    assert exit_code(["--help"]) == 0
    sections = dict(section.split(":\n", 1) for section in capsys.readouterr().out.split("\n\n") if ":\n" in section)
    listed = {
        heading: [line.split()[0] for line in text.splitlines() if line[:3].strip()]
        for heading, text in sections.items()
        if heading not in ("positional arguments", "options")
    }
    assert list(listed) == ["use", "measure", "find out", "train"]
    assert listed == {
        heading: [name for name, command in COMMANDS.items() if command.heading == heading] for heading in listed
    }
    assert sorted(name for names in listed.values() for name in names) == sorted(COMMANDS)


def test_vtc_alone_tells_what_there_is_and_that_something_was_missing(capsys):
    assert exit_code([]) == 2
    told = capsys.readouterr()
    assert not told.out and "usage: vtc" in told.err and all(name in told.err for name in COMMANDS)


@pytest.mark.parametrize("width", ["30", "200"])
def test_help_fits_the_terminal(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", width)
    assert exit_code(["--help"]) == 0
    listing = capsys.readouterr().out.partition("use:\n")[2]
    assert max(map(len, listing.splitlines())) <= max(int(width), 40)
    whole = re.search(r"\n  doctor +what is installed, what of it was tested, and whether", listing)
    assert bool(whole) == (width == "200")


@pytest.mark.parametrize("command", [*COMMANDS, *(f"bench {name}" for name in BENCHES)])
def test_every_command_has_help(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*command.split(), "--help"])
    assert stop.value.code == 0
    assert "usage: vtc" in capsys.readouterr().out


HELLO = """
from vtc.eval.cli.errors import InputError

def add_arguments(parser):
    parser.add_argument("--name", default="you", help="who is greeted")

def main(args):
    if not args.name:
        raise InputError("argument --name: '' is no name; give one")
    print(f"hello {args.name}")
"""


def test_a_new_command_is_one_file_and_one_row(tmp_path, monkeypatch, capsys):
    (tmp_path / "hello_command.py").write_text(HELLO)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "hello", Command("hello_command", "greet somebody"))
    assert main(["hello", "--name", "Ada"]) == 0 and capsys.readouterr().out == "hello Ada\n"
    assert main(["hello", "--name="]) == 2 and "vtc hello: error: argument --name" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["hello", "--help"])
    out = capsys.readouterr().out
    assert "Greet somebody." in out and "who is greeted (default: you)" in out


def test_methods_lists_name_kind_and_first_line(capsys):
    assert main(["methods", "--kind", "prune"]) == 0
    out = capsys.readouterr().out
    assert "fastv" in out and "layer=2" in out and "prune" in out and "divprune" not in out


@pytest.fixture
def files(tmp_path) -> Path:
    """Files that the bad arguments point at."""
    image = Image.radial_gradient("L").convert("RGB")
    image.save(tmp_path / "whole.png")
    whole = (tmp_path / "whole.png").read_bytes()
    (tmp_path / "torn.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("precious")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    line = {"image": "whole.png", "question": "?", "answer": "yes", "id": "a"}
    (tmp_path / "notjson.jsonl").write_text(json.dumps(line) + "\n{oops\n")
    (tmp_path / "keyless.jsonl").write_text('{"image": "whole.png"}\n')
    (tmp_path / "twice.jsonl").write_text(2 * (json.dumps(line) + "\n"))
    (tmp_path / "empty.jsonl").write_text("\n")
    return tmp_path


EVAL = "eval --output {files}/new "
ASK = "ask --question q --out {files}/out.png "
BAD = [
    ("", ["COMMAND"]),
    ("evla", ["'evla'", "did you mean 'eval'?", "train-atp"]),
    ("xyz", ["'xyz'", "known: ask, demo"]),
    ("bench prefil", ["'prefil'", "did you mean 'prefill'?"]),
    ("eval", ["--output"]),
    (EVAL + "--limit 0", ["--limit", "'0'"]),
    (EVAL + "--limit many", ["--limit", "'many'"]),
    (EVAL + "--batch-size -1", ["--batch-size", "'-1'"]),
    (EVAL + "--threads 0", ["--threads", "'0'"]),
    (EVAL + "--seed=-1", ["--seed", "'-1'"]),
    ("solve --compress divprune --target flops=2 --text-tokens 9", ["flops=2"]),
    (EVAL + "--tokens 0", ["--tokens", "'0'"]),
    (EVAL + "--keep 0", ["--keep", "0"]),
    (EVAL + "--keep 0.5,1.5", ["--keep", "1.5", "(0, 1]"]),
    (EVAL + "--keep nan", ["--keep", "nan"]),
    (EVAL + "--keep half", ["--keep", "'half'", "0.25"]),
    (EVAL + "--methods divprun", ["--methods", "'divprun'", "did you mean 'divprune'"]),
    (EVAL + "--methods random,,pool", ["--methods", "empty name"]),
    (EVAL + "--methods divprune:keep=0.5", ["--methods", "--compress"]),
    (EVAL + "--compress divprune:kep=0.5", ["--compress", "'kep'", "did you mean 'keep'"]),
    (EVAL + "--compress divprune:keep", ["--compress", "key=value"]),
    (EVAL + "--compress fastv:layer=99", ["fastv:layer=99", "out of range"]),
    (EVAL + "--compress divprune+random", ["divprune:keep=0.098+random:keep=0.25"]),
    (EVAL + "--split trian", ["--split", "'trian'", "train"]),
    (EVAL + "--dtype float8", ["--dtype", "float8", "bfloat16"]),
    (EVAL + "--device warp", ["--device", "'warp'"]),
    (EVAL + "--model {files}/nowhere", ["--model", "nowhere"]),
    (EVAL + "--model {files}/full", ["--model", "full"]),
    (EVAL + "--attn bogus", ["--model", "--attn bogus"]),
    (EVAL + "--images {files}/nowhere.jsonl", ["--images", "nowhere.jsonl", "does not exist"]),
    (EVAL + "--images {files}/full", ["--images", "questions.jsonl", "does not exist"]),
    (EVAL + "--images {files}/notjson.jsonl", ["--images", "line 2", "notjson.jsonl"]),
    (EVAL + "--images {files}/keyless.jsonl", ["--images", "line 1", "'question'"]),
    (EVAL + "--images {files}/twice.jsonl", ["--images", "'a'", "twice"]),
    (EVAL + "--images {files}/empty.jsonl", ["--images", "no question"]),
    ("eval --output {files}/whole.png", ["--output", "whole.png", "is a file"]),
    ("eval --output {files}/full", ["--output", "thesis.txt", "empty folder"]),
    ("eval --output {files}/broken", ["--output", "config.json", "another folder"]),
    ("ask --question q", ["--image"]),
    (ASK + "--image {files}/nowhere.png", ["--image", "nowhere.png", "missing"]),
    (ASK + "--image {files}/full", ["--image", "full", "folder"]),
    (ASK + "--image {files}/torn.png", ["torn.png", "can't be read"]),
    (ASK + "--image {files}/text.png", ["text.png", "can't be read"]),
    (ASK + "--image {files}/whole.png --compress dvprune", ["--compress", "did you mean 'divprune'"]),
    (ASK + "--image {files}/whole.png --compress fastv:layer=99", ["--compress", "99"]),
    (ASK + "--image {files}/whole.png --out {files}/kept.docx", ["--out", "kept.docx"]),
    (ASK + "--image {files}/whole.png --out {files}/nowhere/kept.png", ["--out", "nowhere"]),
    (ASK + "--image {files}/whole.png --out {files}/whole.png", ["--out", "whole.png", "asked about"]),
    (ASK + "--image {files}/whole.png --max-new-tokens 0", ["--max-new-tokens", "'0'"]),
    ("bench", ["WHAT"]),
    ("bench prefill --rounds 0", ["--rounds", "'0'"]),
    ("bench prefill --methods pol", ["--methods", "'pool'"]),
    ("bench prefill --json {files}/nowhere/x.json", ["--json", "nowhere"]),
    ("methods --kind pruner", ["--kind", "pruner"]),
    ("train-embedded --output {files}/new --stages tower,walls", ["walls"]),
]


@pytest.mark.parametrize(("command", "expected"), BAD, ids=[command or "nothing" for command, _ in BAD])
def test_a_bad_argument_is_named_with_its_value_and_nothing_is_written(command, expected, files, capsys):
    before = sorted(files.rglob("*"))
    code = exit_code([word.format(files=files) for word in command.split()])
    error = capsys.readouterr().err
    assert code == 2
    assert "Traceback" not in error
    for part in expected:
        assert part in error
    assert sorted(files.rglob("*")) == before
