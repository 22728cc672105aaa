"""What a reducer did within a tower block, kept for when the block runs once more in backward."""

from torch import Tensor

from vtc.attention.scores import Attention
from vtc.tower.placement import Arrangement, Move


class Biased:
    """Hands what is added to the logits of a block's keys to its attention, which may be called for some at a time.

    Args:
        bias: Tensor [E, P]; None: nothing is.
    """

    def __init__(self, bias: Tensor | None):
        self.bias, self._offset = bias, 0

    def of(self, attention: Attention) -> Tensor | None:
        """What is added in the next call, Tensor [E, S]."""
        begin, self._offset = self._offset, self._offset + attention.key.shape[2]
        return None if self.bias is None else self.bias[:, begin : self._offset]


class BlockMemory:
    """What a run did within one block, to be done again in backward; it takes the place of the run there.

    Args:
        bias: added to the logits of its keys.
        arrangement: of its rows; None: they stayed.
    """

    def __init__(self, bias: Tensor | None = None, arrangement: Arrangement | None = None):
        self._biased, self._arrangement = Biased(bias), arrangement
        self.move: Move | None = None

    def hear(self, attention: Attention) -> Tensor | None:
        """As `TowerRun.hear`."""
        return self._biased.of(attention)

    def reduce(self, block: int, x: Tensor) -> Move | None:
        """As `TowerRun.reduce`."""
        return None if self._arrangement is None else self._arrangement.of(x)

    def leave(self, hidden: Tensor) -> Tensor:
        """The rows that the block gave, of its output."""
        if self.move is not None:  # decided between attention and MLP
            return self.move.take(hidden)
        move = self.reduce(-1, hidden)
        return hidden if move is None else move.rows
