"""Lets PyPI's torchvision be imported beside a CPU build of torch, for which it has no operators.

Python imports this at its start where the folder is on PYTHONPATH. The engine starts many processes that never need
torch, so that nothing is done until torchvision is asked for.
"""

import importlib.abc
import importlib.machinery
import sys


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        operators = torch.library.Library("torchvision", "FRAGMENT")
        schema = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        try:
            for operator in ("nms", "qnms"):
                operators.define(f"{operator}{schema}")
        except RuntimeError:
            pass  # they are there
        sys.modules["_torchvision_operators"] = operators
        return importlib.machinery.PathFinder.find_spec(name, path, target)


sys.meta_path.insert(0, _Finder())
