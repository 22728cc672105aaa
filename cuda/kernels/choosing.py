"""Calls of the kernels that choose tokens by what they cover or span, or cluster them, for G images at once.

`call` runs a function of the compiled library by its name, on the device of the tensors.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from vtc.cuda.directions import inverse_lengths, products, unit_rows
from vtc.cuda.structs import TYPES, pointer

Call = Callable[..., None]

#: Bytes of shared memory that a block asks for at most.
SHARED = 96 * 1024
#: Up to so many tokens their similarities are computed; 1 GiB.
COVERED_TOKENS = 16384
#: Up to so many tokens of a group all distances are computed; 256 MiB.
CLUSTERED_TOKENS = 8192
#: Similarities that are kept at once, of so many images as fit.
_MATRIX_ENTRIES = 2**26
_WARPS = 8  # of a block, each of which takes a token at a time
_LAST = 2**31 - 1


def cover(
    call: Call, values: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float, stream: int
) -> Tensor:
    """Greedy cover of demands; arguments as `vtc.ops.facility_location`, values by token: [G, N, U]."""
    images, tokens, demands = values.shape
    behind = -demands % (16 // values.element_size())
    values = torch.nn.functional.pad(values, (0, behind)).contiguous() if behind else values.contiguous()
    stride = demands + behind
    bound = torch.full((images, tokens), torch.inf, dtype=torch.float32, device=values.device)
    weight = torch.ones_like(bound) if weight is None else clean(weight)
    covered = bound.new_zeros(2, images, stride)
    best = torch.zeros(images, k, dtype=torch.int64, device=values.device)
    work = (pointer(value) for value in (weight, covered, bound, best))
    sizes = images, tokens, stride, k, tolerance, combine == "sum", blocks(values, tokens)
    call("vtc_cover", pointer(values), TYPES[values.dtype], *work, *sizes, stream)
    return _LAST - (best & _LAST)


def cover_themselves(call: Call, features: Tensor, k: int, weight: Tensor | None, combine: str, stream: int) -> Tensor:
    """Greedy cover of tokens by their cosine similarities; arguments as `vtc.ops.coverage`."""
    images, tokens, _ = features.shape
    size = max(1, _MATRIX_ENTRIES // tokens**2)
    weights = [None] * -(-images // size) if weight is None else weight.split(size)
    tolerance = tokens * torch.finfo(torch.float32).eps
    made = []
    for some, w in zip(features.split(size), weights, strict=True):
        if some.dtype == torch.float32:
            unit, _ = unit_rows(some)
            pairs = products(unit, unit)
        else:
            inverse = inverse_lengths(some)
            lost = inverse == 0
            pairs = products(some, some).mul_(inverse[:, :, None]).mul_(inverse[:, None])
            pairs.masked_fill_(lost[:, :, None] | lost[:, None], 0.0)
        made.append(cover(call, pairs, k, w, combine, tolerance, stream))
    return torch.cat(made)


def span(call: Call, features: Tensor, k: int, quality: Tensor | None, floor: float, stream: int) -> Tensor:
    """Greedy maximum of a determinant; arguments as `vtc.ops.dpp_map`."""
    images, tokens, dim = features.shape
    features = features if features.stride(2) == 1 else features.contiguous()
    inverse = inverse_lengths(features)
    quality = torch.ones_like(inverse) if quality is None else clean(quality)
    left = (quality * quality).masked_fill_(inverse == 0, 0.0)
    least = floor * left.amax(dim=1)
    explained = torch.empty(images, tokens, k, dtype=torch.float32, device=features.device)
    best = torch.zeros(images, k, dtype=torch.int64, device=features.device)
    scale = quality * inverse
    work = (pointer(value) for value in (scale, quality, least, left, explained, best))
    sizes = images, tokens, dim, k, blocks(features, tokens)
    call("vtc_span", pointer(features), TYPES[features.dtype], *features.stride()[:2], *work, *sizes, stream)
    return _LAST - (best & _LAST)


def peaks(
    call: Call,
    x: Tensor,
    count: Tensor,
    most: int,
    neighbours: Tensor | None,
    valid: Tensor | None,
    ranked: bool,
    stream: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Density peaks; arguments as `vtc.ops.clusters.density_peaks`. The kernels of some groups after others."""
    groups, tokens, dim = x.shape
    x, most, count = x.contiguous(), min(most, tokens), count.long().contiguous()
    neighbours = count if neighbours is None else neighbours.long().contiguous()
    valid = None if valid is None else valid.contiguous()
    score, density = (torch.empty(groups, tokens, dtype=torch.float32, device=x.device) for _ in range(2))
    largest = torch.zeros(groups, dtype=torch.int64, device=x.device)
    centres = torch.empty(groups, most, dtype=torch.int64, device=x.device)
    member_of = torch.empty(groups, tokens, dtype=torch.int64, device=x.device)
    size = max(1, _MATRIX_ENTRIES // tokens**2)
    for start in range(0, groups, size):
        part = slice(start, start + size)
        some, there = x[part], None if valid is None else valid[part]
        apart = torch.empty(len(some), tokens, tokens, dtype=torch.float32, device=x.device)
        work = (pointer(v) for v in (there, neighbours[part], apart, density[part], largest[part], score[part]))
        call("vtc_peaks", pointer(some), TYPES[x.dtype], *work, len(some), tokens, dim, most, int(ranked), stream)
        centres[part] = score[part].argsort(dim=1, descending=True, stable=True)[:, :most]
        given = (pointer(v) for v in (apart, there, count[part], centres[part], member_of[part]))
        call("vtc_members", *given, len(some), tokens, most, stream)
    return score, centres, member_of


def clean(numbers: Tensor) -> Tensor:
    """In float32 and in one piece; NaN and Inf count as 0."""
    return numbers.float().nan_to_num(0.0, 0.0, 0.0).contiguous()


def blocks(tensor: Tensor, tokens: int) -> int:
    """Blocks for the tokens of one image."""
    processors = torch.cuda.get_device_properties(tensor.device).multi_processor_count if tensor.is_cuda else 1
    return min(-(-tokens // _WARPS), 4 * processors)
