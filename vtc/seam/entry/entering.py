"""Position ids and mask with which a compressed decoder is entered."""

import torch
from torch import Tensor

from vtc.calls.composite import turns_several_axes
from vtc.calls.packing import axes_turned, block_mask
from vtc.model.layout import Layout
from vtc.ops.cut import Cut
from vtc.ops.host import on
from vtc.seam.composition import Composition
from vtc.seam.conversation import Conversation
from vtc.seam.segments import renumber


class Entry:
    """How the tokens that survive the selector enter the decoder.

    Args:
        composition: what the patch knows.
        layout: the images of the call.
        conversation: what earlier calls left.
        valid: BoolTensor [B, L]: False at padding, before the cut.
        cut: what survives.
        renumbered: whether survivors are numbered anew.
    """

    def __init__(
        self,
        composition: Composition,
        layout: Layout,
        conversation: Conversation,
        valid: Tensor,
        cut: Cut,
        renumbered: bool,
    ):
        self.composition, self.layout, self.conversation = composition, layout, conversation
        self.valid, self.cut, self.renumbered = valid, cut, renumbered
        self._samples = None if layout.samples is None else on(valid.device, layout.samples)

    def positions(self, positions: Tensor | None, told: bool) -> tuple[Tensor, Tensor]:
        """Position ids of segment 0, on as many axes as given, and their lag behind the logical ones.

        Packed samples of a model that turns its tokens on several axes get one more, which tells them and turns
        nothing: some of these models don't look for samples in positions of one axis.

        Args:
            positions: of the call; None: the decoder counts its tokens.
            told: whether the call has that argument, be it None.
        """
        cut, shift = self.cut, self.conversation.shift[0]
        batch, length = self.valid.shape
        if positions is None:
            check_axes(self.composition, self.layout, told)
            positions = torch.arange(length, device=self.valid.device)[None] + self.conversation.logical
        if positions.shape[-1] != length:
            raise ValueError(
                f"position_ids of shape {tuple(positions.shape)} for {length} tokens; give one for each token of this "
                "call (in a later turn of a model with several position axes, model.generate makes them)"
            )
        if positions.dim() == 2:
            axis = positions.expand(batch, -1)
            kept, lag = renumber(axis, self.valid, cut, shift, self.renumbered, self._samples)
        else:
            axis = positions[0].expand(batch, -1)
            kept, lag = (positions if cut.identity else cut.take(positions, dim=2)) - shift, shift
        axes = axes_turned(self.composition.decoder_config)
        several = turns_several_axes(self.composition.parts.composite)
        if self._samples is None or not several or positions.shape[:-2] == (axes,):
            return kept, lag
        apart, _ = renumber(axis, self.valid, cut, shift, True, self._samples)
        return torch.cat([apart[None], kept.expand(axes, -1, -1) if kept.dim() == 2 else kept[1:]]), lag

    def mask(self, mask2d: Tensor | None, positions: Tensor, gapped: bool, dtype: torch.dtype) -> Tensor | None:
        """The mask over all slots; None where there is no padding and nobody could misread gapped positions.

        Args:
            mask2d: the one that was given.
            positions: of the survivors.
            gapped: whether there is no cache, so that transformers would see samples in gaps of positions.
            dtype: of a mask of queries by keys.
        """
        cut, old = self.cut, self.conversation.held_valid[0]
        if self._samples is not None:  # told by positions, or by their lengths under flash
            if self.renumbered or positions.dim() == 3 or self.composition.flash:
                return None
            return block_mask(cut.take(self._samples), cut.valid, dtype)
        gapped = gapped and not (self.renumbered and positions.dim() == 2) and not cut.identity
        if mask2d is None and old is None and not cut.padded and not gapped:
            return None
        if old is None:
            old = cut.valid.new_ones(len(cut.valid), self.conversation.slots)
        return torch.cat([old, cut.valid], dim=1).to(torch.long if mask2d is None else mask2d.dtype)

    @property
    def apart(self) -> bool:
        """Whether a mask has to keep samples of a row apart."""
        return self._samples is not None and not self.composition.flash

    def seen(self, alive: Tensor) -> Tensor | None:
        """BoolTensor [B, slots]: what the last query sees of the tokens `alive`; None where no mask tells."""
        if self.conversation.outside or (self._samples is not None and self.composition.flash):
            return None  # masks made outside are cut in the layers
        if self._samples is None:
            return alive
        owner = self.cut.take(self._samples)
        return alive & (owner == owner[:, -1:])


def check_axes(composition: Composition, layout: Layout, told: bool) -> None:
    """Refuse a call with pictures that is told no positions, where the model turns its tokens on several axes.

    Without the ids of a prompt, as with `inputs_embeds` alone, such a model makes none, and tells its decoder so.

    Raises:
        RuntimeError: it is one.
    """
    if layout.images and not told and turns_several_axes(composition.parts.composite):
        raise RuntimeError(
            f"vtc: {composition.parts.family} turns its tokens by positions on several axes, and none came with a call "
            "that has pictures; run `vtc doctor`, or unpatch the model for this call"
        )
