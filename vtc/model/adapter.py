"""Which adapter knows a model. Adapters are found by entry points, so that other packages can bring theirs."""

from importlib.metadata import entry_points
from typing import Any

from torch import nn

from vtc.calls.composite import MERGING, PLACEHOLDERS
from vtc.calls.prepare import PREPARE

#: `config.model_type` -> the adapter that names it; filled on first use.
_adapters: dict[str, Any] = {}


def adapter_class(model: nn.Module) -> Any:
    """The adapter of a model: one that claims it, else one that names its `config.model_type`, else the generic one.

    Adapters are found through the entry-point group `vtc.adapters`; each entry point loads to a subclass of
    `vtc.adapters.generic.Adapter` whose `families` lists the `model_type`s that it serves, and whose `claims` may know
    models by what they are. Wrappers (of data parallelism, compilers, adapters of weights, or a module of one's own)
    are looked through: the family is that of the vision-language model inside.
    """
    adapters = _found()
    claiming = (cls for cls in adapters.values() if cls.claims(model))
    return next(claiming, None) or adapters.get(family_of(model)) or adapters["*"]


def family_of(model: nn.Module) -> str:
    """The `config.model_type` of the vision-language model in `model`, that around it where nobody names its own.

    Without a config anywhere, the name of the class of `model`.
    """
    paths = dict(model.named_modules())
    show = [path for path, module in paths.items() if _shows(module)]
    around = {path.rsplit(".", levels)[0] for path in show for levels in range(path.count(".") + 1)}
    types = [_model_type(module) for path, module in paths.items() if path in around or not path]
    named = [each for each in types if each is not None]
    known = (each for each in named if each in _found())
    return next(known, None) or next(iter(named), type(model).__name__)


def _found() -> dict[str, Any]:
    """`config.model_type` -> the adapter that names it."""
    if not _adapters:
        for entry in entry_points(group="vtc.adapters"):
            cls = entry.load()
            _adapters.update(dict.fromkeys(cls.families, cls))
    return _adapters


def _model_type(module: nn.Module) -> str | None:
    found = getattr(getattr(module, "config", None), "model_type", None)
    return found if isinstance(found, str) else None


def _shows(module: nn.Module) -> bool:
    """Whether a module puts visual features into a sequence."""
    return any(hasattr(module, name) for name in (PLACEHOLDERS, MERGING, PREPARE))
