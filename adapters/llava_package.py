"""The original LLaVA package (`llava`, on PyPI `llava-torch`), which this file never imports.

Its language model is the model itself, and its placeholders (id -200) never reach the decoder:
`prepare_inputs_labels_for_multimodal` makes a longer sequence of embeddings of them, before `generate` even starts.
"""

import functools
import threading
import weakref
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.adapters.finding import block_of_hidden_state, has_cls, longest_list
from vtc.adapters.generic import Adapter
from vtc.adapters.prepared import Prepared, grids_of
from vtc.calls.decoder import DecoderCall
from vtc.calls.prepare import PREPARE, PrepareCall, embeddings, labels
from vtc.model.layout import Layout, VisualInput
from vtc.model.wrap import Wrap
from vtc.tower.features import Features
from vtc.tower.observer import Observer
from vtc.tower.prompt import Prompt

_TOWER = ("vision_tower", "select_layer", "select_feature", "num_patches")  # what the package's wrapper has once loaded


class LlavaPackageAdapter(Adapter):
    """`LlavaLlamaForCausalLM` and `LlavaMistralForCausalLM` of the package itself, and models built on them."""

    families: ClassVar[tuple[str, ...]] = ("llava_llama", "llava_mistral", "llava_mpt")
    follows_patches: ClassVar[bool] = True

    @classmethod
    def claims(cls, model: nn.Module) -> bool:
        """By its method: older checkpoints call themselves "llava", which is a family of transformers as well."""
        return any(hasattr(module, PREPARE) for module in model.modules())

    def __init__(self, model: nn.Module):
        super().__init__(model)
        wrapper = self.parts.composite.get_vision_tower()  # type: ignore[operator]
        if not all(hasattr(wrapper, name) for name in _TOWER):
            kind = "there is none" if wrapper is None else f"it is a {type(wrapper).__name__}"
            raise ValueError(
                f"{self.family}: a loaded CLIP vision tower of the llava package was not found ({kind}), so there is "
                "nothing to see images with; call model.get_vision_tower().load_model() before vtc.patch"
            )
        self.tower = wrapper.vision_tower
        self.feature_layers = [wrapper.select_layer]
        blocks = longest_list(self.tower)
        self.parts = replace(
            self.parts,
            blocks=blocks,
            has_cls=has_cls(self.tower),
            feature_layer=block_of_hidden_state(wrapper.select_layer, len(blocks)),
        )
        self._per_crop = wrapper.num_patches
        self._cls_tokens = int(wrapper.select_feature == "cls_patch")  # of each crop
        self._local = threading.local()

    @property
    def projects_rows(self) -> bool:  # type: ignore[override]
        """Not where the projector gets the CLS token as well."""
        return not self._cls_tokens

    @property
    def projector(self) -> nn.Module | None:
        """The module between tower and decoder."""
        return self.parts.decoder.mm_projector  # type: ignore[return-value]

    def find_composite(self, model: nn.Module) -> nn.Module:
        """The module that prepares the sequence and calls the decoder."""
        found = [module for module in model.modules() if hasattr(module, PREPARE)]
        if not found:
            raise ValueError(
                f"{self.family}: {type(model).__name__} has no {PREPARE}, so there are no visual placeholders to "
                "compress; give vtc.patch the whole model, e.g. LlavaLlamaForCausalLM"
            )
        return found[-1]

    def _decoder_in(self, composite: nn.Module) -> nn.Module | None:
        return composite.get_model()  # type: ignore[operator]

    # ---------------------------------------------------------------- what a call tells

    def record(self, observer: Observer) -> list[Wrap]:
        """See prompts being prepared, which also runs the tower."""
        before, after = (functools.partial(f, observer) for f in (self._before_prepare, self._after_prepare))
        return [Wrap(self.parts.composite, PREPARE, before=before, after=after, finally_=observer.encoding.end)]

    def _before_prepare(self, observer: Observer, args: tuple, kwargs: dict[str, Any]) -> None:
        composite = self.parts.composite
        call = PrepareCall(composite, args, kwargs)
        if not (call.has(PrepareCall.ids) and call.has(PrepareCall.images)):
            raise self._not_followed(f"its arguments are {', '.join(call.named)}")
        features = Features("image")
        if call.images is not None and call.ids.shape[1] > 1:  # else there is nothing to prepare
            try:
                features = Prepared.of(composite, call, self._per_crop, self._cls_tokens)
            except Exception as error:  # a model built on the package whose packing needs more than numbers
                raise self._not_followed(f"{type(error).__name__}: {error}") from error
        observer.encoding.start(features)

    def _after_prepare(self, observer: Observer, output: tuple, args: tuple, kwargs: dict[str, Any]) -> None:
        embeds, prepared = embeddings(output), observer.encoding.features
        if embeds is None or not isinstance(prepared, Prepared):
            return
        expected, shape = tuple(prepared.image.shape), tuple(embeds.shape[:2])
        if expected != shape:
            raise self._not_followed(f"{expected} tokens were expected, and it made {shape}")
        prepared = replace(prepared, labels=labels(output))
        self._local.last = weakref.ref(embeds), prepared  # a selector may call tower and projector again

    def _not_followed(self, why: str) -> ValueError:
        return ValueError(
            f"{self.family}: where {PREPARE} of {type(self.parts.composite).__name__} puts visual tokens could not be "
            f"followed ({why}); call vtc.unpatch to run the model without compression"
        )

    def decoder_call(self, prompt: Prompt, call: DecoderCall) -> DecoderCall:
        """Text is embedded ahead, as the decoder would; embeddings are recognised as the prompt prepared last."""
        embeds, ids, mask = call.embeds, call.ids, call.mask
        prompt.placeholders, prompt.features, prompt.ids, prompt.labels = [], {}, ids, None
        prompt.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None  # the model's own is shorter
        if embeds is None:
            embed: Any = self.parts.decoder.get_input_embeddings()  # type: ignore[operator]
            if ids is not None:
                call.ids, call.embeds = None, embed(ids)
            return call
        prepared = self._prepared_as(embeds)
        if prepared is not None:
            prompt.features["image"] = prepared
            prompt.placeholders.append(("image", prepared.image >= 0))
            prompt.ids = prepared.text_ids.to(embeds.device)
            prompt.labels = prepared.labels
        return call

    def _prepared_as(self, embeds: Tensor) -> Prepared | None:
        """What was prepared as `embeds` [B, L, D]: `generate` copies them, repeats rows, and drops what a cache has."""
        reference, prepared = getattr(self._local, "last", (lambda: None, None))
        whole: Tensor | None = reference()
        if whole is None or prepared is None:
            return None
        if whole is embeds:
            return prepared
        rows, length = embeds.shape[:2]
        if rows % len(whole) or length > whole.shape[1]:
            return None
        tail = whole[:, whole.shape[1] - length :].repeat_interleave(rows // len(whole), dim=0)
        same = torch.allclose(tail.to(embeds.device, embeds.dtype), embeds, rtol=0, atol=0, equal_nan=True)
        return prepared.tail(rows, length) if same else None

    def layout(self, prompt: Prompt, shape: tuple[int, int]) -> Layout:
        """Images where the patches went."""
        prepared = prompt.features.get("image")
        if not isinstance(prepared, Prepared):
            return Layout(shape)
        joined = str(getattr(self.parts.composite.config, "mm_patch_merge_type", "flat")).startswith("spatial")
        images: list[VisualInput] = []
        for row, index, positions in prepared.spans():
            grids = grids_of(prepared.patch[row, positions], prepared.per_crop, joined)
            images.append(VisualInput(row, "image", positions, grids, origin=index))
        return Layout(shape, tuple(images))

    def patches(self, features: Features, shape: tuple[int, int], tokens: list[int] | None = None) -> list[Tensor]:
        """The patch behind each token, as the prompt was prepared."""
        known = (sum(features.crops), features.per_crop) if isinstance(features, Prepared) else None
        if not isinstance(features, Prepared) or shape != known:
            raise ValueError(
                f"{self.family}: {shape[0]} crops of {shape[1]} patches went through the vision tower where the prompt "
                f"that was prepared has {known}, so they can't be followed to visual tokens; call the model itself, or "
                "use a method that does not read the tower, such as 'divprune'"
            )
        return [features.patches_of(index)[:, None] for index in range(features.images)]
