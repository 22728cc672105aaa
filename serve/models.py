"""The classes that the engine's registry names: `vtc.serve.models:VtcLlavaForConditionalGeneration`, and so on."""

from typing import Any

from vtc.serve.architectures import ARCHITECTURES, PREFIX, pruned


def __getattr__(name: str) -> Any:
    architecture = name.removeprefix(PREFIX)
    if name == architecture or architecture not in ARCHITECTURES:
        raise AttributeError(name)
    return pruned(architecture)
