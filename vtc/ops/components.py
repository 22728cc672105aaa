"""Connected components of graphs: of tokens that are alike, and of pairs."""

import torch
from torch import Tensor

from vtc.ops.similarity import unit_rows

#: Pairs of tokens that are looked at together.
_PAIRS = 2**22


@torch.no_grad()
def alike(x: Tensor, tau: float) -> Tensor:
    """The components of tokens whose cosine is above `tau`, itself not included, in each of G groups, exactly.

    Connected is also what only a chain of tokens connects. A component is named by its key, the member with most edges,
    the first of equal ones. A token without direction (zero, NaN, Inf) is alone. Similarities are made block by block,
    each pair once; no matrix of all pairs is kept.

    Args:
        x: [G, n, D].
        tau: from 0 to 1; at 1 all are alone.

    Returns:
        LongTensor [G, n]: the key of the component of each token.
    """
    groups, tokens, _ = x.shape
    if tau >= 1:  # else rounding decided
        return torch.arange(tokens, device=x.device).repeat(groups, 1)
    if (some := max(_PAIRS // tokens**2, 1)) < groups:
        return torch.cat([alike(part, tau) for part in x.split(some)])
    unit = unit_rows(x)
    name = torch.arange(groups * tokens, device=x.device)
    edges = torch.zeros_like(name)
    rows = max(_PAIRS // (groups * tokens), 1)
    for start in range(0, tokens, rows):
        near = unit[:, start : start + rows] @ unit[:, : start + rows].transpose(1, 2) > tau
        group, row, column = near.tril(start - 1).nonzero(as_tuple=True)
        pair = group * tokens + start + row, group * tokens + column
        for side in pair:
            edges += torch.bincount(side, minlength=len(edges))
        name = _joined(name, *pair)
    place = torch.arange(groups * tokens, device=x.device)
    most = edges * tokens + tokens - 1 - place % tokens
    best = most.scatter_reduce(0, name, most, "amax")[name]
    return (tokens - 1 - best % tokens).view(groups, tokens)


@torch.no_grad()
def connected(first: Tensor, second: Tensor, tokens: int) -> Tensor:
    """The components of the graph with an edge between each of `first` and its `second`, both LongTensor [E].

    Returns:
        LongTensor [tokens]: the lowest member of each one's component.
    """
    return _joined(torch.arange(tokens, device=first.device), first, second)


def _joined(name: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Names, LongTensor [n] of tokens not above their own place, where pairs have the same, the lowest of both."""
    while len(first):
        lowest = name[first].minimum(name[second])
        lower = name.scatter_reduce(0, first, lowest, "amin").scatter_reduce(0, second, lowest, "amin")
        leads = torch.arange(len(name), device=name.device).scatter_reduce(0, name, lower, "amin")
        for _ in range(len(name).bit_length()):
            leads = leads[leads]
        new = leads[name]
        if torch.equal(new, name):
            break
        name = new
    return name
