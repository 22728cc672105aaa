"""What qwen_vl_utils reads of torchvision, for machines whose torch can't load it.

PyPI's torchvision is built against a CUDA torch: beside a CPU build of torch, `import torchvision` fails.
"""

import importlib.machinery
import sys
from enum import Enum
from types import ModuleType

import torch
from torch import Tensor

VERSION = "0.28.0"


class InterpolationMode(Enum):
    """The one that is asked for."""

    BICUBIC = "bicubic"


def resize(video: Tensor, size: list[int], interpolation: InterpolationMode, antialias: bool) -> Tensor:
    """Frames, uint8 [T, C, H, W], at another size, as `torchvision.transforms.functional.resize` makes them."""
    if list(video.shape[-2:]) == size:
        return video
    mode = interpolation.value
    made = torch.nn.functional.interpolate(video.float(), size, mode=mode, antialias=antialias, align_corners=False)
    return made.clamp(0, 255).round().to(video.dtype)


def install(monkeypatch) -> None:
    """Let `import torchvision` find this, until the test ends."""
    names = ("torchvision", "torchvision.io", "torchvision.transforms", "torchvision.transforms.functional")
    modules = {name: ModuleType(name) for name in names}
    for name, module in modules.items():
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(modules[parent], child, module)
        monkeypatch.setitem(sys.modules, name, module)
    modules["torchvision"].__version__ = VERSION
    modules["torchvision.transforms"].InterpolationMode = InterpolationMode
    modules["torchvision.transforms.functional"].resize = resize
