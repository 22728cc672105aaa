# The public names of vtc, each with the module where it lives: the one table of them. `vtc/__init__.py` and the
# registry of methods read it, and so do type checkers. A new method is one row here.

from vtc.method.prune import Decision as Decision
from vtc.method.prune import Prune as Prune
from vtc.method.prune import Rows as Rows
from vtc.method.prune import Watch as Watch
from vtc.method.reducer import Reducer as Reducer
from vtc.method.reduction import Reduction as Reduction
from vtc.method.registry import list_methods as list_methods
from vtc.method.registry import register as register
from vtc.method.selector import Selector as Selector
from vtc.method.visual_tokens import Needs as Needs
from vtc.method.visual_tokens import VisualTokens as VisualTokens
from vtc.ops.mixing import Mixing as Mixing
from vtc.patching import patch as patch
from vtc.patching import patched as patched
from vtc.patching import prompt_length as prompt_length
from vtc.patching import trace as trace
from vtc.patching import unpatch as unpatch
from vtc.planning.calibrate import calibrate as calibrate
from vtc.planning.plan import Plan as Plan
from vtc.planning.plan import plan as plan
from vtc.planning.solve import solve as solve
from vtc.prunes.attention.atp import ATP as ATP
from vtc.prunes.attention.atp_tf import ATPTrainingFree as ATPTrainingFree
from vtc.prunes.attention.fastv import FastV as FastV
from vtc.prunes.attention.fitprune import FitPrune as FitPrune
from vtc.prunes.attention.lazyllm import LazyLLM as LazyLLM
from vtc.prunes.attention.pyramiddrop import PyramidDrop as PyramidDrop
from vtc.prunes.attention.sparsevlm import SparseVLM as SparseVLM
from vtc.prunes.attention.spatten import SpAtten as SpAtten
from vtc.prunes.dart import DART as DART
from vtc.prunes.holitom_inner import HoliTomInner as HoliTomInner
from vtc.prunes.todre_stage2 import TodreStage2 as TodreStage2
from vtc.prunes.token_skip import TokenSkip as TokenSkip
from vtc.prunes.transprune import TransPrune as TransPrune
from vtc.prunes.utrc import UTRC as UTRC
from vtc.prunes.v2drop import V2Drop as V2Drop
from vtc.prunes.vtw import VTW as VTW
from vtc.reducers.diffrate import DiffRate as DiffRate
from vtc.reducers.flowcut import FlowCut as FlowCut
from vtc.reducers.token_transforming import TokenTransforming as TokenTransforming
from vtc.reducers.tome import ToMe as ToMe
from vtc.reducers.zero_tprune import ZeroTPrune as ZeroTPrune
from vtc.selectors.baselines import FrameStride as FrameStride
from vtc.selectors.baselines import NoCompression as NoCompression
from vtc.selectors.baselines import Pool as Pool
from vtc.selectors.baselines import Random as Random
from vtc.selectors.baselines import Stride as Stride
from vtc.selectors.divprune import DivPrune as DivPrune
from vtc.selectors.kcenter import KCenter as KCenter
from vtc.selectors.question.recoverable import Recoverable as Recoverable
from vtc.selectors.saliency.hiprune import HiPrune as HiPrune
from vtc.selectors.saliency.tokencorr import TokenCorr as TokenCorr
from vtc.selectors.saliency.visionzip import VisionZip as VisionZip
from vtc.selectors.todre import Todre as Todre
from vtc.selectors.video.evs import EVS as EVS
from vtc.selectors.video.holitom import HoliTom as HoliTom
from vtc.spec import preset as preset
from vtc.tracing import Trace as Trace

__version__: str
__all__: list[str]
