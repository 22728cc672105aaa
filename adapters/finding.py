"""Parts of a model, by what they are."""

from torch import nn


def child(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    """The first of the child modules `names` that `layer` has, or None."""
    return next((layer._modules[name] for name in names if layer._modules.get(name) is not None), None)


def layers_of(decoder: nn.Module) -> tuple[nn.Module, ...]:
    """The decoder layers; none where `decoder.layers` is no list of modules."""
    layers = decoder.layers
    return tuple(layers) if isinstance(layers, nn.ModuleList) else ()


def longest_list(module: nn.Module) -> tuple[nn.Module, ...]:
    """The longest list of modules anywhere in `module`: a tower's blocks."""
    lists = [tuple(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=())


def has_cls(tower: nn.Module) -> bool:
    """Whether a vision tower has a CLS token."""
    names = ("class_embedding", "cls_token", "class_token", "cls_embedding")
    return any(getattr(part, name, None) is not None for part in tower.modules() for name in names)


def block_of_hidden_state(index: int, blocks: int) -> int:
    """Index (negative) of the block that produces `hidden_states[index]`: hidden state 0 is the embedding."""
    return index if index < 0 else index - 1 - blocks
