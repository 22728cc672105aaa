"""The plan of a prefill: visual tokens in front of each decoder layer, and FLOPs, from shapes alone."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from vtc import spec as specs
from vtc.method import fields
from vtc.method.units import units
from vtc.model.adapter import adapter_class
from vtc.model.flops import BlockRun, Cost, Flops
from vtc.model.layout import Grid, Layout, VisualInput
from vtc.planning.tower import Untold, encode, runs_of, tokens_per_image
from vtc.seam.composition import Composition


@dataclass(frozen=True)
class Plan:
    """What a prefill of one prompt will do.

    Attributes:
        spec: the methods, as a spec string.
        original_tokens: visual tokens of the prompt.
        text_tokens: its other tokens.
        tokens_per_layer: LongTensor [layers]: visual tokens that enter each decoder layer, merged ones counted.
    """

    spec: str
    original_tokens: int
    text_tokens: int
    tokens_per_layer: Tensor
    _cost: Cost = field(repr=False)
    _runs: Callable[[], list[BlockRun]] = field(repr=False)
    _drops_heads: bool = field(repr=False, default=False)

    @property
    def equivalent_tokens(self) -> float:
        """Mean over decoder layers of the visual tokens that enter the layer."""
        return float(self.tokens_per_layer.double().mean())

    @property
    def decoder_share(self) -> float:
        """FLOPs of the decoder over those of the untouched one.

        Raises:
            ValueError: a method drops heads, which the plan does not count.
        """
        flops = self._flops([])
        return flops.decoder / flops.unpatched_decoder

    def flops(self) -> Flops:
        """Prefill FLOPs, decoder and tower, with and without compression, as `Trace.flops` counts them.

        Raises:
            ValueError: shapes alone don't tell what the tower does; the message says why, and the way out.
        """
        return self._flops(self._runs())

    def _flops(self, runs: list[BlockRun]) -> Flops:
        if self._drops_heads:
            raise Untold(
                f"{self.spec} drops attention heads, which a plan does not count; use a target like 'tokens=64'"
            )
        original, text = torch.tensor([self.original_tokens]), torch.tensor([self.text_tokens])
        return replace(self._cost, runs=runs).flops(self.tokens_per_layer[:, None], original, text)

    def __str__(self) -> str:
        tokens = (
            f"plan of {self.spec}: {self.original_tokens} -> {int(self.tokens_per_layer[-1])} visual tokens "
            f"(equivalent {self.equivalent_tokens:.1f})"
        )
        if self._drops_heads:
            return tokens
        decoder = f"decoder {100 * self.decoder_share:.1f} % of its FLOPs"
        try:
            flops = self.flops()
        except Untold:
            return f"{tokens}\n{decoder}"
        share = flops.total / flops.unpatched_total
        whole = f"{flops.total / 1e9:.2f} of {flops.unpatched_total / 1e9:.2f} GFLOP ({100 * share:.1f} %)"
        return f"{tokens}\nprefill {whole}, {decoder}"


class Planner:
    """Plans of one model for one prompt.

    Args:
        model: whose shapes count; its weights are not read, and it may be on the device "meta".
        text_tokens: tokens of the prompt that are not visual.
        visual_tokens: of one image; None: what the model's config fixes.
        images: images of the prompt.
        crops: tiles of one image that the tower sees; None: as many as make so many tokens.
        frames: of one video.

    Raises:
        ValueError: a number is out of range, or the config does not fix the visual tokens.
        TypeError: a number is not an int, or `model` no module.
    """

    def __init__(
        self,
        model: nn.Module,
        text_tokens: int,
        visual_tokens: int | None,
        images: int = 1,
        crops: int | None = None,
        frames: int = 1,
    ):
        if not isinstance(model, nn.Module):
            raise TypeError(f"model={model!r} is a {type(model).__name__}; give a vision-language model")
        fields.check_int("text_tokens", text_tokens, "give the prompt's tokens that are not visual, such as 60", 0)
        fields.check_int("images", images, "give how many images the prompt shows, such as 1", 1)
        if crops is not None:
            fields.check_int("crops", crops, "give the tiles of one image that the vision tower sees, or None", 1)
        fields.check_int("frames", frames, "give the frames of one video, or 1 for images", 1)
        self.adapter: Any = adapter_class(model)(model)
        if visual_tokens is None:
            visual_tokens = tokens_per_image(self.adapter) if frames == 1 else None
            if visual_tokens is None:
                raise Untold(
                    f"visual_tokens=None, but the config of {self.adapter.family} fixes no number: it depends on the "
                    "image; give the number of placeholders that the processor makes of one image or video, e.g. "
                    "visual_tokens=1196"
                )
        fields.check_int("visual_tokens", visual_tokens, "give the visual tokens of one image, such as 576", 1)
        if frames > visual_tokens:
            raise ValueError(f"frames={frames} of {visual_tokens} visual tokens; give visual_tokens of the whole video")
        self.text_tokens, self.visual_tokens, self.images, self.crops = text_tokens, visual_tokens, images, crops
        self.frames = frames
        self._cost: Cost | None = None
        self._known: dict[str, list[BlockRun]] = {}

    def plan(self, spec: specs.Spec) -> Plan:
        """The plan of a spec.

        Raises:
            ValueError: the spec can't be used with this model, or the picture decides how many tokens stay.
        """
        methods = specs.parse(spec)
        text = specs.to_string(methods)
        composition = Composition.of(self.adapter, methods, text)  # which checks, and splits methods by kind
        _check_told(composition)
        self._cost = self._cost or composition.cost([])
        return Plan(
            spec=text,
            original_tokens=self.images * self.visual_tokens,
            text_tokens=self.text_tokens,
            tokens_per_layer=torch.tensor(self._tokens(composition)),
            _cost=self._cost,
            _runs=lambda: self._tower(composition),
            _drops_heads=any(watch.heads for watch in composition.watches.values()),
        )

    def _tokens(self, composition: Composition) -> list[int]:
        """Visual tokens of the row in front of each decoder layer, by the rules of `vtc.seam.layers`."""
        alive = self.images * self.visual_tokens
        if composition.reducer is not None:
            alive = self.images * composition.reducer.count(self.visual_tokens)
        elif composition.selector is not None:
            alive = sum(composition.selector.count_of(unit) for unit in units(self._layout(), composition.selector.per))
        reached: dict[int, int] = {}
        tokens = []
        for layer in range(len(composition.parts.layers)):
            here = alive
            if layer in composition.prune_at:
                prune, stage = composition.prune_at[layer]
                first = reached.setdefault(id(prune), alive)
                here = prune.left_at(stage, first, alive)
                alive = alive if prune.returns else here
            tokens.append(here)
        return tokens

    def _layout(self) -> Layout:
        """The prompt's images; which cells stand in a row does not matter to what is counted."""
        total = self.images * self.visual_tokens
        each, end = divmod(self.visual_tokens, self.frames)
        front = self.adapter.frame_front if self.frames > 1 else 0
        grid = Grid(0, self.frames, 1, each - front, end=end, front=front)
        kind = "image" if self.frames == 1 else "video"
        places = torch.arange(total).split(self.visual_tokens)
        return Layout((1, total), tuple(VisualInput(0, kind, at, (grid,), n) for n, at in enumerate(places)))

    def _tower(self, composition: Composition) -> list[BlockRun]:
        """The tower's work; once for each number of tokens that a reducer leaves, all else being equal.

        Raises:
            Untold: the tower's work on videos is not planned.
        """
        if self.frames > 1:
            raise Untold("what the vision tower does with videos is not planned; use a target like 'decoder=0.2'")
        reducer = composition.reducer
        left = reducer and (reducer.name, {**vars(reducer), "keep": reducer.count(self.visual_tokens)})
        key = repr(left)
        if key not in self._known:
            encoding = encode(self.adapter, self.visual_tokens, self.images, self.crops)
            self._known[key] = runs_of(composition, encoding)
        return self._known[key]


