"""One call of a compressed decoder: enter with fewer tokens, remove more on the way, leave with the old length."""

from typing import Any

import torch
from torch import Tensor

from vtc.calls.cache import attach, has_fixed_length, mark_whole, own_length, tokens_in
from vtc.calls.composite import turns_several_axes
from vtc.calls.decoder import DecoderCall, LayerCall
from vtc.calls.outputs import Output
from vtc.calls.rotary import RotaryCall
from vtc.model.layout import Layout
from vtc.ops.clock import Moment
from vtc.ops.cut import Cut
from vtc.ops.following import followed
from vtc.ops.host import on
from vtc.seam.checks.arrival import Arrival
from vtc.seam.checks.call import check_cache, check_turn, check_visible
from vtc.seam.checks.notice import not_found
from vtc.seam.checks.packed import check_packed
from vtc.seam.checks.past import check_lengths, check_past, seen_before
from vtc.seam.composition import Composition
from vtc.seam.conversation import Conversation, Lease, resumed
from vtc.seam.entry.entering import Entry
from vtc.seam.entry.evidence import check_scores
from vtc.seam.entry.samples import bounds_left, by_samples
from vtc.seam.entry.selection import Selection, check_reduced, groups_of, merge, reduced, select
from vtc.seam.layers import Layers
from vtc.seam.leaving.report import trace_of, trace_of_untouched
from vtc.seam.leaving.restoring import restore_lengths
from vtc.seam.prompt.ending import PromptEnding
from vtc.seam.prompt.view import behind_prompt
from vtc.seam.revival import Revival
from vtc.seam.segments import Segment, cut_argument, visual_index
from vtc.seam.stepping import steps_of
from vtc.tower.prompt import Prompt
from vtc.tracing import Trace


