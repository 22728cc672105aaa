"""What happens between the layers of a decoder: prunes, and every argument at the length of its segment."""

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.conversation import Conversation, keys_in_layer
from vtc.following import Following
from vtc.host import on
from vtc.layout import Layout
from vtc.method import Decision, Memory, Prune, Rows
from vtc.refusals import check_pruned
from vtc.revival import Recall, Tokens
from vtc.scores import Attention
from vtc.segments import Segment, cut_argument, layer_mask, opened_mask, renumber, visual_index
from vtc.sequence import Cut, map_tensors, token_dim
from vtc.tap import Heads, probe

if TYPE_CHECKING:
    from vtc.seam import Seam


class Inside:
    """The layers of one decoder call.

    Args:
        seam: the patch.
        conversation: what earlier calls left.
        cache: the cache of the call, or None.
        first: segment 0.
        layout: the images of the call.
        text_counts: tokens of each row that are neither visual nor padding.
        extras: the decoder's further per-token arguments, as it was entered with them.

    Attributes:
        segments: those of the layers that ran.
        memory: id of a prune -> its own store.
        rotary: the calls of the decoder's rotary embeddings.
        heads: layer -> the heads that it computes, where these are not all.
        recall: what brings dropped tokens back; None where none are, or the call has images of its own.
        dropping: (index of the segment behind, tokens, visual tokens left of each row), of a prune that revives.
    """

    def __init__(
        self,
        seam: "Seam",
        conversation: Conversation,
        cache: Any,
        first: Segment,
        layout: Layout,
        text_counts: list[int],
        extras: dict[str, Any],
    ):
        self.seam = seam
        self.conversation = conversation
        self.cache = cache
        self.segments = [first]
        self.layout = layout
        self.text_counts = text_counts
        self.extras = extras
        self.has_images = any(first.visual_counts)
        self.memory: dict[int, Memory] = defaultdict(dict)
        self.rotary: list[tuple[Any, tuple, dict[str, Any], Any]] = []
        self.heads: dict[int, Heads] = dict(conversation.heads)
        self.dropping: list[tuple[int, Tokens, list[int]]] = []
        self.recall: Recall | None = None
        if conversation.revival is not None and seam.reviver is not None and not self.has_images:
            self.recall = Recall(self, seam.reviver, conversation.revival)
        ends = {image.row: int(image.positions[-1]) for image in layout.images}  # the last of a row counts
        self._ends = [ends.get(row, -1) for row in range(layout.shape[0])]  # the instruction begins behind
        self._tail = max(layout.shape[1] - 1 - min(ends.values(), default=0), 1)
        self._reached: dict[int, list[int]] = {}
        self._resting: tuple[Cut, Tensor] | None = None
        self._layer, self._hidden, self._tables = 0, first.visual, None
        self._seen: dict[tuple[int, torch.device], tuple[Tensor, ...]] = {}

    @property
    def now(self) -> Segment:
        """The segment that the layers are in."""
        return self.segments[-1]

    @property
    def base(self) -> Segment:
        """The segment of the tokens that are alive, those that skip the layer among them."""
        return self.now.base or self.now

    def segment_of(self, layer: int) -> Segment:
        """The segment of a layer that ran."""
        return [segment for segment in self.segments if segment.first_layer <= layer][-1]

    def prunes_ahead(self, layer: int) -> bool:
        """Whether what happens in `layer` may matter to a prune of this call."""
        return self.has_images and layer < self.seam.boundaries[-1]

    def before_layer(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A layer's arguments in the segment that it belongs to; prunes first where one is due."""
        named = "hidden_states" in kwargs
        hidden = kwargs["hidden_states"] if named else args[0]
        self._layer = layer
        if layer == 0 and self.has_images:
            for prune in self.seam.prunes:
                if self.seam.watches[id(prune)].entry:
                    with torch.no_grad():
                        prune.on_entry(self._rows(prune, self.now, hidden), self.memory[id(prune)])
        if layer in self.seam.boundaries and layer:
            hidden = self._boundary(layer, hidden, args, kwargs)
            if self.recall is not None:
                hidden = self.recall.boundary(hidden)
        if self.recall is not None and len(self.segments) > 1:
            args, kwargs = self.recall.arguments(args, kwargs)
        else:
            args, kwargs = self._arguments(layer, args, kwargs)
        self._hidden, self._tables = hidden, kwargs.get("position_embeddings")
        return (args, {**kwargs, "hidden_states": hidden}) if named else ((hidden, *args[1:]), kwargs)

    def after_layer(self, output: Any) -> Any:
        """A layer's output with the tokens that skipped it back in their places; None where none did."""
        if self._resting is None:
            return None
        (cut, before), self._resting = self._resting, None
        if isinstance(output, tuple):
            return (cut.put(before, output[0]), *output[1:])
        return cut.put(before, output)

    # ---------------------------------------------------------------- what prunes see

    def rows(self, prune: Prune) -> Rows:
        """The sequence in the layer that runs."""
        return self._rows(prune, self.now, self._hidden)

    def _rows(self, prune: Prune, segment: Segment, hidden: Tensor, probe: Any = None) -> Rows:
        visual, valid, instruction, origin = self._marks(segment, hidden.device)
        tables = self._tables
        plain = isinstance(tables, tuple) and len(tables) == 2 and all(t.dim() == 3 for t in tables)
        return Rows(
            layer=self._layer,
            hidden=hidden,
            visual=visual,
            valid=valid,
            instruction=instruction,
            probe=probe,
            stage=sum(layer < self._layer for layer in self.seam.schedules[id(prune)]),
            tail=min(self._tail, visual.shape[1]),
            images=self.layout.images,
            origin=origin,
            packed=prune.positions == "packed" and segment.positions is not None,
            rotary=tables if plain else None,
        )

    def _marks(self, segment: Segment, device: torch.device) -> tuple[Tensor, ...]:
        """Which tokens of a segment are visual, valid, instruction, and where they come from: each [B, n]."""
        key = id(segment), device
        if key not in self._seen:
            cut = segment.cut.to(device)
            instruction = cut.valid & (cut.index > on(device, self._ends)[:, None])
            instruction[:, -1] = True
            self._seen[key] = segment.visual.to(device), cut.valid, instruction, cut.index
        return self._seen[key]

    # ---------------------------------------------------------------- arguments

    def _arguments(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Every argument but hidden state and cache, from segment 0 to the current one."""
        recurrent = self.cache is None and layer in self.seam.recurrent
        held = None if recurrent else keys_in_layer(self.cache, layer)
        untouched = ("hidden_states", "past_key_values")
        new = {k: v if k in untouched else self._argument(k, v, held) for k, v in kwargs.items()}
        if layer in self.seam.open_layers and self.has_images and "attention_mask" in new:
            seen = self.conversation.held_valid[len(self.segments) - 1]
            new["attention_mask"] = opened_mask(new["attention_mask"], self.now, seen, held or 0)
        return args[:1] + tuple(self._argument("a positional argument", v, held) for v in args[1:]), new

    def _argument(self, name: str, value: Any, held: int | None) -> Any:
        if name == "attention_mask":
            if isinstance(value, dict):
                return {key: self._argument(name, item, held) for key, item in value.items()}
            return self._mask(value, held)
        if len(self.segments) == 1:
            return map_tensors(value, lambda tensor: tensor.now if isinstance(tensor, Following) else tensor)
        if name == "position_ids" and self.now.positions is not None and isinstance(value, Tensor):
            return self.now.positions
        if isinstance(value, tuple):
            self._cut_together(value)
        return map_tensors(value, lambda tensor: self._tensor(name, tensor))

    def _mask(self, mask: Tensor | None, held: int | None) -> Tensor | None:
        key = (id(mask), held)
        if key not in self.now.done:
            flash = "flash" in (getattr(self.seam.decoder_config, "_attn_implementation", None) or "")
            index = len(self.segments) - 1
            self.now.done[key] = mask, layer_mask(mask, index, self.now, self.conversation, held, flash)
        return self.now.done[key][1]

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        if isinstance(tensor, Following):
            within = self.now.within
            return (
                tensor.now
                if within is None
                else cut_argument(name, tensor.now, within, None, 0, self.seam.parts.family)
            )
        key = (id(tensor), None)
        if key not in self.now.done and not self._rotary_again(tensor):
            new = tensor
            if not self.now.in_entry.identity:
                new = cut_argument(name, tensor, self.now.in_entry, None, 0, self.seam.parts.family)
            self.now.done[key] = tensor, new
        return self.now.done[key][1]

    def _cut_together(self, tensors: tuple) -> None:
        """Cut what a tuple (of rotary tables) has for each token in one go."""
        entry, done = self.now.in_entry, self.now.done
        batch, length = entry.index.shape[0], entry.length
        fits = {  # by number: torch.compile can't follow the tuple's own iterator
            number: isinstance(tensors[number], Tensor) and token_dim(tensors[number], batch, length) == 1
            for number in range(len(tensors))
        }
        new = [tensors[number] for number, fit in fits.items() if fit and (id(tensors[number]), None) not in done]
        if len(new) > 1 and not entry.identity and not self._rotary_again(new[0]):
            done.update({(id(old), None): (old, cut) for old, cut in zip(new, entry.take_all(new))})

    def _rotary_again(self, tensor: Tensor) -> bool:
        """If `tensor` is a rotary table, make the tables of its call again for the segment's own positions."""
        positions = self.now.positions
        if positions is None or not self.seam.packs_inside:
            return False
        for module, args, kwargs, output in self.rotary:
            parts = output if isinstance(output, tuple) else (output,)
            if any(part is tensor for part in parts):
                args = tuple(positions if _is_index(a) else a for a in args)
                kwargs = {k: positions if _is_index(v) else v for k, v in kwargs.items()}
                again = module.forward(*args, **kwargs)
                again = again if isinstance(again, tuple) else (again,)
                self.now.done.update({(id(old), None): (old, new) for old, new in zip(parts, again)})
                return True
        return False

    # ---------------------------------------------------------------- prunes

    def _boundary(self, layer: int, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Start the segment of `layer`: decide, cut, and return the hidden state of the survivors."""
        before, prune = self.base, self.seam.prune_at.get(layer, (None, 0))[0]
        cut, counts, decision = Cut.whole(before.cut.valid, before.cut.padded), before.visual_counts, None
        visual = alive = before.visual.to(hidden.device)
        if self.has_images and prune is not None:
            counts = self._counts(prune, before)
            if prune.adaptive or counts != before.visual_counts:
                decision = self._decide(prune, before, hidden, counts, args, kwargs)  # gradients flow through merging
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
        self._start_segment(layer, cut, slots, counts, prune is not None and prune.positions == "packed", returns)
        if prune is not None and prune.revives and self.has_images:
            self._keep_dropped(before, hidden, alive, counts)
        if cut.identity or decision is None:
            return hidden
        if decision.hidden is not None:
            hidden = decision.hidden.to(hidden.dtype)
        if returns:
            self._resting = cut, hidden
            return cut.take(hidden)
        self.now.into = decision.into
        self._shorten_extras(cut, before)
        for memory in self.memory.values():
            for key, value in memory.items():
                if value.shape[:2] == before.cut.index.shape:
                    memory[key] = cut.take(value)
        return slots.take(hidden)

    def _keep_dropped(self, before: Segment, hidden: Tensor, alive: Tensor, counts: list[int]) -> None:
        """Keep the hidden states of the visual tokens of `before` that are not `alive`; `counts` of each row are."""
        numbers = [there - left for there, left in zip(before.visual_counts, counts)]
        cut = Cut.keep(before.visual.to(hidden.device) & ~alive, numbers)
        slot = before.in_slots.to(hidden.device).then(cut).index + self.conversation.slots
        self.dropping.append((len(self.segments) - 1, Tokens(slot, cut.valid, cut.take(hidden)), counts))

    def _counts(self, prune: Prune, before: Segment) -> list[int]:
        """Visual tokens that the prune due now leaves in each row; for an adaptive one, those that are there."""
        left = before.visual_counts
        if prune.adaptive:
            return left
        stage = self.seam.prune_at[self._layer][1]
        reached = self._reached.setdefault(id(prune), left)
        return [min(prune.count_at(stage, n), there) if n else 0 for n, there in zip(reached, left)]

    def _decide(
        self, prune: Prune, before: Segment, hidden: Tensor, counts: list[int], args: tuple, kwargs: dict[str, Any]
    ) -> Decision:
        rows = self._rows(prune, before, hidden, lambda: self._probe(prune, hidden, args, kwargs))
        try:
            decision = prune.decide(rows, counts, self.memory[id(prune)])
        except Exception as error:
            error.add_note(f"in {prune.name}, in front of decoder layer {self._layer}")
            raise
        check_pruned(prune, decision, rows)
        return decision

    def _probe(self, prune: Prune, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Attention:
        """Q and k of the layer about to run; cached keys in front."""
        layer = self._layer
        if not self.seam.watches[id(prune)].probe:
            raise RuntimeError(f"{prune.name} calls rows.probe(): let its watch() return Watch(probe=True)")
        old = keys_in_layer(self.cache, layer)
        if old:  # its keys, their padding and the lag of positions are those of the layer's own segment
            whole = Cut.whole(self.base.cut.valid, self.base.cut.padded)
            self._start_segment(layer, whole, whole, self.base.visual_counts, False, False)
        args, kwargs = self._arguments(layer, args, kwargs)
        if old:
            self.segments.pop()
        kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        module = self.seam.parts.layers[layer]
        attention = self.seam.adapter.attention(module)
        with torch.no_grad():
            kwargs = {**kwargs, "past_key_values": None, "use_cache": False}
            seen = probe(module, attention, hidden, *args[1:], **kwargs)
        if not old:
            return seen
        return replace(seen, key=torch.cat([self.cache.layers[layer].keys, seen.key], dim=2))

    def _start_segment(self, layer: int, cut: Cut, slots: Cut, counts: list[int], packed: bool, returns: bool) -> None:
        """Add the segment of `layer`: `cut` names its tokens, `slots` (ascending) the places where they stand."""
        before, index = self.base, len(self.segments)
        parent = next(i for i, segment in enumerate(self.segments) if segment is before)
        gain = self.conversation.shift[index] - self.conversation.shift[parent]
        positions, lag = None, gain
        if before.positions is not None:
            positions, lag = renumber(before.positions, before.cut.valid, cut, gain, packed)
        visual = before.visual if cut.identity else cut.take(before.visual) & cut.valid.to(before.visual.device)
        self.segments.append(
            Segment(
                first_layer=layer,
                cut=before.cut.then(cut),
                in_entry=before.in_entry.then(cut),
                in_slots=before.in_slots.then(slots),
                positions=positions,
                shift=before.shift + lag,
                visual=visual,
                visual_counts=counts,
                base=before if returns else None,
                within=cut if returns else None,
            )
        )

    def _shorten_extras(self, cut: Cut, before: Segment) -> None:
        """Shorten what the decoder's loop reads from its own arguments between layers (DeepStack rows)."""
        if not self.extras:
            return
        index, total = visual_index(before.visual, cut, sum(self.now.visual_counts)), sum(before.visual_counts)
        for name, value in self.extras.items():
            new = cut_argument(name, value, cut, index, total, self.seam.parts.family)
            if isinstance(value, Following):
                value.now = new
            elif isinstance(value, list):
                value[:] = new
            elif isinstance(value, dict):
                value.update(new)


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()
