"""`vtc eval`: accuracy, time, memory and FLOPs of methods at several budgets, resumable at any point.

The output folder gets `config.json` (what tells this run from others), `samples.jsonl` and `batches.jsonl` (one line a
question and setting, one a batch; the schemas are in `vtc.eval.records`), and, made of these alone, `results.json`
(schema in `vtc.eval.results`), `results.md` and `figure.png`; of videos also `frames.png`, the tokens of each frame.

Killed at any point, the same command goes on behind the last batch that is done. All settings see the same questions in
the same batches; `random` and other methods with a `seed` get `seed` + number of the batch.

`--tasks video` asks about clips instead of pictures; its bundled model is `vtc.eval.clips`.

`--tokens` compares at equal equivalent tokens: for each method the `keep` is solved for, or calibrated on up to 32
questions, of the bundled benchmark's training split or the first of the list (`vtc.eval.equal_tokens`).
"""

import argparse
import functools
import json
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.eval.arguments import (
    EMBEDDED,
    add_model_arguments,
    add_setting_arguments,
    budgets,
    method_names,
    not_negative,
    positive,
    say,
)
from vtc.eval.errors import InputError

if TYPE_CHECKING:
    from vtc.eval.benchmarks import Benchmark
    from vtc.eval.folder import RunFolder
    from vtc.eval.models import Loaded
    from vtc.eval.settings import Setting

