"""Readers that go away, full disks and closed streams: every command runs to its end, and its exit status tells."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import httpx
import pytest
from covering import REST
from eval_runs import exit_code

from vtc.cuda import outputs
from vtc.eval.bench.command import BENCHES
from vtc.eval.cli import COMMANDS

#: The smallest thing that a command of the table says, and the files that it leaves; of training it is the help.
SMALLEST: dict[str, tuple[str, tuple[str, ...]]] = {
    "ask": ("--example images/5 --max-new-tokens 1 --out {tmp}/kept.png", ("kept.png",)),
    "demo": ("--help", ()),  # serves until it is told to end: see the end of this file
    "serve": ("--help", ()),  # likewise, and needs vLLM
    "eval": (
        "--methods none,stride --keep 16 --limit 1 --max-new-tokens 1 --output {tmp}/run",
        ("run/journal-0.jsonl", "run/samples.jsonl", "run/results.json", "run/results.md", "run/figure.png"),
    ),
    "sweep": (
        "--methods none,stride --keep 16 --limit 1 --max-new-tokens 1 --output {tmp}/run",
        ("run/journal-0.jsonl", "run/results.json"),
    ),
    "report": ("{runs} --output {tmp}/page.html", ("page.html", "page.csv", "page.md")),
    "compare": ("{runs} --output {tmp}/compare.md", ("compare.md",)),
    "recipe": ("list", ()),
    "tasks": ("", ()),
    "bench": ("select --methods stride --tokens 16 --rounds 1 --json {tmp}/b.json", ("b.json",)),
    "doctor": ("--model embedded --attn eager --json {tmp}/d.json", ("d.json",)),
    "solve": ("--compress divprune --target tokens=64 --text-tokens 30", ()),
    "methods": ("", ()),
    "presets": ("", ()),
    "pages": ("--output {tmp}/pages", ("pages/README.md", "pages/divprune.md")),
    **{name: ("--help", ()) for name in COMMANDS if name.startswith("train-")},
}
#: Import torch and more, and take seconds: once in this process is enough.
SLOW = {"ask", "eval", "sweep", "report", "compare", "bench", "doctor", "solve", "methods", "pages"}
SLOW |= {name for name in COMMANDS if name.startswith("train-")}
#: Say what they did on stderr alone.
SILENT = {"report"}


def test_every_command_of_the_table_is_tried():
    assert set(SMALLEST) == set(COMMANDS)


# -- in this process, over a real pipe


@pytest.fixture
def stdout_is(monkeypatch):
    """Makes a descriptor this process's stdout, as far as Python sees it."""
    made = []

    def be(descriptor):
        made.append(os.fdopen(descriptor, "w", encoding="utf-8"))
        monkeypatch.setattr(sys, "stdout", made[-1])
        monkeypatch.setattr(sys, "__stdout__", made[-1])

    yield be
    for stream in made:
        stream.close()


def one_line_of(descriptor: int) -> threading.Thread:
    """Reads a line and goes away."""

    def read():
        with open(descriptor, "rb", buffering=0) as pipe:
            while pipe.read(1) not in (b"\n", b""):
                pass

    thread = threading.Thread(target=read)
    thread.start()
    return thread


@pytest.mark.parametrize("lines", [0, 1], ids=["nobody reads", "a line is read"])
@pytest.mark.parametrize(
    "command", [pytest.param(name, marks=REST if name in ("sweep", "doctor") else ()) for name in COMMANDS]
)
def test_a_command_whose_reader_goes_away_runs_to_its_end(command, lines, stdout_is, tmp_path, request, capfd):
    words, files = SMALLEST[command]
    runs = request.getfixturevalue("both_tasks") if "{runs}" in words else None
    reading, writing = os.pipe()
    stdout_is(writing)
    reader = one_line_of(reading) if lines else os.close(reading)
    status = exit_code([command, *(word.format(tmp=tmp_path, runs=runs) for word in words.split())])
    sys.stdout.close()  # what is left in it would have to go somewhere
    if reader is not None:
        reader.join()
    assert status == outputs.READER_GONE or (status == 0 and (lines or command in SILENT))
    assert [file for file in files if not (tmp_path / file).is_file()] == []
    said = capfd.readouterr().err
    assert "Traceback" not in said and "BrokenPipe" not in said and "stdout" not in said


def test_what_another_pipe_says_is_said(stdout_is):
    """A pipe of a worker's that breaks is no reader who went away."""
    ours, theirs = os.pipe(), os.pipe()
    stdout_is(ours[1])
    os.close(theirs[0])
    with pytest.raises(BrokenPipeError):
        outputs.run(lambda: os.write(theirs[1], b"x") and None, "program")
    os.close(ours[0])
    os.close(theirs[1])


def test_a_status_of_the_program_s_own_is_kept(stdout_is):
    for own, status in ((3, 3), (0, outputs.READER_GONE), (None, outputs.READER_GONE)):
        reading, writing = os.pipe()
        stdout_is(writing)
        os.close(reading)
        assert outputs.run(lambda own=own: print("said") or own, "program") == status


# -- in a process of its own, to the interpreter's end

