"""`vtc train-diffrate`: learn how many patches each block of a LLaVA's tower keeps (DiffRate, arXiv 2305.17997).

Two counts for each block but the first, after pruning and after merging, are learned on the embedded benchmark's
training split, with the model's weights frozen:

    loss = cross-entropy of the answers' tokens + 100 · (FLOPs of the counts / FLOPs untouched - target)²

(the formula of the FLOPs, tower and decoder, is in `vtc.eval.train.diffrate.forward`). AdamW on the logits alone.

The output folder gets `config.json`, `checkpoint.pt` and, made at the end, `schedule.json`: the spec, counts and shares
for each block, FLOPs, the losses of every step, and held-out accuracy beside that of the default profile. Killed at any
point, the same command goes on from the last checkpoint, at most half a minute back.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vtc import DiffRate, spec
from vtc.eval import models
from vtc.eval.cli.arguments import EMBEDDED, positive, say
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.machine import set_threads
from vtc.eval.results.folder import RunFolder, write_json
from vtc.eval.tasks.benchmarks import bundled_task
from vtc.eval.tasks.task import Question
from vtc.eval.train.diffrate.forward import Rates, Schedule, SoftLlava, fixed_schedule, patches_kept
from vtc.eval.train.frozen import CHECKPOINT, HELD_OUT, FrozenTraining, ask, inputs_of, learn_in_folder

RESULT = "schedule.json"
GRANULARITY = 4  # patches from one candidate to the next, as published
#: The paper's 5 · (GFLOPs - target)² for a ViT of 4.6 GFLOPs, in shares.
WEIGHT = 100.0
#: From the first step to the last, along a cosine. Ten times the paper's, whose search has thousands of steps: with its
#: 0.01 a run of 100 steps towards 0.3 of the embedded model's FLOPs ended at 0.42.
RATES = (0.1, 0.01)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc train-diffrate`."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the schedule; resumes what is in it")
    parser.add_argument("--model", default=EMBEDDED, help="'embedded', or the folder of a LLaVA with a CLIP tower")
    parser.add_argument("--target", type=share, default=0.5, help="share of the untouched model's FLOPs to end at")
    parser.add_argument("--steps", type=positive, default=150, help="optimizer steps")
    parser.add_argument("--batch", type=positive, default=16, help="questions in a step")
    parser.add_argument("--resume", action="store_true", help="only go on with a run in --output, never begin one")


def share(text: str) -> float:
    """A number between 0 and 1."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not between 0 and 1; give a share of the FLOPs such as 0.5")
    return value


def main(args: argparse.Namespace) -> None:
    """Learn, or go on learning, and compare with the default profile.

    Raises:
        InputError: an argument can't be used.
    """
    config = {
        "command": "train-diffrate",
        "model": args.model,
        "weights": models.weights_hash(args.model),
        "target": args.target,
        "steps": args.steps,
        "batch": args.batch,
        "threads": set_threads(args.model, None),
        "versions": models.versions(),
    }

    def begin() -> Training:
        return Training(models.load(args.model, "float32", "cpu", None), args.target, args.steps, args.batch)

    learn_in_folder(args, config, begin)


