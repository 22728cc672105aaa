"""What a patch knows: which methods act where in a model. Made once, checked, and read by everything that runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any

from torch import nn

from vtc.calls.attention import implementation, sources_of_keys
from vtc.calls.composite import turns_several_axes
from vtc.method.base import Method
from vtc.method.kinds import split_kinds
from vtc.method.prune import Prune, Watch
from vtc.method.reducer import Reducer
from vtc.method.selector import Selector
from vtc.method.units import units
from vtc.method.visual_tokens import Needs
from vtc.model.flops import BlockRun, Cost, weights_of
from vtc.model.layout import Layout
from vtc.model.parts import Parts
from vtc.model.staying import Stays
from vtc.seam.composing import (
    check_implementation,
    check_sharing,
    check_together,
    layers_heard,
    prunes_by_layer,
    windowed_layers,
)
from vtc.tower.hooks import blocks_of
from vtc.tower.listeners import blocks_heard

_ANY = (1, 2, 3, 7, 64, 576, 10**9)  # numbers of tokens


@dataclass(frozen=True, eq=False)
class Composition(Stays):
    """The methods of one patch, laid out over one model.

    Attributes:
        spec: the methods as a spec string.
        adapter: where things are in the model.
        reducer, selector: at most one of the two.
        prunes: act in front of different layers.
        schedules: id of a prune -> the layers in front of which it acts.
        watches: id of a prune -> what it observes.
        prune_at: layer -> the prune that acts in front of it, and which of its stages that is.
        reducing_at: tower blocks at which the reducer acts.
        boundaries: layers at which a segment begins, 0 among them.
        needs: what the selector reads of the tower.
        recurrent: decoder layers that keep no keys.
        sources_of_keys: layer that makes no keys -> the one whose keys it attends to.
        heard_blocks, heard_layers: whose attention is handed to somebody.
    """

    spec: str
    adapter: Any
    reducer: Reducer | None
    selector: Selector | None
    prunes: tuple[Prune, ...]
    schedules: Mapping[int, tuple[int, ...]]
    watches: Mapping[int, Watch]
    prune_at: Mapping[int, tuple[Prune, int]]
    reducing_at: tuple[int, ...]
    boundaries: tuple[int, ...]
    needs: Needs
    recurrent: frozenset[int]
    sources_of_keys: Mapping[int, int]
    heard_blocks: tuple[int, ...]
    heard_layers: tuple[int, ...]

    @classmethod
    def of(cls, adapter: Any, methods: Sequence[Method], spec: str) -> "Composition":
        """Lay `methods` out over a model.

        Args:
            adapter: where things are in the model.
            methods: at most one selector or reducer, and prunes that act in front of different layers.
            spec: the methods as a spec string, for the trace.

        Raises:
            ValueError: the methods do not compose, or the model lacks what they need.
        """
        parts: Parts = adapter.parts
        depth = len(parts.layers)
        reducer, selector, prunes = split_kinds(methods)
        schedules = {id(prune): prune.schedule(depth) for prune in prunes}
        watches = {id(prune): prune.watch(depth) for prune in prunes}
        prune_at = prunes_by_layer(prunes, schedules, parts)
        check_together(prunes, schedules, watches, adapter)
        check_implementation(prunes, watches, parts)
        sources = sources_of_keys([adapter.find_attention(layer) for layer in parts.layers], _config(parts))
        reducing_at = blocks_of(reducer, adapter) if reducer is not None else ()
        behind = [layer + 1 for layer, (prune, _) in prune_at.items() if prune.returns]
        boundaries = tuple(sorted({0, *prune_at, *(layer for layer in behind if layer < depth)}))
        check_sharing(boundaries, prune_at, sources, parts)
        needs = selector.needs(parts) if selector is not None else Needs()
        return cls(
            spec=spec,
            adapter=adapter,
            reducer=reducer,
            selector=selector,
            prunes=tuple(prunes),
            schedules=MappingProxyType(schedules),
            watches=MappingProxyType(watches),
            prune_at=MappingProxyType(prune_at),
            reducing_at=reducing_at,
            boundaries=boundaries,
            needs=needs,
            recurrent=adapter.recurrent,
            sources_of_keys=MappingProxyType(sources),
            heard_blocks=blocks_heard(needs, reducer is not None, len(parts.blocks)),
            heard_layers=layers_heard(prunes, schedules, watches, prune_at, adapter),
        )

    # ---------------------------------------------------------------- the model

    @property
    def parts(self) -> Parts:
        """The model's parts."""
        return self.adapter.parts

    @property
    def decoder_config(self) -> Any:
        """The decoder's config; None where it has none."""
        return _config(self.parts)

    def check_implementation(self) -> None:
        """Refuse an attention implementation, set since the patch, that can't do what a prune asks.

        Raises:
            ValueError: it can't.
        """
        check_implementation(self.prunes, self.watches, self.parts)

    @property
    def flash(self) -> bool:
        """Whether the decoder's attention takes masks [B, S] only. Asked in each call: it may be changed."""
        return "flash" in (implementation(self.decoder_config) or "")

    @cached_property
    def rotary_modules(self) -> tuple[nn.Module, ...]:
        """The rotary embeddings that the decoder's layers share."""
        return tuple(self.adapter.rotary_modules())

    @cached_property
    def _weights(self) -> tuple[list[Any], list[Any]]:
        tower = getattr(self.adapter.tower, "config", None)
        layers, blocks = (
            [weights_of(layer, self.adapter.find_attention(layer), config) for layer in layers]
            for layers, config in ((self.parts.layers, self.decoder_config), (self.parts.blocks, tower))
        )
        return layers, blocks

    def cost(self, runs: list[BlockRun]) -> Cost:
        """What the FLOPs count needs of this model, for a tower that ran so."""
        return Cost(*self._weights, runs)

    # ---------------------------------------------------------------- the methods

    def watch(self, prune: Prune) -> Watch:
        """What a prune observes."""
        return self.watches[id(prune)]

    def segment_of(self, layer: int) -> int:
        """The segment that a decoder layer belongs to."""
        return sum(layer >= boundary for boundary in self.boundaries) - 1

    def returns_behind(self, layer: int) -> bool:
        """Whether tokens that skip a layer come back behind it."""
        return layer in self.prune_at and self.prune_at[layer][0].returns

    @cached_property
    def windowed(self) -> frozenset[int]:
        """Layers that see a window or chunk of the newest tokens."""
        return windowed_layers(self.adapter)

    @cached_property
    def segment_of_layers(self) -> tuple[int, ...]:
        """The segment of each decoder layer."""
        return tuple(map(self.segment_of, range(len(self.parts.layers))))

    @cached_property
    def counts_tokens(self) -> bool:
        """Whether the decoder's cache counts tokens: that of Mamba, which has no attention, does not."""
        return len(self.recurrent) < len(self.parts.layers)

    @cached_property
    def packs_at_entry(self) -> bool:
        """Whether survivors of the selector, or reducer, are numbered anew on the one axis that turns tokens."""
        outer = self.reducer or self.selector
        several = turns_several_axes(self.parts.composite)
        return outer is not None and outer.positions == "packed" and not several

    @cached_property
    def layer_that_keeps(self) -> tuple[int, ...]:
        """For each segment, a layer of it that keeps keys; its first one where none does."""
        ends = (*self.boundaries[1:], len(self.parts.layers))
        inside = [range(begin, end) for begin, end in zip(self.boundaries, ends)]
        return tuple(next((layer for layer in some if layer not in self.recurrent), some[0]) for some in inside)

    @property
    def takes_square_masks(self) -> bool:
        """Whether the decoder's attention takes masks of queries by keys, and makes such of [B, S] ones."""
        return implementation(self.decoder_config) in ("sdpa", "eager")

    @property
    def adds_masks(self) -> bool:
        """Whether the decoder's attention adds its mask to the logits."""
        return implementation(self.decoder_config) == "eager"

    @property
    def steps_alone(self) -> bool:
        """Whether nothing is due in decode steps but masks, which are the same for all layers of a segment."""
        plain = not any(prune.revives or self.watch(prune).heads for prune in self.prunes)
        return plain and not (self.prunes and self.sources_of_keys) and self.takes_square_masks and self.counts_tokens

    @cached_property
    def open_layers(self) -> frozenset[int]:
        """Layers whose attention sees every token, also later ones."""
        return frozenset(layer for watch in self.watches.values() for layer in watch.open)

    @property
    def reads_text(self) -> bool:
        """Whether what the prompt says, or where it ends, may matter to what is removed."""
        return bool(self.prunes) or self.needs.text

    @property
    def packs_inside(self) -> bool:
        """Whether a prune numbers the survivors anew."""
        return any(prune.positions == "packed" for prune in self.prunes)

    @property
    def reviver(self) -> Prune | None:
        """The prune that brings tokens back in decode steps; None where none does."""
        return next((prune for prune in self.prunes if prune.revives), None)

    @cached_property
    def keeps_all(self) -> bool:
        """Whether nothing is removed of any number of tokens: every budget is the whole."""
        methods = [method for method in (self.reducer, self.selector) if method is not None]
        if any(prune.adaptive or self.watch(prune).heads for prune in self.prunes):
            return False
        alike = all(method.count(n) == n and not getattr(method, "adaptive", False) for n in _ANY for method in methods)
        return alike and all(prune.seen_at(stage, n) == n for n in _ANY for prune, stage in self.prune_at.values())

    def removes(self, layout: Layout) -> bool:
        """Whether any method will remove anything from a call, or from what later steps see, told from counts alone."""
        reducer, selector = self.reducer, self.selector
        if reducer is not None and any(reducer.shortens(len(image)) for image in layout.images):
            return True
        if selector is not None and any(selector.shortens(unit) for unit in units(layout, selector.per)):
            return True
        rows = [n for n in layout.tokens_per_row() if n]
        if rows and any(prune.adaptive or self.watch(prune).heads for prune in self.prunes):
            return True
        return any(prune.seen_at(stage, n) < n for prune, stage in self.prune_at.values() for n in rows)


def _config(parts: Parts) -> Any:
    return getattr(parts.decoder, "config", None)
