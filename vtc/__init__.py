"""vtc: visual token compression for vision-language models, at run time, reversibly."""

from vtc.method import Needs, Prune, Reducer, Selector, VisualTokens
from vtc.patching import patch, patched, trace, unpatch
from vtc.reduction import Mixing, Reduction
from vtc.registry import list_methods, register
from vtc.selectors.baselines import NoCompression, Pool, Random, Stride
from vtc.selectors.divprune import DivPrune
from vtc.selectors.hiprune import HiPrune
from vtc.selectors.kcenter import KCenter
from vtc.prunes.fastv import FastV
from vtc.prunes.transprune import TransPrune
from vtc.trace import Trace

__version__ = "0.1.0"
__all__ = [
    "DivPrune", "FastV", "HiPrune", "KCenter", "Mixing", "Needs", "NoCompression", "Pool", "Prune", "Random", "Reducer",
    "Reduction", "Selector", "Stride", "Trace", "TransPrune", "VisualTokens", "list_methods", "patch", "patched",
    "register", "trace", "unpatch",
]  # fmt: skip
