"""`vtc train-compressed`: fine-tune the embedded model while it is compressed, and draw what that is worth.

For each method a copy of the model learns from questions of the training split with a method's tokens alone, all of its
weights or LoRA on the decoder, by `transformers.Trainer` or `trl.SFTTrainer`. The control learns from the same
questions in the same order with all tokens: what it gains is due to more training, not to compression. Held-out
questions are asked after some steps as `vtc eval` asks them; nothing is chosen by their answers.

The output folder gets `config.json`, `curve.json` (each answer, right or wrong), and, made of these alone, `curve.md`
and `curve.png`. Killed at any point, the same command goes on behind the last fine-tuning that is done.
"""

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vtc.eval.cli.arguments import EMBEDDED, keeps, names, not_negative, positive, say
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.importing import importing

if TYPE_CHECKING:
    from vtc.eval.results.folder import RunFolder
    from vtc.eval.results.settings import Setting
    from vtc.eval.train.compressed.runs import Plan

CURVE, TABLE, FIGURE = "curve.json", "curve.md", "curve.png"
TRAINERS = ("transformers", "trl")
#: What is trained -> the greatest learning rate. They were set beforehand; no other was tried.
RATES = {"full": 1e-4, "lora": 1e-3}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc train-compressed`."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the curve; resumes what is in it")
    parser.add_argument("--methods", type=names, default="divprune,diffrate", help="names separated by commas")
    parser.add_argument("--keep", type=keeps, default="0.25", help="the budget: a share (0.25) or a count (64)")
    parser.add_argument("--ways", type=_ways, default="full,lora", help="which weights learn: full, lora, or both")
    parser.add_argument(
        "--trainer", choices=TRAINERS, default=TRAINERS[0], help="whose Trainer; trl's needs vtc[train]"
    )
    parser.add_argument(
        "--points", type=_steps, default="25,50,100", help="steps behind which is asked; the last ends the training"
    )
    parser.add_argument("--batch", type=positive, default=8, help="questions in a step")
    parser.add_argument("--limit", type=positive, default=270, help="held-out questions")
    parser.add_argument("--split", choices=("test", "validation"), default="test", help="that is asked")
    for way, rate in RATES.items():
        parser.add_argument(f"--rate-{way}", type=float, default=rate, help=f"the greatest learning rate of {way}")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the questions' order and of LoRA's weights")
    parser.add_argument("--threads", type=positive, help="CPU threads (default: 1)")


def _ways(text: str) -> list[str]:
    found = text.split(",")
    if unknown := [each for each in found if each not in RATES]:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is unknown; choose from {', '.join(RATES)}")
    return found


def _steps(text: str) -> tuple[int, ...]:
    try:
        found = tuple(int(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or found[0] < 1 or list(found) != sorted(set(found)):
        raise argparse.ArgumentTypeError(f"{text!r} are no growing numbers of steps from 1 on; give e.g. 50,100,200")
    return found


def main(args: argparse.Namespace) -> None:
    """Fine-tune, or go on with what is done, and report.

    Raises:
        InputError: an argument can't be used.
    """
    if len(args.keep) > 1:
        raise InputError(f"argument --keep: {len(args.keep)} budgets were given, and one can be drawn; give one")
    with importing():
        from vtc.eval import models
        from vtc.eval.cli.machine import set_threads
        from vtc.eval.results.folder import RunFolder, write_atomically
        from vtc.eval.results.settings import make_settings
        from vtc.eval.tasks.benchmarks import bundled_task
        from vtc.eval.train.compressed import figure, results
        from vtc.eval.train.compressed.runs import Plan

    settings = make_settings(args.methods, args.keep)
    learned_on = bundled_task("image", args.points[-1] * args.batch, "train", args.seed)
    held_out = bundled_task("image", args.limit, args.split, 0)
    rates = {way: getattr(args, f"rate_{way}") for way in args.ways}
    plan = Plan(args.trainer, learned_on, held_out, args.points, args.batch, args.seed, rates)
    config = {
        "command": "train-compressed",
        "weights": models.weights_hash(EMBEDDED),
        "settings": [setting.name for setting in settings],
        "ways": args.ways,
        "trainer": args.trainer,
        "points": list(args.points),
        "batch": args.batch,
        "learned_on": learned_on.fingerprint,
        "held_out": held_out.fingerprint,
        "questions": held_out.size,
        "seed": args.seed,
        "rates": rates,
        "threads": set_threads(EMBEDDED, args.threads),
        "versions": models.versions() | _versions(args.trainer),
    }
    folder = RunFolder.open(args.output, config)
    try:
        curve = _curve(folder, plan, args.ways, settings)
        write_atomically(folder.path / TABLE, results.table(curve))
        write_atomically(folder.path / FIGURE, figure.draw(curve))
    finally:
        folder.close()
    print(results.table(curve))
    say(f"vtc train-compressed: {folder.path / TABLE}, {folder.path / FIGURE}")


def _versions(trainer: str) -> dict[str, str]:
    """Of what trains, beside what computes."""
    return {name: version(name) for name in ("accelerate", "peft", *(["trl"] if trainer == "trl" else []))}


def _curve(folder: "RunFolder", plan: "Plan", ways: list[str], settings: "list[Setting]") -> dict[str, Any]:
    """What came out of all fine-tunings; each is written when it is done."""
    from vtc.eval import models
    from vtc.eval.results.folder import write_json
    from vtc.eval.results.settings import NONE
    from vtc.eval.train.compressed.runs import fine_tuned, measured

    path = folder.path / CURVE
    curve: dict[str, Any] = {"config": folder.config, "untouched": {}, "runs": []}
    if path.exists():
        curve = json.loads(path.read_text())
    if not curve["untouched"]:
        curve["untouched"] = measured(models.load(EMBEDDED, "float32", "cpu", None), settings, plan.held_out)
        write_json(path, curve)
    wanted = [(setting, way) for way in ways for setting in settings]
    for number, (setting, way) in enumerate(wanted, 1):
        if any((run["trained"], run["way"]) == (setting.name, way) for run in curve["runs"]):
            continue
        asked = settings if setting.name == NONE else [settings[0], setting]
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            curve["runs"].append(fine_tuned(plan, way, setting, asked, Path(scratch)))
        write_json(path, curve)
        took = f"{time.monotonic() - began:.0f} s"
        say(f"vtc train-compressed: {number} of {len(wanted)}, {way} under {setting.name}: {took}")
    return curve
