"""ATP-LLaVA: learned thresholds decide by the picture and the question how many tokens stay (arXiv 2412.00447)."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from numbers import Integral
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from vtc.method.budget import Keep, check_keep
from vtc.method.prune import Decision, Memory, Rows
from vtc.method.registry import register
from vtc.ops.host import on
from vtc.prunes.attention.atp_scores import LAYERS, ATPModules, grid_points, rescaled, stride_for
from vtc.prunes.profile import check_layers

#: Published (Eq. 5): R, the share of the grid that is sampled, and what a sampled token scores with lambda = 3.
RATE = 0.25
POINT_SCORE = 1 - 3 * RATE
STRIDE = stride_for(4, 1)  # round(sqrt(1 / R))
PUBLISHED_SHARE = 144 / 576

_BUNDLED = Path(__file__).parent / "atp_weights" / "embedded.json"
_HEADS, _INPUTS = ("redundancy", "spatial"), 4


def thresholds(weights: Tensor, self_mean: Tensor, cross_mean: Tensor, share: Tensor) -> Tensor:
    """The two thresholds of a module, sigmoid of a linear map (Eq. 6 to 8).

    Args:
        weights: Tensor [2, 4], for redundancy and space: of the three inputs, and the bias.
        self_mean: Tensor [B], mean of the rescaled attention from visual tokens.
        cross_mean: Tensor [B], the same from the instruction.
        share: Tensor [B] or [], the share of the visual tokens that shall be left on average; the map has the
            logarithm of its ratio to the published 1/4. Not in the paper.

    Returns:
        Tensor [B, 2], theta_r and theta_s, in (0, 1).
    """
    budget = (share.expand(self_mean.shape).clamp_min(1e-6) / PUBLISHED_SHARE).log()
    inputs = torch.stack([self_mean, cross_mean, budget, torch.ones_like(budget)], dim=1)
    return torch.sigmoid(inputs @ weights.to(inputs).T)


def redundancy(from_visual: Tensor, from_text: Tensor, visual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """S_red, high for tokens that stay, and the means that the thresholds are made from.

    Args:
        from_visual: Tensor [B, n], attention received from visual tokens.
        from_text: Tensor [B, n], the same from the instruction.
        visual: BoolTensor [B, n], the visual tokens that are there.

    Returns:
        Tensor [B, n], the mean of both rescaled to [0, 1]: probabilities are about 1 / n, thresholds anywhere in
        (0, 1). Tensor [B] twice, the mean of each over the visual tokens.
    """
    first, second = rescaled(from_visual, visual), rescaled(from_text, visual)
    count = visual.sum(dim=1).clamp_min(1)
    return (first + second) / 2, first.sum(dim=1) / count, second.sum(dim=1) / count


def above(redundant: Tensor, points: Tensor, theta: Tensor) -> Tensor:
    """Tokens that one of the two thresholds lets through (strictly above): BoolTensor [B, n].

    Args:
        redundant: S_red, Tensor [B, n].
        points: BoolTensor [B, n], points of the grid.
        theta: Tensor [B, 2].
    """
    return (redundant > theta[:, :1]) | (points * POINT_SCORE > theta[:, 1:])


@register("atp")
@dataclass
class ATP(ATPModules):
    """Drop, in front of three decoder layers, the visual tokens below two thresholds that are learned.

    A module scores by the attention in the layer before it that a token receives from visual tokens and from the
    instruction, each rescaled to [0, 1] over the visual tokens that are there. It keeps what lies above theta_r, and
    the points of a grid (every other row and column of the picture) while 0.25 lies above theta_s. Both are a
    sigmoid of a linear map of the two mean scores, so pictures and questions differ in what they keep. Survivors keep
    their position ids. The paper has no code, and trains the language model too; here it is frozen. Ours, also: the
    rescaling, and the share that shall be left as a third input of the map, so that one set of weights serves every
    budget. https://arxiv.org/abs/2412.00447

    The weights that come with the package were trained on its embedded model, by `vtc train-atp` with its defaults: 120
    steps of 8 questions, seed 0 (their file says more). They run on any model of any depth, but how much they keep
    there, and how well, is not known: train others by `vtc train-atp`, and read what was kept from
    `vtc.trace(model).equivalent_tokens`.

    Budget: `keep` is what the mean over the three modules of the visual tokens left behind them aims at, on average
    over pictures and questions; a single one may keep any number. Before the first module all are there: of 32 layers
    5, so 0.25 aims at (5 + 27 · 0.25) / 32 = 0.37 of the tokens on average over all layers if each module leaves alike.
    The paper's 144 of 576 tokens is 0.25.

    Attributes:
        keep: the share in (0, 1], or the count of the row's visual tokens, that is aimed at. 1.0 removes nothing.
        weights: file written by `vtc train-atp`; None: the one in the package.
        layers: the three decoder layers, from 0, in front of which tokens go. None: the published 5, 15, 25 of 32,
            scaled to the model's depth.
    """

    keep: Keep = 0.25
    weights: str | None = None
    layers: tuple[int, ...] | None = None
    positions: ClassVar[str] = "original"

    def __post_init__(self) -> None:
        check_keep(self.keep)
        if self.weights is not None and not isinstance(self.weights, str | Path):
            raise TypeError(f"weights={self.weights!r} is a {type(self.weights).__name__}; give a file's path, or None")
        self.weights = None if self.weights is None else str(self.weights)
        self.layers = check_layers(self.layers, LAYERS)
        self._modules = _modules(self.weights)
        modules = len(self._modules)
        if self.layers is not None and len(self.layers) != modules:
            raise ValueError(
                f"layers={self.layers!r} does not fit the weights, which are of {modules} modules; give {modules} "
                "layers"
            )

    @property
    def adaptive(self) -> bool:
        """Whether the content decides: always, but for keep=1.0, which leaves everything as it is."""
        return isinstance(self.keep, Integral) or self.keep < 1

    def count(self, present: int) -> int:
        return present

    def decide(self, rows: Rows, counts: Sequence[int], memory: Memory) -> Decision:
        assert rows.origin is not None
        if "share" not in memory:
            reached = rows.visual.sum(dim=1).clamp_min(1)
            wanted = torch.full_like(reached, float(self.keep), dtype=torch.float32)
            memory["share"] = wanted / reached if isinstance(self.keep, Integral) else wanted
        redundant, self_mean, cross_mean = redundancy(memory["self"], memory["cross"], rows.visual)
        weights = on(redundant.device, self._modules[rows.stage])
        theta = thresholds(weights, self_mean, cross_mean, memory["share"])
        points = grid_points(rows.images, rows.origin, [STRIDE] * len(theta))
        return Decision(rows.visual & (above(redundant, points, theta) | (memory["share"] >= 1)[:, None]))


def _modules(weights: str | None) -> Tensor:
    """Tensor [modules, 2, 4] of the weights file; None: that of the package.

    Raises:
        ValueError: it can't be read.
    """
    file = _BUNDLED if weights is None else Path(weights)
    try:
        return _read(file, file.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"weights={weights!r} can't be read ({error}); give a file that `vtc train-atp` wrote, or None"
        ) from None


@lru_cache(maxsize=16)
def _read(file: Path, changed: int) -> Tensor:
    """Tensor [modules, 2, 4] of a weights file."""
    modules = json.loads(file.read_text())["modules"]
    found = torch.tensor([[module[head] for head in _HEADS] for module in modules], dtype=torch.float32)
    if found.shape[1:] != (len(_HEADS), _INPUTS) or not found.isfinite().all():
        raise ValueError(f"it holds {tuple(found.shape)} numbers, not modules by {len(_HEADS)} by {_INPUTS}")
    return found


def to_json(weights: Tensor) -> list[dict[str, list[float]]]:
    """The `modules` of a weights file, from weights [modules, 2, 4]."""
    return [dict(zip(_HEADS, module, strict=True)) for module in weights.tolist()]
