"""What models and modules return, by the role that each part plays."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from vtc.calls.roles import Key, Named, is_cache, real

_DECLARED = "_can_record_outputs"  # of a decoder, by the name of the output


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
    """Whether a value is hidden states: several tensors [B, L, D], None for those that nobody asked for."""
    return isinstance(value, tuple | list) and any(map(real(3), value)) and all(v is None or real(3)(v) for v in value)


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

    @property
    def records(self) -> dict[Key, tuple[Tensor | None, ...]]:
        """What it has of several layers, beside their states: attentions, router logits."""
        of_states = type(self).states.key_in(self)
        return {
            key: tuple(value)
            for key, value in self.values.items()
            if key != of_states and isinstance(value, tuple | list) and any(isinstance(each, Tensor) for each in value)
        }

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


def layers_recorded(decoder: nn.Module, layers: Sequence[nn.Module], name: str, count: int) -> list[int]:
    """The layer of each of `count` records that a decoder gives under a name, in the order in which they ran.

    Args:
        decoder: owns the layers.
        layers: of it.
        name: of the output, such as "attentions".
        count: how many there are.

    Raises:
        RuntimeError: it does not declare what it records, or declares another number.
    """
    if count == len(layers):
        return list(range(count))
    specs = (getattr(decoder, _DECLARED, None) or {}).get(name, ())
    targets = [_target(spec) for spec in (specs if isinstance(specs, list) else [specs] if specs else [])]
    found = [index for index, layer in enumerate(layers) for _ in _givers(layer, targets)]
    if len(found) != count:
        raise RuntimeError(
            f"vtc: {type(decoder).__name__} gives {count} {name}, and which of its {len(layers)} layers they are from "
            "is not known, while these see different tokens; leave them out, or unpatch the model for this call"
        )
    return found


def _target(spec: Any) -> tuple[Any, str | None]:
    """The class, or the end of the name, of the modules that a declaration speaks of."""
    if isinstance(spec, type):
        return spec, None
    if isinstance(spec, str):
        return None, spec
    return getattr(spec, "target_class", None), getattr(spec, "class_name", None)


def _givers(layer: nn.Module, targets: list[tuple[Any, str | None]]) -> Iterator[nn.Module]:
    for name, module in layer.named_modules():
        for cls, ending in targets:
            if (cls is not None and isinstance(module, cls)) or (ending is not None and name.endswith(ending)):
                yield module
