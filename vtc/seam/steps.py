"""What a conversation with a static cache keeps for its decode steps."""

from dataclasses import dataclass, replace

from torch import Tensor, nn


@dataclass(frozen=True)
class Steps:
    """What decode steps of a static cache need, as tensors that stay where they are.

    Attributes:
        visible: for each segment, BoolTensor [B, room]: False at padding; None: there is none.
        shift: for each segment, LongTensor [B, 1]: by how much packed positions lag behind those of the call; None:
            they don't.
        keeper: for each segment, a layer that keeps keys.
        of_layer: for each layer, its segment.
        rotary: makes tables for positions of a segment's own; None: all have those of the call.
    """

    visible: tuple[Tensor | None, ...]
    shift: tuple[Tensor | None, ...]
    keeper: tuple[int, ...]
    of_layer: tuple[int, ...]
    rotary: nn.Module | None

    def shown(self, segment: int, begin: int, count: int) -> Tensor | None:
        """Which of `count` tokens from `begin` on are no padding."""
        visible = self.visible[segment]
        return None if visible is None else visible[:, begin : begin + count]

    def of_rows(self, index: Tensor) -> "Steps":
        """The same for other rows of the batch."""

        def chosen(tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
            return tuple(None if tensor is None else tensor[index.to(tensor.device)] for tensor in tensors)

        return replace(self, visible=chosen(self.visible), shift=chosen(self.shift))
