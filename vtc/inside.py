"""What happens between the layers of a decoder: prunes, and every argument at the length of its segment."""

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from vtc.conversation import Conversation, keys_in_layer
from vtc.method import Prune, Rows
from vtc.scores import Attention
from vtc.segments import Segment, cut_argument, layer_mask, renumber, visual_index
from vtc.sequence import Cut, map_tensors
from vtc.tap import probe

if TYPE_CHECKING:
    from vtc.seam import Seam


class Inside:
    """The layers of one decoder call.

    Args:
        seam: the patch.
        conversation: what earlier calls left.
        cache: the cache of the call, or None.
        first: segment 0.
        text_counts: tokens of each row that are neither visual nor padding.
        extras: the decoder's further per-token arguments, as it was entered with them.
    """

    def __init__(
        self,
        seam: "Seam",
        conversation: Conversation,
        cache: Any,
        first: Segment,
        text_counts: list[int],
        extras: dict[str, Any],
    ):
        self.seam = seam
        self.conversation = conversation
        self.cache = cache
        self.segments = [first]
        self.text_counts = text_counts
        self.extras = extras
        self.has_images = any(first.visual_counts)
        self.memory: dict[int, dict[str, Tensor]] = defaultdict(dict)
        self.rotary: list[tuple[Any, tuple, dict[str, Any], Any]] = []
        self._reached: dict[int, list[int]] = {}

    @property
    def now(self) -> Segment:
        """The segment that the layers are in."""
        return self.segments[-1]

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
        if layer in self.seam.prune_at:
            hidden = self._prune(layer, hidden, args, kwargs)
        args, kwargs = self._arguments(layer, args, kwargs)
        return (args, {**kwargs, "hidden_states": hidden}) if named else ((hidden, *args[1:]), kwargs)

    # ---------------------------------------------------------------- arguments

    def _arguments(self, layer: int, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """Every argument but hidden state and cache, from segment 0 to the current one."""
        held = keys_in_layer(self.cache, layer)
        untouched = ("hidden_states", "past_key_values")
        new = {k: v if k in untouched else self._argument(k, v, held) for k, v in kwargs.items()}
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
            return tensor.now
        key = (id(tensor), None)
        if key not in self.now.done and not self._rotary_again(tensor):
            new = tensor
            if not self.now.in_entry.identity:
                new = cut_argument(name, tensor, self.now.in_entry, None, 0, self.seam.parts.family)
            self.now.done[key] = tensor, new
        return self.now.done[key][1]

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

    def _prune(self, layer: int, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Tensor:
        """Start the segment of `layer`: decide, cut, and return the hidden state of the survivors."""
        prune, stage = self.seam.prune_at[layer]
        before = self.now
        counts, cut = before.visual_counts, Cut.whole(before.cut.valid, before.cut.padded)
        if self.has_images:
            reached = self._reached.setdefault(id(prune), counts)
            counts = [min(prune.count_at(stage, n), left) if n else 0 for n, left in zip(reached, counts)]
            if counts != before.visual_counts:
                with torch.no_grad():
                    cut = self._decide(prune, layer, hidden, counts, args, kwargs)
        self._start_segment(layer, cut, counts, prune.positions == "packed")
        if cut.identity:
            return hidden
        self._shorten_extras(cut, before)
        for memory in self.memory.values():
            for key, value in memory.items():
                if value.shape[:2] == before.cut.index.shape:
                    memory[key] = cut.take(value)
        return cut.take(hidden)

    def _decide(
        self, prune: Prune, layer: int, hidden: Tensor, counts: list[int], args: tuple, kwargs: dict[str, Any]
    ) -> Cut:
        visual, valid = self.now.visual.to(hidden.device), self.now.cut.valid.to(hidden.device)
        place = torch.arange(valid.shape[1], device=hidden.device)
        instruction = valid & (place > (place * visual).amax(dim=1, keepdim=True))
        instruction[:, -1] = True
        rows = Rows(layer, hidden, visual, valid, instruction, lambda: self._probe(layer, hidden, args, kwargs))
        scores = prune.score(rows, self.memory[id(prune)]).float()
        if scores.shape != visual.shape:
            raise RuntimeError(
                f"{prune.name}.score gave {tuple(scores.shape)}, not {tuple(visual.shape)}: one per token"
            )
        limits = torch.finfo(scores.dtype)
        scores = scores.nan_to_num(limits.min, limits.max, limits.min).masked_fill(~visual, float("-inf"))
        rank = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        kept = rank < torch.tensor(counts, device=rank.device)[:, None]
        return Cut.keep(valid & (~visual | kept), [t + k for t, k in zip(self.text_counts, counts)])

    def _probe(self, layer: int, hidden: Tensor, args: tuple, kwargs: dict[str, Any]) -> Attention:
        """Q and k of the layer about to run; cached keys in front."""
        prune, _ = self.seam.prune_at[layer]
        if not prune.watch(len(self.seam.parts.layers)).probe:
            raise RuntimeError(f"{prune.name} calls rows.probe(): let its watch() return Watch(probe=True)")
        args, kwargs = self._arguments(layer, args, kwargs)
        kwargs = {k: v for k, v in kwargs.items() if k != "hidden_states"}
        module = self.seam.parts.layers[layer]
        attention = self.seam.adapter.attention(module)
        seen = probe(module, attention, hidden, *args[1:], **{**kwargs, "past_key_values": None, "use_cache": False})
        if not keys_in_layer(self.cache, layer):
            return seen
        return replace(seen, key=torch.cat([self.cache.layers[layer].keys, seen.key], dim=2))

    def _start_segment(self, layer: int, cut: Cut, counts: list[int], packed: bool) -> None:
        before, index = self.now, len(self.segments)
        gain = self.conversation.shift[index] - self.conversation.shift[index - 1]
        positions, lag = None, gain
        if before.positions is not None:
            positions, lag = renumber(before.positions, before.cut.valid, cut, gain, packed)
        visual = before.visual if cut.identity else cut.take(before.visual) & cut.valid.to(before.visual.device)
        self.segments.append(
            Segment(
                first_layer=layer,
                cut=before.cut.then(cut),
                in_entry=before.in_entry.then(cut),
                in_slots=before.in_slots.then(cut),
                positions=positions,
                shift=before.shift + lag,
                visual=visual,
                visual_counts=counts,
            )
        )

    def _shorten_extras(self, cut: Cut, before: Segment) -> None:
        """Shorten what the decoder's loop reads from its own arguments between layers (DeepStack rows)."""
        if not self.extras:
            return
        index, total = visual_index(before.visual, cut), sum(before.visual_counts)
        for name, value in self.extras.items():
            new = cut_argument(name, value, cut, index, total, self.seam.parts.family)
            if isinstance(value, Following):
                value.now = new
            elif isinstance(value, list):
                value[:] = new
            elif isinstance(value, dict):
                value.update(new)


class Following(Tensor):
    """A mask or index among the decoder's arguments that is as long as the sequence is now.

    The decoder's loop holds on to one object; whatever is done with it is done with `now`.
    """

    now: Tensor

    @classmethod
    def of(cls, value: Tensor) -> "Following":
        """Follow `value`."""
        following = value.as_subclass(cls)
        following.now = value
        return following

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Every operation goes to `now`."""

        def current(value: Any) -> Any:
            return value.__dict__.get("now", value) if isinstance(value, Following) else value

        args = tuple(current(a) for a in args)
        kwargs = {k: current(v) for k, v in (kwargs or {}).items()}
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def followed(value: Any) -> Any:
    """An argument in a form that can be shortened while the decoder runs: containers copied, masks as `Following`."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else Following.of(value)
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, (list, tuple)) else value


def _is_index(value: Any) -> bool:
    return isinstance(value, Tensor) and not value.is_floating_point()
