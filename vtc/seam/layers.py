"""What happens between the layers of a decoder: prunes, and every argument at the length of its segment."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from vtc.attention.heads import Heads
from vtc.attention.scores import Attention
from vtc.attention.tap import Change, probe
from vtc.calls.cache import keys_in_layer, keys_with
from vtc.calls.decoder import DecoderCall, LayerCall
from vtc.calls.outputs import first_of, with_first
from vtc.calls.roles import Key
from vtc.calls.rotary import RotaryCall
from vtc.method.prune import Decision, Memory, Prune, Rows, check_decision
from vtc.model.layout import Layout
from vtc.ops.cut import Cut
from vtc.ops.following import Following
from vtc.seam.composition import Composition
from vtc.seam.conversation import Conversation
from vtc.seam.cutting.arguments import LayerArguments
from vtc.seam.cutting.recall import Recall
from vtc.seam.prompt.rows import PromptRows
from vtc.seam.prompt.view import PromptView
from vtc.seam.revival import Tokens
from vtc.seam.segments import Segment, Segments, cut_argument, visual_index


class Layers:
    """The layers of one decoder call.

    Args:
        composition: what the patch knows.
        conversation: what earlier calls left.
        cache: the cache of the call, or None.
        first: segment 0.
        layout: the images of the call.
        text_counts: tokens of each row that are neither visual nor padding.
        answers: of these, how many stand behind the prompt; None: none do.
        extras: the decoder's further per-token arguments, as it was entered with them.
        groups: LongTensor [B, L]: what the selector says of each token's group (see `Rows.groups`).

    Attributes:
        segments: those of the layers that ran.
        prompts: what prunes see of them.
        memory: id of a prune -> its own store.
        rotary: the calls of the decoder's rotary embeddings.
        heads: layer -> the heads that it computes, where these are not all.
        recall: what brings dropped tokens back; None where none are, or the call has images of its own.
        heard: layers whose attention was seen in this call.
        changes: layer -> what its attention was to do otherwise in this call.
        dropping: (index of the segment behind, tokens, visual tokens of each row that steps see), of one that revives.
    """

    def __init__(
        self,
        composition: Composition,
        conversation: Conversation,
        cache: Any,
        first: Segment,
        layout: Layout,
        text_counts: list[int],
        answers: list[int] | None,
        extras: dict[Key, Any],
        groups: Tensor | None = None,
    ):
        self.composition, self.conversation, self.cache = composition, conversation, cache
        self.segments = Segments(first, conversation.shift)
        self.layout = layout
        self.text_counts = text_counts
        self.prompts = PromptRows(composition, layout, text_counts, answers, groups)
        self.extras = extras
        self.has_images = any(first.visual_counts)
        self.memory: dict[int, Memory] = defaultdict(dict)
        self.rotary: list[RotaryCall] = []
        self.heads: dict[int, Heads] = dict(conversation.heads)
        self.dropping: list[tuple[int, Tokens, list[int]]] = []
        self.recall: Recall | None = None
        if conversation.revival is not None and composition.reviver is not None and not self.has_images:
            self.recall = Recall(composition, conversation, self.segments, self.rotary)
        self.arguments = LayerArguments(composition, conversation, cache, self.segments, self.rotary, self.has_images)
        self.heard: set[int] = set()
        self.changes: dict[int, Change] = {}
        self._reached: dict[int, list[int]] = {}
        self._resting: tuple[Cut, Tensor] | None = None
        self._cut_ahead = False
        self._layer, self._hidden, self._tables = 0, first.visual, None

    @property
    def cut(self) -> bool:
        """Whether what the layers are called with is cut between them."""
        return bool(self.composition.prunes) or (self.conversation.outside and not self._cut_ahead)

    def cut_ahead(self, call: DecoderCall) -> None:
        """Cut here, in the decoder's own call, the masks that were made outside of it.

        Layers that run once more in backward get what they were called with, and by then nobody knows any more how to
        cut that. As they keep no keys meanwhile, one mask fits all of them.
        """
        if self.conversation.outside and not self.composition.prunes:
            call.mask, self._cut_ahead = self.arguments.masks(call.mask, 0), True

    def prunes_ahead(self, layer: int) -> bool:
        """Whether what happens in `layer` may matter to a prune of this call."""
        return self.has_images and layer < self.composition.boundaries[-1]

    def before_layer(self, layer: int, call: LayerCall) -> LayerCall:
        """A layer's call in the segment that it belongs to; prunes first where one is due."""
        hidden = call.hidden
        self._layer = layer
        if layer == 0 and self.has_images:
            for prune in self.composition.prunes:
                if self.composition.watch(prune).entry:
                    with torch.no_grad():
                        prune.on_entry(self._rows(prune, self.segments.now, hidden), self.memory[id(prune)])
        if layer in self.composition.boundaries and layer:
            hidden = self._boundary(layer, hidden, call)
            if self.recall is not None:
                hidden = self.recall.boundary(hidden)
        if self.recall is not None and len(self.segments) > 1:
            call = self.recall.arguments(call)
        else:
            call = self.arguments.of(layer, call)
        self._hidden, self._tables = hidden, call.rotary
        call.hidden = hidden
        return call

    def after_layer(self, output: Any) -> Any:
        """A layer's output with the tokens that skipped it back in their places; None where none did."""
        if self._resting is None:
            return None
        (cut, before), self._resting = self._resting, None
        return with_first(output, cut.put(before, first_of(output)))

    # ---------------------------------------------------------------- what prunes see: the prompt alone

    @property
    def view(self) -> PromptView:
        """The prompt in the layer that runs."""
        return self.prompts.view(self.segments.now)

    def rows(self, prune: Prune) -> Rows:
        """The sequence in the layer that runs."""
        return self._rows(prune, self.segments.now, self._hidden)

    def _rows(
        self, prune: Prune, segment: Segment, hidden: Tensor, probe: Callable[[], Attention] | None = None
    ) -> Rows:
        return self.prompts.rows(prune, segment, self._layer, hidden, self._tables, probe)

    def places_of_keys(self, segment: int, keys: int) -> tuple[Tensor, Tensor]:
        """Where the keys of a layer in a segment stand among all tokens that the user fed, and which are no padding.

        Args:
            segment: its number.
            keys: what the layer gave its attention; room that is not filled yet stands behind.

        Returns:
            LongTensor [B, S], BoolTensor [B, S]; S is at most `keys`.
        """
        conversation, cut = self.conversation, list(self.segments)[segment].cut
        if self.recall is not None:
            slots, valid = self.recall.stored(segment, keys)
            new = slots - conversation.slots
            return torch.where(new >= 0, new + conversation.logical, conversation.place(slots)), valid
        held, seen = conversation.held[segment], conversation.held_valid[segment]
        if held is None:
            held = torch.arange(conversation.slots, device=cut.index.device).expand(len(cut.index), -1)
        seen = torch.ones_like(held, dtype=torch.bool) if seen is None else seen
        places = torch.cat([conversation.place(held).to(cut.index.device), cut.index + conversation.logical], dim=1)
        valid = torch.cat([seen.to(cut.valid.device), cut.valid], dim=1)
        return places[:, -keys:], valid[:, -keys:]

    # ---------------------------------------------------------------- prunes

    def _boundary(self, layer: int, hidden: Tensor, call: LayerCall) -> Tensor:
        """Start the segment of `layer`: decide, cut, and return the hidden state of the survivors."""
        before, prune = self.segments.base, self.composition.prune_at.get(layer, (None, 0))[0]
        cut, counts, decision = Cut.whole(before.cut.valid, before.cut.padded), before.visual_counts, None
        view, chosen = self.prompts.view(before), None
        visual = alive = before.visual.to(hidden.device)
        if self.has_images and prune is not None:
            counts = self._counts(prune, before)
            if prune.adaptive or counts != before.visual_counts:
                chosen = self._decide(prune, before, hidden, counts, call)  # gradients flow through merging
                decision = view.whole(chosen, hidden)
                alive = decision.alive & visual
                if prune.adaptive:
                    counts = alive.sum(dim=1).tolist()
            if counts != before.visual_counts and decision is not None:
                valid = before.cut.valid.to(hidden.device)
                cut = Cut.keep(valid & (~visual | alive), [t + k for t, k in zip(self.text_counts, counts)])
        returns = prune is not None and prune.returns and not cut.identity
        slots = cut
        if decision is not None and decision.source is not None and not cut.identity:
            cut = slots.ordered(decision.source)
        self.segments.start(layer, cut, slots, counts, prune is not None and prune.positions == "packed", returns)
        if prune is not None and prune.revives and self.has_images:
            self._keep_dropped(prune, before, hidden, alive, counts)
        if cut.identity or decision is None:
            return hidden
        if decision.hidden is not None:
            hidden = decision.hidden.to(hidden.dtype).view_as(hidden)
        if returns:
            self._resting = cut, hidden
            return cut.take(hidden)
        self.segments.now.into = decision.into
        self._shorten_extras(cut, before)
        inside = cut if view.cut.identity or chosen is None else self.prompts.cut(before, chosen, counts)
        self._shorten_memories(inside, view.cut)
        return slots.take(hidden)

    def _shorten_memories(self, cut: Cut, before: Cut) -> None:
        """Cut what prunes keep for each token of the prompt; `before`: where its tokens were."""
        for memory in self.memory.values():
            for key, value in memory.items():
                if value.shape[:2] == before.index.shape:
                    memory[key] = cut.take(value)

    def _keep_dropped(self, prune: Prune, before: Segment, hidden: Tensor, alive: Tensor, counts: list[int]) -> None:
        """Keep the hidden states of the visual tokens of `before` that are not `alive`; `counts` of each row are."""
        stage, reached = self.composition.prune_at[self._layer][1], self._reached[id(prune)]
        seen = [min(prune.seen_at(stage, n), there) if n else 0 for n, there in zip(reached, before.visual_counts)]
        numbers = [there - left for there, left in zip(before.visual_counts, counts)]
        cut = Cut.keep(before.visual.to(hidden.device) & ~alive, numbers)
        slot = before.in_slots.to(hidden.device).then(cut).index + self.conversation.slots
        dropped = Tokens(slot, cut.valid, cut.take(hidden))
        self.dropping.append((self.segments.index, dropped if any(numbers) else dropped.none(), seen))

    def _counts(self, prune: Prune, before: Segment) -> list[int]:
        """Visual tokens that the prune due now leaves in each row; for an adaptive one, those that are there."""
        left = before.visual_counts
        if prune.adaptive:
            return left
        stage = self.composition.prune_at[self._layer][1]
        reached = self._reached.setdefault(id(prune), left)
        return [prune.left_at(stage, n, there) for n, there in zip(reached, left)]

    def _decide(self, prune: Prune, before: Segment, hidden: Tensor, counts: list[int], call: LayerCall) -> Decision:
        unheard = {layer for layer in self.composition.watch(prune).attention if layer < self._layer} - self.heard
        if unheard:
            raise RuntimeError(
                f"vtc: {prune.name} reads the attention of layer {min(unheard)}, which ran without passing "
                "transformers' attention interface; run `vtc doctor`, or choose a method that reads no attention"
            )
        rows = self._rows(prune, before, hidden, lambda: self._probe(prune, hidden, call))
        try:
            decision = prune.decide(rows, counts, self.memory[id(prune)])
        except Exception as error:
            error.add_note(f"in {prune.name}, in front of decoder layer {self._layer}")
            raise
        check_decision(prune, decision, rows)
        return decision

    def _probe(self, prune: Prune, hidden: Tensor, call: LayerCall) -> Attention:
        """Q and k of the layer about to run; cached keys in front."""
        layer = self._layer
        if not self.composition.watch(prune).probe:
            raise RuntimeError(f"{prune.name} calls rows.probe(): let its watch() return Watch(probe=True)")
        old = keys_in_layer(self.cache, layer, self.conversation.fed(self.segments.index))
        if old:  # its keys, their padding and the lag of positions are those of the layer's own segment
            base = self.segments.base
            whole = Cut.whole(base.cut.valid, base.cut.padded)
            self.segments.start(layer, whole, whole, base.visual_counts, False, False)
        args, kwargs = self.arguments.of(layer, call).probing(hidden)
        if old:
            self.segments.take_back()
        module = self.composition.parts.layers[layer]
        attention = self.composition.adapter.attention(module)
        with torch.no_grad():
            seen = probe(module, attention, *args, **kwargs)
        if old:  # values of cached keys nobody asked for
            seen = replace(seen, key=keys_with(self.cache, layer, seen.key, seen.value, old), value=None)
        keys = seen.key.shape[2]
        if seen.mask is not None and seen.mask.shape[-1] > keys:  # room of a static cache behind
            seen = replace(seen, mask=seen.mask[..., :keys])
        return self.prompts.view(self.segments.base).attention(seen)

    def _shorten_extras(self, cut: Cut, before: Segment) -> None:
        """Shorten what the decoder's loop reads from its own arguments between layers (DeepStack rows)."""
        if not self.extras:
            return
        left = sum(self.segments.now.visual_counts)
        index, total = visual_index(before.visual, cut, left), sum(before.visual_counts)
        for name, value in self.extras.items():
            new = cut_argument(str(name), value, cut, index, total, self.composition.parts.family)
            if isinstance(value, Following):
                value.now = new
            elif isinstance(value, list):
                value[:] = new
            elif isinstance(value, dict):
                value.update(new)
