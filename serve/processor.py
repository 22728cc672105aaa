"""In the engine's front end: how many tokens of each picture stay, which is settled before any encoder runs."""

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalFieldElem
from vllm.multimodal.processing import BaseMultiModalProcessor, BaseProcessingInfo
from vllm.multimodal.processing.processor import PromptUpdateDetails

from vtc.method.budget import Keep
from vtc.serve import KEEP, SPEC
from vtc.serve.served import ROW, Item, Served, features_of, served
from vtc.serve.told import Told, field, key_of

_Stock: Any = object  # the engine's class, which stands behind ours


class PruningInfo(_Stock):
    """In front of an engine's processing info: what the largest item takes is found by processing one."""

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> None:
        """Nothing: the engine then asks the processor, which counts what stays."""
        return None


class PruningProcessor(_Stock):
    """In front of an engine's processor of a model.

    Raises:
        ValueError: in a request: a budget that can't be had, or a picture whose tokens can't be told. The engine
            answers with HTTP 400.
    """

    _measuring = False

    @functools.cached_property
    def served(self: Any) -> Served:
        """What the engine is asked to do."""
        return served(self.info.get_hf_config())

    @property
    def uses_mrope(self: Any) -> bool:
        """Whether positions have several axes."""
        return self.info.ctx.model_config.uses_mrope

    # ------------------------------------------------------------ the engine's own hooks, without our key

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        return super()._apply_hf_processor_main(mm_items=mm_items, hf_kwargs=_without_keep(hf_kwargs))

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        return super()._get_mm_fields_config(hf_inputs, _without_keep(hf_processor_mm_kwargs))

    def _get_mm_hashes(self: Any, inputs: Any) -> Any:
        """Hashes that name the setting and the budget too: an encoder or KV store may be shared between engines."""
        keep = inputs.hf_processor_mm_kwargs.get(KEEP)
        name = f"vtc{key_of([self.served.setting.spec, keep]) & 0xFFFFFFFFFFFF:x}"
        found = super()._get_mm_hashes(inputs)
        return {modality: [f"{each}-{name}" for each in hashes] for modality, hashes in found.items()}

    def apply(self: Any, inputs: Any, timing_ctx: Any) -> Any:
        """What the engine does with a prompt, once the budget that it asks for is known to be one."""
        _check_names(inputs.hf_processor_mm_kwargs)
        self._check_keep(inputs.hf_processor_mm_kwargs.get(KEEP))
        made = super().apply(inputs, timing_ctx)
        if self.uses_mrope and not self._measuring:
            try:
                self._check_surroundings(made["prompt_token_ids"], made["mm_placeholders"])
            except ValueError:
                for item in (each for hashes in made["mm_hashes"].values() for each in hashes):
                    if inputs.cache is not None:  # it believes by now that the engine has the picture
                        inputs.cache.invalidate(item)
                raise
        return made

    def _check_surroundings(self: Any, ids: list[int], placeholders: Mapping[str, Sequence[Any]]) -> None:
        """Refuse prompts in which positions can't be told: text has to follow each picture, without tokens of others.

        Raises:
            ValueError: this is one.
        """
        config = self.info.get_hf_config()
        visual = {config.image_token_id, config.video_token_id}
        ranges = sorted((each.offset, each.offset + each.length) for found in placeholders.values() for each in found)
        at = 0
        for index, (start, end) in enumerate(ranges):
            if not visual.isdisjoint(ids[at:start]):
                raise ValueError(
                    "the prompt has a picture's token outside the places of its pictures; leave it out of the text"
                )
            if end == (ranges[index + 1][0] if index + 1 < len(ranges) else len(ids)):
                raise ValueError(
                    "a picture of the prompt has no text behind it, by which M-RoPE positions go on; use the model's "
                    "chat template, or put a token there"
                )
            at = end

    def get_dummy_mm_inputs(self: Any, *args: Any, **kwargs: Any) -> Any:
        """What the engine measures itself with when it starts: pictures alone."""
        self._measuring = True
        try:
            return super().get_dummy_mm_inputs(*args, **kwargs)
        finally:
            self._measuring = False

    def _check_keep(self: Any, keep: Any) -> None:
        setting = self.served.setting
        asked, most = setting.asked(keep).keep, setting.keep
        if keep is not None and type(asked) is type(most) and asked > most:
            raise ValueError(_too_much(keep, setting.spec))

    def _get_mm_prompt_updates(self: Any, mm_items: Any, hf_processor_mm_kwargs: Any, out_mm_kwargs: Any) -> Any:
        """The engine's replacements for its placeholders, shortened; each item is told what was settled."""
        keep = hf_processor_mm_kwargs.get(KEEP)
        own = _without_keep(hf_processor_mm_kwargs)
        updates = super()._get_mm_prompt_updates(mm_items, own, out_mm_kwargs)
        return {
            modality: [
                self._shorten(modality, each, out_mm_kwargs[modality][index], keep)
                for index, each in enumerate(of_items)
            ]
            for modality, of_items in updates.items()
        }

    # ------------------------------------------------------------ one item

    def _shorten(self: Any, modality: str, updates: Sequence[Any], data: Any, keep: Keep | None) -> Sequence[Any]:
        if any(name.endswith("_embeds") for name in data):
            raise ValueError(
                f"{modality}s were given as embeddings, and {SPEC}={self.served.setting.spec!r} selects by what this "
                "engine's own tower makes; give the pixels"
            )
        (update,) = updates
        full = torch.tensor(update.content.full)
        at = update.content.is_embed
        visual = torch.ones(len(full), dtype=torch.bool) if at is None else at(update.content.full)
        ids, setting, kind = torch.where(visual, ROW, full), self.served.setting, self.served.kind(modality)
        values = {name: elem.data for name, elem in data.items()}
        features = features_of(
            kind, {n: v[None] for n, v in values.items() if isinstance(v, Tensor)}, [int(visual.sum())]
        )
        item = Item(ids, setting.asked(keep))
        short = self.served.shortened(kind, item, features)
        if keep is not None:  # the engine has room for its own budget
            most = self.served.shortened(kind, Item(ids, setting.selector), features)
            if short.stays.sum() > most.stays.sum():
                raise ValueError(_too_much(keep, setting.spec))
        whole = short.whole or (self.uses_mrope and not bool(visual.all()))
        stays = short.stays
        left = int(stays.sum()) if whole else int((stays & visual).sum())
        key = key_of([setting.spec, keep, ids, *values.items()])
        told = Told(left, whole, key, keep, ids).encoded()
        data[field(modality)] = MultiModalFieldElem(
            data=told, field=MultiModalFieldConfig.batched(modality, keep_on_cpu=True).field
        )
        content = PromptUpdateDetails.from_seq(full[stays].tolist())
        if not whole and at is not None:
            content = replace(content, is_embed=functools.partial(_mask, visual[stays]))
        return [update.with_content(content)]


