"""In the engine's worker: pictures are encoded by the engine's own code, and then reduced."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from vtc.serve.choosing import Batch, Chooser, Kept, Memory
from vtc.serve.limits import check_engine
from vtc.serve.served import features_of, is_pixels, served
from vtc.serve.told import Told, field
from vtc.serve.watch import Watch

_Stock: Any = object  # the engine's class of the model, which stands behind ours


class PruningModel(_Stock):
    """In front of an engine's class of a model: `embed_multimodal` gives the rows that stay."""

    def __init__(self: Any, *, vllm_config: Any, prefix: str = "") -> None:
        model_config = vllm_config.model_config
        what = served(model_config.hf_config)
        check_engine(vllm_config, what)
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self._vtc_watch = Watch(what, self, vllm_config.quant_config) if what.reads_tower else None
        chooser = Chooser(what, lambda ids: self.get_language_model().embed_input_ids(ids), not model_config.uses_mrope)
        self._vtc_chooser = chooser
        self._vtc_room = vllm_config.scheduler_config.max_num_batched_tokens

    def load_weights(self: Any, *args: Any, **kwargs: Any) -> Any:
        """Load the engine's weights, under which others may stay than before."""
        self._vtc_chooser.memory = Memory()
        return super().load_weights(*args, **kwargs)

    def embed_multimodal(self: Any, **kwargs: Any) -> Any:
        """For each item, Tensor [K, C] in the order of the prompt."""
        given = [modality for modality in ("image", "video") if field(modality) in kwargs]
        if not given:
            return super().embed_multimodal(**kwargs)
        (modality,) = given
        told = [Told.of(each) for each in kwargs.pop(field(modality))]
        rows: list[Tensor] = []
        for first, last, values in portions(told, kwargs, self._vtc_room):
            rows += self._vtc_reduced(modality, told[first:last], values)
        return tuple(rows)

    def _vtc_reduced(self: Any, modality: str, told: Sequence[Told], values: dict[str, Any]) -> list[Tensor]:
        chooser: Chooser = self._vtc_chooser
        kind = chooser.served.kind(modality)
        items = [each.item(chooser.served.setting) for each in told]
        features = features_of(kind, values, [int(item.visual.sum()) for item in items])
        if self._vtc_watch is not None:
            self._vtc_watch.start(features)
        encoded = [rows.flatten(0, -2) for rows in super().embed_multimodal(**values)]
        lengths = [(rows.shape[0], int(item.visual.sum())) for rows, item in zip(encoded, items)]
        if any(made != wanted for made, wanted in lengths) or len(encoded) != len(items):
            raise RuntimeError(
                f"vtc: the engine encoded other tokens than were told: {lengths} (made, told) of {len(items)} items"
            )
        keys, left, whole = ([getattr(each, name) for each in told] for name in ("key", "left", "whole"))
        with torch.no_grad():
            kept = chooser.choose(Batch(kind, items, keys, left, whole, encoded, features))
        return self._vtc_positioned(modality, told, values, kept)

    def _vtc_positioned(
        self, modality: str, told: Sequence[Told], values: Mapping[str, Any], kept: Sequence[Kept]
    ) -> list[Tensor]:
        """Rows as the engine takes them; with M-RoPE their positions travel along."""
        return [each.rows for each in kept]


def portions(told: Sequence[Told], values: Mapping[str, Any], room: int) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Parts of a batch that the tower may see at once.

    The engine counts what stays when it fills a batch: without this the tower would see 1/keep times as much as its
    memory was measured for.

    Args:
        told: of each item.
        values: the engine's arguments: one entry for each item, or one for each patch or tile.
        room: tokens that a batch may have before any is removed; an item alone may have more.

    Yields:
        first, last: the items of a part.
        values: the arguments of these.
    """
    first, held = 0, 0
    cuts = []
    for index, each in enumerate(told):
        tokens = len(each.ids)
        if held and held + tokens > room:
            cuts.append((first, index))
            first, held = index, 0
        held += tokens
    cuts.append((first, len(told)))
    if len(cuts) == 1:
        yield 0, len(told), dict(values)
        return
    for first, last in cuts:
        yield first, last, {name: _part(name, value, values, first, last, len(told)) for name, value in values.items()}


def _part(name: str, value: Any, values: Mapping[str, Any], first: int, last: int, items: int) -> Any:
    """The entries of items `first` to `last` of one argument."""
    if not isinstance(value, Tensor | list | tuple) or (isinstance(value, Tensor) and not value.dim()):
        return value  # shared
    for size in ("image_grid_thw", "video_grid_thw", "image_num_patches", "video_num_patches"):
        sizes = values.get(size)
        if is_pixels(name) and isinstance(sizes, Tensor):
            counts = sizes.prod(dim=1).tolist() if sizes.dim() > 1 else sizes.tolist()
            if sum(counts) == len(value):
                return value[sum(counts[:first]) : sum(counts[:last])]
    if len(value) != items:
        raise RuntimeError(
            f"vtc: which part of {name} ({len(value)} entries) belongs to which of {items} items is not known"
        )
    return value[first:last]
