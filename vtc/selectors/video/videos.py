"""What selectors made for videos share: each video is decided about by itself, pictures stay whole."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Integral
from typing import ClassVar, TypeVar

import torch
from torch import Tensor

from vtc.method import budget
from vtc.method.budget import Keep
from vtc.method.reduction import Reduction
from vtc.method.selector import Selector
from vtc.method.units import Unit
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid
from vtc.ops.host import on
from vtc.ops.mixing import Mixing

Version = TypeVar("Version", bound=str)


@dataclass(frozen=True)
class Video:
    """One video of a prompt, G of them that are laid out alike; T frames of S = H·W tokens, separators left out.

    Attributes:
        features: Tensor [G, T, S, D], after the projector.
        height, width: H and W.
        keep: its budget, a share or a count of its T·S tokens; None: it decides itself.
        of: from values of all visual tokens, [G, N, ...], to those of this video, [G, T, S, ...].
        whole: what else was shown.
    """

    features: Tensor
    height: int
    width: int
    keep: Keep | None
    of: Callable[[Tensor], Tensor]
    whole: VisualTokens

    @property
    def share(self) -> float | None:
        """Its budget as a share."""
        _, frames, tokens, _ = self.features.shape
        return self.keep / (frames * tokens) if isinstance(self.keep, Integral) else self.keep

    def version(self, versions: Mapping[str, Version], other: Version) -> Version:
        """Which released version of a method is the model's: that of how its family's name begins, else `other`."""
        named = (version for start, version in versions.items() if self.whole.family.startswith(start))
        return next(named, other)


class VideoSelector(Selector, ABC):
    """Decides about each video of a prompt by itself; pictures stay as they are.

    With `per="frame"` each frame is a video of one frame, with `per="row"` each video has its part of a count, in
    proportion to its tokens.

    Class attributes:
        varies: whether the video decides how many tokens stay, even under a `keep`. keep=1.0 leaves all of them.
        bare_rows: whether newlines of rows, and CLS tokens of frames, stay that have no token left. What stands behind
            the whole video always stays. Separators are not counted in `keep`.
        by_content: whether what the video shows decides even where a count has room for all of it.
        in_order: whether the new tokens stand as `choose` says where they are numbered anew and rows have no newlines.
    """

    varies: ClassVar[bool] = False
    bare_rows: ClassVar[bool] = True
    by_content: ClassVar[bool] = False
    in_order: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.keep is not None or not self.may_adapt:
            budget.check_keep(self.keep)
        super().__post_init__()

    @property
    def adaptive(self) -> bool:
        """Whether the video decides how many tokens stay."""
        return super().adaptive or (self.varies and not (isinstance(self.keep, float) and self.keep == 1))

    def left_of(self, frames: int, tokens: int, keep: Keep | None) -> int:
        """Tokens left of a video of so many frames of so many tokens, by its part of the budget."""
        return frames * tokens if keep is None else budget.resolve(keep, frames * tokens, self.min_tokens)

    @abstractmethod
    def choose(self, video: Video) -> Reduction:
        """Decide about one video; tokens are numbered 0 … T·S - 1, frame by frame.

        `left_of` says how many are left, unless the method is `adaptive`: then G = 1 and any number from 1 on. Not
        asked where the budget has room for all.
        """

    def shortens(self, unit: Unit) -> bool:
        return any(grid.is_video for grid in unit.grids) and super().shortens(unit)

    def count_of(self, unit: Unit) -> int:
        sizes = [(grid.t, grid.h * grid.w, keep) for grid, keep in self._videos(unit.grids)]
        return len(unit) + sum(self.left_of(*size) - size[0] * size[1] for size in sizes)

    def select(self, visual: VisualTokens, k: int) -> Reduction:
        device, (images, tokens) = visual.features.device, visual.features.shape[:2]
        found, every = self._videos(visual.grids), torch.ones(tokens, dtype=torch.bool)
        parts = []
        for grid, keep in found:
            cells = grid.tokens().flatten(1)
            every[grid.start : grid.start + len(grid)] = False
            inside = on(device, cells)

            def of(values: Tensor, inside: Tensor = inside) -> Tensor:
                return values[:, inside]

            room = keep is not None and self.left_of(grid.t, grid.h * grid.w, keep) == cells.numel()
            whole = room and not (self.by_content and self.adaptive)
            alone = Video(of(visual.features), grid.h, grid.w, keep, of, visual)
            made = _Part.of(inside.flatten(), images).reduction if whole else self.choose(alone)
            parts.append(_Part(inside.flatten(), made))
            parts.append(_Part.of(on(device, self._separators(grid, made.kept)), images))
        if every.any():
            parts.append(_Part.of(on(device, every.nonzero()[:, 0]), images))
        ordered = self.in_order and visual.packed and len(found) == 1 and not found[0][0].row_end
        return _joined(parts, tokens, ordered)

    def _videos(self, grids: tuple[Grid, ...]) -> list[tuple[Grid, Keep | None]]:
        """The videos among some grids, and the part of the budget that each has."""
        videos = [grid for grid in grids if grid.is_video]
        sizes = [grid.t * grid.h * grid.w for grid in videos]
        if not isinstance(self.keep, Integral) or len(videos) == 1:
            return [(grid, self.keep) for grid in videos]
        parts = budget.share_out(min(int(self.keep), sum(sizes)), sizes)
        return [(grid, max(part, 1)) for grid, part in zip(videos, parts, strict=True)]

    def _separators(self, grid: Grid, kept: Tensor) -> Tensor:
        """LongTensor [M] of the separators of a grid that stay, where `kept` [G, k] of its cells are left."""
        if self.bare_rows:
            mask = torch.ones(len(grid), dtype=torch.bool)
            mask[grid.places() - grid.start] = False
            return mask.nonzero()[:, 0] + grid.start
        alive = torch.zeros(grid.t * grid.h * grid.w, dtype=torch.bool, device=kept.device)
        alive[kept[0]] = True
        return separators_beside(grid, alive.view(grid.t, -1))


def separators_beside(grid: Grid, kept: Tensor) -> Tensor:
    """Separators of a grid that stay: newlines of rows and CLS tokens of frames that have tokens left, and the end.

    Args:
        grid: the grid.
        kept: BoolTensor [T, H·W].

    Returns:
        LongTensor [M]: indices within the image.
    """
    rows = kept.view(grid.t, grid.h, grid.w).any(dim=2)
    starts = grid.start + torch.arange(grid.t, device=kept.device) * grid.frame
    width = grid.w + grid.row_end
    ends = starts[:, None] + grid.front + torch.arange(grid.h, device=kept.device) * width + grid.w
    newlines = (ends[rows][:, None] + torch.arange(grid.row_end, device=kept.device)).flatten()
    fronts = (starts[rows.any(dim=1)][:, None] + torch.arange(grid.front, device=kept.device)).flatten()
    last = grid.start + len(grid) - grid.end + torch.arange(grid.end, device=kept.device)
    return torch.cat([newlines, fronts, last])


@dataclass(frozen=True)
class _Part:
    """What is left of some tokens, LongTensor [n]: a reduction that counts them from 0."""

    tokens: Tensor
    reduction: Reduction

    @classmethod
    def of(cls, tokens: Tensor, images: int) -> "_Part":
        """All of them, as they are."""
        return cls(tokens, Reduction(torch.arange(len(tokens), device=tokens.device).expand(images, -1)))

    def groups(self) -> Tensor:
        """LongTensor [G, k]: the groups of what is left, called after tokens of all; -1 for none."""
        own = self.reduction.groups
        none = torch.full_like(self.reduction.kept, -1)
        return none if own is None else torch.where(own < 0, none, self.tokens[own.clamp(min=0)])


def _joined(parts: list[_Part], tokens: int, ordered: bool) -> Reduction:
    """The reductions of parts that share no token as one of all `tokens`.

    Args:
        parts: together all tokens that may stay.
        tokens: N.
        ordered: whether the tokens of the first part come in the order that it says, those of the others behind them.
    """
    made = torch.cat([part.tokens[part.reduction.kept] for part in parts], dim=1)
    kept, by_place = made.sort(dim=1)
    count = kept.shape[1]
    order = None
    if ordered and parts[0].reduction.order is not None:
        first = parts[0].reduction.order
        rest = torch.arange(first.shape[1], count, device=first.device).expand(len(first), -1)
        order = by_place.argsort(dim=1).gather(1, torch.cat([first, rest], dim=1))
    groups = None
    if any(part.reduction.groups is not None for part in parts):
        groups = torch.cat([part.groups() for part in parts], dim=1).gather(1, by_place)
    if all(part.reduction.mixing is None for part in parts):
        return Reduction(kept, order=order, groups=groups)
    slot = torch.zeros(len(kept), tokens, dtype=torch.long, device=kept.device)
    slot.scatter_(1, kept, torch.arange(count, device=kept.device).expand_as(kept))
    sources, targets, weights = [], [], []
    for part in parts:
        stays = part.tokens[part.reduction.kept]
        mixing = part.reduction.mixing
        if mixing is None:
            every = torch.arange(stays.shape[1], device=stays.device).expand_as(stays)
            mixing = Mixing(part.reduction.kept, every, torch.ones(stays.shape, device=stays.device))
        sources.append(part.tokens[mixing.source])
        targets.append(slot.gather(1, stays.gather(1, mixing.target)))
        weights.append(mixing.weight)
    mixed = Mixing(*(torch.cat(each, dim=1) for each in (sources, targets, weights)))
    return Reduction(kept, mixed, order=order, groups=groups)