class Training(FrozenTraining):
    """What is learned, and how far it is.

    Args:
        loaded: the model, in float32.
        target: share of the FLOPs.
        steps: in all.
        batch: questions in a step.

    Raises:
        InputError: a model that is no LLaVA with a CLIP tower, or a target out of reach.
    """

    def __init__(self, loaded: models.Loaded, target: float, steps: int, batch: int):
        try:
            self.soft = SoftLlava(loaded.model)
        except ValueError as error:
            raise InputError(f"argument --model: {error}") from None
        self.target, self.batch = target, batch
        self.questions = bundled_task("image", steps * batch, "train", 0)
        prompts = inputs_of(loaded, self._chosen(0))["attention_mask"]
        self.text = float(prompts.sum()) / batch - self.soft.patches  # tokens, mean
        patches, blocks = self.soft.patches, self.soft.blocks
        self.rates = Rates(blocks, patches, GRANULARITY)
        fewest = (patches, *[int(self.rates.counts[-1])] * (blocks - 1))
        least = float(self.soft.share(fixed_schedule(patches, fewest, fewest), self.text))
        if target <= least:
            raise InputError(
                f"argument --target: {target} is out of reach: the first block is never compressed, and with "
                f"{fewest[-1]} patches left in all others {least:.3f} of the FLOPs remain; give more than that"
            )
        optimizer = torch.optim.AdamW(self.rates.parameters(), lr=RATES[0], weight_decay=0.0)
        super().__init__("vtc train-diffrate", loaded, {"rates": self.rates}, optimizer, RATES, steps)

    # ---------------------------------------------------------------- learning

    def run(self, folder: RunFolder) -> None:
        """Do the steps that are left, write the schedule, compare it, and print what came out."""
        self.to_the_end(folder.path / CHECKPOINT)
        result = self._result() | {"config": folder.config}
        write_json(folder.path / RESULT, result)
        for name, text in self._compared(result):
            if all(row["name"] != name for row in self.rows):
                self.rows.append({"name": name, **self._measure(text)})
                self.save(folder.path / CHECKPOINT)
        result["comparison"] = {"split": "test", "questions": HELD_OUT, "rows": self.rows}
        write_json(folder.path / RESULT, result)
        print(_report(result))
        say(f"{self.name}: {RESULT} is in {str(folder.path)!r}")

    def gradients(self) -> dict[str, Any]:
        """Those of the answers and the FLOPs."""
        questions, schedule = self._chosen(self.step), self.rates()
        answers = self.soft.loss(self.inputs(questions), self.answers(questions), schedule)
        flops = self.soft.share(schedule, self.text)
        loss = answers + WEIGHT * (flops - self.target).square()
        loss.backward()
        return {"loss": loss, "answers": answers, "flops_share": flops}

    def _chosen(self, step: int) -> list[Question]:
        """The questions of a step."""
        return [self.questions.get(index) for index in range(step * self.batch, (step + 1) * self.batch)]

    def progress(self) -> str:
        """What is said at each checkpoint."""
        last, (_, left) = self.curve[-1], patches_kept(self.rates())
        flops = f"FLOPs {last['flops_share']:.3f} for {self.target}"
        return f"answers {last['answers']:.3f}, {flops}, patches left {left}"

    # ---------------------------------------------------------------- what came out

    def _result(self) -> dict[str, Any]:
        """What `schedule.json` holds, config and comparison apart."""
        prune, merge = patches_kept(self.rates())
        method, last = method_of(prune, merge, self.soft.patches), self.curve[-10:]
        return {
            "spec": spec.to_string([method]),
            "patches": self.soft.patches,
            "keep": method.keep,
            "prune": {"counts": prune, "shares": method.prune},
            "merge": {"counts": merge, "shares": method.merge},
            "target": self.target,
            "flops_share": self._share(fixed_schedule(self.soft.patches, prune, merge)),
            "text_tokens": self.text,
            "last_steps": {name: sum(row[name] for row in last) / len(last) for name in ("loss", "answers")},
            "curve": self.curve,
        }

    def _share(self, schedule: Schedule) -> float:
        return float(self.soft.share(schedule, self.text))

    def _compared(self, result: dict[str, Any]) -> list[tuple[str, str]]:
        """(name, spec) of what is measured: the default profile with equal `keep`, and with equal FLOPs, beside it."""
        off = [
            (abs(self._share(default_schedule(self.soft, keep)) - result["flops_share"]), keep)
            for keep in range(1, self.soft.patches + 1)
        ]
        return [
            ("learned", result["spec"]),
            ("default profile, same keep", f"diffrate:keep={result['keep']}"),
            ("default profile, same FLOPs", f"diffrate:keep={min(off)[1]}"),
            ("untouched", "none"),
        ]

    def _measure(self, text: str) -> dict[str, Any]:
        """Accuracy of a spec on held-out questions, and its share of the FLOPs as `vtc.trace` counts them."""

        def costs(trace: Any) -> tuple[float, float]:
            flops = trace.flops()
            return flops.total, flops.unpatched_total

        questions = bundled_task("image", HELD_OUT, "test", 0)
        accuracy, (flops, untouched) = ask(self.loaded, questions, text, costs)
        return {"spec": text, "accuracy": accuracy, "flops_share": flops / untouched}


def method_of(prune: Sequence[int], merge: Sequence[int], patches: int) -> DiffRate:
    """What keeps so many of `patches` in each block: shares with as few digits as give these counts."""
    first, second = (tuple(_as_share(count, patches) for count in counts) for counts in (prune, merge))
    return DiffRate(keep=second[-1], prune=first, merge=second)


def _as_share(count: int, patches: int) -> float:
    shares = (round(count / patches, digits) for digits in range(1, 17))
    return next(found for found in shares if round(found * patches) == count)


def default_schedule(soft: SoftLlava, keep: int) -> Schedule:
    """What DiffRate does with nothing but `keep`."""
    counts = [DiffRate(keep=keep).counts(stage, soft.blocks, soft.patches, keep) for stage in range(soft.blocks)]
    return fixed_schedule(soft.patches, *zip(*counts))


def _report(result: dict[str, Any]) -> str:
    """What is printed: the spec, and a line for each of the compared."""
    rows = result["comparison"]["rows"]
    width = max(len(row["name"]) for row in rows)
    lines = [
        f"patches left after pruning: {result['prune']['counts']}",
        f"patches left after merging: {result['merge']['counts']}",
        f"FLOPs: {result['flops_share']:.3f} of the untouched model's (target {result['target']})",
        f"spec: {result['spec']}",
        f"accuracy on {result['comparison']['questions']} held-out questions:",
    ]
    for row in rows:
        numbers = f"{row['accuracy']:6.1%}  FLOPs {row['flops_share']:.3f}"
        lines.append(f"  {row['name']:{width}}  {numbers}  {row['spec']}")
    return "\n".join(lines)
