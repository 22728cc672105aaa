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
    if (some := max(_PAIRS // tokens**2, 1)) < groups:
        return torch.cat([alike(part, tau) for part in x.split(some)])
    unit = unit_rows(x)
    name = torch.arange(tokens, device=x.device).repeat(groups, 1)
    edges = torch.zeros_like(name)
    rows = max(_PAIRS // (groups * tokens), 1)
    for start in range(0, tokens, rows):
        stop = min(start + rows, tokens)
        near = (unit[:, start:stop] @ unit[:, :stop].transpose(1, 2)).clamp(max=1) > tau
        near = near.tril(start - 1)
        edges[:, start:stop] += near.sum(dim=2)
        edges[:, :stop] += near.sum(dim=1)
        near.diagonal(start, 1, 2).fill_(True)
        name[:, :stop] = _joined(name[:, :stop], near)
    last = tokens - 1
    most = edges * tokens + last - torch.arange(tokens, device=x.device)
    return (last - most.scatter_reduce(1, name, most, "amax") % tokens).gather(1, name)


def _joined(name: Tensor, near: Tensor) -> Tensor:
    """The names, LongTensor [G, n], where the tokens that each row of `near` [G, r, n] is near have one, the lowest."""
    none = name.shape[1]
    while True:
        lowest = torch.where(near, name[:, None], none).amin(dim=2, keepdim=True)
        lowest = torch.where(near, lowest, none).amin(dim=1).minimum(name)
        new = renamed(name, lowest)
        if torch.equal(new, name):
            return name
        name = new


def renamed(name: Tensor, lower: Tensor) -> Tensor:
    """The names [G, n] once each, and all that it leads to, has given way to the lowest that a bearer of it was given.

    Args:
        name: LongTensor [G, n], in 0…n-1, not above its token.
        lower: LongTensor [G, n], what each token was given, not above its name.
    """
    leads = torch.arange(name.shape[1], device=name.device).expand_as(name).scatter_reduce(1, name, lower, "amin")
    for _ in range(name.shape[1].bit_length()):
        leads = leads.gather(1, leads)
    return leads.gather(1, name)


@torch.no_grad()
def connected(first: Tensor, second: Tensor, tokens: int) -> Tensor:
    """The components of the graph with an edge between each of `first` and its `second`, both LongTensor [E].

    Returns:
        LongTensor [tokens]: the lowest member of each one's component.
    """
    name = torch.arange(tokens, device=first.device)[None]
    while True:
        lowest = name[:, first].minimum(name[:, second])
        lower = name.scatter_reduce(1, first[None], lowest, "amin").scatter_reduce(1, second[None], lowest, "amin")
        new = renamed(name, lower)
        if torch.equal(new, name):
            return name[0]
        name = new
