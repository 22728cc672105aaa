"""Sees a call of the model until its decoder is entered: the prompt, where images stand, how features are made."""

import threading
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from vtc.calls.composite import CompositeCall, FeaturesCall, is_real, placeholder_masks, token_asked_for
from vtc.calls.generate import encoded_ahead, feed_at_once, new_ids, prompt_given
from vtc.calls.outputs import tokens_of
from vtc.calls.tower import BlockCall
from vtc.model.again import Again
from vtc.model.flops import BlockRun, lengths_of
from vtc.model.staying import Stays
from vtc.ops.host import EarlyCopies
from vtc.tower.encoding import Encoding
from vtc.tower.features import Features, attach_features, features_with, sizes_of
from vtc.tower.hooks import ReducerHooks
from vtc.tower.measuring import Measurements
from vtc.tower.prompt import Prompt
from vtc.tower.recognising import Imprint

_CHUNKS = (
    "the features given are a part of those that were made: the prompt comes in chunks, and a compressed model must "
    "see each image whole; feed it in one call, or let model.generate do it"
)


class _Thread(threading.local):
    """What belongs to one thread.

    Attributes:
        prompt: what was seen of the call that runs.
        made: the features that were made last, by kind.
        told: those that `generate` was given last, with what it was told of them.
    """

    def __init__(self) -> None:
        self.prompt = Prompt()
        self.made: dict[str, Features] = {}
        self.told: dict[str, Features] = {}


