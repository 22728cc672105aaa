"""What a compressed decoder gives, at the length that the user gave."""

from torch import Tensor

from vtc.calls.outputs import Output
from vtc.seam.layers import Layers
from vtc.seam.leaving.records import restore_records


def restore_lengths(output: Output, layers: Layers) -> None:
    """Put states back to the places of their tokens; dropped ones get zeros (see `Cut.scatter`).

    Args:
        output: the decoder's, changed in place.
        layers: of its call.

    Raises:
        RuntimeError: it has no states, or of another number of tokens than the decoder was entered with.
    """
    if layers.recall is not None:  # new tokens come behind those that were brought back
        new = layers.segments.first.in_entry.length
        output.last = output.last[:, -new:]
        if output.states is not None:
            output.states = tuple(None if state is None else state[:, -new:] for state in output.states)
    restore_records(output, layers)
    if all(segment.cut.identity for segment in layers.segments):
        return
    last, cut = output.last, layers.segments.base.cut
    if last is None or last.shape[1] != len(cut):
        there = "nothing" if last is None else f"a tensor of shape {tuple(last.shape)}"
        raise RuntimeError(
            f"vtc: {layers.composition.parts.family}'s decoder was entered with {len(cut)} tokens a row and gave "
            f"{there}, so its places are not known; run `vtc doctor`, or unpatch the model for this call"
        )
    output.last = cut.scatter(last, layers.layout.samples)
    if output.states is not None:
        output.states = _restored(output.states, layers)


def _restored(states: tuple[Tensor | None, ...], layers: Layers) -> tuple[Tensor | None, ...]:
    """Hidden states, one in front of each layer and the last, at the length that the user gave."""
    restored: list[Tensor | None] = []
    for index, state in enumerate(states):
        segment = layers.segments.of_layer(layers.composition.adapter.layer_of_state(index, len(states)))
        cut = (segment.base or segment).cut
        if state is not None and state.shape[1] != len(cut):
            raise RuntimeError(
                f"vtc: {layers.composition.parts.family}'s hidden state {index} has shape {tuple(state.shape)} where "
                f"{len(cut)} tokens a row ran, so its places are not known; run `vtc doctor`, or unpatch the model for "
                "this call"
            )
        restored.append(None if state is None else cut.scatter(state, layers.layout.samples))
    return tuple(restored)
