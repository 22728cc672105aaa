"""How a vision tower calls its blocks."""

from typing import Any

from torch import Tensor

from vtc.calls.roles import Call, Role


class BlockCall(Call):
    """One call of a tower block."""

    hidden = Role("hidden_states", first=True)

    @classmethod
    def of(cls, hidden: Tensor, boundaries: Tensor | None) -> "BlockCall":
        """A call as a tower makes it."""
        return cls((hidden,), {} if boundaries is None else {"cu_seqlens": boundaries})

    @property
    def boundaries(self) -> Tensor | None:
        """LongTensor [sequences + 1]: where sequences packed into one row begin and end; None where none are."""
        return next((value for name, value in self.kwargs.items() if is_boundaries(name)), None)

    @property
    def others(self) -> dict[str, Any]:
        """Every argument but the hidden state, by name; those by position by their number."""
        numbered = {f"argument {index}": value for index, value in enumerate(self.args) if index}
        return numbered | self.without(type(self).hidden)

    def with_others(self, values: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """The arguments, those that `others` gave in place of the old."""
        args = [values[f"argument {index}"] if index else value for index, value in enumerate(self.args)]
        return tuple(args), {name: values.get(name, value) for name, value in self.kwargs.items()}


def is_boundaries(name: str) -> bool:
    """Whether an argument of this name tells where packed sequences begin (`cu_seqlens`, `cu_seq_lens_q`)."""
    return name.startswith("cu_seq")
