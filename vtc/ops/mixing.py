"""A sparse matrix that mixes old tokens into new ones."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixing:
    """A sparse matrix W of shape [k, N] per image, in coordinate form: new tokens = W · old tokens.

    Attributes:
        source: LongTensor [G, M]: old token (column of W), in 0…N-1.
        target: LongTensor [G, M]: new token (row of W), in 0…k-1.
        weight: Tensor [G, M]: the entry; rows of a plain average sum to 1.
    """

    source: Tensor
    target: Tensor
    weight: Tensor

    def check(self, name: str, new: int, old: int, what: str) -> None:
        """Check that no index is out of range; waits for the device.

        Args:
            name: whose mixing it is.
            new: k, rows of W.
            old: N, columns of W.
            what: what is mixed, in the singular.

        Raises:
            RuntimeError: an index is out of range.
        """
        for index, size in ((self.target, new), (self.source, old)):
            if index.min() < 0 or index.max() >= size:
                raise RuntimeError(f"{name}: the mixing names a {what} that is not there")


def main_target(mixing: Mixing, tokens: int) -> Tensor:
    """Where each old token mostly went: the new token that it has the largest weight in; of equal ones the first.

    Args:
        mixing: W, for G images.
        tokens: N, old tokens.

    Returns:
        LongTensor [G, N]; -1 for tokens that went nowhere.
    """
    weight = mixing.weight.float()
    largest = weight.new_full((len(weight), tokens), float("-inf"))
    largest.scatter_reduce_(1, mixing.source, weight, "amax")
    nowhere = mixing.target.new_full(largest.shape, torch.iinfo(torch.long).max)
    target = torch.where(weight == largest.gather(1, mixing.source), mixing.target, nowhere[:, :1])
    found = nowhere.scatter_reduce(1, mixing.source, target, "amin")
    return torch.where(found == nowhere, -1, found)
