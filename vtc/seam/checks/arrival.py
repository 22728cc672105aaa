"""Checks, within one decoder call, that what was handed to the decoder is what its layers work with.

Told from shapes and from which memory a tensor shows, so that nothing waits for the device; what is on the host is held
against its values, too.
"""

from typing import Any

import torch
from torch import Tensor

from vtc.calls.attention import shown_by
from vtc.calls.decoder import LayerCall
from vtc.model.errors import WAY_OUT
from vtc.seam.composition import Composition


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
        self._alive: Any = None
        self._padded = self._turned = self._apart = False

    @property
    def reached(self) -> str:
        """Where the call is, for an error that ends it."""
        ran = f"layers 0 to {self.ran[-1]}" if self.ran else "no layer"
        return f"in the decoder of {self.family}, compressed by {self.composition.spec}, when {ran} had been called"

    def expect(
        self, positions: Tensor | None, alive: Tensor | None, length: int, padded: bool, apart: bool, fixed: bool
    ) -> None:
        """Say what the decoder was entered with.

        Args:
            positions: position ids [.., B, n]; None where the decoder takes none.
            alive: BoolTensor [B, slots]: False at padding, and at samples that the last query doesn't see, of what was
                fed before and the new tokens; None where masks cover other places.
            length: n, new tokens of each row.
            padded: whether some are known to be padding.
            apart: whether a mask has to keep samples of a row apart.
            fixed: whether masks may cover room of a static cache behind them.
        """
        self._positions, self._alive, self._length, self._padded = positions, alive, length, padded
        self._apart, self._fixed = apart, fixed

    def see_rotary(self, seen: Tensor) -> None:
        """Called with the positions [.., B, n] of each call of a rotary embedding of the decoder.

        Raises:
            RuntimeError: it was turned by other positions.
        """
        wanted = self._positions
        if wanted is None or self.ran:
            return
        if not _same_places(seen, wanted):
            raise RuntimeError(
                f"vtc: the decoder of {self.family} turned its queries and keys by positions of shape "
                f"{tuple(seen.shape)} that are not those of the tokens it was entered with, {tuple(wanted.shape)}; "
                f"{WAY_OUT}"
            )
        self._turned = True

    def runs_layer(self, layer: int) -> bool:
        """Called in front of each decoder layer: whether it is the first, whose call has to be looked at."""
        self.ran.append(layer)
        return len(self.ran) == 1

    def see_layer(self, layer: int, call: LayerCall) -> None:
        """Called with the calls of decoder layers, the first among them.

        Raises:
            RuntimeError: the first one is not called with the tokens that the decoder was entered with.
        """
        if len(self.ran) > 1:
            return
        hidden = call.hidden
        if hidden is None or self._length not in (
            hidden.shape[1],
            hidden.shape[-2],
        ):  # Gemma 3n stacks streams in front
            there = "no hidden state" if hidden is None else f"a hidden state of shape {tuple(hidden.shape)}"
            raise RuntimeError(
                f"vtc: the decoder of {self.family} was entered with {self._length} tokens a row, and its layer "
                f"{layer} got {there}; {WAY_OUT}"
            )
        if layer not in self.composition.recurrent:
            self._check_mask(layer, call.mask)

    def _check_mask(self, layer: int, mask: Any) -> None:
        """Hold a layer's mask against the padding that the decoder was told of.

        Raises:
            RuntimeError: it shows padding, or hides a token.
        """
        masks = [item for item in (mask.values() if isinstance(mask, dict) else [mask]) if isinstance(item, Tensor)]
        alive = self._alive
        host = alive is not None and alive.device.type == "cpu"
        if mask is None and self._apart:
            raise RuntimeError(
                f"vtc: rows of {self.family} hold several samples, and its layer {layer} got no mask that keeps them "
                f"apart; give each sample a row of its own, or {WAY_OUT}"
            )
        if mask is None and (self._padded or (host and not alive.all())):
            raise RuntimeError(
                f"vtc: rows of {self.family} have padding among their {self._length} tokens, and its layer {layer} got "
                f"no mask that hides it; {WAY_OUT}"
            )
        if host and not all(_fits(item, alive, layer in self.composition.windowed, self._fixed) for item in masks):
            raise RuntimeError(
                f"vtc: a mask of shape {tuple(masks[0].shape)} in layer {layer} of {self.family} does not hide the "
                f"padding, and that alone, among the {alive.shape[1]} tokens that it covers; {WAY_OUT}"
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
                f"{ran}, so what this call computed is not known; {WAY_OUT}"
            )
        if self._positions is not None and not self._turned and self.composition.rotary_modules:
            raise RuntimeError(
                f"vtc: no rotary embedding of {self.family}'s decoder was called, so which positions its tokens had is "
                f"not known; {WAY_OUT}"
            )


def _fits(mask: Tensor, alive: Tensor, windowed: bool, fixed: bool) -> bool:
    """Whether a mask on the host shows the last query all tokens but padding.

    Args:
        mask: [B, S], or [B or 1, h, n, S] (bool: True may attend; numbers: added).
        alive: BoolTensor [B, slots].
        windowed: whether it may hide what is far behind.
        fixed: whether it may cover room behind, which it hides then.
    """
    last = (mask if mask.dim() == 2 else mask[:, 0, -1]).expand(len(alive), -1)
    shown = shown_by(last)
    if fixed and shown.shape[1] > alive.shape[1]:
        if shown[:, alive.shape[1] :].any():
            return False
        shown = shown[:, : alive.shape[1]]
    width = min(shown.shape[1], alive.shape[1])
    shown, alive = shown[:, -width:], alive[:, -width:]
    shown, alive = shown[alive[:, -1]], alive[alive[:, -1]]  # else the last query is padding itself
    hidden = (shown.cumsum(dim=1) == 0) if windowed else torch.zeros_like(shown)
    return bool(((shown == alive) | hidden).all())


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
