"""What models and modules return, by the role that each part plays."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from vtc.calls.roles import Key, Named, is_cache, real


class Field(Named):
    """An output of a model: the names that it goes by, and what it is. Reading gives None where it is not there.

    Args:
        *names: the names, the oldest release's first.
        like: tells values that can be it, the first of which is taken where no name is known.
    """

    def __init__(self, *names: str, like: Callable[[Any], bool] = lambda value: False):
        super().__init__(*names)
        self.like = like

    def key_in(self, output: "Output") -> Key | None:
        """Where the output has it; None where it has not."""
        values = output.values
        named = (name for name in self.names if values.get(name) is not None)
        return next(named, None) or next((key for key, value in values.items() if self.like(value)), None)

    def __get__(self, output: "Output | None", owner: type | None = None) -> Any:
        if output is None:
            return self
        key = self.key_in(output)
        return None if key is None else output.values[key]

    def __set__(self, output: "Output", value: Any) -> None:
        key = self.key_in(output)
        output.put(self.names[0] if key is None else key, value)


def are_states(value: Any) -> bool:
    """Whether a value is hidden states: several tensors [B, L, D]."""
    return isinstance(value, tuple | list) and len(value) > 0 and all(map(real(3), value))


class Output:
    """A model's output, an output class or a tuple, to be read and changed.

    Args:
        value: it. An output class is changed in place; of a tuple, `value` is another one behind a change.
    """

    last = Field("last_hidden_state", like=real(3))
    states = Field("hidden_states", like=are_states)
    cache = Field("past_key_values", "cache", like=is_cache)  # renamed by 5.24
    pooled = Field("pooler_output")

    def __init__(self, value: Any):
        self.value = value

    @property
    def values(self) -> dict[Key, Any]:
        """What it has, by name or place; of properties, which may be old names that warn, nothing is read."""
        if isinstance(self.value, Tensor):
            return {0: self.value}
        if isinstance(self.value, tuple | list):
            return dict(enumerate(self.value))
        fields = dict(self.value) if isinstance(self.value, Mapping) else {}
        return {**getattr(self.value, "__dict__", {}), **fields}

    def put(self, key: Key, value: Any) -> None:
        """Change what stands somewhere."""
        if isinstance(self.value, Tensor):
            self.value = value
        elif isinstance(self.value, tuple | list):
            self.value = type(self.value)({**self.values, key: value}.values())
        elif hasattr(self.value, "__setitem__"):
            self.value[key] = value
        else:
            setattr(self.value, str(key), value)


def tokens_of(output: Any) -> Any:
    """The visual tokens in what makes features, pooled or as the tower gives them (Fuyu); None where it is no output.

    A list or a tensor of features is that itself.
    """
    if isinstance(output, Tensor | tuple | list):
        return None
    made = Output(output)
    return made.last if made.pooled is None else made.pooled


def first_of(output: Any) -> Any:
    """A module's output, or the first of several: what a layer, block or attention makes of its input."""
    return output[0] if isinstance(output, tuple | list) else output


def with_first(output: Any, first: Any) -> Any:
    """An output of a module with another `first`."""
    return type(output)((first, *output[1:])) if isinstance(output, tuple | list) else first
