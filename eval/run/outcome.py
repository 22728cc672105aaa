"""What a run leaves behind: files made of its lines alone, and the tables that are printed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vtc.eval import clips
from vtc.eval.cli.arguments import EMBEDDED, say
from vtc.eval.report import figure, frames_figure, short, summary, tables
from vtc.eval.results import results
from vtc.eval.results.folder import RunFolder, write_atomically
from vtc.eval.results.records import Line
from vtc.eval.results.results import Results
from vtc.eval.results.settings import Setting
from vtc.eval.tasks.benchmarks import BUNDLED
from vtc.eval.tasks.task import Task


def report(folder: RunFolder, settings: Sequence[Setting], task: Task, lines: Sequence[Line]) -> Results:
    """Write all files of one task, print the short table, and name the files that say more.

    Where they can't be written that is said, and the long tables are printed.
    """
    built = results.build(folder.config, settings, lines, task.metrics, _blind(folder.config))
    files: dict[str, str | bytes] = {
        "samples.jsonl": _jsonl(sample for line in lines for sample in line["samples"]),
        "batches.jsonl": _jsonl({key: value for key, value in line.items() if key != "samples"} for line in lines),
        "results.json": json.dumps(built, indent=2, ensure_ascii=False) + "\n",
        "results.md": tables.markdown(built),
    }
    if built["settings"]:
        files["figure.png"] = figure.draw(built)
    frames = frames_figure.draw(built)
    if frames is not None:
        files["frames.png"] = frames
    if write(folder.path, files):
        print(short.plain(built), *_named(folder.path, files, built), sep="\n")
    else:
        print(tables.plain(built))
    if built["failed"]:
        say(
            f"vtc eval: {len(built['failed'])} of {built['questions'] + len(built['failed'])} questions could not be "
            "asked; see `error` in samples.jsonl"
        )
    return built


def _named(folder: Path, files: Mapping[str, str | bytes], built: Results) -> list[str]:
    """What is where: lines below the table, and a blank one above them."""
    names = {
        "results.md": f"all {len(built['settings'])} settings, and more of each",
        "figure.png": "figure",
        "frames.png": "tokens of each frame",
        "samples.jsonl": "every answer",
    }
    return ["", *(f"{what}: {folder / name}" for name, what in names.items() if name in files)]


def summarise(folder: Path, done: Sequence[Results]) -> None:
    """Write and print what several tasks have in common."""
    built = summary.build(done)
    print(summary.plain(built))
    write(folder, {"summary.json": json.dumps(built, indent=2) + "\n", "summary.md": summary.markdown(built)})


def write(folder: Path, files: Mapping[str, str | bytes]) -> bool:
    """Write files, each whole or not at all; where they can't be written that is said, and False returned."""
    try:
        for name, content in files.items():
            write_atomically(folder / name, content)
    except OSError as error:
        say(f"vtc eval: {str(folder)!r} can't be written ({error.strerror}); the tables are only here")
        return False
    return True


def _jsonl(entries: Any) -> str:
    return "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)


def _blind(config: dict[str, Any]) -> dict[str, float] | None:
    """Accuracy of the bundled model shown a blank picture or clip as it was trained on, as measured then."""
    bundled = {package.__name__.rpartition(".")[2]: package for package in BUNDLED.values()}
    package = bundled.get(config["benchmark"].partition("/")[0])
    other = config.get("frames") not in (None, clips.FRAMES)
    if config["model"] != EMBEDDED or package is None or other or not (file := package.path() / "gates.json").is_file():
        return None
    gates = json.loads(file.read_text())
    return {"overall": gates["overall"]["blind"]} | {name: row["blind"] for name, row in gates["groups"].items()}