class ForwardPass:
    """One call, from the decoder's entry to its exit.

    Args:
        composition: what the patch knows.
        prompt: what was seen of the call until now.
        lease: of the patch.
        ending: knows where prompts end.

    Attributes:
        layers: the layers' side of it; None where the call runs untouched.
        trace: what it did; None until that is known, and for decode steps.
        unseen: why its pictures are not compressed, where it has some that were not seen in its sequence.
    """

    def __init__(self, composition: Composition, prompt: Prompt, lease: Lease, ending: PromptEnding):
        self.composition, self.prompt, self.lease, self.ending = composition, prompt, lease, ending
        self.arrival = Arrival(composition)
        self.layers: Layers | None = None
        self.trace: Trace | None = None
        self.unseen: str | None = None
        self._cache: Any = None
        self._revived: dict[int, Tensor] = {}
        self._masked = False  # whether somebody tells what is padding
        self._spent: list[tuple[Moment, Moment]] = []  # on deciding
        self._selections: list[Selection] = []

    def enter(self, call: DecoderCall) -> DecoderCall:
        """The decoder's call, reduced."""
        embeds: Tensor = call.embeds
        start, (batch, length) = Moment(embeds.device), embeds.shape[:2]
        mask = call.mask
        mask2d = mask if isinstance(mask, Tensor) and mask.dim() == 2 else self.prompt.mask
        self._masked = mask2d is not None
        self._cache = call.cache if self.composition.counts_tokens else None
        conversation = resumed(self._cache)
        self.fresh = self.composition.adapter.fresh(call)
        layout = self.composition.adapter.layout(self.prompt, (batch, length))
        self.layout: Layout = by_samples(self.composition, call, self.prompt, layout)
        removes = self.composition.removes(self.layout)
        self.prompt.entered = True
        if self.composition.counts_tokens:
            if conversation is not None:
                check_lengths(self._cache, conversation, self.composition)
            told = mask2d if self.prompt.mask is None else self.prompt.mask, call.positions, length, self.prompt.early
            check_past(self._cache, conversation, *told, self.lease, bool(self.layout.images))
        if not removes and conversation is None:
            if self.prompt.lost(self.layout, self.fresh):
                self.unseen = not_found(self.composition.parts.family)
            elif self.layout.images or self.fresh:
                self.trace = trace_of_untouched(self.composition, self.prompt, self.layout, mask2d)
            return call
        call.drop_ignored()
        check_cache(self.composition, self._cache)
        check_packed(self.composition, call, self.prompt, self.layout)
        self.composition.check_implementation()
        if conversation is None:
            old = 0 if self.fresh else tokens_in(self._cache)
            seen = seen_before(mask2d, old, length, embeds.device)
            outside = mask is not None and mask is not mask2d
            segments = len(self.composition.boundaries)
            conversation = Conversation(segments, old, seen, outside, batch, embeds.device, self.lease)
        if removes and self.composition.reads_text:
            self.prompt.ends = self.ending.of(self.prompt, self.layout, conversation.logical)
        check_turn(self.composition, conversation, self.layout, self.prompt.ends is not None)
        self._revived = conversation.revived
        valid = embeds.new_ones(batch, length, dtype=torch.bool)
        if mask2d is not None:
            valid = mask2d[:, -length:].to(embeds.device).bool()
        call = self._enter(call, embeds, valid, mask2d, conversation, removes)
        self._spent.append((start, Moment(embeds.device)))
        return call

    def _enter(
        self,
        call: DecoderCall,
        embeds: Tensor,
        valid: Tensor,
        mask2d: Tensor | None,
        conversation: Conversation,
        removes: bool,
    ) -> DecoderCall:
        """Select, cut every argument, and start segment 0."""
        composition = self.composition
        visual = torch.zeros_like(valid)
        for _, mask in self.prompt.placeholders:
            visual = visual | on(visual.device, mask)
        counts, right_aligned, behind, answers = [valid.shape[1]] * len(valid), True, None, None
        padded = mask2d is not None  # decode steps never wait for the device to know better
        if removes or (conversation.revival is not None and valid.shape[1] > 1):  # each row's last token chooses
            host = self._host_valid(mask2d, valid)
            check_visible(self.layout, host)
            counts, right_aligned = host.sum(dim=1).tolist(), bool(host[:, -1].all())
            padded = min(counts) < valid.shape[1]
            ends = self.prompt.ends if composition.prunes else None
            behind, answers = behind_prompt(host, ends, embeds.device)
        visual_counts = self.layout.tokens_per_row()
        text_counts = [n - v for n, v in zip(counts, visual_counts)]
        several = call.has_axes or turns_several_axes(composition.parts.composite)
        packs = composition.packs_at_entry and not several
        if removes:
            self._selections = self._decide(embeds, packs)
        cut = Cut.whole(valid, padded)
        if self._selections or not right_aligned:
            alive = valid.clone()
            for selection in self._selections:
                alive[selection.rows, selection.places] = False
                alive[selection.rows, selection.survivors] = True
                for unit in selection.units:
                    visual_counts[unit.row] -= selection.removed
            cut = Cut.keep(alive, [t + v for t, v in zip(text_counts, visual_counts)])
        entry = Entry(composition, self.layout, conversation, valid, cut, packs and bool(self._selections))
        positions, shift = entry.positions(call.positions, call.has(DecoderCall.positions))
        if not cut.identity:
            self._cut_extras(call, cut, visual, sum(visual_counts))
            call.embeds, visual = cut.take_all([merge(embeds, self._selections), visual])
            behind = behind if behind is None else cut.take(behind) & cut.valid
        if composition.counts_tokens:
            call.positions = positions
        if not conversation.outside:
            call.mask = entry.mask(mask2d, positions, self._cache is None, embeds.dtype)
        if composition.prunes and removes:
            call.values.update({key: followed(value) for key, value in call.extras.items()})
        whole = Cut.whole(cut.valid, cut.padded)
        first = Segment(
            first_layer=0,
            cut=cut,
            in_entry=whole,
            in_slots=cut if conversation.outside else whole,
            positions=None if several else positions,
            shift=shift,
            visual=visual if cut.identity else visual & cut.valid,
            visual_counts=visual_counts,
            behind=behind,
        )
        told = text_counts, answers, call.extras, groups_of(self._selections, embeds.shape[:2])
        self.layers = Layers(composition, conversation, self._cache, first, self.layout, *told)
        call.ask_for_all()
        seen, fixed = conversation.held_valid[0], has_fixed_length(self._cache)
        if fixed and seen is None:
            seen = cut.valid.new_ones(len(cut.valid), conversation.slots)
        alive = cut.valid if seen is None else torch.cat([seen.to(cut.valid.device), cut.valid], dim=1)
        self.arrival.expect(
            call.positions,
            entry.seen(alive),
            len(cut),
            removes and cut.padded,
            entry.apart,
            fixed,
        )
        return call

    def _decide(self, embeds: Tensor, packs: bool) -> list[Selection]:
        """What the selector decides, or the reducer has decided in the tower."""
        composition, layout, prompt = self.composition, self.layout, self.prompt
        if composition.reducer is not None:
            check_reduced(composition.reducer, layout, prompt)
            return reduced(layout, prompt, embeds.device)
        if composition.selector is None:
            return []
        scores = composition.adapter.tower_scores(prompt, layout)
        check_scores(composition, scores)
        return select(composition, layout, prompt, embeds, scores, packs)

    def _host_valid(self, mask2d: Tensor | None, valid: Tensor) -> Tensor:
        """`valid` on the host."""
        if mask2d is None:
            return torch.ones(valid.shape, dtype=torch.bool)
        return self.prompt.early.read(mask2d)[:, -valid.shape[1] :].bool()

    def _cut_extras(self, call: DecoderCall, cut: Cut, visual: Tensor, left: int) -> None:
        """Reduce every further argument that is per token.

        Args:
            call: the decoder's.
            cut: what survives.
            visual: BoolTensor [B, L]: True at visual tokens before the cut.
            left: visual tokens that survive.
        """
        call.values.update(bounds_left(call, self.layout, self._selections))
        if extras := call.extras:
            index = visual_index(visual, cut, left)
            total, family = sum(len(image) for image in self.layout.images), self.composition.parts.family
            for key, value in extras.items():
                call.values[key] = cut_argument(call.label(key), value, cut, index, total, family)

    # ---------------------------------------------------------------- layers

    def see_rotary(self, call: RotaryCall) -> None:
        """Called with each call of a rotary embedding of the decoder."""
        if self.layers is not None and call.told is not None:
            self.arrival.see_rotary(call.positions)
            self.layers.rotary.append(call)

    def runs_layer(self, layer: int) -> bool:
        """Called in front of each layer: whether its call matters. Many do not, and are not looked at."""
        return self.layers is not None and (self.arrival.runs_layer(layer) or self.layers.cut)

    def before_layer(self, layer: int, call: LayerCall) -> Any:
        """A layer's arguments, reduced; None where they stay as they are."""
        layers = self.layers
        self.arrival.see_layer(layer, call)
        if layers is None or not layers.cut:
            return None
        if layer not in self.composition.prune_at:
            return layers.before_layer(layer, call).given
        start = Moment(call.hidden.device)
        given = layers.before_layer(layer, call).given
        self._spent.append((start, Moment(call.hidden.device)))
        return given

    # ---------------------------------------------------------------- leaving

    def leave(self, output: Any) -> Any:
        """The decoder's output at the length that the user gave; remembers what later calls need."""
        layers, made = self.layers, Output(output)
        cache = self._cache if made.cache is None else made.cache
        if layers is None:
            if self.composition.counts_tokens:
                mark_whole(cache)
            return output
        self.arrival.check(layers.cut)
        restore_lengths(made, layers)
        if cache is not None and self.composition.counts_tokens:
            self._commit(cache, layers)
        if self.layout.images or self.fresh:
            self.trace = trace_of(
                self.composition,
                self.prompt,
                self.layout,
                list(layers.segments),
                selections=self._selections,
                heads=layers.heads,
                spent=self._spent,
                revived=self._revived,
            )
        return made.value

    def _commit(self, cache: Any, layers: Layers) -> None:
        """Remember lengths and padding on the cache, and hold the cache against the plan (contract clause 9)."""
        conversation, first = layers.conversation, layers.segments.first
        if self.composition.reviver is not None:
            if conversation.revival is None:
                blank = torch.zeros(len(first.visual), conversation.slots, dtype=torch.bool, device=first.visual.device)
                conversation.revival = Revival(blank, conversation.revived)
            for boundary, tokens, counts in layers.dropping:
                conversation.revival.drop(boundary, tokens, counts)
            conversation.revival.extend(first.in_slots, first.visual, layers.rotary)
        ends = [int(image.positions[-1]) for image in self.layout.images]
        conversation.add(layers.segments, ends, layers.recall.extra if layers.recall is not None else {})
        conversation.packed = self.layout.samples is not None
        conversation.heads = layers.heads
        if has_fixed_length(cache):
            conversation.fix(int(own_length(cache)), steps_of(self.composition, layers, cache, self._masked))
        check_lengths(cache, conversation, self.composition)
        attach(cache, conversation)
        self.lease.used = True
