"""vtc: visual token compression for vision-language models, at run time, reversibly.

The public names stand in `__init__.pyi` beside this file. Each is imported when it is first asked for, so that
`vtc --help` and `import vtc` wait for nothing.
"""

from importlib import import_module
from typing import Any

from vtc.method.registry import HOMES

__all__ = sorted(HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for; the version is that of what is installed."""
    if name == "__version__":
        return import_module("importlib.metadata").version(__name__)
    if name not in HOMES:
        raise AttributeError(f"module 'vtc' has no attribute {name!r}")
    value = getattr(import_module(HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), "__version__", *__all__})
