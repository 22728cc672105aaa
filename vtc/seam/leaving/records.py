"""What a decoder records of its layers (attentions, router logits), at the length that the user gave.

Layers behind a removal see fewer tokens. Their records are spread over the user's tokens, with zeros where one was not
there: attentions [B, H, L, S], of which L are the tokens of the call and S all that were fed until its end (of a static
cache, all that it has room for), and what is per token, [B · L, E] or [B, L, E].
"""

from torch import Tensor

from vtc.calls.balancing import ROUTER_LOGITS, Routed
from vtc.calls.cache import has_fixed_length
from vtc.calls.outputs import Output, layers_recorded
from vtc.seam.layers import Layers
from vtc.seam.segments import Segment


def restore_records(output: Output, layers: Layers) -> None:
    """Spread every record of the output; it is changed in place.

    Raises:
        RuntimeError: one of another form.
    """
    composition = layers.composition
    if layers.conversation.whole and all(segment.cut.identity for segment in layers.segments):
        return
    for key, records in output.records.items():
        of = layers_recorded(composition.parts.decoder, composition.parts.layers, str(key), len(records))
        spread = [_Spread(layers, layer) for layer in of]
        found = tuple(s.of(str(key), record) for s, record in zip(spread, records))
        output.put(key, Routed(found, _ran(records, spread)) if key == ROUTER_LOGITS else found)


class _Spread:
    """Puts what one layer gave to the places of its tokens."""

    def __init__(self, layers: Layers, layer: int):
        self.layers = layers
        self.segment: Segment = layers.segments.of_layer(layer)
        self.index = layers.segments.index_of(self.segment)
        self.fixed = has_fixed_length(layers.cache)
        self.whole = self.segment.cut.identity and layers.recall is None and layers.conversation.logical == 0

    def of(self, name: str, record: Tensor | None) -> Tensor | None:
        """A record, spread."""
        if record is None or self.whole:
            return record
        batch, new = self.segment.cut.index.shape
        extra = 0 if self.layers.recall is None else len(self.layers.recall.extra_at(self.index))
        rows = new + extra
        if record.dim() == 4 and record.shape[0] == batch and record.shape[2] == rows:
            return self._attention(record[:, :, extra:])
        flat = record.dim() == 2 and record.shape[0] == batch * rows
        if flat or (record.dim() == 3 and record.shape[:2] == (batch, rows)):
            tokens = record.view(batch, rows, -1)[:, extra:]
            spread = self._rows(tokens[:, None])[:, 0]
            return spread.flatten(0, 1) if flat else spread
        raise RuntimeError(
            f"vtc: {self.layers.composition.parts.family}'s decoder gives {name} of shape {tuple(record.shape)} for "
            f"{batch} rows of {rows} tokens, and which dimension is theirs is not known; leave them out, or unpatch "
            "the model for this call"
        )

    def _attention(self, weights: Tensor) -> Tensor:
        """Attention probabilities [B, H, n, S'] as [B, H, L, S]."""
        place, valid = self.layers.places_of_keys(self.index, weights.shape[-1])
        place, valid = place.to(weights.device), valid.to(weights.device)
        width = self.layers.conversation.logical + self.segment.cut.length
        if self.fixed:
            width = max(width, weights.shape[-1])
        known = weights[..., : place.shape[1]] * valid[:, None, None]
        spread = known.new_zeros(*known.shape[:3], width)
        return self._rows(spread.scatter_add(3, place[:, None, None].expand_as(known), known))

    def _rows(self, values: Tensor) -> Tensor:
        """Values [B, H, n, E] of the tokens of this call as [B, H, L, E]."""
        cut = self.segment.cut.to(values.device)
        values = values * cut.valid[:, None, :, None]
        spread = values.new_zeros(*values.shape[:2], cut.length, values.shape[3])
        return spread.scatter_add(2, cut.index[:, None, :, None].expand_as(values), values)


def _ran(records: tuple[Tensor | None, ...], spread: list[_Spread]) -> tuple[Tensor, ...]:
    """Records of the tokens that ran, [tokens, E], padding left out. Waits for the device where there is some."""
    ran = []
    for record, cut in zip(records, (each.segment.cut for each in spread)):
        assert record is not None
        flat = record.reshape(cut.valid.numel(), -1)
        ran.append(flat[cut.valid.flatten().to(flat.device).nonzero()[:, 0]] if cut.padded else flat)
    return tuple(ran)
