"""One call of a compressed decoder: enter with fewer tokens, remove more on the way, leave with the old length."""

import functools
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.clock import Moment
from vtc.conversation import Conversation, attach, conversation_of, keys_in_layer
from vtc.following import followed
from vtc.host import on
from vtc.inside import Inside
from vtc.recorded import Recorded
from vtc.refusals import check_call, check_reduced, check_scores, check_turn, check_visible
from vtc.revival import Revival
from vtc.segments import Segment, cut_argument, renumber, visual_index
from vtc.selecting import Selection, merge, merged_into, reduced, select
from vtc.sequence import Cut
from vtc.tracing import ImageTrace, Stage, Trace

if TYPE_CHECKING:
    from vtc.seam import Seam

_KNOWN = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values", "input_ids")


class ForwardPass:
    """One call, from the decoder's entry to its exit.

    Attributes:
        inside: the layers' side of it; None where the call runs untouched.
    """

    def __init__(self, seam: "Seam", recorded: Recorded):
        self.seam = seam
        self.recorded = recorded
        self.inside: Inside | None = None
        self._revived: dict[int, Tensor] = {}
        self.spent: list[tuple[Moment, Moment]] = []  # on deciding
        self._selections: list[Selection] = []

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's keyword arguments, reduced."""
        embeds: Tensor = kwargs["inputs_embeds"]
        start = Moment(embeds.device)
        batch, length = embeds.shape[:2]
        cache = kwargs.get("past_key_values")
        mask = kwargs.get("attention_mask")
        mask2d = mask if isinstance(mask, Tensor) and mask.dim() == 2 else self.recorded.mask
        conversation = conversation_of(cache)
        self.fresh = self.seam.adapter.fresh(kwargs)
        self.layout = self.seam.adapter.layout(self.recorded, (batch, length))
        removes = self.seam.removes(self.layout)
        if removes or conversation is not None:
            check_call(self.seam, kwargs, self.recorded.early)
        else:
            if self.layout.images or self.fresh:
                self._run_untouched(mask2d)
            return kwargs
        if conversation is None:
            old = 0 if cache is None or self.fresh else cache.get_seq_length()
            seen = mask2d[:, :old].to(embeds.device).bool() if mask2d is not None and old else None
            outside = mask is not None and mask is not mask2d
            segments, lease = len(self.seam.boundaries), self.seam.lease
            conversation = Conversation(segments, old, seen, outside, batch, embeds.device, lease)
        check_turn(self.seam, conversation, self.layout)
        self._revived = conversation.revived
        valid = embeds.new_ones(batch, length, dtype=torch.bool)
        if mask2d is not None:
            valid = mask2d[:, -length:].to(embeds.device).bool()
        kwargs = self._enter(dict(kwargs), embeds, valid, mask2d, conversation, removes)
        self.spent.append((start, Moment(embeds.device)))
        return kwargs

    def _enter(
        self,
        kwargs: dict[str, Any],
        embeds: Tensor,
        valid: Tensor,
        mask2d: Tensor | None,
        conversation: Conversation,
        removes: bool,
    ) -> dict[str, Any]:
        """Select, cut every argument, and start segment 0."""
        visual = torch.zeros_like(valid)
        for _, mask in self.recorded.placeholders:
            visual = visual | on(visual.device, mask)
        counts, right_aligned = [valid.shape[1]] * len(valid), True
        padded = mask2d is not None  # decode steps never wait for the device to know better
        if removes or (conversation.revival is not None and valid.shape[1] > 1):  # each row's last token chooses
            host = self._host_valid(mask2d, valid)
            check_visible(self.layout, host)
            counts, right_aligned = host.sum(dim=1).tolist(), bool(host[:, -1].all())
            padded = min(counts) < valid.shape[1]
        visual_counts = self.layout.tokens_per_row()
        text_counts = [n - v for n, v in zip(counts, visual_counts)]
        if removes and self.seam.selector is not None:
            scores = self.seam.adapter.tower_scores(self.recorded, self.layout)
            check_scores(self.seam, scores)
            renumbered = self.seam.selector.positions == "packed" and not _several_axes(kwargs.get("position_ids"))
            self._selections = select(self.seam, self.layout, self.recorded, embeds, scores, renumbered)
        if removes and self.seam.reducer is not None:
            check_reduced(self.seam.reducer, self.layout, self.recorded)
            self._selections = reduced(self.layout, self.recorded, embeds.device)
        cut = Cut.whole(valid, padded)
        if self._selections or not right_aligned:
            alive = valid.clone()
            for selection in self._selections:
                alive[selection.rows, selection.places] = False
                alive[selection.rows, selection.survivors] = True
                for unit in selection.units:
                    visual_counts[unit.row] -= selection.removed
            cut = Cut.keep(alive, [t + v for t, v in zip(text_counts, visual_counts)])
        outer = self.seam.reducer or self.seam.selector
        packed = bool(self._selections) and outer is not None and outer.positions == "packed"
        positions, shift = self._positions(kwargs.get("position_ids"), valid, cut, packed, conversation)
        packed = packed and positions.dim() == 2  # several axes always keep their own
        if not cut.identity:
            self._cut_extras(kwargs, cut, visual, sum(visual_counts))
            kwargs["inputs_embeds"], visual = cut.take_all([merge(embeds, self._selections), visual])
        if len(self.seam.recurrent) < len(self.seam.parts.layers):
            kwargs["position_ids"] = positions
        if not conversation.outside:
            kwargs["attention_mask"] = self._mask(mask2d, cut, packed, conversation, kwargs.get("past_key_values"))
        if self.seam.prunes and removes:
            kwargs.update({name: followed(value) for name, value in _extras(kwargs).items()})
        whole = Cut.whole(cut.valid, cut.padded)
        first = Segment(
            first_layer=0,
            cut=cut,
            in_entry=whole,
            in_slots=cut if conversation.outside else whole,
            positions=positions if positions.dim() == 2 else None,
            shift=shift,
            visual=visual if cut.identity else visual & cut.valid,
            visual_counts=visual_counts,
        )
        extras = _extras(kwargs)
        cache = kwargs.get("past_key_values")
        self.inside = Inside(self.seam, conversation, cache, first, self.layout, text_counts, extras)
        return kwargs

    def _host_valid(self, mask2d: Tensor | None, valid: Tensor) -> Tensor:
        """`valid` on the host."""
        if mask2d is None:
            return torch.ones(valid.shape, dtype=torch.bool)
        return self.recorded.early.read(mask2d)[:, -valid.shape[1] :].bool()

    def _positions(
        self, positions: Tensor | None, valid: Tensor, cut: Cut, packed: bool, conversation: Conversation
    ) -> tuple[Tensor, Tensor]:
        """Position ids of segment 0, on as many axes as given, and their lag behind the logical ones."""
        shift = conversation.shift[0]
        batch, length = valid.shape
        if positions is None:
            positions = torch.arange(length, device=valid.device)[None] + conversation.logical
        if positions.shape[-1] != length:
            raise ValueError(
                f"position_ids of shape {tuple(positions.shape)} for {length} tokens; give one for each token of this "
                "call (in a later turn of a model with several position axes, model.generate makes them)"
            )
        if positions.dim() == 3:
            return (positions if cut.identity else cut.take(positions, dim=2)) - shift, shift
        return renumber(positions.expand(batch, -1), valid, cut, shift, packed)

    def _mask(
        self, mask2d: Tensor | None, cut: Cut, packed: bool, conversation: Conversation, cache: Any
    ) -> Tensor | None:
        """The 2-D mask over all slots, or None where there is no padding and nobody could misread gapped positions."""
        old = conversation.held_valid[0]
        gapped = cache is None and not packed and not cut.identity
        if mask2d is None and old is None and not cut.padded and not gapped:
            return None
        if old is None:
            old = cut.valid.new_ones(len(cut.valid), conversation.slots)
        return torch.cat([old, cut.valid], dim=1).to(torch.long if mask2d is None else mask2d.dtype)

    def _cut_extras(self, kwargs: dict[str, Any], cut: Cut, visual: Tensor, left: int) -> None:
        """Reduce every further argument that is per token.

        Args:
            kwargs: the decoder's keyword arguments.
            cut: what survives.
            visual: BoolTensor [B, L]: True at visual tokens before the cut.
            left: visual tokens that survive.
        """
        if extras := _extras(kwargs):
            index = visual_index(visual, cut, left)
            total = sum(len(image) for image in self.layout.images)
            for name, value in extras.items():
                kwargs[name] = cut_argument(name, value, cut, index, total, self.seam.parts.family)

    # ---------------------------------------------------------------- layers

    def before_layer(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> Any:
        """A layer's arguments, reduced; None where they stay as they are."""
        inside = self.inside
        if inside is None or not (self.seam.prunes or inside.conversation.outside):
            return None
        if layer not in self.seam.prune_at:
            return inside.before_layer(layer, args, kwargs)
        device = (args[0] if args else kwargs["hidden_states"]).device
        start = Moment(device)
        reduced = inside.before_layer(layer, args, kwargs)
        self.spent.append((start, Moment(device)))
        return reduced

    # ---------------------------------------------------------------- leaving

    def leave(self, output: Any) -> Any:
        """The decoder's output at the length that the user gave; remembers what later calls need."""
        if self.inside is None:
            return output
        segments = self.inside.segments
        if len(segments) != len(self.seam.boundaries):
            raise RuntimeError("vtc: a decoder layer that should have pruned did not run")
        self._restore_lengths(output)
        cache = getattr(output, "past_key_values", None)
        if cache is not None:
            self._commit(cache)
        if self.layout.images or self.fresh:
            self._publish(segments)
        return output

    def _restore_lengths(self, output: Any) -> None:
        assert self.inside is not None
        if self.inside.recall is not None:  # new tokens come behind those that were brought back
            new = self.inside.segments[0].in_entry.length
            output["last_hidden_state"] = output["last_hidden_state"][:, -new:]
            if getattr(output, "hidden_states", None) is not None:
                output["hidden_states"] = tuple(state[:, -new:] for state in output.hidden_states)
        if all(segment.cut.identity for segment in self.inside.segments):
            return
        output["last_hidden_state"] = self.inside.now.cut.scatter(output["last_hidden_state"])
        if getattr(output, "hidden_states", None) is not None:
            output["hidden_states"] = self._restored(output.hidden_states)

    def _restored(self, states: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Hidden states, one in front of each layer and the last, at the length that the user gave."""
        assert self.inside is not None
        restored, before = [], states[0]
        for index, state in enumerate(states):
            segment = self.inside.segment_of(self.seam.adapter.layer_of_state(index))
            if segment.within is not None and state.shape[1] == len(segment.within):  # recorded before tokens came back
                state = segment.within.put(before, state)
            before = state
            restored.append((segment.base or segment).cut.scatter(state))
        return tuple(restored)

    def _commit(self, cache: Any) -> None:
        """Remember lengths and padding on the cache, and hold the cache against the plan (contract clause 9)."""
        assert self.inside is not None
        conversation, segments = self.inside.conversation, self.inside.segments
        extra = self.inside.recall.extra if self.inside.recall is not None else {}
        for index, segment in enumerate(segments):
            held, valid = conversation.held[index], conversation.held_valid[index]
            back = extra[index] if index in extra and len(extra[index]) else None
            if valid is not None or segment.cut.padded or back is not None:
                if valid is None:
                    width = conversation.slots if held is None else held.shape[1]
                    valid = segment.cut.valid.new_ones(len(segment.cut.valid), width)
                parts = [valid, segment.cut.valid.to(valid.device)]
                conversation.held_valid[index] = torch.cat(parts if back is None else _insert(parts, back.valid), dim=1)
            if held is not None:
                parts = [held, (segment.in_slots.index + conversation.slots).to(held.device)]
                conversation.held[index] = torch.cat(parts if back is None else _insert(parts, back.slot), dim=1)
            conversation.shift[index] = segment.shift
        if self.seam.reviver is not None:
            self._remember_dropped(conversation, segments[0])
        conversation.heads = self.inside.heads
        conversation.slots += segments[0].in_slots.length
        conversation.logical += segments[0].cut.length
        ends = [int(image.positions[-1]) for image in self.layout.images]
        tail = segments[0].cut.length
        conversation.text_tail = tail - 1 - max(ends) if ends else conversation.text_tail + tail
        for layer, stored in enumerate(cache.layers[: len(self.seam.parts.layers)]):
            held = conversation.held[sum(layer >= boundary for boundary in self.seam.boundaries) - 1]
            expected = conversation.slots if held is None else held.shape[1]
            if keys_in_layer(cache, layer) and stored.get_seq_length() != expected:
                raise RuntimeError(
                    f"vtc: layer {layer} of {self.seam.parts.family} has {stored.get_seq_length()} tokens in its cache "
                    f"where the plan says {expected}"
                )
        self.seam.remember(conversation)
        attach(cache, conversation)

    def _remember_dropped(self, conversation: Conversation, first: Segment) -> None:
        """Leave with the conversation what decode steps may bring back."""
        assert self.inside is not None
        if conversation.revival is None:
            device = first.visual.device
            blank = torch.zeros(len(first.visual), conversation.slots, dtype=torch.bool, device=device)
            conversation.revival = Revival(blank, conversation.revived)
        for boundary, tokens, counts in self.inside.dropping:
            conversation.revival.drop(boundary, tokens, counts)
        conversation.revival.extend(first, self.inside.rotary)

    def _publish(self, segments: list[Segment]) -> None:
        """Make this call the model's trace."""
        depth, batch = len(self.seam.parts.layers), self.layout.shape[0]
        stages = tuple(
            Stage(segment.first_layer, segment.cut, segment.into, (before.base or before).cut)
            for segment, before in zip(segments, [segments[0], *segments])
        )
        merged = merged_into(self._selections, self.layout)
        counts = [[s for s in segments if s.first_layer <= layer][-1].visual_counts for layer in range(depth)]
        runs = [features.tower for features in self.recorded.features.values() if features.tower is not None]
        spent = [*self.spent, *(pair for run in runs for pair in run.spent)]
        self.seam.trace = Trace(
            spec=self.seam.spec,
            layout=self.layout,
            images=tuple(
                ImageTrace(image.row, image.kind, image, stages, merged.get(index))
                for index, image in enumerate(self.layout.images)
            ),
            tokens_per_layer=torch.tensor(counts).view(depth, batch),
            heads_per_layer=self._head_shares(depth),
            _valid=segments[0].cut.valid,
            _selection=lambda: sum(start.ms_until(end) for start, end in spent),
            _cost=self.seam.cost([run for features in self.recorded.features.values() for run in features.runs]),
            _revived=functools.partial(_revived, self._revived, self.seam.boundaries, depth, batch),
        )

    def _head_shares(self, depth: int) -> tuple[float, ...]:
        if self.inside is None or not self.inside.heads:
            return (1.0,) * depth
        heads = self.inside.heads
        total = self.seam.decoder_config.num_attention_heads  # type: ignore[union-attr]
        return tuple(heads[layer].share(total) if layer in heads else 1.0 for layer in range(depth))

    def _run_untouched(self, mask2d: Tensor | None) -> None:
        """Nothing is to be removed: the call runs as it is, and the trace says so."""
        valid = torch.ones(self.layout.shape, dtype=torch.bool)
        if mask2d is not None:
            valid = mask2d[:, -valid.shape[1] :].bool()
        cut = Cut.whole(valid, padded=True)
        nothing = torch.zeros(0)
        self._publish([Segment(0, cut, cut, cut, None, nothing, nothing, self.layout.tokens_per_row())])


def _revived(counts: dict[int, Tensor], boundaries: list[int], depth: int, batch: int) -> Tensor:
    """Tokens brought back so far, [layers, rows that the cache has now]."""
    batch = max(map(len, counts.values()), default=batch)
    none = torch.zeros(batch, dtype=torch.long)
    behind = [sum(layer >= boundary for boundary in boundaries) - 1 for layer in range(depth)]
    return torch.stack([counts[index].cpu() if index in counts else none for index in behind])


def _several_axes(positions: Any) -> bool:
    """Whether position ids are those of M-RoPE, which every token keeps."""
    return isinstance(positions, Tensor) and positions.dim() == 3


def _insert(parts: list[Tensor], middle: Tensor) -> list[Tensor]:
    return [parts[0], middle.to(parts[0].device), parts[1]]


def _extras(kwargs: dict[str, Any]) -> dict[str, Any]:
    """The further arguments that may be per token."""
    plain = (bool, int, float, str, type(None))
    return {name: value for name, value in kwargs.items() if name not in _KNOWN and not isinstance(value, plain)}
