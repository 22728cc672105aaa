"""Where a video is cut: between frames that are unlike each other as wholes."""

from itertools import pairwise

import torch
from torch import Tensor

from vtc.ops.similarity import as_float, unit_rows


def frame_means(features: Tensor) -> Tensor:
    """The mean token of each frame, [T, S, D] -> [T, D], in float32."""
    return torch.stack([as_float(frame).mean(dim=0) for frame in features])


def frame_similarity(frames: Tensor) -> Tensor:
    """Cosine of each frame's vector and the next one's, [T, D] -> [T-1]; 0 where one has no direction."""
    unit = unit_rows(frames)
    return (unit[1:] * unit[:-1]).sum(dim=1)


def cut(similarity: Tensor, least: int, threshold: float) -> list[tuple[int, int]]:
    """Cut wherever the similarity is below a threshold, and where it is lowest if that makes too few segments.

    Args:
        similarity: [T-1], of each frame with the next.
        least: segments that there are at least, as far as there are frames; of equal similarities the first is cut at.
        threshold: itself not included.

    Returns:
        First frame of each segment, and the frame behind its last.
    """
    cuts = similarity < threshold
    cuts[similarity.argsort(stable=True)[: least - 1]] = True
    return list(pairwise([0, *(cuts.nonzero()[:, 0] + 1).tolist(), len(similarity) + 1]))
