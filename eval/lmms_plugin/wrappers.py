"""Subclasses of lmms-eval's wrappers, made when they are asked for: `chat__llava_hf` is that of its chat wrapper."""

import copy
import functools
import importlib
import inspect
import os
from typing import Any

from vtc import spec
from vtc.eval.lmms_plugin.meter import Meter
from vtc.eval.results.settings import fields_of
from vtc.method.base import Method


def __getattr__(name: str) -> type:
    """The subclass by `KIND__WRAPPER`; an error at the import of lmms-eval's own class comes through as it is."""
    kind, parted, wrapper = name.partition("__")
    if not parted or kind not in ("simple", "chat"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _subclass(kind, wrapper)


@functools.cache
def _subclass(kind: str, wrapper: str) -> type:
    from lmms_eval import models

    known = models.AVAILABLE_SIMPLE_MODELS if kind == "simple" else models.AVAILABLE_CHAT_TEMPLATE_MODELS
    named = known[wrapper]
    path = named if "." in named else f"lmms_eval.models.{kind}.{wrapper}.{named}"
    module, _, attribute = path.rpartition(".")
    return compressed(getattr(importlib.import_module(module), attribute))


def compressed(base: Any) -> Any:
    """A wrapper of lmms-eval that takes `compress=SPEC` among its arguments.

    Args:
        base: lmms-eval's class.
    """

    class Compressed(base):
        """The same; with `compress` its model is patched, and what its calls cost is logged."""

        def __init__(self, *args: Any, compress: Any = None, **kwargs: Any):
            methods = None if compress is None else _methods(str(compress), kwargs)
            super().__init__(*args, **_placed(base, kwargs))
            self._meter = None if methods is None else Meter(self.model, methods)

        def generate_until(self, requests: Any) -> Any:
            """As lmms-eval's; then the costs are logged.

            Raises:
                RuntimeError: all calls of the model failed, where the wrapper would have gone on with empty answers.
            """
            requests = [_apart(request) for request in requests]
            if self._meter is None:
                return super().generate_until(requests)
            with self._meter:
                return super().generate_until(requests)

        def clean(self) -> None:
            """As lmms-eval's, and gives the model back."""
            if self._meter is not None:
                self._meter.close()
                self._meter = None
            super().clean()

    Compressed.__name__ = Compressed.__qualname__ = base.__name__
    Compressed.__module__ = base.__module__
    return Compressed


def _apart(request: Any) -> Any:
    """A request whose generation arguments are its own.

    Wrappers write into them (llava_hf the sizes of pictures), and lmms-eval's cache makes its keys of them, before and
    after: it would never find what it stored.
    """
    made = copy.copy(request)
    made.arguments = tuple(dict(each) if isinstance(each, dict) else each for each in request.arguments)
    return made


def _placed(base: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments, without the empty `device_map` that some wrappers have by default and transformers 5 refuses.

    With several processes the wrapper itself puts a device there.
    """
    default = inspect.signature(base.__init__).parameters.get("device_map")
    if default is None or default.default != "" or int(os.environ.get("WORLD_SIZE", "1")) > 1:
        return kwargs
    return {"device_map": None, **kwargs}


def _methods(text: str, others: dict[str, Any]) -> list[Method]:
    """The methods of a spec as `--model_args` brings it: with the braces or quotes that keep its commas together.

    Raises:
        ValueError: it is no spec, or a part of it ended up outside.
    """
    inside = text.strip()
    while len(inside) > 1 and (inside[0], inside[-1]) in {("{", "}"), ("'", "'"), ('"', '"')}:
        inside = inside[1:-1].strip()
    try:
        methods = spec.parse(inside)
    except (TypeError, ValueError) as error:
        raise ValueError(f"compress={text!r}: {error}") from None
    fields = {name for method in methods for name in fields_of(method)}
    if outside := sorted(fields & set(others)):
        raise ValueError(
            f"{outside[0]}={others[outside[0]]!r} stands outside compress={text!r}: --model_args is split at commas; "
            f"put braces around a spec that has some, in quotes of the shell: 'compress={{{inside},{outside[0]}=…}}'"
        )
    return methods
