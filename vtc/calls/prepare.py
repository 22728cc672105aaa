"""How the original LLaVA package prepares a prompt: its embeddings are made before `generate` even starts."""

import inspect
from typing import Any

from torch import Tensor, nn

from vtc.calls.roles import Call, Role

#: The method of a model of the package that puts visual features into the sequence.
PREPARE = "prepare_inputs_labels_for_multimodal"
_EMBEDS, _LABELS = 4, 5  # places in what it returns


class PrepareCall(Call):
    """The arguments of one call of `PREPARE`, by name.

    Args:
        composite: owns the method.
        args, kwargs: of the call.
    """

    ids = Role("input_ids")
    images = Role("images")

    def __init__(self, composite: nn.Module, args: tuple, kwargs: dict[str, Any]):
        signature = inspect.signature(getattr(type(composite), PREPARE))
        super().__init__((), dict(signature.bind(composite, *args, **kwargs).arguments))
        self._owner = next(iter(self.named))  # the method's own word for self
        self._composite = composite

    def replayed(self, stand_in: Any, images: Any) -> Tensor:
        """The embeddings [B, L, ...] that the method makes for another model, of other images, on the host."""
        call = self.named | {self._owner: stand_in, type(self).images.names[0]: images}
        call |= {"labels": None, "past_key_values": None, "position_ids": None}
        call = {name: value.cpu() if isinstance(value, Tensor) else value for name, value in call.items()}
        return embeddings(getattr(type(self._composite), PREPARE)(**call))


def embeddings(output: tuple) -> Any:
    """The embeddings among what `PREPARE` returned; None where there was nothing to prepare."""
    return output[_EMBEDS]


def labels(output: tuple) -> Any:
    """The labels among what `PREPARE` returned, one for each embedding; None where there are none."""
    return output[_LABELS] if len(output) > _LABELS else None
