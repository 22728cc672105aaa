"""How a vision-language model is called, and how it puts visual features into the sequence."""

import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from vtc.calls import words
from vtc.calls.roles import Call, Role, is_cache, parameters, real, whole

PLACEHOLDERS = "get_placeholder_mask"
MERGING = "inputs_merger"  # does at once what others do behind PLACEHOLDERS
PACKING = "pack_image_features"
#: Arguments of a features call: sides of pictures in pixels, grids in patches, pictures of each row.
IMAGE_SIZES, IMAGE_GRID_HW, PICTURES_PER_ROW = "image_sizes", "image_grid_hw", "batch_num_images"
#: Those that tell a picture's sides, in pixels or patches.
SIDES = (IMAGE_SIZES, "spatial_shapes", "target_sizes")
KINDS = ("image", "video")


_SIZES = re.compile(r"grid|sizes|shapes|position_ids|patch_attention_mask")


class CompositeCall(Call):
    """One call of the module that calls the decoder."""

    ids = Role("input_ids", like=whole(2), words=words.IDS, first=True)
    embeds = Role("inputs_embeds", like=real(3), words=r"embed")
    mask = Role("attention_mask", like=words.is_mask, words=words.MASK)
    positions = Role("position_ids", like=whole(2, 3), words=words.POSITIONS)
    cache = Role("past_key_values", "cache", "cache_params", like=is_cache, words=words.CACHE, always=True)  # 5.24
    ahead = Role("mm_encoder_outputs", like=lambda value: _by_kind(value), sure=True)  # that `generate` made ahead

    labels = Role("labels")
    types = Role("mm_token_type_ids")  # not 0 at visual tokens

    @property
    def rows(self) -> int:
        """Rows of its batch; 0 where it has neither ids nor embeddings."""
        told = self.ids if self.embeds is None else self.embeds
        return 0 if told is None else len(told)

    @property
    def shows(self) -> bool:
        """Whether it brings pixels, features made of some, or embeddings of which it says that some are visual."""
        rest = self.without(CompositeCall.embeds, CompositeCall.mask)
        pixels = any(is_real(value) and value.dim() > 1 and value.numel() > 0 for value in rest.values())
        return pixels or bool(self.ahead) or (self.embeds is not None and self.types is not None)

    def facts(self, composite: nn.Module, kind: str) -> dict[str, Any]:
        """What it says of the pictures of a kind, beside their pixels: what the method takes that makes features."""
        names = inspect.signature(getattr(composite, features_method(kind), lambda: None)).parameters
        told = {self.label(key): value for key, value in self.values.items() if not is_real(value)}
        return {name: told[name] for name in names if told.get(name) is not None}

    def asked(self, ids: Tensor | None, types: Tensor | None, config: Any) -> Tensor | None:
        """BoolTensor [B, L] on the host: where it says that visual tokens stand; None where it does not tell.

        Args:
            ids: its own, on the host.
            types: the same.
            config: the model's.
        """
        if ids is None:
            return None if types is None else types != 0
        return placeholders_in(ids, config)


def takes_sizes(tower: nn.Module | None) -> bool:
    """Whether a vision tower is told the sizes of pictures: they come in any. True where there is none to be asked."""
    return tower is None or any(_SIZES.search(name) for name in parameters(tower))


def _by_kind(value: Any) -> bool:
    """Whether a value is features of pictures, videos or both, by kind."""
    return isinstance(value, dict) and any(value.get(kind) is not None for kind in KINDS)


class FeaturesCall(Call):
    """The arguments of the method that makes image or video features, by name.

    Args:
        composite: owns the method.
        kind: "image" or "video".
        args, kwargs: of the call.
    """

    def __init__(self, composite: nn.Module, kind: str, args: tuple, kwargs: dict[str, Any]):
        given = inspect.signature(getattr(composite, features_method(kind))).bind(*args, **kwargs)
        super().__init__((), {**given.arguments, **given.arguments.get("kwargs", {})})


def features_method(kind: str) -> str:
    """The method that makes features of a kind."""
    return f"get_{kind}_features"


def placeholder_id(config: Any, kind: str) -> int | None:
    """The id of the tokens that a kind's features are put in place of; None where the config names none."""
    found = (getattr(config, name, None) for name in (f"{kind}_token_id", f"{kind}_token_index"))
    return next((token for token in found if token is not None), None)


