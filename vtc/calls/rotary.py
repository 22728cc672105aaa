"""How a decoder calls the rotary embeddings that its layers share."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from vtc.calls.composite import is_real
from vtc.calls.roles import parameters


@dataclass(frozen=True)
class RotaryCall:
    """One call of a rotary embedding.

    Attributes:
        module: the embedding.
        args, kwargs: of the call.
        output: what it returned, a table or a tuple of tables.
    """

    module: nn.Module
    args: tuple
    kwargs: dict[str, Any]
    output: Any

    @property
    def told(self) -> Tensor | None:
        """The positions [.., B, n] that it was called with; None where it was called with none."""
        given = dict(zip(parameters(self.module), self.args)) | self.kwargs
        found = (value for value in (*self.args, *given.values()) if isinstance(value, Tensor) and not is_real(value))
        return next(found, given.get("position_ids"))  # Qwen3-Omni counts in real numbers

    @property
    def positions(self) -> Tensor:
        """The same, of a call that was told some."""
        assert self.told is not None
        return self.told

    @property
    def tables(self) -> tuple:
        """What it returned, as a tuple."""
        return _tuple(self.output)

    def made(self, table: Tensor) -> bool:
        """Whether a tensor is one of its tables."""
        return any(own is table for own in self.tables)

    def again(self, positions: Tensor) -> tuple:
        """The tables for other positions."""
        old = self.positions
        args = (positions if value is old else value for value in self.args)
        kwargs = {name: positions if value is old else value for name, value in self.kwargs.items()}
        return _tuple(self.module.forward(*args, **kwargs))


def _tuple(output: Any) -> tuple:
    return output if isinstance(output, tuple) else (output,)
