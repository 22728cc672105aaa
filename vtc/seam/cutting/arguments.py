"""The arguments of a decoder layer, at the length of its segment."""

from typing import Any

from torch import Tensor

from vtc.attention.scores import Attention
from vtc.calls.cache import keys_in_layer, room_in_layer
from vtc.calls.decoder import POSITIONS, ROTARY, LayerCall
from vtc.calls.rotary import RotaryCall
from vtc.ops.cut import map_tensors, token_dim
from vtc.ops.following import Following
from vtc.seam.composition import Composition
from vtc.seam.conversation import Conversation
from vtc.seam.cutting.masks import layer_mask, opened_mask
from vtc.seam.segments import Segments, check_seen_through, cut_argument


class LayerArguments:
    """Cuts what the layers of one decoder call are called with.

    Args:
        composition: what the patch knows.
        conversation: what earlier calls left.
        cache: the cache of the call, or None.
        segments: of the call.
        rotary: its calls of rotary embeddings, as they come.
        has_images: whether the call brings any.

    Attributes:
        turned_by_name: whether every layer was told positions, and the tables made of them, by their usual names.
    """

    def __init__(
        self,
        composition: Composition,
        conversation: Conversation,
        cache: Any,
        segments: Segments,
        rotary: list[RotaryCall],
        has_images: bool,
    ):
        self.composition, self.conversation, self.cache = composition, conversation, cache
        self.segments, self.rotary, self.has_images = segments, rotary, has_images
        self.family = composition.parts.family
        self.turned_by_name = True
        self._held: dict[int, int | None] = {}

    def of(self, layer: int, call: LayerCall) -> LayerCall:
        """A layer's call with every argument but hidden state and cache cut to the segment that it is in."""
        recurrent = self.cache is None and layer in self.composition.recurrent
        source = self.composition.sources_of_keys.get(layer, layer)
        if source not in self._held:  # asked before its layer adds to them
            fed = self.conversation.fed(self.segments.index)
            self._held[source] = None if recurrent else keys_in_layer(self.cache, source, fed)
        held = self._held[source]
        room = room_in_layer(self.cache, source, held, len(self.segments.now.cut))
        kept = LayerCall.hidden, LayerCall.cache, LayerCall.mask, LayerCall.positions, LayerCall.shared
        new = call.changed(self._argument, *kept)
        assert isinstance(new, LayerCall)
        if call.has(LayerCall.positions):
            own, given = self.segments.now.positions, call.positions
            packed = len(self.segments) > 1 and own is not None and isinstance(given, Tensor)
            new.positions = own if packed else self._argument("positions", given)
        self.turned_by_name = self.turned_by_name and {POSITIONS, ROTARY} <= call.named.keys()
        mask = self.masks(call.mask, held, room)
        if layer in self.composition.open_layers and self.has_images:
            seen = self.conversation.held_valid[self.segments.index]
            mask = opened_mask(mask, self.segments.now, seen, held or 0, room)
        if mask is not None or call.has(LayerCall.mask):
            new.mask = mask
        return new

    def without_room(self, layer: int, attention: Attention) -> Attention:
        """A layer's attention with the keys that hold something, so that the newest ones come last."""
        held = self._held.get(self.composition.sources_of_keys.get(layer, layer))
        keys = attention.key.shape[2] if held is None else held + len(self.segments.now.cut)
        return attention.of_keys(keys)

    def masks(self, mask: Any, held: int | None, room: int = 0) -> Any:
        """A mask, or one for each kind of layer, made once for all layers that hold as many keys."""
        if isinstance(mask, dict):
            return {kind: self.masks(item, held, room) for kind, item in mask.items()}
        done, key = self.segments.now.done, (id(mask), held, room)
        if key not in done:
            index, flash = self.segments.index, self.composition.flash
            done[key] = mask, layer_mask(mask, index, self.segments.now, self.conversation, held, flash, room)
        return done[key][1]

    def _argument(self, name: str, value: Any) -> Any:
        if len(self.segments) == 1:
            return map_tensors(value, lambda tensor: tensor.now if isinstance(tensor, Following) else tensor)
        check_seen_through(name, value, self.family)
        if isinstance(value, tuple):
            self._cut_together(value)
        return map_tensors(value, lambda tensor: self._tensor(name, tensor))

    def _tensor(self, name: str, tensor: Tensor) -> Tensor:
        now = self.segments.now
        if isinstance(tensor, Following):
            if now.within is None:
                return tensor.now
            return cut_argument(name, tensor.now, now.within, None, 0, self.family)
        key = (id(tensor), None)
        if key not in now.done and not self._rotary_again(tensor):
            new = tensor
            if not now.in_entry.identity:
                new = cut_argument(name, tensor, now.in_entry, None, 0, self.family)
            now.done[key] = tensor, new
        return now.done[key][1]

    def _cut_together(self, tensors: tuple) -> None:
        """Cut what a tuple (of rotary tables) has for each token in one go."""
        entry, done = self.segments.now.in_entry, self.segments.now.done
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
        positions = self.segments.now.positions
        if positions is None or not self.composition.packs_inside:
            return False
        for call in self.rotary:
            if call.made(tensor):
                made = zip(call.tables, call.again(positions))
                self.segments.now.done.update({(id(old), None): (old, new) for old, new in made})
                return True
        return False
