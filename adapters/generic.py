"""The adapter with nothing family-specific: it finds parts by what they are, not by whose they are."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.forward import Recorded
from vtc.layout import Grid, Layout, VisualInput
from vtc.parts import Parts

_DECODERS = ("language_model", "text_model")
_TOWERS = ("vision_tower", "visual", "vision_model", "vision_embed_tokens", "vision_encoder", "encoder")
_ATTENTIONS = ("self_attn", "attn", "attention", "self_attention")
_MLPS = ("mlp", "feed_forward", "block_sparse_moe", "moe", "ffn")


@dataclass
class Features:
    """One recorded call that made image or video features.

    Attributes:
        kind: "image" or "video".
        sizes: visual tokens of each image; empty where the output does not tell.
        arguments: the call's keyword arguments (grids, image sizes).
        packing: (args, kwargs) of the family's own packing of patches into tokens, where it has one.
    """

    kind: str
    sizes: list[int]
    arguments: dict[str, Any] = field(default_factory=dict)
    packing: tuple[tuple, dict[str, Any]] | None = None


class Adapter:
    """Finds the parts of a model and tells how its visual tokens are laid out.

    Args:
        model: any module of a vision-language model: with head, without head.

    Raises:
        ValueError: the model has no visual placeholders or no decoder that the seam can hold on to; says which.
    """

    #: `config.model_type`s that this adapter serves; "*" is everything else.
    families: ClassVar[tuple[str, ...]] = ("*",)
    #: Whether the images of a row are its unbroken runs of placeholders (tiles of one image count together).
    image_is_run: ClassVar[bool] = False

    def __init__(self, model: nn.Module):
        self.family = getattr(getattr(model, "config", None), "model_type", type(model).__name__)
        composite = self.find_composite(model)
        decoder = self.find_decoder(composite)
        self.tower = next((getattr(composite, name) for name in _TOWERS if hasattr(composite, name)), None)
        blocks = _longest_list(self.tower) if self.tower is not None else ()
        config = getattr(composite, "config", None)
        layer = getattr(config, "vision_feature_layer", -1)
        self.parts = Parts(
            family=self.family,
            composite=composite,
            decoder=decoder,
            layers=tuple(decoder.layers),
            blocks=blocks,
            has_cls=self.tower is not None and _has_cls(self.tower),
            feature_layer=_block_of_hidden_state(layer if isinstance(layer, int) else max(layer), len(blocks)),
        )

    # ---------------------------------------------------------------- parts

    def find_composite(self, model: nn.Module) -> nn.Module:
        """The module that puts visual features into the sequence."""
        found = [m for m in model.modules() if hasattr(m, "get_placeholder_mask") and self._decoder_in(m) is not None]
        if not found:
            raise ValueError(
                f"{self.family}: no module with get_placeholder_mask and a language model was found, so there are no "
                "visual placeholders to compress; vtc needs a vision-language model of transformers >= 5"
            )
        return found[-1]

    def find_decoder(self, composite: nn.Module) -> nn.Module:
        """The module that owns the decoder layers and takes `inputs_embeds`."""
        decoder = self._decoder_in(composite)
        while decoder is not None and not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            decoder = getattr(decoder, "model", None)
        if decoder is None or not len(decoder.layers):
            raise ValueError(f"{self.family}: its language model has no list of decoder layers that vtc can hook")
        return decoder

    def _decoder_in(self, composite: nn.Module) -> nn.Module | None:
        parts = (composite._modules.get(name) for name in _DECODERS)
        return next((part for part in parts if part is not None), None)

    def attention(self, layer: nn.Module) -> nn.Module:
        """The attention module of a decoder layer or tower block.

        Raises:
            ValueError: it has none, or not under one of the usual names.
        """
        attention = self.find_attention(layer)
        if attention is None:
            raise ValueError(
                f"{self.family}: no attention was found in {type(layer).__name__} (a recurrent or convolution layer has "
                "none); choose a layer that has one, or a method that reads no attention, such as 'divprune'"
            )
        return attention

    def find_attention(self, layer: nn.Module) -> nn.Module | None:
        """The attention module of a layer, or None."""
        attention = _child(layer, _ATTENTIONS)
        inner = attention._modules.get("attention") if attention is not None else None  # BERT-like towers nest it
        return attention if inner is None else inner

    def mlp(self, layer: nn.Module) -> nn.Module:
        """The MLP of a decoder layer.

        Raises:
            ValueError: none under one of the usual names.
        """
        mlp = _child(layer, _MLPS)
        if mlp is None:
            raise ValueError(f"{self.family}: no MLP was found in {type(layer).__name__}")
        return mlp

    def rotary_modules(self) -> list[nn.Module]:
        """The decoder's rotary embeddings that are shared by its layers."""
        layers = {id(m) for layer in self.parts.layers for m in layer.modules()}
        modules = self.parts.decoder.modules()
        return [m for m in modules if "Rotary" in type(m).__name__ and id(m) not in layers]

    # ---------------------------------------------------------------- what a call tells

    def record_features(self, seam: Any) -> None:
        """Have the seam record the calls that make visual features."""
        for kind in ("image", "video"):
            name = f"get_{kind}_features"
            if hasattr(self.parts.composite, name):
                seam._wrap(
                    self.parts.composite,
                    name,
                    lambda output, args, kwargs, kind=kind: self._record(seam.recorded, kind, output, args, kwargs),
                )

    def _record(self, recorded: Recorded, kind: str, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        features = getattr(output, "pooler_output", output)
        packing = recorded.features.pop("packing", None)
        recorded.features[kind] = Features(kind, _sizes(features), {**kwargs, "args": args}, packing)

    def layout(self, recorded: Recorded, shape: tuple[int, int]) -> Layout:
        """Images of a call, row by row, with their grids."""
        images: list[VisualInput] = []
        for kind, mask in recorded.placeholders:
            rows = mask.cpu()
            features = recorded.features.get(kind) or Features(kind, [])
            for index, (row, positions) in enumerate(self._split(rows, features)):
                images.append(VisualInput(row, kind, positions, self.grids(features, index, len(positions))))
        images.sort(key=lambda image: (image.row, int(image.positions[0])))
        ordinals = [sum(other.row == image.row for other in images[:index]) for index, image in enumerate(images)]
        return Layout(
            shape,
            tuple(
                VisualInput(image.row, image.kind, image.positions, image.grids, ordinal)
                for image, ordinal in zip(images, ordinals)
            ),
        )

    def _split(self, mask: Tensor, features: Features) -> list[tuple[int, Tensor]]:
        """(row, positions) of each image: by the sizes of its features, else by unbroken runs of placeholders."""
        places = [row.nonzero().flatten() for row in mask]
        sizes = list(features.sizes)
        if self.image_is_run or sum(sizes) != int(mask.sum()):
            return [(row, run) for row, here in enumerate(places) for run in _runs(here)]
        images = []
        for row, here in enumerate(places):
            while len(here):
                size = sizes.pop(0)
                images.append((row, here[:size]))
                here = here[size:]
        return images

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """The grid(s) behind the `tokens` of image `index`: from grid_thw, image sizes, or a square; else one row."""
        arguments = features.arguments
        thw = arguments.get(f"{features.kind}_grid_thw")
        if thw is None:
            thw = next((a for a in arguments.get("args", ()) if _is_thw(a)), None)
        if thw is not None and index < len(thw):
            t, h, w = thw[index].tolist()
            merge = round((t * h * w / tokens) ** 0.5)
            if merge and t * (h // merge) * (w // merge) == tokens:
                return (Grid(0, t, h // merge, w // merge),)
        sizes = arguments.get("image_sizes")
        if sizes is not None and index < len(sizes):
            height, width = (int(side) for side in sizes[index])
            cell = (height * width / tokens) ** 0.5
            rows, columns = round(height / cell), round(width / cell)
            if rows * columns == tokens:
                return (Grid(0, 1, rows, columns),)
        side = round(tokens**0.5)
        return (Grid(0, 1, side, side),) if side * side == tokens else (Grid(0, 1, 1, tokens),)

    # ---------------------------------------------------------------- tower scores, per token

    def tower_scores(self, recorded: Recorded, layout: Layout) -> dict[tuple[str, int], list[Tensor]]:
        """Scores that the tower's attention gave, as one Tensor [N] for each image of the layout."""
        return {
            what: self.to_tokens(torch.cat([v.flatten(1) if v.dim() > 1 else v[None] for v in _aligned(values)]), recorded, layout)
            for what, values in recorded.scores.items()
        }

    def to_tokens(self, values: Tensor, recorded: Recorded, layout: Layout) -> list[Tensor]:
        """Per-patch values to per-token values.

        Args:
            values: Tensor [sequences, P], one row for each sequence of the tower (crop, image or window), CLS included.

        Returns:
            For each image, Tensor [N]; NaN at separators. Where several patches make a token, their mean.
        """
        if self.parts.has_cls:
            values = values[:, 1:]
        tokens = sum(len(image) for image in layout.images)
        patches = values.numel()
        if not tokens or patches % tokens:
            raise ValueError(
                f"{self.family}: {patches} patches of the vision tower do not map onto {tokens} visual tokens; "
                "choose a method that does not read the tower, such as 'divprune'"
            )
        merged = pool_patches(values, patches // tokens)
        return list(merged.flatten().split([len(image) for image in layout.images]))


def pool_patches(values: Tensor, per_token: int) -> Tensor:
    """Mean over the patches of each token: square cells of a square grid of patches.

    Args:
        values: Tensor [sequences, P].
        per_token: patches that make a token; a square number for square grids.

    Returns:
        Tensor [sequences, P / per_token].
    """
    if per_token == 1:
        return values
    side, cell = round(values.shape[1] ** 0.5), round(per_token**0.5)
    if side * side == values.shape[1] and cell * cell == per_token and side % cell == 0:
        grid = values.view(len(values), side // cell, cell, side // cell, cell)
        return grid.mean(dim=(2, 4)).flatten(1)
    return values.view(len(values), -1, per_token).mean(dim=-1)


def _aligned(values: list[Tensor]) -> list[Tensor]:
    """Scores of several calls as rows of equal length where they are; else joined into one row."""
    lengths = {value.shape[-1] for value in values}
    return values if len(lengths) == 1 else [torch.cat([value.flatten() for value in values])[None]]


def _child(layer: nn.Module, names: tuple[str, ...]) -> nn.Module | None:
    return next((layer._modules[name] for name in names if layer._modules.get(name) is not None), None)


def _longest_list(module: nn.Module) -> tuple[nn.Module, ...]:
    lists = [tuple(part) for part in module.modules() if isinstance(part, nn.ModuleList)]
    return max(lists, key=len, default=())


def _has_cls(tower: nn.Module) -> bool:
    names = ("class_embedding", "cls_token", "class_token", "cls_embedding")
    return any(getattr(part, name, None) is not None for part in tower.modules() for name in names)


def _block_of_hidden_state(index: int, blocks: int) -> int:
    """Index (negative) of the block that produces `hidden_states[index]`: hidden state 0 is the embedding."""
    return index if index < 0 else index - 1 - blocks


def _sizes(features: Any) -> list[int]:
    """Tokens of each image, from a list of [N, D] or a tensor [images, N, D]; empty where the output does not tell."""
    if isinstance(features, Tensor):
        return [features.shape[1]] * features.shape[0] if features.dim() == 3 else []
    if isinstance(features, (list, tuple)) and all(isinstance(f, Tensor) and f.dim() >= 2 for f in features):
        return [f.numel() // f.shape[-1] for f in features]
    return []


def _is_thw(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point() and value.dim() == 2 and value.shape[1] == 3


def _runs(places: Tensor) -> list[Tensor]:
    if not len(places):
        return []
    breaks = (places.diff() != 1).nonzero().flatten() + 1
    return list(places.tensor_split(breaks.tolist()))
