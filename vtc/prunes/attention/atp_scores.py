"""What ATP-LLaVA scores visual tokens by: attention received from visual tokens and text, and a grid of points."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method.base import resolve_layers
from vtc.method.prune import Memory, Prune, Rows, Watch
from vtc.model.layout import VisualInput
from vtc.ops.host import on
from vtc.prunes.transprune import instruction_attention

#: Decoder layers, from 0, in front of which the modules stand: behind layers 4, 14 and 24 of 32.
LAYERS, DEPTH = (5, 15, 25), 32


def queries_that_see(attention: Attention, present: Tensor, chunk: int = 256) -> Tensor:
    """How many of the `present` queries may attend to each new token, whatever the mask or window.

    Args:
        attention: q and k of a layer with n new tokens.
        present: Tensor [B, n], weight of each query: 1 or 0, or between.
        chunk: queries at a time.

    Returns:
        Tensor [B, n] in float32.
    """
    # With q and k zero, a row is uniform over the keys that its query may see, and 0 elsewhere.
    query, key = (torch.zeros_like(x[:, :1, :, :1]) for x in (attention.query, attention.key))
    blank, length = replace(attention, query=query, key=key, value=None), present.shape[1]
    total = torch.zeros(present.shape, device=present.device)
    for start in range(0, length, chunk):
        index = torch.arange(start, min(start + chunk, length), device=present.device)
        seen = blank.rows(index.expand(len(present), -1))[..., -length:] > 0
        total += (present[:, None, index].float() @ seen.float())[:, 0]
    return total


def attention_scores(attention: Attention, present: Tensor, instruction: Tensor) -> tuple[Tensor, Tensor]:
    """Mean attention that each new token receives from visual tokens and from the instruction (Eq. 3 and 4).

    Args:
        attention: q and k of the layer before the module, with n new tokens.
        present: Tensor [B, n], 1 at visual tokens, 0 elsewhere; between, where a token counts in part.
        instruction: BoolTensor [B, t], t <= n: which of the last t queries are the instruction.

    Returns:
        Two tensors [B, n] in float32: probabilities, mean over heads and queries. Of the visual queries those count
        that may see the token: under a causal mask early tokens are seen by more.
    """
    received = attention.received(present.float())[:, -present.shape[1] :]
    received = received / queries_that_see(attention, present).clamp_min(1e-6)
    return received.nan_to_num(0.0), instruction_attention(attention, instruction).nan_to_num(0.0)


class ATPModules(Prune):
    """What both forms of ATP do alike: where their modules stand, and what these see."""

    signals: ClassVar[tuple[str, ...]] = ("attention",)

    layers: tuple[int, ...] | None

    def schedule(self, num_layers: int) -> tuple[int, ...]:
        return resolve_layers(self.layers, LAYERS, DEPTH, num_layers)

    def watch(self, num_layers: int) -> Watch:
        return Watch(attention=tuple(layer - 1 for layer in self.schedule(num_layers)))

    def on_attention(self, rows: Rows, attention: Attention, memory: Memory) -> None:
        asked = rows.instruction & rows.visual.any(dim=1, keepdim=True)
        memory["self"], memory["cross"] = attention_scores(attention, rows.visual, asked[:, -rows.tail :])


def rescaled(values: Tensor, visual: Tensor) -> Tensor:
    """`values` [B, n] moved to [0, 1] over the `visual` tokens of each row; 0 where all are equal, and elsewhere."""
    low = values.masked_fill(~visual, torch.inf).amin(dim=1, keepdim=True)
    high = values.masked_fill(~visual, -torch.inf).amax(dim=1, keepdim=True)
    span = high - low
    return torch.where(visual & (span > 0), (values - low) / span.clamp_min(1e-30), 0.0)


# ---------------------------------------------------------------- the grid


def stride_for(cells: int, points: int) -> int:
    """Step of a square sampling that takes about `points` of so many cells of a picture."""
    return max(1, round(math.sqrt(cells / max(points, 1))))


def cells_of(images: Sequence[VisualInput], row: int) -> int:
    """Places in the pictures of a row of the batch; separators are none."""
    return sum(grid.t * grid.h * grid.w for image in images if image.row == row for grid in image.grids)


def grid_points(images: Sequence[VisualInput], origin: Tensor, strides: Sequence[int]) -> Tensor:
    """Tokens at every `stride`-th row and column of the grids of their picture, as it was before anything was removed.

    Args:
        images: of the call.
        origin: LongTensor [B, n], place of each token before anything was removed.
        strides: one for each row of the batch; 0 for no points.

    Returns:
        BoolTensor [B, n]; separators are never points.
    """
    length = 1 + max((int(image.positions[-1]) for image in images), default=0)
    points = torch.zeros(len(strides), length + 1, dtype=torch.bool)  # the last column is for what lies behind
    for image in images:
        step = strides[image.row]
        for grid in image.grids if step else ():
            points[image.row, image.positions[grid.tokens()[:, ::step, ::step].flatten()]] = True
    return on(origin.device, points).gather(1, origin.clamp(0, length))
