"""What tells that a model is patched: its seam, on the model, its composite and its decoder."""

from collections.abc import Callable
from typing import Any

from torch import nn

from vtc.model.parts import Parts

_WHOLE, _PART = "_vtc_seam", "_vtc_part"


def mark(model: nn.Module, parts: Parts, seam: Any) -> list[Callable[[], None]]:
    """Leave the seam on the modules of a patch; what is returned takes it away again."""
    return [_put(model, _WHOLE, seam), _put(parts.composite, _WHOLE, seam), _put(parts.decoder, _PART, seam)]


def _put(module: nn.Module, name: str, seam: Any) -> Callable[[], None]:
    module.__dict__[name] = seam  # its own, whatever a wrapper's __setattr__ and __getattr__ do
    return lambda: module.__dict__.pop(name, None)


def seam_in(module: nn.Module) -> Any:
    """The seam of the patched model that `module` is, holds, or is the composite of; None where there is none.

    Raises:
        ValueError: there are several.
    """
    found = {id(seam): seam for part in module.modules() if (seam := part.__dict__.get(_WHOLE)) is not None}
    if len(found) > 1:
        specs = ", ".join(seam.composition.spec for seam in found.values())
        raise ValueError(f"this {type(module).__name__} holds several patched models ({specs}); give one of them")
    return next(iter(found.values()), None)


def seam_on(decoder: nn.Module) -> Any:
    """The seam that has hooks on a decoder, whatever model it was patched in; None where there is none."""
    return decoder.__dict__.get(_PART)
