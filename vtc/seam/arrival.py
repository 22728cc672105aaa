"""Checks, within one decoder call, that what was handed to the decoder is what its layers work with.

Everything here is told from shapes and from which memory a tensor shows, so that nothing waits for the device.
"""

import torch
from torch import Tensor

from vtc.calls.decoder import LayerCall
from vtc.calls.rotary import RotaryCall
from vtc.seam.composition import Composition

_WAY_OUT = "run `vtc doctor` to see what this release of transformers does otherwise, or call vtc.unpatch"


class Arrival:
    """What has to arrive in the layers of one call, and what did.

    Args:
        composition: what the patch knows.
    """

    def __init__(self, composition: Composition):
        self.composition = composition
        self.family = composition.parts.family
        self.ran: list[int] = []
        self._length: int | None = None
        self._positions: Tensor | None = None
        self._padded = self._turned = False

    def expect(self, length: int, positions: Tensor | None, padded: bool) -> None:
        """Say what the decoder was entered with.

        Args:
            length: tokens of each row.
            positions: their position ids [.., B, n]; None where the decoder takes none.
            padded: whether some are known to be padding.
        """
        self._length, self._positions, self._padded = length, positions, padded

    def see_rotary(self, call: RotaryCall) -> None:
        """Called with each call of a rotary embedding of the decoder.

        Raises:
            RuntimeError: it was turned by other positions.
        """
        seen, wanted = call.positions, self._positions
        if seen is None or wanted is None or self.ran:
            return
        if not _same_places(seen, wanted):
            raise RuntimeError(
                f"vtc: the decoder of {self.family} turned its queries and keys by positions of shape "
                f"{tuple(seen.shape)} that are not those of the tokens it was entered with, {tuple(wanted.shape)}; "
                f"{_WAY_OUT}"
            )
        self._turned = True

    def see_layer(self, layer: int, call: LayerCall) -> None:
        """Called with each call of a decoder layer.

        Raises:
            RuntimeError: the first one is not called with the tokens that the decoder was entered with.
        """
        self.ran.append(layer)
        if len(self.ran) > 1:
            return
        hidden = call.hidden
        if hidden is None or hidden.shape[1] != self._length:
            there = "no hidden state" if hidden is None else f"a hidden state of shape {tuple(hidden.shape)}"
            raise RuntimeError(
                f"vtc: the decoder of {self.family} was entered with {self._length} tokens a row, and its layer "
                f"{layer} got {there}; {_WAY_OUT}"
            )
        if self._padded and call.mask is None:
            raise RuntimeError(
                f"vtc: rows of {self.family} have padding among their {self._length} tokens, and its layer {layer} got "
                f"no mask that hides it; {_WAY_OUT}"
            )

    def check(self, needed: bool) -> None:
        """Hold what ran against what had to run, when the decoder is left.

        Args:
            needed: whether a hook of the layers had anything to do.

        Raises:
            RuntimeError: a layer ran twice, or out of order, or was not seen; no rotary embedding was.
        """
        depth = len(self.composition.parts.layers)
        wanted = getattr(self.composition.decoder_config, "num_hidden_layers", depth)  # fewer where drafts leave early
        if (self.ran or needed) and self.ran != list(range(min(depth, wanted))):
            ran = ", ".join(map(str, self.ran)) or "none"
            raise RuntimeError(
                f"vtc: the layers of {self.family} were to run once each, 0 to {min(depth, wanted) - 1}; seen were "
                f"{ran}, so what this call computed is not known; {_WAY_OUT}"
            )
        if self._positions is not None and not self._turned and self.composition.rotary_modules:
            raise RuntimeError(
                f"vtc: no rotary embedding of {self.family}'s decoder was called, so which positions its tokens had is "
                f"not known; {_WAY_OUT}"
            )


def _same_places(seen: Tensor, wanted: Tensor) -> bool:
    """Whether positions [.., B, n] are those that were handed over, or some axes of them."""
    if seen.shape[-1] != wanted.shape[-1]:
        return False
    if seen.untyped_storage().data_ptr() == wanted.untyped_storage().data_ptr():
        return True
    if seen.device.type != "cpu" or wanted.device.type != "cpu":
        return True  # to compare would mean to wait; a shape that fits has to do
    axes = wanted if wanted.dim() == 3 else wanted[None]
    given = seen if seen.dim() == 3 else seen[None]
    return all(any(torch.equal(one.expand_as(axis), axis) for axis in axes) for one in given)