def _check_names(kwargs: Mapping[str, object]) -> None:
    """Refuse what looks like ours and is not: a request chooses its budget, and nothing else.

    Raises:
        ValueError: there is one.
    """
    for name, value in kwargs.items():
        if name.startswith(SPEC) and name != KEEP:
            raise ValueError(
                f"mm_processor_kwargs {{{name!r}: {value!r}}}: a request may ask for {KEEP!r} alone; the method is the "
                "engine's, given when it is started"
            )


def _too_much(keep: Keep, spec: str) -> str:
    return f"{KEEP}={keep!r} is more than this engine was started with ({SPEC}={spec!r}); ask for at most that"


def _mask(mask: Tensor, full: Sequence[int]) -> Tensor:
    return mask


def _without_keep(kwargs: Mapping[str, object]) -> Mapping[str, object]:
    return {name: value for name, value in kwargs.items() if name != KEEP}


@functools.cache
def pruning(stock: type) -> type:
    """An engine's processor or processing info with ours in front."""
    ours = PruningInfo if issubclass(stock, BaseProcessingInfo) else PruningProcessor
    assert issubclass(stock, BaseProcessingInfo | BaseMultiModalProcessor)
    return type(f"Pruning{stock.__name__}", (ours, stock), {"__module__": __name__})
