"""Trains the clip model from the embedded one: what `vtc train-clips` runs.

The tower and the projector stay as they are, so what they make of each clip is computed once; then the decoder learns.
Everything can be interrupted at any time and goes on where it stopped.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vtc.eval.cli.errors import InputError
from vtc.eval.clips import data
from vtc.eval.clips.model import build_model, export, see
from vtc.eval.clips.render import CELLS, STATES
from vtc.eval.clips.sample import GROUPS
from vtc.eval.clips.scenes import FRAMES
from vtc.eval.embedded.data import Questions
from vtc.eval.embedded.losses import answer_loss
from vtc.eval.embedded.model import WIDTH
from vtc.eval.results.folder import write_atomically
from vtc.eval.train.clips.stages import CLIPS, LABEL_LAYER, STAGES, ClipsStage
from vtc.eval.train.staged import StagedTraining, chosen, steps_of, trained_state

TOKENS = FRAMES * CELLS**2
_AT_ONCE = 4  # clips


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options of `vtc train-clips`."""
    parser.add_argument("--output", type=Path, required=True, help="folder of features, checkpoints and weights/")
    parser.add_argument("--stages", default=",".join(["features", *(s.name for s in STAGES)]), help="what to run")
    parser.add_argument("--clips", type=int, default=CLIPS, help="clips whose features are computed")
    parser.add_argument("--scale", type=float, default=1.0, help="multiplies every stage's steps (0.01: a dry run)")


class Store:
    """Features of the training clips in one file, float16 [clips, 512, 192], filled from the front.

    Args:
        output: The training folder.
        clips: How many there shall be.
    """

    def __init__(self, output: Path, clips: int) -> None:
        self.file, self.done, self.clips = output / "features.f16", output / "features.done", clips
        if not self.file.exists():
            with self.file.open("wb") as file:
                file.truncate(clips * TOKENS * WIDTH * 2)
        self.values = np.memmap(self.file, np.float16, "r+", shape=(clips, TOKENS, WIDTH))

    def __len__(self) -> int:
        return min(int(self.done.read_text()), self.clips) if self.done.exists() else 0

    def fill(self) -> None:
        """Computes what is missing."""
        model = build_model().bfloat16().eval()
        began, first = time.time(), len(self)
        for start in range(first, self.clips, _AT_ONCE):
            clips = [data.clip(i) for i in range(start, min(start + _AT_ONCE, self.clips))]
            with torch.no_grad():
                seen = see(model, data.pixels(clips).bfloat16())
            self.values[start : start + len(clips)] = seen.half().numpy()
            write_atomically(self.done, str(start + len(clips)))
            if start % 200 == 0:
                print(f"[features {start}/{self.clips}] {time.time() - began:.0f} s", flush=True)

    def __getitem__(self, index: np.ndarray) -> Tensor:
        return torch.from_numpy(self.values[index])


