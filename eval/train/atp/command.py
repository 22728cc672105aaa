"""`vtc train-atp`: learn the thresholds of ATP-LLaVA's three modules for a LLaVA (arXiv 2412.00447), the model frozen.

Each step has a share of the visual tokens that shall stay, between 0.03 and 0.9, so that the thresholds learn to follow
it. With kept_m the share behind module m, which stands in front of layer l_m of L, means over the batch:

    loss = cross-entropy of the answers' tokens + 0.05 · Σ_m kept_m · 32 l_m / L + 5 · |log(mean_m kept_m / share)|

The weight by layer makes deep modules keep less. The last term stands for the paper's 0.2 · |tokens kept - 144|: shares
of every size count alike; within 0.1 of the target it is quadratic, so that there the answers decide. Their gradient is
clipped to norm 1: a token that is gone and much wanted can give it any size. Adam on 24 numbers; see
`vtc.eval.train.atp.forward` for the masks.

The output folder gets `config.json`, `checkpoint.pt`, `thresholds.json`, which `atp:weights=FILE` takes, and, made at
the end, `comparison.json`: held-out accuracy and measured equivalent tokens at several budgets, beside those of methods
without training at equal equivalent tokens. Killed at any point, the same command goes on from the last checkpoint.
"""

import argparse
import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import smooth_l1_loss

from vtc.eval import models
from vtc.eval.cli.arguments import EMBEDDED, not_negative, positive, say
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.machine import set_threads
from vtc.eval.results.folder import RunFolder, write_atomically, write_json
from vtc.eval.tasks.benchmarks import bundled_task
from vtc.eval.tasks.task import Question, Task
from vtc.eval.train.atp import compared
from vtc.eval.train.atp.forward import SoftATP, Thresholds
from vtc.eval.train.frozen import CHECKPOINT, HELD_OUT, FrozenTraining, learn_in_folder
from vtc.eval.train.instructions import instructions
from vtc.prunes.attention.atp import to_json