def placeholders_in(ids: Tensor, config: Any) -> Tensor | None:
    """BoolTensor [B, L]: ids of placeholders of any kind; None where the config names none."""
    known = [token for kind in KINDS if (token := placeholder_id(config, kind)) is not None]
    return torch.isin(ids, torch.tensor(known, device=ids.device)) if known else None


def kinds_shown(kwargs: dict[str, Any]) -> list[str]:
    """The kinds whose placeholders a call of `PLACEHOLDERS` asks for; images where it does not tell."""
    return [kind for kind in KINDS if kwargs.get(f"{kind}_features") is not None] or ["image"]


def placeholder_masks(output: Any, kwargs: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """(kind, BoolTensor [B, L]) for what a call of `PLACEHOLDERS` or `MERGING` returned.

    Raises:
        RuntimeError: that is no mask.
    """
    if is_real(output):  # the embeddings, new ones at the placeholders
        yield "image", (output != MergingCall((), kwargs).embeds).any(dim=-1)
        return
    masks = output if isinstance(output, tuple) else (output,)
    wrong = next((mask for mask in masks if mask is not None and not isinstance(mask, Tensor)), None)
    if wrong is not None:
        raise RuntimeError(
            f"vtc: {PLACEHOLDERS} gave a {type(wrong).__name__} where masks were expected, so where visual features go "
            "is not known; run `vtc doctor`, or call vtc.unpatch"
        )
    for kind in kinds_shown(kwargs):
        mask = masks[1] if kind == "video" and len(masks) > 1 else masks[0]
        if mask is not None:
            yield kind, mask[..., 0] if mask.dim() == 3 else mask


def token_asked_for(args: tuple, kwargs: dict[str, Any]) -> Any:
    """The id whose placeholders a call of `PLACEHOLDERS` asks for, in families that name it; else None."""
    return kwargs.get("token_id", args[3] if len(args) > 3 else None)


def grid_thw(arguments: dict[str, Any], kind: str) -> Tensor | None:
    """The grids in patches [images, 3] among the arguments of a features call."""
    named = arguments.get(f"{kind}_grid_thw")
    return next((value for value in arguments.values() if _is_thw(value)), None) if named is None else named


def _is_thw(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dim() == 2 and value.shape[1] == 3


def is_real(value: Any) -> bool:
    """Whether a value is a tensor of real numbers: pixels, features or embeddings."""
    return isinstance(value, Tensor) and value.is_floating_point()


def turns_several_axes(composite: nn.Module) -> bool:
    """Whether the model makes the position ids of M-RoPE for its decoder."""
    return hasattr(composite, "get_rope_index")


def rope_offset(composite: nn.Module) -> Any:
    """The M-RoPE offset that the model keeps for decode steps; None where it has none."""
    return getattr(composite, "rope_deltas", None)


def set_rope_offset(composite: nn.Module, offset: Any) -> None:
    """Give the model the M-RoPE offset of another conversation."""
    composite.rope_deltas = offset


def last_logits_only(model: nn.Module) -> dict[str, int]:
    """The argument that asks for the last token's logits alone, where the model takes it."""
    name = "logits_to_keep"
    return {name: 1} if name in inspect.signature(model.forward).parameters else {}


class MergingCall(Call):
    """A call of `MERGING`."""

    embeds = Role("inputs_embeds")


class PackingCall(Call):
    """A call of a family's own packing of tiles into tokens."""

    features = Role("image_features", first=True)
    sizes = Role(IMAGE_SIZES)
    newline = Role("image_newline")


#: Arguments of packing that a config has, and the pictures' sizes.
PACKING_DEFAULTS = ("vision_feature_select_strategy", "vision_aspect_ratio")


def packing_arguments(method: Callable[..., Any], config: Any, arguments: dict[str, Any]) -> dict[str, Any]:
    """What a family's packing will be called with, but for features and newline, told by a features call.

    Args:
        method: the packing.
        config: the model's.
        arguments: of the features call.
    """
    values = {**{name: getattr(config, name, None) for name in PACKING_DEFAULTS}, IMAGE_SIZES: None}
    given = {name: value for name, value in arguments.items() if value is not None}
    named = inspect.signature(method).parameters
    return {name: given.get(name, value) for name, value in values.items() if name in named}
