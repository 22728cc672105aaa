"""Cases of `vtc bench kernels`: what chooses tokens by what they cover or span, or clusters them."""

import torch

from vtc import ops
from vtc.eval.bench.kernels import loops as bench_loops
from vtc.eval.bench.kernels.case import Case, Draw, bytes_of
from vtc.ops import clusters


def facility_location(draw: Draw, tokens: int, k: int, dim: int, rank: int | None = None) -> Case:
    """A greedy cover of as many demands as tokens, from the matrix of what each has with each."""
    unit = torch.nn.functional.normalize(draw.tokens(tokens, dim, rank), dim=-1)
    values = unit @ unit.mT
    return Case(
        "facility_location",
        f"[{tokens}, {tokens}] k {k} {_kind(rank)}",
        lambda: ops.facility_location(values, k, tolerance=_tolerance(tokens)),
        (values, k, None, "product", _tolerance(tokens)),
        lambda: bench_loops.all_gains(values[0], k, _tolerance(tokens)),
        bytes_of(values) + 8 * k,
        2 * tokens * (tokens + k),  # the first gains, and of each pick its own
        steps=k,
    )


def coverage(draw: Draw, tokens: int, k: int, dim: int, rank: int | None = None) -> Case:
    """A greedy cover of an image by its own tokens."""
    features = draw.tokens(tokens, dim, rank)

    def composition() -> torch.Tensor:
        unit = torch.nn.functional.normalize(features[0].float(), dim=-1)
        return bench_loops.all_gains(unit @ unit.mT, k, _tolerance(tokens))

    return Case(
        "coverage",
        f"[{tokens}, {dim}] k {k} {_kind(rank)}",
        lambda: ops.coverage(features, k),
        (features, k, None, "product"),
        composition,
        bytes_of(features) + 8 * k,
        2 * k * tokens * dim,  # each pick's similarities; which tokens are worth a look comes on top
        steps=k,
    )


def dpp_map(draw: Draw, tokens: int, k: int, dim: int, rank: int | None = None) -> Case:
    """A greedy MAP of a determinantal point process of cosine similarities."""
    features = draw.tokens(tokens, dim, rank)
    return Case(
        "dpp_map",
        f"[{tokens}, {dim}] k {k} {_kind(rank)}",
        lambda: ops.dpp_map(features, k),
        (features, k, None, 1e-6),
        lambda: bench_loops.pivoted(features[0], k),
        bytes_of(features) + 8 * k,
        2 * k * tokens * dim,
        steps=k,
    )


def density_peaks(draw: Draw, groups: int, tokens: int, dim: int, count: int, neighbours: int) -> Case:
    """Clusters of tokens by density peaks."""
    x = draw.normal(groups, tokens, dim)
    number = torch.full((groups,), count, device=draw.device)
    near = torch.full_like(number, neighbours)

    def ours() -> list[torch.Tensor]:
        found = clusters.density_peaks(x, number, count, near)
        return [found.centres, found.member_of]

    return Case(
        "density_peaks",
        f"[{groups}, {tokens}, {dim}] into {count}",
        ours,
        (x, number, count, near, None),
        lambda: bench_loops.peaks(x, count, neighbours),
        bytes_of(x) + 8 * groups * (tokens + count),
        3 * groups * tokens * tokens * dim // 2,  # a difference, its square and a sum of each pair
    )


def _tolerance(tokens: int) -> float:
    return tokens * torch.finfo(torch.float32).eps


def _kind(rank: int | None) -> str:
    return "random" if rank is None else f"rank {rank}"
