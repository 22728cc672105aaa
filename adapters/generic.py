"""The adapter with nothing family-specific: it finds parts by what they are, not by whose they are."""

import functools
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vtc.adapters.cells import cells_of_grid, joined, means, runs_by_row, square_cells
from vtc.adapters.finding import Finder, block_of_hidden_state, has_cls, layers_of, longest_list
from vtc.adapters.grids import are_flat, config_grid, pixel_grid, told_grids
from vtc.adapters.seen import check_seen, origins
from vtc.calls.cache import tokens_in
from vtc.calls.composite import (
    IMAGE_SIZES,
    KINDS,
    PACKING,
    PLACEHOLDERS,
    features_method,
    grid_thw,
    placeholder_id,
    takes_sizes,
)
from vtc.calls.decoder import DecoderCall
from vtc.model.adapter import family_of
from vtc.model.layout import Grid, Layout, UnknownGrid, VisualInput
from vtc.model.parts import Parts
from vtc.model.wrap import Wrap
from vtc.tower.features import Features
from vtc.tower.observer import Observer
from vtc.tower.prompt import Prompt


class Adapter(Finder):
    """Finds the parts of a model and tells how its visual tokens are laid out.

    Args:
        model: any module of a vision-language model: with head, without head.

    Raises:
        ValueError: the model has no visual placeholders or no decoder that the seam can hold on to; says which.
    """

    #: `config.model_type`s that this adapter serves; "*" is everything else.
    families: ClassVar[tuple[str, ...]] = ("*",)
    #: Methods that fill features in at the placeholders; a model has one of them.
    fills_in: ClassVar[tuple[str, ...]] = (PLACEHOLDERS,)
    #: Whether the images of a row are its unbroken runs of placeholders (tiles of one image count together).
    image_is_run: ClassVar[bool] = False
    #: Whether the projector's output at a patch is the visual token, so that other rows may be put through it.
    projects_rows: ClassVar[bool] = False
    #: Separators in front of each frame of a video, such as a CLS token.
    frame_front: ClassVar[int] = 0
    #: Whether it is known that the tokens are made of the patches that `patches` names, so that others may be removed.
    follows_patches: ClassVar[bool] = False
    #: Whether the tower is given its pixels patch by patch, those of a token behind each other: `pictures` shows them.
    shows_pixels: ClassVar[bool] = False

    def __init__(self, model: nn.Module):
        self.model = model
        self._ids_tell: dict[str, bool] = {}  # kind -> whether placeholders are the tokens of the config's id
        self.family = family_of(model)
        composite = self.find_composite(model)
        decoder = self.find_decoder(composite)
        self.tower: Any = self.find_tower(composite)
        blocks = longest_list(self.tower) if self.tower is not None else ()
        config = getattr(composite, "config", None)
        layers = getattr(config, "vision_feature_layer", getattr(config, "vision_feature_layers", -1))
        self.feature_layers = [layers] if isinstance(layers, int) else list(layers)
        self.parts = Parts(
            family=self.family,
            composite=composite,
            decoder=decoder,
            layers=layers_of(decoder),
            blocks=blocks,
            has_cls=self.tower is not None and has_cls(self.tower),
            feature_layer=max(block_of_hidden_state(layer, len(blocks)) for layer in self.feature_layers),
            stacked=getattr(getattr(decoder, "config", None), "altup_num_inputs", 1) > 1,
        )

    @classmethod
    def claims(cls, model: nn.Module) -> bool:
        """Whether `model` is this adapter's whatever family its config names."""
        return False

    @property
    def measures(self) -> bool:
        """Whether which patches make a token is measured: there is no rule that is known to hold for the family."""
        return not self.follows_patches and type(self).patches is Adapter.patches

    # ---------------------------------------------------------------- what a call tells

    def record(self, observer: Observer) -> list[Wrap]:
        """The calls that tell where placeholders are, and how features are made and packed, for `observer` to see."""
        composite = self.parts.composite
        names = (name for name in self.fills_in if hasattr(composite, name))
        wraps = [Wrap(composite, name, after=observer.record_placeholders) for name in names]
        for kind in KINDS:
            if hasattr(composite, name := features_method(kind)):
                before, after = (
                    functools.partial(see, kind) for see in (observer.start_features, observer.record_features)
                )
                wraps.append(Wrap(composite, name, before=before, after=after, finally_=observer.encoding.end))
        if hasattr(composite, PACKING):
            wraps.append(Wrap(composite, PACKING, after=observer.record_packing))
        return wraps

    def decoder_call(self, prompt: Prompt, call: DecoderCall) -> DecoderCall:
        """The decoder's call, in the form that has embeddings; what it tells goes to `prompt`."""
        return call

    def fresh(self, call: DecoderCall) -> bool:
        """Whether a call of the decoder has nothing before it."""
        return tokens_in(call.cache) == 0

    def layer_of_state(self, index: int, states: int) -> int:
        """The decoder layer whose output, or for the first one input, is `hidden_states[index]` of the decoder.

        Up to transformers 5.20, chosen states are outputs alone: as many as there are layers.
        """
        return index if states == len(self.parts.layers) else max(index - 1, 0)

    def layout(self, prompt: Prompt, shape: tuple[int, int]) -> Layout:
        """Images of a call, row by row, with their grids."""
        images: list[VisualInput] = []
        for kind, mask in prompt.placeholders:
            features, here = prompt.features_of(kind), self._on_host(prompt, kind, mask)
            check_seen(self.family, prompt, kind, here, shape, self.image_is_run)
            ids = prompt.early.read(prompt.ids) if prompt.ids is not None and prompt.ids.shape == mask.shape else None
            split = self._split(here, features, ids)
            found = [VisualInput(row, kind, at, ()) for row, at in split]
            images += [
                replace(image, grids=self.grids(features, origin, len(image)), origin=origin)
                for image, origin in zip(found, origins(self.family, found, features))
            ]
        images.sort(key=lambda image: (image.row, int(image.positions[0])))
        return Layout(shape, tuple(images))

    def _on_host(self, prompt: Prompt, kind: str, mask: Tensor) -> Tensor:
        """A mask of placeholders on the host.

        It is told from the ids, which were copied there before the tower ran, if the first call of this patch, which
        waits for the device to compare, shows that they do tell it.
        """
        ids = None if prompt.ids is None else prompt.early.of(prompt.ids)
        token = placeholder_id(self.parts.composite.config, kind)
        if mask.device.type == "cpu" or ids is None or token is None or ids.shape != mask.shape:
            return mask.cpu()
        told, sizes = ids == token, prompt.features_of(kind).sizes
        if kind not in self._ids_tell:
            self._ids_tell[kind] = torch.equal(told, mask.cpu())
        fits = not sizes or sum(sizes) == int(told.sum())
        return told if self._ids_tell[kind] and fits else mask.cpu()

    def _split(self, mask: Tensor, features: Features, ids: Tensor | None) -> list[tuple[int, Tensor]]:
        """(row, positions) of each image: by the sizes of its features, else by unbroken runs of placeholders.

        Args:
            mask: BoolTensor [B, L] on the CPU: the placeholders.
            features: the call that made their features.
            ids: LongTensor [B, L] on the CPU; None where they are not known.
        """
        sizes, count = list(features.sizes), int(mask.sum())
        if self.image_is_run or not count:
            return runs_by_row(mask)
        if sum(sizes) != count:
            made = f"{sum(sizes)} were made" if sizes else "what was made does not tell how many belong to each"
            raise RuntimeError(
                f"vtc: {self.family} has {count} placeholders for {features.kind} features, and {made}, so where one "
                f"{features.kind} ends is not known; run `vtc doctor`, or call vtc.unpatch"
            )
        images = []
        for row, here in enumerate(row.nonzero().flatten() for row in mask):
            while len(here):
                size = sizes.pop(0) if sizes else len(here) + 1
                if size > len(here):
                    raise ValueError(
                        f"{self.family}: the visual features do not fit the placeholders of row {row} (for beams, some "
                        "releases of transformers repeat the images of a row in the wrong order); give each row images "
                        "of one size, or generate without beams"
                    )
                images.append((row, here[:size]))
                here = here[size:]
        return images

    def grids(self, features: Features, index: int, tokens: int) -> tuple[Grid, ...]:
        """The grid(s) behind the `tokens` of image `index`: told by the call, or known by the config; else unknown."""
        told = told_grids(features.arguments, features.kind, index, tokens)
        if told is not None or takes_sizes(self.tower):
            return told or self.unknown_grid(features, tokens)
        grid = pixel_grid(features.shapes, tokens) if self.follows_patches else None
        if grid is None and not are_flat(features.shapes):
            grid = config_grid(self.parts.composite.config, tokens)
        return self.unknown_grid(features, tokens) if grid is None else (grid,)

    def unknown_grid(self, features: Features, tokens: int) -> tuple[Grid, ...]:
        """What stands for the grid of an image where nothing tells it."""
        return (UnknownGrid.of(tokens, self.family, features.kind),)

    # ---------------------------------------------------------------- tower scores, per token

    def tower_scores(self, prompt: Prompt, layout: Layout) -> dict[tuple[str, int | str], list[Tensor]]:
        """Scores that the tower's attention gave: ("received" or "cls", block) -> Tensor [N] for each image.

        Left out is what was not seen for every image.
        """
        seen: dict[tuple[str, int | str], dict[int, Tensor]] = {}
        blind = [kind for kind, features in prompt.features.items() if features.scores and features.shape == (0, 0)]
        if blind:
            raise RuntimeError(
                f"vtc: the blocks of {self.family}'s vision tower were not called as modules, so what {blind[0]} "
                "features its attention belongs to is not known; run `vtc doctor`, or call vtc.unpatch"
            )
        for kind, features in prompt.features.items():
            images = {index: image for index, image in enumerate(layout.images) if image.kind == kind}
            tokens = dict(sorted((image.origin, len(image)) for image in images.values()))
            for what, calls in features.scores.items() if images else ():
                values = self.to_tokens(joined(calls), features, list(tokens.values()))
                seen.setdefault(what, {}).update({index: values[image.origin] for index, image in images.items()})
        total = range(len(layout.images))
        return {what: [of[index] for index in total] for what, of in seen.items() if len(of) == len(total)}

    def to_tokens(self, values: Tensor, features: Features, tokens: list[int]) -> list[Tensor]:
        """Per-patch values to per-token values.

        Args:
            values: Tensor [sequences, P, ...], a row for each sequence of the tower (crop, image or window), CLS too.
            features: the call that made them.
            tokens: visual tokens of each encoded image.

        Returns:
            For each encoded image, Tensor [N, ...]; NaN at separators. Where several patches make a token, their mean.
        """
        if self.parts.has_cls:
            values = values[:, 1:]
        flat = values.flatten(0, 1)
        return [means(flat, rows) for rows in self.patches(features, (values.shape[0], values.shape[1]), tokens)]

    def patches(self, features: Features, shape: tuple[int, int], tokens: list[int] | None = None) -> list[Tensor]:
        """The patches that each visual token is made of.

        Args:
            features: the call that makes the features.
            shape: (sequences, patches in each), CLS left out.
            tokens: visual tokens of each encoded image; None: told from the call's arguments and the config.

        Returns:
            For each encoded image, LongTensor [N, cell] on the CPU: rows of the tower, counted through all sequences,
            CLS left out; -1 at separators.

        Raises:
            ValueError: patches and tokens do not fit.
        """
        tokens = self.token_counts(features, shape) if tokens is None else tokens
        count, total = shape[0] * shape[1], sum(tokens)
        if self.measures and features.measured is not None and len(features.measured) == total:
            return list(features.measured.split(tokens))
        if self.measures or not total or count % total:
            raise ValueError(
                f"{self.family}: how {count} patches of the vision tower map onto {total} visual tokens is not known; "
                "choose a method that does not read the tower, such as 'divprune'"
            )
        cell, rows = count // total, torch.arange(count)
        if shape[0] == 1:  # all images in one packed sequence
            parts = rows.split([n * cell for n in tokens])
            grids = [self.grids(features, index, n)[0] for index, n in enumerate(tokens)]
            return [cells_of_grid(part, grid, cell) for part, grid in zip(parts, grids)]
        return list(square_cells(rows.view(shape), cell).split(tokens))

    def token_counts(self, features: Features, shape: tuple[int, int]) -> list[int]:
        """Visual tokens of each encoded image, before there are any features."""
        thw = self._thw(features)
        side = getattr(self.tower, "spatial_merge_size", getattr(self.parts.composite.config, "spatial_merge_size", 1))
        if thw is not None:
            return (thw.prod(dim=1) // side**2).tolist()
        sizes = features.arguments.get(IMAGE_SIZES)
        if shape[0] == 1 and sizes is not None:
            patch = self.tower.patch_size * side
            return [int(height) // patch * (int(width) // patch) for height, width in sizes]
        return [shape[1] // self.cell(shape[1])] * shape[0]

    def cell(self, patches: int) -> int:
        """Patches that make a token, told by the config, for an image of `patches`."""
        config = self.parts.composite.config
        if tokens := getattr(config, "mm_tokens_per_image", None):
            return patches // tokens
        for name in ("downsample_factor", "scale_factor"):
            if factor := getattr(config, name, None):
                return int(factor) ** 2
        ratio = getattr(config, "downsample_ratio", None)
        return round(1 / ratio**2) if ratio else 1

    @staticmethod
    def _thw(features: Features) -> Tensor | None:
        """The grids in patches [images, 3] that the call was given."""
        return grid_thw(features.arguments, features.kind)