WEIGHTS, COMPARISON = "thresholds.json", "comparison.json"
SHARES = (0.03, 0.9)
DEPTH_WEIGHT, SHARE_WEIGHT, NEAR, CLIP = 0.05, 5.0, 0.1, 1.0
#: From the first step to the last, along a cosine.
RATES = (0.2, 0.01)
_GOLDEN = (math.sqrt(5) - 1) / 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of `vtc train-atp`."""
    parser.add_argument("--output", type=Path, required=True, help="folder for the thresholds; resumes what is in it")
    parser.add_argument("--model", default=EMBEDDED, help="'embedded', or the folder of a LLaVA")
    parser.add_argument(
        "--images",
        type=Path,
        help="JSON or JSONL of instructions in LLaVA's form, pictures beside it; a tenth is held out (default: the "
        "embedded benchmark's training split)",
    )
    parser.add_argument("--steps", type=positive, default=120, help="optimizer steps")
    parser.add_argument("--batch", type=positive, default=8, help="questions in a step")
    parser.add_argument("--seed", type=not_negative, default=0, help="of the questions' order and the shares")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--resume", action="store_true", help="only go on with a run in --output, never begin one")


def main(args: argparse.Namespace) -> None:
    """Learn, or go on learning, and compare.

    Raises:
        InputError: an argument can't be used.
    """
    learned_on, held_out = questions_of(args.images, args.steps * args.batch, args.seed)
    config = {
        "command": "train-atp",
        "model": args.model,
        "weights": models.weights_hash(args.model),
        "questions": learned_on.fingerprint,
        "steps": args.steps,
        "batch": args.batch,
        "seed": args.seed,
        "device": args.device,
        "threads": set_threads(args.model, None),
        "versions": models.versions(),
    }

    def begin() -> Training:
        loaded = models.load(args.model, "float32", args.device, None)
        return Training(loaded, learned_on, held_out, args.steps, args.batch, args.seed)

    learn_in_folder(args, config, begin)


def questions_of(images: Path | None, wanted: int, seed: int) -> tuple[Task, Task]:
    """What is learned on and what is held out.

    Args:
        images: file of instructions; None: the embedded benchmark.
        wanted: how many are learned on, of the embedded benchmark.
        seed: of the embedded benchmark's questions.

    Raises:
        InputError: the file can't be used.
    """
    if images is None:
        return bundled_task("image", wanted, "train", seed), bundled_task("image", HELD_OUT, "test", 0)
    every = instructions(images)
    rest = every.size - max(1, min(HELD_OUT, every.size // 10))
    return (
        dataclasses.replace(every, size=rest),
        dataclasses.replace(every, size=every.size - rest, get=lambda index: every.get(rest + index)),
    )


class Training(FrozenTraining):
    """What is learned, and how far it is.

    Args:
        loaded: the model, in float32.
        questions: to learn on; begun anew, in another order, when they are through.
        held_out: to compare on.
        steps: in all.
        batch: questions in a step.
        seed: of order and shares.

    Raises:
        InputError: a model that is no LLaVA.
    """

    def __init__(self, loaded: models.Loaded, questions: Task, held_out: Task, steps: int, batch: int, seed: int):
        try:
            self.soft = SoftATP(loaded.model)
        except ValueError as error:
            raise InputError(f"argument --model: {error}") from None
        self.questions, self.held_out, self.batch, self.seed = questions, held_out, batch, seed
        self.learned = Thresholds().to(loaded.model.device)
        optimizer = torch.optim.Adam(self.learned.parameters(), lr=RATES[0])
        super().__init__("vtc train-atp", loaded, {"learned": self.learned}, optimizer, RATES, steps)

    def run(self, folder: RunFolder) -> None:
        """Do the steps that are left, write the thresholds, compare them, and print what came out."""
        checkpoint = folder.path / CHECKPOINT
        self.to_the_end(checkpoint)
        write_atomically(folder.path / WEIGHTS, self.thresholds(folder.config))
        comparison = compared.Comparison(self.loaded, self.held_out, self.questions, str(folder.path / WEIGHTS))
        for row in comparison.rows(self.rows):
            self.rows.append(row)
            self.save(checkpoint)
            say(f"{self.name}: {compared.line(row)}")
        size = self.held_out.size
        result = {"config": folder.config, "held_out": size, "rows": self.rows, "curve": self.curve}
        write_json(folder.path / COMPARISON, result)
        print(f"held-out questions: {size}")
        for row in self.rows:
            print(compared.line(row))
        print(f"spec: atp:weights={folder.path / WEIGHTS}")

    def gradients(self) -> dict[str, Any]:
        """That of the answers, clipped, and that of the budget."""
        questions, share = self.chosen(self.step), self.share(self.step)
        answers = self.answers(questions)
        wanted = torch.full((len(questions),), share, device=answers.device)
        answered, kept = self.soft.loss(self.inputs(questions), answers, wanted, self.learned.weights)
        means = torch.stack([each.mean() for each in kept])
        deep = 32 / self.soft.depth * sum(mean * layer for mean, layer in zip(means, self.soft.schedule))
        off = (means.mean().clamp_min(1e-4) / share).log()
        budget = DEPTH_WEIGHT * deep + SHARE_WEIGHT * smooth_l1_loss(off, torch.zeros_like(off), beta=NEAR)
        weights = self.learned.weights
        (gain,) = torch.autograd.grad(answered, weights, retain_graph=True)
        (weights.grad,) = torch.autograd.grad(budget, weights)
        weights.grad += gain * (CLIP / gain.norm().clamp_min(CLIP))
        numbers = {"share": share, "loss": answered + budget, "answers": answered, "gradient": gain.norm()}
        return numbers | {"kept": means.mean()} | {f"kept_{index}": mean for index, mean in enumerate(means)}

    def share(self, step: int) -> float:
        """The share that shall stay in a step: spread evenly over its logarithm, in an order that the seed begins."""
        place = math.modf((step + 1) * _GOLDEN + self.seed * math.sqrt(2))[0]
        low, high = map(math.log, SHARES)
        return math.exp(low + (high - low) * place)

    def chosen(self, step: int) -> list[Question]:
        """The questions of a step."""
        found = []
        for place in range(step * self.batch, (step + 1) * self.batch):
            epoch, index = divmod(place, self.questions.size)
            if epoch != getattr(self, "_epoch", None):
                generator = torch.Generator().manual_seed(self.seed + 1_000_003 * epoch)
                self._epoch, self._order = epoch, torch.randperm(self.questions.size, generator=generator).tolist()
            found.append(self.questions.get(self._order[index]))
        return found

    def progress(self) -> str:
        """What is said at each checkpoint."""
        last = self.curve[-1]
        return f"answers {last['answers']:.3f}, kept {last['kept']:.3f} for {last['share']:.3f}"

    def thresholds(self, config: dict[str, Any]) -> str:
        """What the weights file holds: a card, and the weights of each module."""
        last = self.curve[-len(self.curve) // 4 :]
        card = {
            "method": "ATP-LLaVA's thresholds, language model frozen (arXiv 2412.00447)",
            "trained_by": config,
            "inputs": ["mean of S_self", "mean of S_cross", "log(share that shall be left / 0.25)", "1"],
            "last_quarter": {
                "answers": round(sum(row["answers"] for row in last) / len(last), 4),
                "off_target": round(sum(abs(math.log(row["kept"] / row["share"])) for row in last) / len(last), 4),
            },
        }
        rounded = [
            {head: [round(number, 6) for number in numbers] for head, numbers in module.items()}
            for module in to_json(self.learned.weights.detach().cpu())
        ]
        return json.dumps({"card": card, "modules": rounded}, indent=1) + "\n"
