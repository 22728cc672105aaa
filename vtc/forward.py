"""One call of a compressed decoder: enter with fewer tokens, remove more on the way, leave with the old length."""

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc import ops
from vtc.conversation import Conversation, attach, conversation_of, keys_in_layer
from vtc.layout import Layout, VisualInput
from vtc.method import Prune, Rows, Selector, VisualTokens
from vtc.reduction import Mixing, Reduction
from vtc.scores import Attention
from vtc.segments import Segment, cut_argument, layer_mask, renumber
from vtc.sequence import Cut, map_tensors
from vtc.tap import probe
from vtc.trace import ImageTrace, Stage, Trace

if TYPE_CHECKING:
    from vtc.seam import Seam


@dataclass
class Recorded:
    """What the hooks saw of a call before the decoder was entered.

    Attributes:
        mask: the 2-D attention mask that the composite model was given, if any.
        placeholders: (kind, BoolTensor [B, L]) of each visual input that was put into the sequence.
        features: per kind, what the adapter recorded of the call that made the features.
        scores: (what, tower block) -> Tensor [sequences, P] of attention scores per patch.
        sequences: lengths of the tower's sequences, for FLOPs.
    """

    mask: Tensor | None = None
    placeholders: list[tuple[str, Tensor]] = field(default_factory=list)
    features: dict[str, Any] = field(default_factory=dict)
    scores: dict[tuple[str, int], Tensor] = field(default_factory=dict)
    sequences: list[Any] = field(default_factory=list)


