"""Lets PyPI's torchvision be imported beside a CPU build of torch, for which it has no operators.

Python imports this at its start where the folder is on PYTHONPATH.
"""

import sys

import torch

try:
    import torchvision  # noqa: F401
except RuntimeError:
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    operators = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):  # of those that it looks for
        operators.define(f"{name}() -> ()")
except ImportError:
    pass
