"""The vision-language model inside of what somebody put around it: PEFT, DDP, torch.compile, any module."""

from collections.abc import Iterator
from typing import Any

from torch import nn

from vtc.model.adapter import adapter_class

_MODEL = "PreTrainedModel"  # told by name: to import transformers takes seconds


def adapter_in(module: nn.Module) -> Any:
    """The adapter of the vision-language model that `module` is or holds.

    What wraps a model passes its calls on, and lends it attributes; methods such as `generate` run on the model itself,
    so it is the model that has to be hooked.

    Raises:
        ValueError: there is none, or more than one.
    """
    found, refused = [], None
    for model in _models(module):
        try:
            found.append(adapter_class(model)(model))
        except ValueError as error:
            refused = refused or error
    if len(found) > 1:
        names = ", ".join(type(adapter.model).__name__ for adapter in found)
        raise ValueError(
            f"this {type(module).__name__} holds {len(found)} vision-language models ({names}); give one of them"
        )
    if found:
        return found[0]
    if refused is not None and is_model(module):
        raise refused
    return adapter_class(module)(module)  # a model of nobody's class


def is_model(module: nn.Module) -> bool:
    """Whether a module is a model of transformers."""
    return any(cls.__name__ == _MODEL for cls in type(module).__mro__)


def _models(module: nn.Module) -> Iterator[nn.Module]:
    """The models of transformers in `module` that are in no other one, itself first."""
    if is_model(module):
        yield module
        return
    seen: set[int] = set()
    for child in module.children():
        for model in _models(child):
            if id(model) not in seen:
                seen.add(id(model))
                yield model
