"""vtc: visual token compression for vision-language models, at run time, reversibly."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vtc.calibrating import calibrate
    from vtc.method import Decision, Prune, Reducer, Rows, Selector, Watch
    from vtc.patching import patch, patched, trace, unpatch
    from vtc.planning import Plan, plan
    from vtc.presets import preset
    from vtc.prunes.atp import ATP
    from vtc.prunes.atp_tf import ATPTrainingFree
    from vtc.prunes.fastv import FastV
    from vtc.prunes.holitom_inner import HoliTomInner
    from vtc.prunes.lazyllm import LazyLLM
    from vtc.prunes.pyramiddrop import PyramidDrop
    from vtc.prunes.sparsevlm import SparseVLM
    from vtc.prunes.spatten import SpAtten
    from vtc.prunes.todre import Todre
    from vtc.prunes.todre_stage2 import TodreStage2
    from vtc.prunes.token_skip import TokenSkip
    from vtc.prunes.transprune import TransPrune
    from vtc.prunes.utrc import UTRC
    from vtc.reducers.diffrate import DiffRate
    from vtc.reducers.flowcut import FlowCut
    from vtc.reducers.token_transforming import TokenTransforming
    from vtc.reducers.tome import ToMe
    from vtc.reducers.zero_tprune import ZeroTPrune
    from vtc.reduction import Mixing, Reduction
    from vtc.registry import list_methods, register
    from vtc.selectors.baselines import FrameStride, NoCompression, Pool, Random, Stride
    from vtc.selectors.divprune import DivPrune
    from vtc.selectors.evs import EVS
    from vtc.selectors.hiprune import HiPrune
    from vtc.selectors.holitom import HoliTom
    from vtc.selectors.kcenter import KCenter
    from vtc.selectors.recoverable import Recoverable
    from vtc.selectors.tokencorr import TokenCorr
    from vtc.selectors.visionzip import VisionZip
    from vtc.solving import solve
    from vtc.tracing import Trace
    from vtc.visual import Needs, VisualTokens

__version__ = "0.1.0"

#: Public name -> module. Imported on first use, so that `vtc --help` and `import vtc` wait for nothing.
_HOMES = {
    "vtc.calibrating": ("calibrate",),
    "vtc.method": ("Decision", "Prune", "Reducer", "Rows", "Selector", "Watch"),
    "vtc.patching": ("patch", "patched", "trace", "unpatch"),
    "vtc.planning": ("Plan", "plan"),
    "vtc.presets": ("preset",),
    "vtc.prunes.atp": ("ATP",),
    "vtc.prunes.atp_tf": ("ATPTrainingFree",),
    "vtc.prunes.fastv": ("FastV",),
    "vtc.prunes.holitom_inner": ("HoliTomInner",),
    "vtc.prunes.lazyllm": ("LazyLLM",),
    "vtc.prunes.pyramiddrop": ("PyramidDrop",),
    "vtc.prunes.sparsevlm": ("SparseVLM",),
    "vtc.prunes.spatten": ("SpAtten",),
    "vtc.prunes.todre": ("Todre",),
    "vtc.prunes.todre_stage2": ("TodreStage2",),
    "vtc.prunes.token_skip": ("TokenSkip",),
    "vtc.prunes.transprune": ("TransPrune",),
    "vtc.prunes.utrc": ("UTRC",),
    "vtc.reducers.diffrate": ("DiffRate",),
    "vtc.reducers.flowcut": ("FlowCut",),
    "vtc.reducers.token_transforming": ("TokenTransforming",),
    "vtc.reducers.tome": ("ToMe",),
    "vtc.reducers.zero_tprune": ("ZeroTPrune",),
    "vtc.reduction": ("Mixing", "Reduction"),
    "vtc.registry": ("list_methods", "register"),
    "vtc.selectors.baselines": ("FrameStride", "NoCompression", "Pool", "Random", "Stride"),
    "vtc.selectors.divprune": ("DivPrune",),
    "vtc.selectors.evs": ("EVS",),
    "vtc.selectors.hiprune": ("HiPrune",),
    "vtc.selectors.holitom": ("HoliTom",),
    "vtc.selectors.kcenter": ("KCenter",),
    "vtc.selectors.recoverable": ("Recoverable",),
    "vtc.selectors.tokencorr": ("TokenCorr",),
    "vtc.selectors.visionzip": ("VisionZip",),
    "vtc.solving": ("solve",),
    "vtc.tracing": ("Trace",),
    "vtc.visual": ("Needs", "VisualTokens"),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "ATP",
    "EVS",
    "UTRC",
    "ATPTrainingFree",
    "Decision",
    "DiffRate",
    "DivPrune",
    "FastV",
    "FlowCut",
    "FrameStride",
    "HiPrune",
    "HoliTom",
    "HoliTomInner",
    "KCenter",
    "LazyLLM",
    "Mixing",
    "Needs",
    "NoCompression",
    "Plan",
    "Pool",
    "Prune",
    "PyramidDrop",
    "Random",
    "Recoverable",
    "Reducer",
    "Reduction",
    "Rows",
    "Selector",
    "SpAtten",
    "SparseVLM",
    "Stride",
    "ToMe",
    "Todre",
    "TodreStage2",
    "TokenCorr",
    "TokenSkip",
    "TokenTransforming",
    "Trace",
    "TransPrune",
    "VisionZip",
    "VisualTokens",
    "Watch",
    "ZeroTPrune",
    "calibrate",
    "list_methods",
    "patch",
    "patched",
    "plan",
    "preset",
    "register",
    "solve",
    "trace",
    "unpatch",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'vtc' has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