class Observer(Stays):
    """Takes note of what a call of the model tells. Its methods are hooks, and what adapters put around methods.

    Args:
        adapter: of the model.
        encoding: the tower's pass in each thread.
        reducing: the hooks of a reducer; None where there is none.
        again: sees blocks that run once more in backward.
    """

    def __init__(self, adapter: Any, encoding: Encoding, reducing: ReducerHooks | None, again: Again):
        self.adapter, self.encoding, self.reducing, self.again = adapter, encoding, reducing, again
        self._thread = _Thread()
        self._measurements = Measurements(adapter.parts, encoding)

    @property
    def prompt(self) -> Prompt:
        """What was seen of the call that runs in this thread."""
        return self._thread.prompt

    # ---------------------------------------------------------------- the model's call

    def of(self, call: CompositeCall) -> Prompt:
        """What a call of the model tells in its arguments, and what was made for it until now.

        Raises:
            ValueError: its features are a part of those that were made: the prompt comes in chunks.
        """
        prompt = Prompt(shows=call.shows, features=dict(self.prompt.features))
        if prompt.shows:
            prompt.early.start(call.values)
            ids, types = (None if t is None else prompt.early.of(t) for t in (call.ids, call.types))
            prompt.asked = call.asked(ids, types, self.adapter.parts.composite.config)
        for kind, output in (call.ahead or {}).items():
            if output is not None:
                prompt.features[kind] = self._given(kind, output, call, prompt.early)
        return prompt

    def _given(self, kind: str, output: Any, call: CompositeCall, early: EarlyCopies) -> Features:
        """The record of features that a call is given: what was seen of their making, where their values tell.

        Else what the call says of them.

        Raises:
            ValueError: they are a part of those that were made.
        """
        pooled, made = tokens_of(output), self._thread.made.get(kind)
        told = call.facts(self.adapter.parts.composite, kind).items()
        facts = {name: early.read(value) if isinstance(value, Tensor) else value for name, value in told}
        for known in (features_with(output), made, self._thread.told.get(kind)):
            shown = known.imprint.find(pooled) if known is not None and known.imprint is not None else None
            if known is not None and shown is not None and known.agrees(facts, shown):
                return known.given(sizes_of(pooled), shown)
        sizes = sizes_of(pooled)
        smaller = made is not None and 0 < sum(sizes) < sum(made.sizes)
        if smaller and made is not None and made.imprint is not None and made.imprint.cuts(pooled):
            raise ValueError(_CHUNKS)
        return Features(kind, sizes=sizes, images=len(sizes), arguments=facts)

    def before_composite(self, call: CompositeCall, around: CompositeCall | None = None) -> None:
        """Called in front of the module that calls the decoder.

        Args:
            call: its call.
            around: that of the whole model around it, if there is one.

        Raises:
            ValueError: the prompt comes in chunks.
        """
        earlier = {} if self.prompt.open else self.prompt.features
        self._thread.prompt = Prompt()
        prompt = self._thread.prompt = self.of(call)
        prompt.open, prompt.earlier = True, earlier
        if around is not None and around.shows and not prompt.shows:
            outer = self.of(around)
            prompt.shows, prompt.asked, prompt.features = True, outer.asked, outer.features
        mask = call.mask
        if isinstance(mask, Tensor) and mask.dim() == 2:
            prompt.mask = mask
        else:
            prompt.blocks = mask
        prompt.ids = call.ids
        prompt.labels = call.labels if around is None or call.labels is not None else around.labels
        prompt.early.start(prompt.labels)

    def after_composite(self) -> None:
        """Called behind it, also when it failed."""
        self._thread.prompt = Prompt()
        self.encoding.forget()

    def before_prefill(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called when `generate` begins its prefill: a prompt with pictures is fed whole."""
        if CompositeCall((), prompt_given(args, kwargs), self.adapter.parts.composite).shows:
            feed_at_once(args, kwargs)

    def see_prompt(self, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called when `generate` makes features ahead of the first forward pass, or is given some.

        It keeps to itself what it is told of those that it is given.
        """
        ids = new_ids(args, kwargs)
        if ids is not None:
            self.prompt.ids = ids
        call = CompositeCall((), encoded_ahead(args, kwargs), self.adapter.parts.composite)
        for kind, output in (call.ahead or {}).items():
            if output is not None and (pooled := tokens_of(output)) is not None:
                told = self._given(kind, output, call, self.prompt.early)
                if told.imprint is None:
                    self._thread.told[kind] = replace(told, imprint=Imprint(pooled))

    def record_placeholders(self, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with what the model's search for placeholders returned."""
        found = list(placeholder_masks(output, kwargs))
        if token_asked_for(args, kwargs) is None:  # a model may search twice for the same
            again = {kind for kind, _ in found}
            self.prompt.placeholders = [known for known in self.prompt.placeholders if known[0] not in again]
        self.prompt.placeholders += found

    # ---------------------------------------------------------------- features

    def start_features(self, kind: str, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with the arguments of the method that makes features of a kind."""
        call = FeaturesCall(self.adapter.parts.composite, kind, args, kwargs)
        early = self.prompt.early
        early.start(call.values)
        self.again.see()
        arguments = {
            name: early.read(value) if isinstance(value, Tensor) else value
            for name, value in call.named.items()
            if not is_real(value)
        }
        pixels = {name: value for name, value in call.named.items() if is_real(value)}
        shapes = {name: tuple(value.shape) for name, value in pixels.items()}
        self.encoding.start(Features(kind, arguments=arguments, ids=self.prompt.ids, shapes=shapes), pixels)

    def record_features(self, kind: str, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with what it returned.

        Raises:
            ValueError: these are not the tokens that a reducer counted on.
        """
        if self.encoding.depth > 1:  # Qwen3-VL makes video features by its own call for images
            return
        pooled = tokens_of(output)
        sizes = sizes_of(output if pooled is None else pooled)
        features = replace(self.encoding.features, sizes=sizes, images=len(sizes))
        if features.tower is not None and sizes and sum(sizes) != sum(map(len, features.tower.maps)):
            family = self.adapter.parts.family
            raise ValueError(f"{family}: the tower's features are not the visual tokens that were expected")
        if features.scores and self.adapter.measures:
            features.measured = self._measurements.of(kind, args, kwargs, features.arguments)
        if sizes and pooled is not None and not self.prompt.open:
            features.imprint = Imprint(pooled)
        self.prompt.features[kind] = features
        self._thread.made[kind] = features
        attach_features(output, features)

    def record_packing(self, output: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        """Called with what the family's packing of patches into tokens returned."""
        self.encoding.features.packing = (args, kwargs)

    def before_block(self, index: int, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        """Called in front of a tower block: its rows are counted, and cut where a reducer is at work."""
        call = BlockCall(args, kwargs, module)
        hidden = call.hidden
        if not isinstance(hidden, Tensor):
            return None
        features, prefix = self.encoding.features, int(self.adapter.parts.has_cls)
        if index == 0:
            features.shape = (len(hidden), hidden.shape[1] - prefix) if hidden.dim() == 3 else (1, len(hidden))
            if self.reducing is not None and self.encoding.depth:  # else somebody calls the tower alone
                self.reducing.start(hidden)
        original = lengths_of(features.shape, prefix, call.boundaries)
        run = self.encoding.reducing
        changed = run.before_block(index, call) if run is not None else None
        rows = original if changed is None or run is None else run.lengths()
        features.runs.append(BlockRun(index, original, rows))
        return changed