def plan(
    model: nn.Module,
    spec: specs.Spec,
    *,
    text_tokens: int,
    visual_tokens: int | None = None,
    images: int = 1,
    crops: int | None = None,
    frames: int = 1,
) -> Plan:
    """What a prefill will do under `spec`, from shapes alone: nothing is run, and `model` may be on the device "meta".

    Args:
        model: a vision-language model of transformers.
        spec: as in `vtc.patch`.
        text_tokens: tokens of the prompt that are not visual; markers around an image are among them.
        visual_tokens: placeholders of one image. None: what the config fixes (LLaVA, Gemma 3; one tile of InternVL).
        images: images of the prompt, all alike. Tiles that the model takes for images of their own (Aya, Cohere) count.
        crops: tiles of one image that the vision tower sees, thumbnail counted, where `visual_tokens` don't tell
            (LLaVA-NeXT). Only FLOPs of the tower need it.
        frames: more than 1: `images` are videos of so many frames (of the tower: after temporal merging), of
            `visual_tokens` each; what is over behind the last frame are newlines. FLOPs of the tower are not told then.

    Raises:
        ValueError: the spec can't be used with this model, the picture decides how many tokens stay (`vtc.calibrate`
            runs the model to find out), or a number is out of range.
        TypeError: a number is not an int.
    """
    return Planner(model, text_tokens, visual_tokens, images, crops, frames).plan(spec)


def _check_told(composition: Composition) -> None:
    """Refuse methods that decide by the picture how many tokens stay.

    Raises:
        Untold: one does.
    """
    outer: Sequence[Any] = [method for method in (composition.reducer, composition.selector) if method is not None]
    for method in [*outer, *composition.prunes]:
        if method.adaptive or getattr(method, "compat", False):
            raise Untold(
                f"{method.name}: how many tokens it leaves depends on the picture, so shapes don't tell; use "
                "vtc.calibrate(model, spec, field, batches), which runs the model, or a field that fixes them"
            )
