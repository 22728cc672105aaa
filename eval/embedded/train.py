"""Trains the embedded model from nothing: what `vtc train-embedded` runs.

Stages (`stages.py`): "tower" and "decoder" need nothing of each other and run side by side with two processes; then
both are trained together. Every stage can be interrupted at any time and goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from .codes import Codes
from .data import draw_batch, label_batch, pack_batch, pixel_batch
from .losses import Heads, answer_loss, code_loss, dense_loss, see
from .model import WIDTH, build_model, export, text_mark, visual_signs
from .optim import MuonAdamW
from .stages import STAGES, Stage
from .tokenizer import build_tokenizer

SAVE_SECONDS = 120
LOG_STEPS = 20
WARMUP_STEPS = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vtc train-embedded`."""
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints, curve.jsonl and weights/")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="CPU processes, one thread each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; cuda uses one process")
    parser.add_argument("--stages", default=",".join(s.name for s in STAGES), help="comma-separated stages to run")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's steps (0.01: a dry run)")


class Trainer:
    """One stage on one process.

    Args:
        stage: What to do.
        output: Folder of checkpoints.
        device: Torch device.
        rank: This process.
        world: Number of processes that share the stage.
        steps: Optimizer steps in all.
    """

    def __init__(self, stage: Stage, output: Path, device: str, rank: int, world: int, steps: int) -> None:
        self.stage, self.output, self.device, self.rank, self.world, self.steps = (
            stage,
            output,
            device,
            rank,
            world,
            steps,
        )
        self.model = build_model()
        self.heads = Heads(WIDTH)
        words = self.model.model.language_model.embed_tokens.weight - text_mark()
        self.codes = Codes(words, visual_signs(), build_tokenizer().get_vocab())
        self.codes.places = self.codes.places.to(device)
        self.codes.tables = {name: t.to(device) for name, t in self.codes.tables.items()}
        self._start()
        self.model.to(device, torch.bfloat16).train()  # type: ignore[arg-type]
        self.heads.to(device, torch.bfloat16)
        self.optimizer = MuonAdamW(self._trained())
        if self.step:
            self.optimizer.load_state_dict(self._load(stage.name)["optimizer"])

    def _trained(self) -> Iterator[tuple[str, torch.nn.Parameter]]:
        parts = {
            "tower": ("model.vision_tower", "model.multi_modal_projector"),
            "decoder": ("model.language_model.layers", "model.language_model.norm"),
            "model": ("model.",),
        }
        yield from ((n, p) for n, p in self.model.named_parameters() if n.startswith(parts[self.stage.teaches]))
        if self.stage.teaches != "decoder":
            yield from ((f"heads.{n}", p) for n, p in self.heads.named_parameters())

    def _file(self, name: str) -> Path:
        return self.output / f"{name}.pt"

    def _load(self, name: str) -> dict:
        return torch.load(self._file(name), map_location=self.device, weights_only=True)

    def _start(self) -> None:
        """Loads this stage's checkpoint, or the weights of the stages before it."""
        self.step = 0
        if self._file(self.stage.name).exists():
            self.step = self._load(self.stage.name)["step"]
            return
        for name in self.stage.starts_from:
            if not self._file(name).exists():
                raise FileNotFoundError(f"stage {self.stage.name!r} starts from {self._file(name)}, which is not there")
            weights = self._load(name)["optimizer"]["master"]
            for module, prefix in ((self.model, ""), (self.heads, "heads.")):
                own = {n: weights[prefix + n] for n, _ in module.named_parameters() if prefix + n in weights}
                module.load_state_dict(own, strict=False)

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        temporary = self._file(self.stage.name).with_suffix(".tmp")
        torch.save({"step": self.step, "optimizer": self.optimizer.state_dict()}, temporary)
        os.replace(temporary, self._file(self.stage.name))

    def batch(self):
        """Scenes of this step and process."""
        size = self.stage.batch // self.world
        first = self.step * self.stage.batch + self.rank * size
        crowded = self.stage.teaches == "tower"
        return draw_batch("train", 0, first, size, self.stage.name, crowded)

    def loss(self) -> tuple[torch.Tensor, dict]:
        """Loss of one batch, and what to log."""
        scenes = self.batch()
        labels = label_batch(scenes).to(self.device)
        if self.stage.teaches == "decoder":
            visual = self._from_codes(labels)
            return answer_loss(self.model, visual, self._questions(scenes), self.stage.words)
        pixels = pixel_batch(scenes).to(self.device, torch.bfloat16)
        features, visual, cls = see(self.model, pixels)
        if self.stage.teaches == "tower":
            loss, report = dense_loss(self.heads, features, cls, labels, pixels)
            code = code_loss(visual, self.codes, labels)
            return loss + 4 * code, {**report, "code": code.item()}
        loss, report = answer_loss(self.model, visual, self._questions(scenes), self.stage.words)
        if self.stage.dense:
            dense, labels_right = dense_loss(self.heads, features, cls, labels, pixels)
            loss, report = loss + self.stage.dense * dense, {**report, **labels_right}
        return loss, report

    def _questions(self, scenes):
        questions = pack_batch(scenes, self.stage.statements)
        return type(questions)(*(t.to(self.device) for t in vars(questions).values()))

    def _from_codes(self, labels: torch.Tensor) -> torch.Tensor:
        """Visual tokens as the tower should make them, with noise; some of the background may be left out."""
        generator = torch.Generator().manual_seed(self.step * self.world + self.rank)
        visual = self.codes(labels)
        count = self.stage.visual[self.step % len(self.stage.visual)]
        if count < visual.shape[1]:
            chance = torch.rand(labels.shape[:2], generator=generator).to(self.device) + (labels[..., 1] > 0)
            kept = chance.topk(count, dim=1).indices.sort(dim=1).values
            visual = visual.gather(1, kept[..., None].expand(-1, -1, WIDTH))
        return (visual + 0.2 * torch.randn(visual.shape, generator=generator).to(self.device)).bfloat16()

    def _learning_rate(self) -> float:
        warm = min(1.0, (self.step + 1) / WARMUP_STEPS)
        left = (self.steps - self.step) / max(1.0, self.stage.decay * self.steps)
        return warm * min(1.0, left) if self.stage.decay else warm

    def _share_gradients(self) -> None:
        if self.world == 1:
            return
        gradients = [p.grad for p in self.optimizer.named.values() if p.grad is not None]
        flat = torch.cat([g.float().flatten() for g in gradients])
        dist.all_reduce(flat)
        flat /= self.world
        start = 0
        for gradient in gradients:
            gradient.copy_(flat[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def run(self) -> None:
        """Trains to the last step, with a line in `curve.jsonl` every few steps and regular checkpoints."""
        log, saved, began = Curve(self.output, self.stage.name), time.time(), time.time()
        parent = os.getppid()
        while self.step < self.steps:
            if os.getppid() != parent:
                raise SystemExit("the process that started this one is gone")
            loss, report = self.loss()
            loss.backward()
            self._share_gradients()
            rate = self._learning_rate()
            self.optimizer.step(rate * self.stage.muon_lr, rate * self.stage.adam_lr)
            self.step += 1
            if self.rank:
                continue
            log.add(loss.item(), report)
            if self.step % LOG_STEPS == 0 or self.step == self.steps:
                log.write(self.step, self.steps, time.time() - began)
                began = time.time()
            if time.time() - saved > SAVE_SECONDS:
                self.save()
                saved = time.time()
        if not self.rank:
            self.save()


class Curve:
    """Averages what the steps report and writes it to `curve.jsonl` and the screen."""

    def __init__(self, output: Path, stage: str) -> None:
        self.file, self.stage = output / "curve.jsonl", stage
        self._clear()

    def _clear(self) -> None:
        self.losses: list[float] = []
        self.values: dict[str, list[float]] = defaultdict(list)
        self.right: dict[str, list[int]] = defaultdict(lambda: [0, 0])

    def add(self, loss: float, report: dict) -> None:
        """Adds one step: numbers are averaged, (right, asked) pairs summed."""
        self.losses.append(loss)
        for name, value in report.items():
            if isinstance(value, tuple):
                self.right[name] = [a + b for a, b in zip(self.right[name], value, strict=True)]
            else:
                self.values[name].append(value)

    def write(self, step: int, steps: int, seconds: float) -> None:
        """Writes the averages since the last call."""
        row = {"stage": self.stage, "step": step, "loss": round(sum(self.losses) / len(self.losses), 4)}
        row |= {name: round(sum(v) / len(v), 3) for name, v in self.values.items()}
        row |= {name: round(right / max(1, asked), 3) for name, (right, asked) in self.right.items()}
        row |= {"seconds_per_step": round(seconds / len(self.losses), 2), "time": time.strftime("%H:%M:%S")}
        with self.file.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(
            f"[{self.stage} {step}/{steps}]", {k: v for k, v in row.items() if k not in ("stage", "step")}, flush=True
        )
        self._clear()


def _steps(stage: Stage, args: argparse.Namespace) -> int:
    return max(1, round(stage.steps * args.scale))


def _lane(rank: int, lanes: list[list[Stage]], args: argparse.Namespace) -> None:
    """One process with stages of its own."""
    if args.device == "cpu":
        torch.set_num_threads(1)
    for stage in lanes[rank]:
        Trainer(stage, args.output, args.device, 0, 1, _steps(stage, args)).run()


def _share(rank: int, stage: Stage, args: argparse.Namespace, port: int) -> None:
    """One of two processes that share a stage."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=args.processes)
    Trainer(stage, args.output, args.device, rank, args.processes, _steps(stage, args)).run()
    dist.destroy_process_group()


def _run(stages: list[Stage], args: argparse.Namespace) -> None:
    """Runs stages in order; with two processes, those of the tower beside those of the decoder."""
    if args.processes == 1 or args.device != "cpu":
        _lane(0, [stages], args)
        return
    lanes = [[s for s in stages if s.teaches == part] for part in ("tower", "decoder")]
    if all(lanes):
        mp.spawn(_lane, (lanes, args), nprocs=2)
        stages = [s for s in stages if s.teaches == "model"]
    for stage in stages:
        mp.spawn(_share, (stage, args, 20000 + os.getpid() % 20000), nprocs=args.processes)


def export_checkpoint(output: Path, names: list[str], folder: Path) -> None:
    """Writes the weights of one checkpoint, or of a tower's and a decoder's together, as a `from_pretrained` folder."""
    state = build_model().state_dict()
    for name in names:
        saved = torch.load(output / f"{name}.pt", map_location="cpu", weights_only=True)["optimizer"]["master"]
        state.update({n: w for n, w in saved.items() if n in state})
    state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
    export(state, folder)


def main(args: argparse.Namespace) -> None:
    """Runs the stages that are asked for and not done yet, then writes the weights to `<output>/weights`.

    Raises:
        ValueError: A stage is unknown or the scale is not positive.
        FileNotFoundError: A stage starts from one that was never run in this folder.
    """
    known = {stage.name: stage for stage in STAGES}
    names = args.stages.split(",")
    for name in names:
        if name not in known:
            raise ValueError(f"stages={args.stages!r}: {name!r} is unknown; choose from {', '.join(known)}")
    if not args.scale > 0:
        raise ValueError(f"scale={args.scale} must be above 0")
    args.output.mkdir(parents=True, exist_ok=True)
    _run([known[name] for name in names], args)
    last = known[names[-1]]
    export_checkpoint(args.output, [last.name] if last.teaches == "model" else names, args.output / "weights")
    print(f"weights: {args.output / 'weights'}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    main(parser.parse_args())
