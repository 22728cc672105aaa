"""Models that are trained in stages, each from the weights of those before it: the embedded one and that of clips."""

from __future__ import annotations

import argparse
import json
import time
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

from vtc.eval.cli.errors import InputError
from vtc.eval.train.loop import Training, warm_then_linear
from vtc.eval.train.muon import MuonAdamW

LOG_STEPS = 20
WARMUP_STEPS = 50


@dataclass(frozen=True)
class Stage:
    """One stage of training, as data.

    Attributes:
        name: Also the checkpoint's name.
        starts_from: Stages whose weights this one continues.
        steps: Optimizer steps.
        batch: Pictures or clips per step, over all processes.
        muon_lr: Step size of hidden matrices.
        adam_lr: Step size of everything else.
        decay: Share of the steps, at the end, over which both fall linearly to zero.
        words: Weight of the loss on the questions' own words beside the answer loss.
        statements: Share of true statements ("the star is red") among the questions.
        visual: Visual tokens per picture or clip, one entry per step in turn.
    """

    name: str
    starts_from: tuple[str, ...]
    steps: int
    batch: int
    muon_lr: float
    adam_lr: float
    decay: float = 0.0
    words: float = 0.0
    statements: float = 0.0
    visual: tuple[int, ...] = ()


S = TypeVar("S", bound=Stage)


class StagedTraining(Training, Generic[S]):
    """One stage.

    Args:
        name: What lines on stderr begin with.
        stage: What to do.
        output: Folder of checkpoints and of `curve.jsonl`.
        model: As it is built; gets the weights of the stages before this one.
        heads: Read-outs that only training needs.
        learned: Beginnings of the names of what is learned, in the model and, as `heads.…`, in `heads`.
        steps: Optimizer steps in all.
        device: Torch device.
        rank: This process; only the first writes.

    Raises:
        FileNotFoundError: The stage starts from one that was never run in this folder.
    """

    # A checkpoint holds three times the weights.
    save_seconds = 120.0

    def __init__(
        self,
        name: str,
        stage: S,
        output: Path,
        model: Any,
        heads: Any,
        learned: tuple[str, ...],
        steps: int,
        device: str = "cpu",
        rank: int = 0,
    ) -> None:
        self.stage, self.output, self.model, self.heads, self.rank = stage, output, model, heads, rank
        self.checkpoint = output / f"{stage.name}.pt"
        if not self.checkpoint.exists():
            for earlier in stage.starts_from:
                self._take(earlier)
        self.model.to(device, torch.bfloat16).train()
        self.heads.to(device, torch.bfloat16)
        self.optimizer = MuonAdamW((n, p) for n, p in self._named() if n.startswith(learned))
        self.curve = Curve(output, stage.name)
        super().__init__(f"{name}, {stage.name}", steps, {"optimizer": self.optimizer}, device)
        self.device: str

    def _named(self) -> Iterator[tuple[str, nn.Parameter]]:
        yield from self.model.named_parameters()
        yield from ((f"heads.{name}", parameter) for name, parameter in self.heads.named_parameters())

    @torch.no_grad()
    def _take(self, earlier: str) -> None:
        """Goes on from the weights of an earlier stage."""
        file = self.output / f"{earlier}.pt"
        if not file.exists():
            raise FileNotFoundError(f"stage {self.stage.name!r} starts from {file}, which is not there")
        weights = _weights(file)
        for name, parameter in self._named():
            if name in weights:
                parameter.copy_(weights[name])

    def run(self) -> None:
        """Trains to the last step, with a line in `curve.jsonl` every few steps and regular checkpoints."""
        self.to_the_end(self.checkpoint, saves=not self.rank)

    @abstractmethod
    def loss(self) -> tuple[Tensor, dict[str, Any]]:
        """Loss of one batch, and what to log."""

    def share_gradients(self) -> None:
        """Makes them those of all processes' batches together; one process has nothing to share."""

    def learn(self) -> tuple[Tensor, dict[str, Any]]:
        """Does one step."""
        loss, report = self.loss()
        loss.backward()
        self.share_gradients()
        rate = warm_then_linear(self.step, self.steps, WARMUP_STEPS, self.stage.decay)
        self.optimizer.step(rate * self.stage.muon_lr, rate * self.stage.adam_lr)
        return loss, report

    def note(self, report: tuple[Tensor, dict[str, Any]]) -> None:
        """Adds the step to the curve, which is written every few steps."""
        if self.rank:
            return
        loss, values = report
        self.curve.add(loss.item(), values)
        if self.step % LOG_STEPS == 0 or self.step == self.steps:
            self.curve.write(self.step, self.steps)


class Curve:
    """Averages what the steps report and writes it to `curve.jsonl` and the screen."""

    def __init__(self, output: Path, stage: str) -> None:
        self.file, self.stage = output / "curve.jsonl", stage
        self._clear()

    def _clear(self) -> None:
        self.began = time.monotonic()
        self.losses: list[float] = []
        self.values: dict[str, list[float]] = defaultdict(list)
        self.right: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, loss: float, report: dict[str, Any]) -> None:
        """Adds one step: numbers are averaged, (right, asked) pairs summed."""
        self.losses.append(loss)
        for name, value in report.items():
            if isinstance(value, tuple):
                self.right[name] = [a + b for a, b in zip(self.right[name], value, strict=True)]
            else:
                self.values[name].append(value)

    def write(self, step: int, steps: int) -> None:
        """Writes the averages since the last call."""
        row = {"stage": self.stage, "step": step, "loss": round(sum(self.losses) / len(self.losses), 4)}
        row |= {name: round(sum(v) / len(v), 3) for name, v in self.values.items()}
        row |= {name: round(right / max(1, asked), 3) for name, (right, asked) in self.right.items()}
        seconds = (time.monotonic() - self.began) / len(self.losses)
        row |= {"seconds_per_step": round(seconds, 2), "time": time.strftime("%H:%M:%S")}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"[{self.stage} {step}/{steps}]", {k: v for k, v in row.items() if k not in ("stage", "step")}, flush=True
        )
        self._clear()


def chosen(args: argparse.Namespace, known: Sequence[str]) -> list[str]:
    """The names in --stages.

    Raises:
        InputError: A stage is unknown, or --scale is not positive.
    """
    names = args.stages.split(",")
    for name in names:
        if name not in known:
            raise InputError(f"stages={args.stages!r}: {name!r} is unknown; choose from {', '.join(known)}")
    if not args.scale > 0:
        raise InputError(f"scale={args.scale} must be above 0")
    return names


def steps_of(stage: Stage, scale: float) -> int:
    """Optimizer steps of a stage where --scale multiplies them."""
    return max(1, round(stage.steps * scale))


def trained_state(model: nn.Module, output: Path, stages: Iterable[str]) -> dict[str, Tensor]:
    """The state of a model as it is built, with what stages learned in place of what it had; later ones go first."""
    state = model.state_dict()
    for stage in stages:
        state.update({name: weight for name, weight in _weights(output / f"{stage}.pt").items() if name in state})
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    return state


def _weights(file: Path) -> dict[str, Tensor]:
    """The float32 weights of a checkpoint."""
    return torch.load(file, map_location="cpu", weights_only=True)["optimizer"]["master"]