LIGHT = [
    *([name, *SMALLEST[name][0].split()] for name in COMMANDS if name not in SLOW and name not in ("demo", "serve")),
    *([name, "--help"] for name in COMMANDS if name not in SLOW),
    *(["bench", name, "--help"] for name in list(BENCHES)[:1]),
    ["--help"],
    ["--version"],
]


#: A terminal without most characters.
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}


def vtc(words, **options):
    return subprocess.Popen([sys.executable, "-m", "vtc.eval.cli", *words], **options)


@pytest.mark.parametrize("words", LIGHT, ids=" ".join)
def test_nothing_is_said_at_the_interpreter_s_end(words):
    """The five fates of stdout at once, for the processes take their time to start."""
    reading, writing = os.pipe()
    os.close(reading)
    with open("/dev/full", "wb") as full, open(writing, "wb") as gone:
        running = {
            "gone": vtc(words, stdout=gone, stderr=subprocess.PIPE),
            "full": vtc(words, stdout=full, stderr=subprocess.PIPE),
            "closed": vtc(words, stderr=subprocess.PIPE, preexec_fn=lambda: os.close(1)),
            "deaf": vtc(words, stdout=subprocess.PIPE, stderr=gone),
            "poor": vtc(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=os.environ | ASCII),
        }
    said = {name: process.communicate(timeout=120) for name, process in running.items()}
    assert {name: process.returncode for name, process in running.items()} == {
        "gone": outputs.READER_GONE, "full": 1, "closed": 0, "deaf": 0, "poor": 0,
    }  # fmt: skip
    name = " ".join(["vtc", *(words[:1] if words[0] in COMMANDS else [])])
    assert said["gone"][1] == said["closed"][1] == b""
    assert said["full"][1].decode() == f"{name}: error: stdout can't be written (No space left on device)\n"
    assert said["deaf"][0].strip() and said["poor"][0].isascii() and said["poor"][1] == b""
    same = said["poor"][0].splitlines(), said["deaf"][0].decode().splitlines()
    assert len(same[0]) == len(same[1]) and all(len(one) == len(other) for one, other in zip(*same))


PROGRAM = """
import os, sys
from vtc.cuda import outputs

def program():
    print(*range(int(sys.argv[1])), sep="\\n", flush=sys.argv[2] == "flushed")
    print("complaint", file=sys.stderr)
    with open(sys.argv[3], "w") as file:
        file.write(str(file.fileno()))

sys.exit(outputs.run(program, "program"))
"""


@pytest.mark.parametrize("flushed", ["flushed", "held"])
@pytest.mark.parametrize("unbuffered", [(), ("-u",)], ids=["", "-u"])
@pytest.mark.parametrize("lines", [3, 100_000])
def test_a_program_of_whichever_length_ends_and_is_whole(lines, unbuffered, flushed, tmp_path):
    command = [sys.executable, *unbuffered, "-c", PROGRAM, str(lines), flushed, str(tmp_path / "whole")]
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert running.stdout.readline() == b"0\n"
    running.stdout.close()
    assert running.stderr.read() == b"complaint\n"
    assert running.wait(timeout=60) in ({outputs.READER_GONE} if lines > 3 else {outputs.READER_GONE, 0})
    assert (tmp_path / "whole").read_text()
    whole = subprocess.run(command, capture_output=True, check=True).stdout
    assert whole.split() == [str(number).encode() for number in range(lines)]


def test_no_file_gets_the_number_of_a_stream_that_was_closed(tmp_path):
    """Else what is printed by anybody, a library in C say, would land in the file."""
    command = [sys.executable, "-c", PROGRAM, "3", "held", str(tmp_path / "file")]
    both = subprocess.run(command, preexec_fn=lambda: os.closerange(1, 3), check=False)
    assert both.returncode == 0 and int((tmp_path / "file").read_text()) > 2


@REST
@pytest.mark.parametrize("module", ["vtc.eval", "vtc.cuda.check", "vtc.cuda.build", "vtc.eval.clips.gates"])
def test_other_ways_in_end_alike(module):
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "wb") as gone:
        command = [sys.executable, "-m", module, "--help"]
        done = subprocess.run(command, stdout=gone, stderr=subprocess.PIPE, check=False)
    assert done.returncode == outputs.READER_GONE and done.stderr == b""


@REST
def test_the_demo_serves_on_when_the_reader_of_its_address_is_gone():
    running = vtc(["demo", "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    address = running.stdout.readline().split()[2].decode()
    running.stdout.close()
    assert httpx.get(address, timeout=60).status_code == 200
    running.send_signal(signal.SIGTERM)
    assert b"Traceback" not in running.stderr.read() and running.wait(timeout=60) == 0


def test_every_program_of_the_packages_is_run_so():
    """What has a `__main__` of its own goes through `outputs.run`, but the demo's reader, whose reader is the demo."""
    root = Path(__file__).parents[1]
    programs = [
        file
        for folder in ("vtc", "eval", "demo", "cuda", "adapters")
        for file in (root / folder).rglob("*.py")
        if '__name__ == "__main__"' in file.read_text()
    ]
    assert len(programs) >= 6
    for file in programs:
        text = file.read_text()
        assert "outputs.run(" in text or "vtc.eval.cli import main" in text or file.name == "reader.py", file
