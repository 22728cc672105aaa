"""The crops of an image (thumbnail, tiles, video frames), for methods that decide in each crop by itself."""

from torch import Tensor

from vtc.method.budget import share_out
from vtc.method.visual_tokens import VisualTokens


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
