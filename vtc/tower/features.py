"""One call that made visual features, and what was seen while it ran."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from vtc.model.flops import BlockRun
from vtc.tower.recognising import Imprint
from vtc.tower.run import TowerRun


@dataclass
class Features:
    """One call that made image or video features. It stays with the features: `generate` makes them ahead.

    Attributes:
        kind: "image" or "video".
        sizes: visual tokens of each image; empty where the output does not tell.
        images: number of images that the call encoded (0 where the output does not tell); `generate` may repeat them
            for beams afterwards.
        arguments: the call's arguments (grids, image sizes), by name.
        packing: (args, kwargs) of the family's own packing of patches into tokens, where it has one.
        scores: what a selector wanted of the tower: ("received", "cls", "keys" or "hidden", tower block) or
            ("observed", name) -> one Tensor [sequences, P, ...] per call.
        runs: the calls of the tower's blocks, for FLOPs.
        shape: (sequences, patches in each) of the tower, CLS left out.
        ids: the prompt's ids [B, L], where they were seen before the features were made.
        projected: what the projector was given, Tensor [sequences, P, C].
        cls: the CLS tokens in the same space, Tensor [sequences, C].
        tower: the run of a reducer through the tower.
        shapes: name -> shape of each argument that is real numbers, such as pixels.
        imprint: what the features are known by, where they were made ahead of the call that shows them.
        shown: for each image of the sequence, which of the encoded images it is; None: told by the rows of the batch.
        measured: LongTensor [N, cell]: the tower's rows of each token, where no rule tells them and they were measured.
    """

    kind: str
    sizes: list[int] = field(default_factory=list)
    images: int = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    packing: tuple[tuple, dict[str, Any]] | None = None
    scores: dict[tuple[str, int | str], list[Tensor]] = field(default_factory=dict)
    runs: list[BlockRun] = field(default_factory=list)
    shape: tuple[int, int] = (0, 0)
    ids: Tensor | None = None
    projected: Tensor | None = None
    cls: Tensor | None = None
    tower: TowerRun | None = None
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    imprint: Imprint | None = None
    shown: tuple[int, ...] | None = None
    measured: Tensor | None = None

    def given(self, sizes: list[int], shown: tuple[int, ...]) -> "Features":
        """The same for a call that is given the images `shown` of them, of `sizes` tokens.

        What the tower saw of those that are shown can't be told from the rest, so it is left out if not all are.
        """
        if set(shown) == set(range(self.images)):
            return replace(self, sizes=sizes, shown=shown)
        told = (self.kind, sizes, self.images, self.arguments, self.packing)
        return Features(*told, shapes=self.shapes, shape=self.shape, shown=shown)

    def agrees(self, facts: dict[str, Any], shown: tuple[int, ...]) -> bool:
        """Whether what a call says of the images `shown` is what was said when they were made."""
        for name, value in facts.items():
            before = self.arguments.get(name)
            if not isinstance(before, Tensor) or not isinstance(value, Tensor) or len(before) != self.images:
                continue
            if not torch.equal(before[list(shown)], value):
                return False
        return True

    @property
    def repeats(self) -> int:
        """In how many rows each image is shown."""
        return max(len(self.sizes) // self.images, 1) if self.images else 1


_MARK = "_vtc_features"


@dataclass(frozen=True)
class _Record:
    """Features beside the output that they were made with; a copy of the output, or a saved one, goes without."""

    features: Features

    def __reduce__(self) -> tuple[Any, ...]:
        return type(None), ()


def attach_features(output: Any, features: Features) -> None:
    """Leave `features` with the output of the call that made them."""
    if hasattr(output, "__dict__"):
        object.__setattr__(output, _MARK, _Record(features))


def features_with(output: Any) -> Features | None:
    """The features that `attach_features` left with an output."""
    record = getattr(output, _MARK, None)
    return record.features if isinstance(record, _Record) else None


def sizes_of(features: Any) -> list[int]:
    """Tokens of each image, from a list of [N, D] or a tensor [images, N, D]; empty where the output does not tell."""
    if isinstance(features, Tensor):
        return [features.shape[1]] * features.shape[0] if features.dim() == 3 else []
    if isinstance(features, (list, tuple)) and all(isinstance(f, Tensor) and f.dim() >= 2 for f in features):
        return [f.numel() // f.shape[-1] for f in features]
    return []
