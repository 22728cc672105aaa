"""Says what a head gets that reads every place of the sequence, as those of retrieval models do."""

import warnings

from vtc.calls import generate
from vtc.model.wrappers import is_model
from vtc.seam.composition import Composition


def warn_of_head(composition: Composition) -> None:
    """Warn where a model has a head of its own over the decoder, and it is not one that predicts tokens.

    Args:
        composition: what the patch knows.

    Warns:
        UserWarning: it has one.
    """
    model, composite = composition.adapter.model, composition.parts.composite
    if model is composite or not is_model(model) or hasattr(type(model), generate.PREFILL):
        return
    inside = set(map(id, composite.parameters()))
    if all(id(parameter) in inside for parameter in model.parameters()):
        return
    warnings.warn(
        f"vtc: {type(model).__name__} has a head of its own, which gets zeros at the places of visual tokens that "
        f"{composition.spec} drops: what it gives there, such as a vector, stands for nothing (it is the same for all "
        "of them, or no number where it is normalised). Use what it gives at text and at kept tokens alone: "
        "vtc.trace(model).images[i].kept(layer)",
        UserWarning,
        stacklevel=3,
    )
