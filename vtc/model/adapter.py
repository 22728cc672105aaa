"""Which adapter knows a model. Adapters are found by entry points, so that other packages can bring theirs."""

from importlib.metadata import entry_points
from typing import Any

from torch import nn

#: `config.model_type` -> the adapter that names it; filled on first use.
_adapters: dict[str, Any] = {}


def adapter_class(model: nn.Module) -> Any:
    """The adapter of a model: one that claims it, else one that names its `config.model_type`, else the generic one.

    Adapters are found through the entry-point group `vtc.adapters`; each entry point loads to a subclass of
    `vtc.adapters.generic.Adapter` whose `families` lists the `model_type`s that it serves, and whose `claims` may know
    models by what they are.
    """
    if not _adapters:
        for entry in entry_points(group="vtc.adapters"):
            cls = entry.load()
            _adapters.update(dict.fromkeys(cls.families, cls))
    model_type = getattr(getattr(model, "config", None), "model_type", "*")
    claiming = (cls for cls in _adapters.values() if cls.claims(model))
    return next(claiming, None) or _adapters.get(model_type) or _adapters["*"]