#: By task: those of videos look at frames as well.
METHODS = {
    "images": "none,random,stride,pool,divprune,hiprune,kcenter,fastv,transprune",
    "video": "none,random,stride,frame_stride,pool,divprune,kcenter,evs,holitom,fastv",
}
KEEP = "0.5,0.25,0.125,0.0625"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc eval`."""
    add_model_arguments(parser)
    add_setting_arguments(parser, METHODS, KEEP, tokens=True)
    parser.add_argument("--tasks", choices=("images", "video"), default="images", help="what is shown")
    parser.add_argument("--limit", type=positive, default=270, help="number of questions")
    parser.add_argument("--output", type=Path, required=True, help="folder for the results; resumes what is in it")
    parser.add_argument("--batch-size", type=positive, default=8, help="questions at once")
    parser.add_argument("--max-new-tokens", type=positive, default=8, help="longest answer")
    parser.add_argument("--split", default="test", help="of the bundled benchmark: train, validation, test")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the bundled benchmark")
    for kind in ("image", "video"):
        parser.add_argument(
            f"--{kind}s",
            type=Path,
            metavar="FILE",
            help=f'instead of the bundled benchmark: JSONL of {{"{kind}": path, "question", "answer", "group"?, "id"?}}'
            ", or a folder that holds it as questions.jsonl",
        )
    parser.add_argument(
        "--frames",
        type=positive,
        default=8,
        help="of each of the --videos, at even distances; of shorter ones frames are repeated",
    )


def main(args: argparse.Namespace) -> None:
    """Run, or go on with a run, and report.

    Raises:
        InputError: an argument can't be used.
    """
    for package in ("matplotlib", "tqdm"):
        if find_spec(package) is None:
            raise InputError(f"vtc eval needs {package}, which is not installed; pip install 'vtc[eval]'")
    from vtc.eval.folder import RunFolder
    from vtc.eval.models import load
    from vtc.eval.settings import make_settings

    args.methods = method_names(args)
    settings, equal = make_settings(args.methods, keep := budgets(args), args.compress), None
    benchmark = _benchmark(args)
    loaded = functools.cache(lambda: load(args.model, args.dtype, args.device, args.attn, benchmark.kind))
    if args.tokens:
        equal = _equal_tokens(args, loaded)
        settings = make_settings(args.methods if keep else [], keep, [*args.compress, *equal["specs"]])
    config = _config(args, settings, benchmark)
    if args.tasks == "video":
        config["tasks"] = args.tasks
    if equal:
        config["equal_tokens"] = equal
    RunFolder.check(args.output, config)
    folder = _run(args, settings, benchmark, config, loaded)
    try:
        _report(folder, settings)
    finally:
        folder.close()


def _benchmark(args: argparse.Namespace) -> "Benchmark":
    from vtc.eval import embedded

    if args.split not in embedded.SPLITS:
        raise InputError(f"argument --split: {args.split!r} is unknown; choose from {', '.join(embedded.SPLITS)}")
    for name, task in (("images", "video"), ("videos", "images")):
        if getattr(args, name) is not None and args.tasks == task:
            raise InputError(
                f"argument --{name}: {str(getattr(args, name))!r} is not for --tasks {task}; leave one out"
            )
    return _asked(args, args.limit, args.split, args.seed)


def _asked(args: argparse.Namespace, limit: int, split: str, seed: int) -> "Benchmark":
    """The list that was given, or the bundled benchmark of the task."""
    from vtc.eval.benchmarks import TASKS, bundled_benchmark, listed_benchmark

    kind, listed = TASKS[args.tasks], args.images or args.videos
    if listed is not None:
        return listed_benchmark(listed, limit, kind, args.frames)
    return bundled_benchmark(kind, limit, split, seed)


def _equal_tokens(args: argparse.Namespace, loaded: "Callable[[], Loaded]") -> dict[str, Any]:
    """What --tokens asks for, and the specs that meet it; those of the run in the folder, if it was asked the same."""
    from vtc.eval import models
    from vtc.eval.equal_tokens import QUESTIONS, batches_of, specs_at, specs_before

    asked = {"tokens": args.tokens, "methods": args.methods, "specs": None}
    specs = specs_before(args.output, asked)
    if specs is None:
        models.check_device(args.device)
        models.set_threads(args.model, args.threads)
        shown = _asked(args, QUESTIONS, "train", 0)
        specs = specs_at(loaded().model, args.methods, args.tokens, batches_of(loaded(), shown, args.batch_size))
    return {**asked, "specs": specs}


def _config(args: argparse.Namespace, settings: "list[Setting]", benchmark: "Benchmark") -> dict[str, Any]:
    import torch
    import transformers

    import vtc
    from vtc.eval import memory, models

    models.check_device(args.device)
    return {
        "model": args.model,
        "weights": models.weights_hash(args.model, benchmark.kind),
        "benchmark": benchmark.name,
        "questions": benchmark.size,
        "seed": args.seed,
        "settings": [setting.name for setting in settings],
        "batch_size": args.batch_size,
        "max_new_tokens": args.max_new_tokens,
        "dtype": args.dtype or ("float32" if args.model == EMBEDDED else "auto"),
        "attn": args.attn,
        "device": args.device,
        "threads": models.set_threads(args.model, args.threads),
        "peak_memory": memory.source(torch.device(args.device)),
        "versions": {"vtc": vtc.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
    }


def _run(
    args: argparse.Namespace,
    settings: "list[Setting]",
    benchmark: "Benchmark",
    config: dict[str, Any],
    loaded: "Callable[[], Loaded]",
) -> "RunFolder":
    """Do the batches that are not done yet."""
    from vtc.eval.folder import CONFIG, RunFolder
    from vtc.eval.progress import Progress
    from vtc.eval.runner import Runner

    batches = benchmark.batches(args.batch_size)
    folder = RunFolder.open(args.output, config) if (args.output / CONFIG).exists() else None
    if folder is not None and len(folder.batches) == len(batches):
        return folder
    runner = Runner(loaded(), settings, args.max_new_tokens, benchmark.kind)
    runner.check()
    folder = folder or RunFolder.open(args.output, config)
    done = len(folder.batches)
    if done:
        say(f"vtc eval: {done} of {len(batches)} batches are in {str(args.output)!r} already")
    peaks_known = any(record.get("peak_memory_bytes") for record in folder.batches)
    progress = Progress(len(batches), done)
    for index in range(done, len(batches)):
        questions = [benchmark.get(i) for i in batches[index]]
        peaks = runner.warm_up(questions) if index == done or not peaks_known else {}
        samples, record = runner.run(index, questions)
        if peaks and not peaks_known:
            record["peak_memory_bytes"] = peaks
            peaks_known = True
        folder.append(samples, record)
        progress.step(f"{len(settings)} settings")
    progress.close()
    return folder


def _report(folder: "RunFolder", settings: "list[Setting]") -> None:
    """Write results.json, results.md and the figures, and print the tables."""
    from vtc.eval import figure, frames_figure, report, results
    from vtc.eval.folder import write_atomically

    blind = _blind(folder.config)
    built = results.build(folder.config, settings, folder.samples(), folder.batches, blind)
    write_atomically(folder.path / "results.json", json.dumps(built, indent=2, ensure_ascii=False) + "\n")
    write_atomically(folder.path / "results.md", report.markdown(built))
    if built["settings"]:
        write_atomically(folder.path / "figure.png", figure.draw(built))
    frames = frames_figure.draw(built)
    if frames is not None:
        write_atomically(folder.path / "frames.png", frames)
    print(report.plain(built))
    written = "results.json, results.md, figure.png" + (", frames.png" if frames is not None else "")
    say(f"vtc eval: {written} and every answer are in {str(folder.path)!r}")
    if built["unreadable"]:
        say(f"vtc eval: {len(built['unreadable'])} files can't be read; see `error` in samples.jsonl")


def _blind(config: dict[str, Any]) -> dict[str, float] | None:
    """Accuracy of the bundled model shown a blank picture or clip, as measured when it was trained."""
    from vtc.eval.benchmarks import BUNDLED

    bundled = {package.__name__.rpartition(".")[2]: package for package in BUNDLED.values()}
    package = bundled.get(config["benchmark"].partition("/")[0])
    if config["model"] != EMBEDDED or package is None or not (file := package.path() / "gates.json").is_file():
        return None
    gates = json.loads(file.read_text())
    return {"overall": gates["overall"]["blind"]} | {name: row["blind"] for name, row in gates["groups"].items()}
