"""M-RoPE inside an engine: text keeps the positions of the whole picture, kept tokens bring their own along.

The engine needs the positions of a prompt before it is known which tokens stay. Those of text do not depend on it: text
behind a picture goes on behind the extent of its whole grid, so that a prefix that is cached is right. Each row of the
encoder's output carries its position relative to its item in further columns, as numbers to the base of 128, which
bfloat16 holds exactly; in the step that feeds it they are taken off and written to its place.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import (
    MultiModalFeatureSpec,
    MultiModalFieldConfig,
    MultiModalFieldElem,
    MultiModalKwargsItem,
    PlaceholderRange,
)

from vtc.ops.host import on
from vtc.serve.choosing import Kept
from vtc.serve.model import PruningModel
from vtc.serve.served import ROW, is_pixels
from vtc.serve.told import Told, field

_BASE, _DIGITS = 128, 3
#: What a row tells: relative t, h, w; its number among the rows of its item; how many of these come before the first
#: visual one.
_NUMBERS = 5
_COLUMNS = _NUMBERS * _DIGITS


class PruningMRopeModel(PruningModel):
    """The same for models whose positions have several axes."""

    supports_multimodal_pruning = True

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:
        # The engine then calls `recompute_mrope_positions`, and makes room in tables for positions that run ahead.
        object.__setattr__(vllm_config.model_config.multimodal_config, "is_multimodal_pruning_enabled", _true)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.is_multimodal_pruning_enabled = False  # the class's own pruning of videos

    def _vtc_positioned(
        self: Any, modality: str, told: Sequence[Told], values: Mapping[str, Any], kept: Sequence[Kept]
    ) -> list[Tensor]:
        rows = []
        for index, (each, left) in enumerate(zip(told, kept)):
            relative = self._vtc_relative(modality, each, values, index, len(told))
            relative = on(left.places.device, relative)[:, left.places]
            rank = torch.arange(len(left.places), device=relative.device)
            lead = torch.full_like(rank, int((each.ids == ROW).nonzero()[0, 0]))
            columns = digits(torch.stack([*relative, rank, lead], dim=1))
            rows.append(torch.cat([left.rows, columns.to(left.rows.dtype)], dim=1))
        return rows

    def _vtc_relative(
        self: Any, modality: str, told: Told, values: Mapping[str, Any], index: int, items: int
    ) -> Tensor:
        """LongTensor [3, L]: positions of an item's ids where it stands alone, as the model's own code makes them."""
        batched = MultiModalFieldConfig.batched(modality, keep_on_cpu=True).field
        data = {
            name: MultiModalFieldElem(data=value[index], field=batched)
            for name, value in values.items()
            if not is_pixels(name) and len(value) == items
        }
        feature = MultiModalFeatureSpec(
            data=MultiModalKwargsItem(data),
            modality=modality,
            identifier="",
            mm_position=PlaceholderRange(offset=0, length=len(told.ids)),
        )
        positions, _ = super().get_mrope_input_positions(self._vtc_ids(modality, told), [feature])
        return positions

    def _vtc_ids(self: Any, modality: str, told: Told) -> list[int]:
        """The ids of a whole item."""
        return torch.where(told.ids == ROW, getattr(self.config, f"{modality}_token_id"), told.ids).tolist()

    def get_mrope_input_positions(self: Any, input_tokens: list[int], mm_features: list[Any]) -> tuple[Tensor, int]:
        """Positions [3, n] of a prompt, text's for good; those of kept tokens are filled in when they are known."""
        tokens, features, places, at = list[int](), [], list[int](), 0
        for feature in sorted(mm_features, key=lambda each: each.mm_position.offset):
            begin, length = feature.mm_position.offset, feature.mm_position.length
            told = Told.of(feature.data[field(feature.modality)].data)
            places += range(len(tokens), len(tokens) + begin - at)
            tokens += input_tokens[at:begin]
            whole = self._vtc_ids(feature.modality, told)
            places += range(len(tokens), len(tokens) + length)
            features.append(replace(feature, mm_position=PlaceholderRange(offset=len(tokens), length=len(whole))))
            tokens, at = tokens + whole, begin + length
        places += range(len(tokens), len(tokens) + len(input_tokens) - at)
        tokens += input_tokens[at:]
        positions, _ = super().get_mrope_input_positions(tokens, features)
        return positions[:, places].contiguous(), int(positions.max()) + 1 - len(input_tokens)

    def recompute_mrope_positions(
        self: Any,
        input_ids: list[int] | Tensor,
        multimodal_embeddings: Sequence[Tensor],
        mrope_positions: Tensor,
        num_computed_tokens: int,
    ) -> tuple[Sequence[Tensor], Tensor, int]:
        """Take the columns off the rows that a step feeds, and write their positions.

        Args:
            input_ids: of the whole prompt.
            multimodal_embeddings: the rows of this step, those of each item by themselves, in order.
            mrope_positions: LongTensor [3, n] of the whole prompt.
            num_computed_tokens: tokens before this step.
        """
        ids = input_ids.tolist() if isinstance(input_ids, Tensor) else input_ids
        positions, at, rows = mrope_positions, num_computed_tokens, []
        visual = {self.config.image_token_id, self.config.video_token_id}
        for each in multimodal_embeddings:
            rows.append(each[:, :-_COLUMNS])
            told = numbers(each[:, -_COLUMNS:]).to(positions.device)
            rank, lead = told[0, 3:].tolist()
            if rank:
                start = at - rank
            else:
                start = next(place for place in range(at, len(ids)) if ids[place] in visual) - lead
            if positions is mrope_positions:
                positions = positions.clone()
            base = positions[:, start - 1].max() + 1 if start else 0
            at = start + rank + len(told)
            positions[:, start + rank : at] = (base + told[:, :3].T).to(positions.dtype)
        return rows, positions, int(positions[:, -1].max()) + 1 - len(ids)  # a prompt ends in text


def digits(numbers: Tensor) -> Tensor:
    """LongTensor [n, m] as [n, m · 3] digits."""
    powers = _BASE ** torch.arange(_DIGITS, device=numbers.device)
    return (numbers[:, :, None] // powers % _BASE).flatten(1)


def numbers(digits: Tensor) -> Tensor:
    """What `digits` wrote."""
    powers = _BASE ** torch.arange(_DIGITS, device=digits.device)
    return (digits.float().round().long().unflatten(1, (-1, _DIGITS)) * powers).sum(dim=2)


def _true() -> bool:
    return True