class ForwardPass:
    """The state of one call, from the decoder's entry to its exit."""

    def __init__(self, seam: "Seam", recorded: Recorded):
        self.seam = seam
        self.recorded = recorded
        self.segments: list[Segment] = []
        self.conversation: Conversation | None = None
        self.cache: Any = None
        self.layout: Layout | None = None
        self.current = 0
        self.memory: dict[int, dict[str, Tensor]] = defaultdict(dict)
        self.reached: dict[int, list[int]] = {}
        self.mixings: dict[int, tuple[Tensor, Mixing]] = {}
        self.rotary: list[tuple[Any, tuple, dict, Any]] = []
        self.extras: dict[str, Any] = {}
        self.selection_s = 0.0
        self.active = False
        self.kept_cut_of_visual: Tensor | None = None

    # ---------------------------------------------------------------- entering the decoder

    def enter(self, kwargs: dict[str, Any]) -> dict[str, Any]:
        """The decoder's keyword arguments, reduced."""
        embeds: Tensor = kwargs["inputs_embeds"]
        batch, length = embeds.shape[:2]
        self.cache = kwargs.get("past_key_values")
        self.conversation = conversation_of(self.cache)
        self.seam.check_call(kwargs, length)
        mask = kwargs.get("attention_mask")
        mask2d = mask if isinstance(mask, Tensor) and mask.dim() == 2 else self.recorded.mask
        self.layout = self.seam.adapter.layout(self.recorded, (batch, length))
        will_drop = self._will_drop()
        if self.conversation is None and not will_drop:
            if self.layout.images or self._fresh():
                self._passthrough(embeds, mask2d)
            return kwargs
        self.active = True
        start = time.perf_counter()
        valid = embeds.new_ones(batch, length, dtype=torch.bool)
        if mask2d is not None:
            valid = mask2d[:, -length:].to(embeds.device).bool()
        if self.conversation is None:
            self.conversation = self._begin(mask2d, batch, embeds.device)
        kwargs = self._first_segment(dict(kwargs), embeds, valid, mask2d, will_drop)
        self.selection_s += time.perf_counter() - start
        return kwargs

    def _fresh(self) -> bool:
        return self.cache is None or self.cache.get_seq_length() == 0

    def _will_drop(self) -> bool:
        """Whether any method will remove anything, from counts alone."""
        assert self.layout is not None
        lengths = [len(image) for image in self.layout.images]
        left = lengths
        if (selector := self.seam.selector) is not None:
            left = [selector.count(n) for n in lengths]
            if left != lengths:
                return True
        rows = [n for n in self.layout.tokens_per_row() if n]
        depth = len(self.seam.parts.layers)
        return any(
            prune.count_at(stage, n) < n
            for prune in self.seam.prunes
            for n in rows
            for stage in range(len(prune.schedule(depth)))
        )

    def _begin(self, mask2d: Tensor | None, batch: int, device: torch.device) -> Conversation:
        """A conversation record for a cache that is new, or was filled by text alone."""
        old = 0 if self._fresh() else self.cache.get_seq_length()
        valid = mask2d[:, :old].to(device).bool() if mask2d is not None and old else None
        return Conversation(len(self.seam.boundaries), old, valid, batch, device)

    def _first_segment(
        self, kwargs: dict[str, Any], embeds: Tensor, valid: Tensor, mask2d: Tensor | None, will_drop: bool
    ) -> dict[str, Any]:
        assert self.layout is not None and self.conversation is not None
        batch, length = valid.shape
        counts = [length] * batch
        padded = False
        visual = torch.zeros_like(valid)
        if self.layout.images:
            host = valid.cpu()
            counts = host.sum(dim=1).tolist()
            padded = min(counts) < length
            for image in self.layout.images:
                visual[image.row, image.positions.to(visual.device)] = True
        elif mask2d is not None:
            padded = True  # not looked at: decode steps never wait for the device
        reductions = self._select(embeds) if will_drop and self.seam.selector is not None else {}
        realign = bool(will_drop and padded and not host[:, -1].all())
        visual_counts = self.layout.tokens_per_row()
        if reductions or realign:
            alive = valid.clone()
            for index, image in enumerate(self.layout.images):
                if index in reductions:
                    places = image.positions.to(alive.device)
                    alive[image.row, places] = False
                    alive[image.row, places[reductions[index].kept]] = True
                    removed = len(image) - len(reductions[index].kept)
                    counts[image.row] -= removed
                    visual_counts[image.row] -= removed
            cut = Cut.keep(alive, counts)
        else:
            cut = Cut.whole(valid, padded)
        packed = bool(reductions) and self.seam.selector is not None and self.seam.selector.positions == "packed"
        positions, shift = self._positions(kwargs, valid, cut, packed)
        visual_now = visual if cut.identity else cut.take(visual) & cut.valid
        in_slots = Cut.whole(cut.valid, cut.padded)
        plain = positions if positions is not None and positions.dim() == 2 else None
        self.segments = [Segment(0, cut, in_slots, plain, shift, visual_now, visual_counts)]
        self._dropped = bool(reductions)
        if not cut.identity:
            embeds = self._merge(embeds, reductions)
            kwargs["inputs_embeds"] = cut.take(embeds)
            self._cut_extras(kwargs, cut, visual)
        if positions is not None:
            kwargs["position_ids"] = positions
        kwargs["attention_mask"] = self._entry_mask(kwargs.get("attention_mask"), mask2d, cut, packed)
        self._remember_extras(kwargs)
        return kwargs

    def _positions(
        self, kwargs: dict[str, Any], valid: Tensor, cut: Cut, packed: bool
    ) -> tuple[Tensor | None, Tensor]:
        """Position ids of the first segment (any number of axes), and its lag behind the logical ones."""
        assert self.conversation is not None
        old_shift = self.conversation.shift[0]
        positions = kwargs.get("position_ids")
        batch, length = valid.shape
        if positions is None:
            positions = torch.arange(length, device=valid.device)[None] + self.conversation.logical
        if positions.dim() == 3:
            moved = positions if cut.identity else cut.take(positions, dim=2)
            return moved - old_shift, old_shift
        return renumber(positions.expand(batch, -1), valid, cut, old_shift, packed)

    def _entry_mask(self, mask: Any, mask2d: Tensor | None, cut: Cut, packed: bool) -> Any:
        """The decoder's attention mask: 2-D over slots, or the ready-made one cut on both axes."""
        assert self.conversation is not None
        conversation = self.conversation
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):
            if cut.identity:
                return mask
            old = conversation.slots
            columns = torch.cat([torch.arange(old, device=cut.index.device).expand(len(cut.index), old), cut.index + old], 1)
            seen = conversation.held_valid[0]
            seen = cut.valid.new_ones(len(cut.index), old) if seen is None else seen
            visible = torch.cat([seen, cut.valid], dim=1) if cut.padded or seen is not None else None
            return map_tensors(
                mask,
                lambda part: layer_mask(part, 0, self._as_cut(cut), conversation, old, False)
                if part.dim() == 2
                else _cut_ready_mask(part, cut, columns, visible),
            )
        old_valid = conversation.held_valid[0]
        gapped = not packed and not cut.identity and self.cache is None
        if not (cut.padded or old_valid is not None or mask2d is not None or gapped):
            return None
        if old_valid is None:
            old_valid = cut.valid.new_ones(len(cut.valid), conversation.slots)
        full = torch.cat([old_valid, cut.valid], dim=1)
        return full.to(mask2d.dtype if mask2d is not None else torch.long)

    def _as_cut(self, cut: Cut) -> Segment:
        return Segment(0, cut, cut, None, torch.zeros(0), torch.zeros(0), [])

    # ---------------------------------------------------------------- selectors

    def _select(self, embeds: Tensor) -> dict[int, Reduction]:
        """Run the selector on images that are laid out alike at once; image index -> its own reduction."""
        assert self.layout is not None
        selector = self.seam.selector
        assert selector is not None
        tower = self.seam.adapter.tower_scores(self.recorded, self.layout)
        groups: dict[Any, list[int]] = defaultdict(list)
        for index, image in enumerate(self.layout.images):
            if selector.count(len(image)) < len(image):
                groups[(image.kind, image.grids, len(image))].append(index)
        reductions = {}
        for (kind, grids, total), members in groups.items():
            images = [self.layout.images[index] for index in members]
            visual = VisualTokens(
                features=torch.stack([embeds[image.row, image.positions.to(embeds.device)] for image in images]),
                grids=grids,
                separators=images[0].separators(),
                kind=kind,
                ordinals=tuple(image.ordinal for image in images),
                received=_stacked(tower, "received", members),
                cls=_stacked(tower, "cls", members),
            )
            k = selector.count(total)
            with torch.no_grad():
                reduction = selector.select(visual, k)
            if reduction.kept.shape[1] != k and not getattr(selector, "compat", False):
                raise RuntimeError(f"{selector.name} kept {reduction.kept.shape[1]} tokens instead of {k}")
            for place, index in enumerate(members):
                mixing = reduction.mixing
                own = Mixing(mixing.source[place], mixing.target[place], mixing.weight[place]) if mixing else None
                reductions[index] = Reduction(reduction.kept[place], own)
                if own is not None:
                    self.mixings[index] = (reduction.kept[place], own)
        return reductions

    def _merge(self, embeds: Tensor, reductions: dict[int, Reduction]) -> Tensor:
        """`embeds` with merged tokens in the places of their centres."""
        assert self.layout is not None
        merged = [index for index, reduction in reductions.items() if reduction.mixing is not None]
        if merged:
            embeds = embeds.clone()
        for index in merged:
            image, reduction = self.layout.images[index], reductions[index]
            places = image.positions.to(embeds.device)
            assert reduction.mixing is not None
            one = Mixing(*(part[None] for part in vars(reduction.mixing).values()))
            new = ops.merge(embeds[image.row, places][None], one, len(reduction.kept))
            embeds[image.row, places[reduction.kept]] = new[0].to(embeds.dtype)
        return embeds

    # ---------------------------------------------------------------- other per-token arguments

    _KNOWN = ("inputs_embeds", "attention_mask", "position_ids", "past_key_values", "input_ids")

    def _cut_extras(self, kwargs: dict[str, Any], cut: Cut, visual: Tensor) -> None:
        """Reduce every argument that is per token; `visual` [B, L] marks visual tokens before the cut."""
        index = _visual_index(visual, cut)
        total = int(sum(len(image) for image in self.layout.images)) if self.layout else 0
        for name, value in kwargs.items():
            if name not in self._KNOWN:
                kwargs[name] = cut_argument(name, value, cut, index, total, self.seam.parts.family)

    def _remember_extras(self, kwargs: dict[str, Any]) -> None:
        """Own copies of the containers that the decoder reads between its layers, so that a prune can shorten them."""
        if not self.seam.prunes or not self._prunes_now():
            return
        for name, value in kwargs.items():
            if name not in self._KNOWN and isinstance(value, (list, tuple)) and any(isinstance(v, Tensor) for v in value):
                kwargs[name] = list(value)
            elif name not in self._KNOWN and isinstance(value, dict):
                kwargs[name] = dict(value)
            elif name not in self._KNOWN and isinstance(value, Tensor) and not value.is_floating_point():
                kwargs[name] = value.clone()
        self.extras = {name: value for name, value in kwargs.items() if name not in self._KNOWN}

    def _shorten_extras(self, cut: Cut, before: Segment) -> None:
        """After a prune, shorten in place what the decoder's loop will read from its own arguments (DeepStack rows)."""
        index = _visual_index(before.visual, cut)
        total = sum(before.visual_counts)
        for name, value in self.extras.items():
            new = cut_argument(name, value, cut, index, total, self.seam.parts.family)
            if new is value:
                continue
            if isinstance(value, list):
                value[:] = new
            elif isinstance(value, dict):
                value.update(new)
            elif not value.is_floating_point():
                value.set_(new)
            else:
                self.extras[name] = new

    # ---------------------------------------------------------------- inside the decoder

    def _prunes_now(self) -> bool:
        return self.layout is not None and bool(self.layout.images)

    def prunes_ahead(self, layer: int) -> bool:
        """Whether what happens in `layer` may matter to a prune of this call."""
        return self.active and self._prunes_now() and layer < self.seam.boundaries[-1]

    def before_layer(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """A layer's arguments, in the segment that it belongs to; prunes first where one is due."""
        if not self.active:
            return args, kwargs
        name = "hidden_states" if "hidden_states" in kwargs else None
        hidden = kwargs[name] if name else args[0]
        if layer in self.seam.boundaries[1:]:
            hidden = self._prune(layer, hidden, args, kwargs)
        args, kwargs = self._in_segment(layer, args, kwargs)
        if name:
            kwargs[name] = hidden
        else:
            args = (hidden, *args[1:])
        return args, kwargs

    def _in_segment(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Every argument but the hidden state, reduced from segment 0 to the current one."""
        segment = self.segments[self.current]
        flash = "flash" in (getattr(self.seam.decoder_config, "_attn_implementation", None) or "")
        held = keys_in_layer(self.cache, layer)

        def reduce(name: str, value: Any) -> Any:
            if name == "attention_mask":
                if isinstance(value, dict):
                    return {key: reduce(name, item) for key, item in value.items()}
                key = (id(value), held)
                if key not in segment.cache:
                    mask = layer_mask(value, self.current, segment, self.conversation, held, flash)
                    segment.cache[key] = (value, mask)
                return segment.cache[key][1]
            if name == "position_ids" and segment.positions is not None and isinstance(value, Tensor):
                return segment.positions if self.current else value
            return map_tensors(value, lambda tensor: self._reduce_tensor(name, tensor, segment))

        new_kwargs = {
            name: value if name in ("hidden_states", "past_key_values") else reduce(name, value)
            for name, value in kwargs.items()
        }
        return (args[:1] + tuple(reduce("argument", value) for value in args[1:])), new_kwargs

    def _reduce_tensor(self, name: str, tensor: Tensor, segment: Segment) -> Tensor:
        if self.current == 0:
            return tensor
        if id(tensor) not in segment.cache:
            new = self._rotary_again(tensor, segment)
            if new is None:
                total = sum(self.segments[0].visual_counts)
                new = tensor if segment.in_slots.identity else cut_argument(
                    name, tensor, segment.in_slots, None, total, self.seam.parts.family
                )
            segment.cache[id(tensor)] = (tensor, new)
        return segment.cache[id(tensor)][1]

    def _rotary_again(self, tensor: Tensor, segment: Segment) -> Tensor | None:
        """If `tensor` is a rotary table, the table for the segment's own positions."""
        if segment.positions is None or not self.seam.packs_inside:
            return None
        for module, args, kwargs, output in self.rotary:
            parts = output if isinstance(output, tuple) else (output,)
            for place, part in enumerate(parts):
                if part is tensor:
                    again = module.forward(
                        *(segment.positions if _is_index(a) else a for a in args),
                        **{k: segment.positions if _is_index(v) else v for k, v in kwargs.items()},
                    )
                    again = again if isinstance(again, tuple) else (again,)
                    for old, new in zip(parts, again):
                        segment.cache[id(old)] = (old, new)
                    return again[place]
        return None

    # ---------------------------------------------------------------- prunes

    def _prune(self, layer: int, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Start the segment of `layer`: decide, cut, and return the shorter hidden state."""
        start = time.perf_counter()
        before = self.segments[self.current]
        prune, stage = self.seam.prune_at[layer]
        cut = Cut.whole(before.cut.valid, before.cut.padded)
        counts = before.visual_counts
        if self._prunes_now():
            reached = self.reached.setdefault(id(prune), list(counts))
            counts = [min(prune.count_at(stage, n) if n else 0, now) for n, now in zip(reached, counts)]
            if counts != before.visual_counts:
                with torch.no_grad():
                    cut = self._decide(prune, layer, hidden, before, counts, args, kwargs)
                self._dropped = True
        self._start_segment(layer, before, cut, counts, prune.positions == "packed")
        if not cut.identity:
            hidden = cut.take(hidden)
            self._shorten_extras(cut, before)
            for memory in self.memory.values():
                for key, value in memory.items():
                    if value.shape[:2] == before.cut.index.shape:
                        memory[key] = cut.take(value)
        self.selection_s += time.perf_counter() - start
        return hidden

    def _decide(
        self, prune: Prune, layer: int, hidden: Tensor, before: Segment, counts: list[int], args: tuple, kwargs: dict
    ) -> Cut:
        visual, valid = before.visual.to(hidden.device), before.cut.valid.to(hidden.device)
        place = torch.arange(valid.shape[1], device=hidden.device)
        last_visual = (place * visual).amax(dim=1, keepdim=True)
        instruction = valid & (place > last_visual)
        instruction[:, -1] = True
        rows = Rows(
            layer, hidden, visual, valid, instruction, lambda: self._probe(layer, hidden, args, kwargs)
        )
        scores = prune.score(rows, self.memory[id(prune)]).float()
        lowest = torch.finfo(scores.dtype).min
        scores = scores.nan_to_num(lowest, torch.finfo(scores.dtype).max, lowest).masked_fill(~visual, float("-inf"))
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        keep = rank < torch.tensor(counts, device=rank.device)[:, None]
        alive = valid & (~visual | keep)
        text = [n - v for n, v in zip(self._alive_counts(before), before.visual_counts)]
        return Cut.keep(alive, [t + k for t, k in zip(text, counts)])

    def _alive_counts(self, segment: Segment) -> list[int]:
        if not segment.cut.padded:
            return [len(segment.cut)] * len(segment.visual_counts)
        if not hasattr(self, "_text_counts"):
            visual = torch.tensor(segment.visual_counts)
            self._text_counts = (segment.cut.valid.sum(dim=1).cpu() - visual).tolist()
        return [t + v for t, v in zip(self._text_counts, segment.visual_counts)]

    def _probe(self, layer: int, hidden: Tensor, args: tuple, kwargs: dict) -> Attention:
        """q and k of the layer about to run, old keys in front."""
        _, inner = self._in_segment(layer, args, kwargs)
        inner = {
            **{k: v for k, v in inner.items() if k != "hidden_states"},
            "past_key_values": None,
            "use_cache": False,
        }
        module = self.seam.parts.layers[layer]
        seen = probe(module, self.seam.adapter.attention(module), hidden, **inner)
        held = keys_in_layer(self.cache, layer)
        if held:
            old = self.cache.layers[layer].keys
            seen = Attention(
                seen.query, torch.cat([old, seen.key], dim=2), seen.scaling, seen.mask, seen.causal, seen.window, seen.softcap
            )
        return seen

    def _start_segment(self, layer: int, before: Segment, cut: Cut, counts: list[int], packed: bool) -> None:
        assert self.conversation is not None
        index = self.current + 1
        gain = self.conversation.shift[index] - self.conversation.shift[index - 1]
        positions, shift = None, before.shift + gain
        if before.positions is not None:
            positions, lag = renumber(before.positions, before.cut.valid, cut, gain, packed)
            shift = before.shift + lag
        visual = before.visual if cut.identity else cut.take(before.visual) & cut.valid.to(before.visual.device)
        self.segments.append(
            Segment(layer, before.cut.then(cut), before.in_slots.then(cut), positions, shift, visual, counts)
        )
        self.current = index

    # ---------------------------------------------------------------- leaving the decoder

    def leave(self, output: Any) -> Any:
        """The decoder's output at the length that the user gave; remembers what later calls need."""
        if not self.active:
            return output
        assert self.conversation is not None and self.layout is not None
        if len(self.segments) != len(self.seam.boundaries):
            raise RuntimeError("vtc: a decoder layer that should have pruned did not run")
        cache = getattr(output, "past_key_values", None)
        cache = self.cache if cache is None else cache
        self._restore_lengths(output)
        if cache is not None:
            self._commit(cache)
        if self.layout.images or self._fresh_start:
            self._publish(self.segments)
        return output

    @property
    def _fresh_start(self) -> bool:
        return self.conversation is not None and self.conversation.slots == len(self.segments[0].cut)

    def _restore_lengths(self, output: Any) -> None:
        if all(segment.cut.identity for segment in self.segments):
            return
        output["last_hidden_state"] = self.segments[-1].cut.scatter(output["last_hidden_state"])
        states = getattr(output, "hidden_states", None)
        if states is not None:
            of_layer = [self._segment_of(max(layer - 1, 0)) for layer in range(len(states))]
            output["hidden_states"] = tuple(s.cut.scatter(state) for s, state in zip(of_layer, states))

    def _segment_of(self, layer: int) -> Segment:
        return [segment for segment in self.segments if segment.first_layer <= layer][-1]

    def _commit(self, cache: Any) -> None:
        """Remember lengths and padding on the cache, and check the cache against the plan."""
        conversation = self.conversation
        assert conversation is not None
        new = len(self.segments[0].cut)
        for index, segment in enumerate(self.segments):
            if index:
                held = conversation.held[index]
                assert held is not None
                conversation.held[index] = torch.cat([held, segment.in_slots.index + conversation.slots], dim=1)
            valid, old = conversation.held_valid[index], conversation.held[index]
            if valid is not None or segment.cut.padded:
                if valid is None:
                    width = (conversation.slots if index == 0 else old.shape[1] - len(segment.cut)) if old is not None or index == 0 else 0
                    valid = segment.cut.valid.new_ones(len(segment.cut.valid), width)
                conversation.held_valid[index] = torch.cat([valid, segment.cut.valid.to(valid.device)], dim=1)
            conversation.shift[index] = segment.shift
        conversation.slots += new
        conversation.logical += self.segments[0].cut.length
        self._check_lengths(cache)
        self.seam.remember(conversation)
        attach(cache, conversation)

    def _check_lengths(self, cache: Any) -> None:
        """Contract clause 9: the plan's counts equal the cache's lengths."""
        conversation = self.conversation
        assert conversation is not None
        for layer, stored in enumerate(cache.layers):
            if layer >= len(self.seam.parts.layers) or keys_in_layer(cache, layer) in (None, 0):
                continue
            index = sum(layer >= boundary for boundary in self.seam.boundaries) - 1
            held = conversation.held[index]
            expected = conversation.slots if held is None else held.shape[1]
            if stored.get_seq_length() != expected:
                raise RuntimeError(
                    f"vtc: layer {layer} of {self.seam.parts.family} holds {stored.get_seq_length()} tokens in its cache "
                    f"where the plan says {expected}"
                )

    def _publish(self, segments: list[Segment]) -> None:
        """Make this call the model's trace."""
        assert self.layout is not None
        depth = len(self.seam.parts.layers)
        stages = tuple(Stage(segment.first_layer, segment.cut) for segment in segments)
        tokens = [self._segment_of(layer).visual_counts for layer in range(depth)]
        images = tuple(
            ImageTrace(image.row, image.kind, image, stages, self.mixings.get(index))
            for index, image in enumerate(self.layout.images)
        )
        selection_ms = self.selection_s * 1e3
        valid = segments[0].cut.valid
        self.seam.publish(
            Trace(
                spec=self.seam.spec,
                layout=self.layout,
                images=images,
                tokens_per_layer=torch.tensor(tokens).view(depth, self.layout.shape[0]),
                text_tokens=valid.sum(dim=1).cpu() - torch.tensor(segments[0].visual_counts),
                _selection=lambda: selection_ms,
                _cost=self.seam.cost(self.recorded.sequences),
            )
        )

    def _passthrough(self, embeds: Tensor, mask2d: Tensor | None) -> None:
        """Nothing is to be removed: the call runs untouched, and the trace says so."""
        assert self.layout is not None
        valid = torch.ones(self.layout.shape, dtype=torch.bool)
        if mask2d is not None:
            valid = mask2d[:, -valid.shape[1] :].bool().cpu()
        cut = Cut.whole(valid, True)
        empty = torch.zeros(0)
        self.segments = [Segment(0, cut, cut, None, empty, empty, self.layout.tokens_per_row())]
        self._publish(self.segments)


def _stacked(tower: dict[tuple[str, int], list[Tensor]], what: str, members: list[int]) -> dict[int, Tensor]:
    return {
        block: torch.stack([values[index] for index in members])
        for (name, block), values in tower.items()
        if name == what
    }


def _visual_index(visual: Tensor, cut: Cut) -> Tensor:
    """Index of the surviving visual tokens among all visual tokens of the batch, row by row."""
    number = (visual.flatten().cumsum(0) - 1).view_as(visual)
    alive = cut.take(visual) & cut.valid.to(visual.device)
    return cut.take(number)[alive]


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()


def _cut_ready_mask(mask: Tensor, cut: Cut, columns: Tensor, visible: Tensor | None) -> Tensor:
    from vtc.sequence import cut_mask

    return cut_mask(mask, cut, columns, visible)
