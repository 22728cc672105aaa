"""What is examined: a model, and two prompts with a picture each."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vtc.calls.attention import implementation, set_implementation


@dataclass(frozen=True)
class Subject:
    """A model and what it is asked.

    Attributes:
        name: how the table calls it.
        model: in eval mode.
        rows: the inputs of two prompts of different lengths, each a batch of one without padding.
        batch: those of both, padded on the left.
    """

    name: str
    model: Any
    rows: tuple[dict[str, Any], dict[str, Any]]
    batch: dict[str, Any]

    def offered(self) -> list[str]:
        """The attention implementations that the model may be run with here."""
        from transformers.utils import is_flash_attn_2_available

        half = self.model.dtype in (torch.float16, torch.bfloat16)
        flash = self.model.device.type == "cuda" and half and is_flash_attn_2_available()
        known = ["sdpa", "eager", *(["flash_attention_2"] if flash else [])]
        own = implementation(self.model.config)
        return known if own is None or own in known else [own, *known]

    @contextmanager
    def under(self, attention: str) -> Iterator[None]:
        """The model under an attention implementation, until the block ends.

        Raises:
            ValueError, ImportError: the model or the machine does not offer it.
        """
        configs = {id(c): c for m in self.model.modules() if (c := getattr(m, "config", None)) is not None}.values()
        before = [(config, implementation(config)) for config in configs]
        try:
            self.model.set_attn_implementation(attention)
            if (chosen := implementation(self.model.config)) != attention:
                raise ValueError(f"the model stays with {chosen}")
            yield
        finally:
            for config, name in before:
                if name is not None:
                    set_implementation(config, name)


def longer(inputs: dict[str, Any], tokens: Tensor) -> dict[str, Any]:
    """The inputs of a prompt with text behind it.

    What is given for each token of the prompt goes on as it was for the last one, which is text.

    Args:
        inputs: of a batch of one.
        tokens: LongTensor [1, n].
    """
    shape = inputs["input_ids"].shape
    new = {
        name: torch.cat([value, value[:, -1:].expand(-1, tokens.shape[1])], dim=1)
        if isinstance(value, Tensor) and value.shape == shape
        else value
        for name, value in inputs.items()
    }
    return {**new, "input_ids": torch.cat([inputs["input_ids"], tokens], dim=1)}


def special_ids(config: Any) -> list[int]:
    """The ids that a config gives a meaning, placeholders among them: none of them may be generated."""
    named = vars(config).items()
    ids = {value for name, value in named if name.endswith(("token_id", "token_index")) and isinstance(value, int)}
    return sorted(value for value in ids if value >= 0)


def traces_left(model: nn.Module) -> list[tuple]:
    """Everything that a patch could leave behind in a model, to be compared."""
    return [
        (
            name,
            type(module),
            sorted(vars(module)),
            [list(hooks) for kind, hooks in vars(module).items() if kind.endswith("_hooks") and hooks is not None],
            implementation(getattr(module, "config", None)),
        )
        for name, module in model.named_modules()
    ]