class Trainer(StagedTraining[ClipsStage]):
    """One stage.

    Args:
        stage: What to do.
        output: Folder of checkpoints.
        store: Features.
        steps: Optimizer steps in all.
    """

    def __init__(self, stage: ClipsStage, output: Path, store: Store, steps: int) -> None:
        self.store, model = store, build_model()
        heads = nn.ModuleDict({"motion": nn.Linear(WIDTH, len(STATES)), "frame": nn.Linear(WIDTH, FRAMES)})
        learned = ("model.language_model.", "model.image_newline", "heads.")
        super().__init__("vtc train-clips", stage, output, model, heads, learned, steps)

    def loss(self) -> tuple[Tensor, dict]:
        """Loss of one batch, and what to log."""
        there = len(self.store) // self.stage.batch * self.stage.batch
        first = self.step * self.stage.batch
        index = np.arange(first, first + self.stage.batch) % there
        clips = [data.clip(int(i)) for i in index]
        visual, labels = self.store[index].bfloat16(), data.labels(clips)
        count = self.stage.visual[self.step % len(self.stage.visual)]
        if count < TOKENS:
            visual, labels = _thinned(visual, labels, count, self.step)
        questions = data.pack_batch(clips, first // there + 1000 * STAGES.index(self.stage), self.stage.statements)
        return clip_loss(self.model, self.heads, visual, labels, questions, self.stage)


def _thinned(visual: Tensor, labels: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """A random `count` of the visual tokens of each clip, in order; those that show a thing stay more often."""
    generator = torch.Generator().manual_seed(seed)
    chance = torch.rand(labels.shape[:2], generator=generator) + 0.5 * (labels[..., 0] > 0)
    kept = chance.topk(count, dim=1).indices.sort(dim=1).values[..., None]
    return visual.gather(1, kept.expand(-1, -1, WIDTH)), labels.gather(1, kept.expand(-1, -1, labels.shape[2]))


def clip_loss(model, heads: nn.ModuleDict, visual: Tensor, labels: Tensor, questions: Questions, stage: ClipsStage):
    """Cross-entropy of the answers, and beside it, where the stage asks for it, of words and of the tokens' labels.

    Args:
        model: The model; only its decoder is used.
        heads: Read-outs of what a token's thing does, and of its frame.
        visual: Visual tokens [B, N, D], without the newline.
        labels: int64 [B, N, 2], index into `STATES`, and frame.
        questions: Packed questions.
        stage: Gives the weights.

    Returns:
        The loss, and per group (questions answered entirely right, questions asked).
    """
    newline = model.model.image_newline.expand(len(visual), 1, -1)
    watch = {LABEL_LAYER: visual} if stage.labels else None
    loss, report = answer_loss(model, torch.cat((visual, newline), dim=1), questions, stage.words, GROUPS, watch)
    if watch is not None:
        dense, right_labels = _label_loss(heads, watch[LABEL_LAYER][:, :-1], labels)
        loss = loss + stage.labels * dense
        report |= right_labels
    return loss, report


def _label_loss(heads: nn.ModuleDict, hidden: Tensor, labels: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Cross-entropy of what tokens [B, N, D] know of their thing's motion and of their frame."""
    frame, thing = labels[..., 1], labels[..., 0] > 0
    said = heads["frame"](hidden).float()
    loss = cross_entropy(said.flatten(0, 1), frame.flatten())
    report = {"frame": (said.argmax(-1) == frame)[thing].float().mean().item()}
    later = frame >= 2  # nothing has moved far before
    said, wanted = heads["motion"](hidden[later]).float(), labels[..., 0][later]
    about = wanted > 0
    loss = loss + cross_entropy(said[about], wanted[about]) + 0.2 * cross_entropy(said[~about], wanted[~about])
    return loss, {**report, "motion": (said[about].argmax(-1) == wanted[about]).float().mean().item()}


def export_checkpoint(output: Path, name: str, folder: Path) -> None:
    """Writes the weights of one checkpoint as a `from_pretrained` folder."""
    export(trained_state(build_model(), output, [name]), folder)


def main(args: argparse.Namespace) -> None:
    """Runs the stages that are asked for and not done yet, then writes the weights to `<output>/weights`.

    Raises:
        InputError: A stage is unknown or a number is not positive.
        FileNotFoundError: A stage starts from one that was never run in this folder.
    """
    known = {stage.name: stage for stage in STAGES}
    names = chosen(args, ["features", *known])
    if not args.clips > 0:
        raise InputError(f"clips={args.clips} must be above 0")
    args.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    store = Store(args.output, args.clips)
    if "features" in names:
        store.fill()
    for name in names:
        if name in known:
            Trainer(known[name], args.output, store, steps_of(known[name], args.scale)).run()
    if names[-1] in known:
        export_checkpoint(args.output, names[-1], args.output / "weights")
        print(f"weights: {args.output / 'weights'}")
