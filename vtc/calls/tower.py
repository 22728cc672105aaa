"""How a vision tower calls its blocks."""

from typing import Any

from torch import Tensor

from vtc.calls import words
from vtc.calls.roles import Call, Key, Role, real


class BlockCall(Call):
    """One call of a tower block."""

    hidden = Role("hidden_states", like=real(2, 3), words=words.HIDDEN, first=True)

    @classmethod
    def of(cls, hidden: Tensor, boundaries: Tensor | None) -> "BlockCall":
        """A call as a tower makes it."""
        return cls((hidden,), {} if boundaries is None else {"cu_seqlens": boundaries})

    @property
    def boundaries(self) -> Tensor | None:
        """LongTensor [sequences + 1]: where sequences packed into one row begin and end; None where none are."""
        return next((value for key, value in self.values.items() if self.bounds(key)), None)

    def bounds(self, key: Key) -> bool:
        """Whether an argument tells where packed sequences begin."""
        return is_boundaries(self.label(key))

    @property
    def others(self) -> dict[Key, Any]:
        """Every argument but the hidden state."""
        return self.without(BlockCall.hidden)

    def with_others(self, values: dict[Key, Any], hidden: Tensor) -> tuple[tuple, dict[str, Any]]:
        """The arguments, these rows and those that `others` gave in place of the old."""
        call = self.copy()
        call.values.update(values)
        call.hidden = hidden
        return call.given


def is_boundaries(name: str) -> bool:
    """Whether an argument of this name tells where packed sequences begin (`cu_seqlens`, `cu_seq_lens_q`)."""
    return name.startswith("cu_seq")
