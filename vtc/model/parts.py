"""The places of a model that the seams hold on to, as an adapter found them."""

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Parts:
    """Modules of one vision-language model.

    Attributes:
        family: the model's `config.model_type`.
        composite: the module that owns `get_placeholder_mask` and calls the decoder.
        decoder: the module that owns `.layers` and takes `inputs_embeds`.
        layers: its decoder layers.
        blocks: the blocks of the vision tower; empty where the adapter found none.
        has_cls: whether row 0 of the tower's sequence is a CLS token.
        mapped: whether it is known which patches of the tower make up which visual token.
        feature_layer: index (negative from the end) of the tower block whose output the projector reads.
        stacked: whether the decoder's layers pass on several streams in one tensor, its first axis theirs.
        twins: the blocks of further towers of the same shape (Video-LLaVA has one for videos).
    """

    family: str
    composite: nn.Module
    decoder: nn.Module
    layers: tuple[nn.Module, ...]
    blocks: tuple[nn.Module, ...]
    has_cls: bool
    feature_layer: int
    mapped: bool = True
    stacked: bool = False
    twins: tuple[tuple[nn.Module, ...], ...] = ()

    def blocks_at(self, index: int) -> list[nn.Module]:
        """Block `index` of the vision tower, and of its twins."""
        return [blocks[index] for blocks in (self.blocks, *self.twins)]

    def block(self, index: int, wanted_by: str) -> int:
        """`index` of a tower block, negative from the end, as an index from 0.

        Raises:
            ValueError: the tower has no such block, or its patches can't be followed to visual tokens.
        """
        count = len(self.blocks)
        if not self.mapped:
            raise ValueError(
                f"{wanted_by} reads the attention of the vision tower, and how its patches become tokens is not known "
                f"for {self.family}; choose a method that does not read the tower, such as 'divprune'"
            )
        if not count:
            raise ValueError(
                f"{wanted_by} reads the attention of the vision tower, and none was found in {self.family}"
            )
        if not -count <= index < count:
            raise ValueError(f"{wanted_by}: tower layer {index} is out of range; {self.family} has {count} blocks")
        return index % count

    def layer(self, index: int, wanted_by: str) -> int:
        """`index` of a decoder layer, checked.

        Raises:
            ValueError: the decoder has no such layer, or nothing can be cut between its layers.
        """
        if self.stacked:
            raise ValueError(
                f"{wanted_by} removes tokens between decoder layers, and those of {self.family} pass on several "
                "streams at once, which it can't cut; choose a selector such as 'divprune'"
            )
        if not 0 <= index < len(self.layers):
            raise ValueError(
                f"{wanted_by}: decoder layer {index} is out of range; "
                f"{self.family} has layers 0 to {len(self.layers) - 1}"
            )
        return index
