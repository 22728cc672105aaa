"""Trains the embedded model from nothing: what `vtc train-embedded` runs.

Stages (`stages.py`): "tower" and "decoder" need nothing of each other and run side by side with two processes;
then both are trained together. Every stage can be interrupted at any time and goes on from its last checkpoint.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from vtc.eval.embedded.codes import Codes
from vtc.eval.embedded.data import draw_batch, label_batch, pack_batch, pixel_batch
from vtc.eval.embedded.losses import Heads, answer_loss, code_loss, dense_loss, see
from vtc.eval.embedded.model import WIDTH, build_model, export, text_mark, visual_signs
from vtc.eval.embedded.tokenizer import build_tokenizer
from vtc.eval.train.embedded.stages import STAGES, EmbeddedStage
from vtc.eval.train.staged import StagedTraining, chosen, steps_of, trained_state

_LEARNED = {
    "tower": ("model.vision_tower", "model.multi_modal_projector", "heads."),
    "decoder": ("model.language_model.layers", "model.language_model.norm"),
    "model": ("model.", "heads."),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vtc train-embedded`."""
    parser.add_argument("--output", type=Path, required=True, help="folder of checkpoints, curve.jsonl and weights/")
    parser.add_argument("--processes", type=int, choices=(1, 2), default=2, help="CPU processes, one thread each")
    parser.add_argument("--device", default="cpu", help="cpu or cuda; cuda uses one process")
    parser.add_argument("--stages", default=",".join(s.name for s in STAGES), help="comma-separated stages to run")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's steps (0.01: a dry run)")


class Trainer(StagedTraining[EmbeddedStage]):
    """One stage on one process.

    Args:
        stage: What to do.
        output: Folder of checkpoints.
        device: Torch device.
        rank: This process.
        world: Number of processes that share the stage.
        steps: Optimizer steps in all.
    """

    def __init__(self, stage: EmbeddedStage, output: Path, device: str, rank: int, world: int, steps: int) -> None:
        model, self.world, self._parent = build_model(), world, os.getppid()
        heads = Heads(WIDTH)
        words = model.model.language_model.embed_tokens.weight - text_mark()
        self.codes = Codes(words, visual_signs(), build_tokenizer().get_vocab())
        self.codes.places = self.codes.places.to(device)
        self.codes.tables = {name: t.to(device) for name, t in self.codes.tables.items()}
        name = "vtc train-embedded"
        super().__init__(name, stage, output, model, heads, _LEARNED[stage.teaches], steps, device, rank)

    def batch(self):
        """Scenes of this step and process."""
        size = self.stage.batch // self.world
        first = self.step * self.stage.batch + self.rank * size
        crowded = self.stage.teaches == "tower"
        return draw_batch("train", 0, first, size, self.stage.name, crowded)

    def loss(self) -> tuple[torch.Tensor, dict]:
        """Loss of one batch, and what to log."""
        if os.getppid() != self._parent:
            raise SystemExit("the process that started this one is gone")
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

    def share_gradients(self) -> None:
        """Averages them over the processes."""
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


def _lane(rank: int, lanes: list[list[EmbeddedStage]], args: argparse.Namespace) -> None:
    """One process with stages of its own."""
    if args.device == "cpu":
        torch.set_num_threads(1)
    for stage in lanes[rank]:
        Trainer(stage, args.output, args.device, 0, 1, steps_of(stage, args.scale)).run()


def _share(rank: int, stage: EmbeddedStage, args: argparse.Namespace, port: int) -> None:
    """One of two processes that share a stage."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=args.processes)
    Trainer(stage, args.output, args.device, rank, args.processes, steps_of(stage, args.scale)).run()
    dist.destroy_process_group()


def _run(stages: list[EmbeddedStage], args: argparse.Namespace) -> None:
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


def main(args: argparse.Namespace) -> None:
    """Runs the stages that are asked for and not done yet, then writes the weights to `<output>/weights`.

    Those of the last stage, or, where that one teaches a part alone, of all that were named.

    Raises:
        InputError: A stage is unknown or the scale is not positive.
        FileNotFoundError: A stage starts from one that was never run in this folder.
    """
    known = {stage.name: stage for stage in STAGES}
    names = chosen(args, list(known))
    args.output.mkdir(parents=True, exist_ok=True)
    _run([known[name] for name in names], args)
    whole = known[names[-1]].teaches == "model"
    export(trained_state(build_model(), args.output, names[-1:] if whole else names), args.output / "weights")
    print(f"weights: {args.output / 'weights'}")
