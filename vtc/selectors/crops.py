"""The crops of an image (thumbnail, tiles, video frames), for methods that decide in each crop by itself."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from vtc.method.budget import share_out
from vtc.method.reduction import Reduction
from vtc.method.visual_tokens import VisualTokens
from vtc.ops.host import on
from vtc.selectors.places import all_of

#: From values of all tokens [G, N, ...] to those of some crops that are alike [G · crops, n, ...].
OfCrops = Callable[[Tensor], Tensor]


def crop_tokens(visual: VisualTokens) -> list[Tensor]:
    """For each crop, LongTensor [n] on the CPU: its tokens, ascending; separators and what was cut off are left out."""
    if visual.crops is None:
        return [(~visual.separators).nonzero()[:, 0]]
    return [(visual.crops.index == crop).nonzero()[:, 0] for crop in range(visual.crops.count)]


def share_by(k: int, weights: list[int], sizes: list[int]) -> list[int]:
    """Split `k` in proportion to `weights`, exactly, no share above its size.

    What a full part leaves over goes to the others, in proportion to their weights (to their sizes where those are all
    zero). Fractions: largest remainder first, the earlier of two equal.

    Args:
        k: what is split, up to sum(sizes).
        weights: of each part, not negative.
        sizes: of each part.
    """
    shares, left = [0] * len(sizes), k
    room = [i for i, size in enumerate(sizes) if size]
    while room:
        weight = [weights[i] for i in room]
        if not any(weight):
            weight = [sizes[i] for i in room]
        full = [i for i, w in zip(room, weight, strict=True) if left * w >= sizes[i] * sum(weight)]
        if not full:
            for i, share in zip(room, share_out(left, weight), strict=True):
                shares[i] = share
            break
        for i in full:
            shares[i] = sizes[i]
        left -= sum(sizes[i] for i in full)
        room = [i for i in room if i not in full]
    return shares


def pick_in_crops(visual: VisualTokens, k: int, pick: Callable[[OfCrops, int], Tensor]) -> Reduction:
    """Keep `k` tokens, each crop's part of them chosen in the crop alone; parts go by the crops' tokens.

    Separators are no candidates; they fill up only where k asks for more tokens than the picture has.

    Args:
        visual: G images.
        k: tokens to keep.
        pick: called for crops that are alike, with the function that gives what is theirs of values of all tokens, and
            with the number of tokens to choose in each, at most n; gives LongTensor [G · crops, number].
    """
    images, device = len(visual.features), visual.features.device
    if (whole := all_of(visual, k)) is not None:
        return whole
    tokens = crop_tokens(visual)
    alike: dict[tuple[int, int], list[Tensor]] = {}
    for inside, part in zip(tokens, share_out(k, [len(inside) for inside in tokens]), strict=True):
        if part:
            alike.setdefault((len(inside), part), []).append(inside)
    kept = []
    for (_, part), crops in alike.items():
        index = on(device, torch.stack(crops))
        picks = pick(partial(_of_crops, index=index), part)
        kept.append(index.repeat(images, 1).gather(1, picks).view(images, -1))
    return Reduction.of(torch.cat(kept, dim=1))


def _of_crops(values: Tensor, index: Tensor) -> Tensor:
    """Of values [G, N, ...] those at `index` [crops, n], crop by crop: [G · crops, n, ...]."""
    return values[:, index].flatten(0, 1)
