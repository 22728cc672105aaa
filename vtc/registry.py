"""Names of methods and of adapters."""

import difflib
import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import nn

    from vtc.adapters.generic import Adapter
    from vtc.method import Method

#: Name -> module that registers it; a new method adds one line here. Modules are imported on first use.
METHODS = {
    "none": "vtc.selectors.baselines",
    "random": "vtc.selectors.baselines",
    "stride": "vtc.selectors.baselines",
    "frame_stride": "vtc.selectors.baselines",
    "pool": "vtc.selectors.baselines",
    "divprune": "vtc.selectors.divprune",
    "evs": "vtc.selectors.evs",
    "hiprune": "vtc.selectors.hiprune",
    "kcenter": "vtc.selectors.kcenter",
    "recoverable": "vtc.selectors.recoverable",
    "tokencorr": "vtc.selectors.tokencorr",
    "visionzip": "vtc.selectors.visionzip",
    "atp": "vtc.prunes.atp",
    "atp_tf": "vtc.prunes.atp_tf",
    "fastv": "vtc.prunes.fastv",
    "holitom": "vtc.selectors.holitom",
    "holitom_inner": "vtc.prunes.holitom_inner",
    "lazyllm": "vtc.prunes.lazyllm",
    "pyramiddrop": "vtc.prunes.pyramiddrop",
    "sparsevlm": "vtc.prunes.sparsevlm",
    "spatten": "vtc.prunes.spatten",
    "todre": "vtc.prunes.todre",
    "todre_stage2": "vtc.prunes.todre_stage2",
    "token_skip": "vtc.prunes.token_skip",
    "transprune": "vtc.prunes.transprune",
    "utrc": "vtc.prunes.utrc",
    "diffrate": "vtc.reducers.diffrate",
    "flowcut": "vtc.reducers.flowcut",
    "token_transforming": "vtc.reducers.token_transforming",
    "tome": "vtc.reducers.tome",
    "zero_tprune": "vtc.reducers.zero_tprune",
}

_registered: dict[str, type["Method"]] = {}
_adapters: dict[str, type["Adapter"]] = {}

M = TypeVar("M", bound=type)


def register(name: str) -> Callable[[M], M]:
    """Class decorator that makes a method known under `name`, also outside this package.

    Raises:
        ValueError: another class has that name.
    """

    def decorate(cls: M) -> M:
        known = _registered.get(name)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise ValueError(f"method name {name!r} is taken by {known.__qualname__}; choose another name")
        cls.name = name  # type: ignore[attr-defined]
        _registered[name] = cls
        return cls

    return decorate


def list_methods(kind: str | None = None) -> list[str]:
    """Names of all methods, or of those of one `kind`: "selector", "prune" or "reducer".

    Raises:
        ValueError: no such kind.
    """
    kinds = ("selector", "prune", "reducer")
    if kind is not None and kind not in kinds:
        raise ValueError(f"kind={kind!r} is not one of {', '.join(kinds)}")
    names = sorted({*METHODS, *_registered})
    return names if kind is None else [name for name in names if method_class(name).kind == kind]


def method_class(name: str) -> type["Method"]:
    """The class registered as `name`.

    Raises:
        ValueError: unknown name; the message suggests near ones.
    """
    if name not in _registered and name in METHODS:
        importlib.import_module(METHODS[name])
    if name not in _registered:
        known = sorted({*METHODS, *_registered})
        near = difflib.get_close_matches(str(name), known, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
        raise ValueError(f"unknown method {name!r}; {hint}")
    return _registered[name]


def adapter_class(model: "nn.Module") -> type["Adapter"]:
    """The adapter of a model: one that claims it, else one that names its `config.model_type`, else the generic one.

    Adapters are found through the entry-point group `vtc.adapters`; each entry point loads to an Adapter subclass
    whose `families` lists the `model_type`s that it serves, and whose `claims` may know models by what they are.
    """
    if not _adapters:
        for entry in entry_points(group="vtc.adapters"):
            cls = entry.load()
            _adapters.update(dict.fromkeys(cls.families, cls))
    model_type = getattr(getattr(model, "config", None), "model_type", "*")
    claiming = (cls for cls in _adapters.values() if cls.claims(model))
    return next(claiming, None) or _adapters.get(model_type) or _adapters["*"]
