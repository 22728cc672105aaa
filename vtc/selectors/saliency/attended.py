"""What several methods read of the vision tower: its features and what it attends to, in the same block."""

from torch import Tensor

from vtc.method.visual_tokens import Needs, VisualTokens
from vtc.model.parts import Parts


def needs_attended(parts: Parts, wanted_by: str) -> Needs:
    """What `attended` reads: of the block that the projector reads, or of the last one where there is no CLS."""
    if parts.has_cls:
        block = parts.block(parts.feature_layer, wanted_by)
        return Needs(cls=(block,), hidden=(block,))
    return Needs(received=(parts.block(-1, wanted_by),))


def attended(visual: VisualTokens) -> tuple[Tensor, Tensor]:
    """Features [G, N, D] and saliency [G, N]: the tower's and attention from CLS; else projected ones and received."""
    if visual.cls:
        (saliency,), (features,) = visual.cls.values(), visual.hidden.values()
        return features, saliency
    (saliency,) = visual.received.values()
    return visual.features, saliency
