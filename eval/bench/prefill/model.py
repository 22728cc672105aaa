"""Building a model of a shape: on the device, with random weights, ready to be timed."""

from typing import Any

import torch
from transformers import AutoModelForImageTextToText
from transformers.utils import logging

from vtc.eval.bench.prefill.shapes import TINY, Shape
from vtc.eval.cli.errors import InputError
from vtc.eval.models import Loaded
from vtc.model.adapter import adapter_class


def build(shape: Shape, device: torch.device | str, dtype: torch.dtype, attn: str | None = None) -> Any:
    """The model of a shape with random weights, made where they are to be.

    Args:
        shape: its sizes.
        device: "meta" too, which takes no memory.
        dtype: of the weights.
        attn: attention implementation; None: transformers' choice.
    """
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(shape.config(), dtype=dtype, attn_implementation=attn)
    spread_out(model)
    return model.eval()


def check(shape: Shape, device: str) -> None:
    """Refuse a device that is not for such a model.

    Raises:
        InputError: names both.
    """
    if torch.device(device).type == "cpu" and shape not in TINY:
        raise InputError(
            f"argument --device: {shape.name} has the size of the real model and is for a GPU, not for {device!r}; "
            "give --device cuda, or --shape tiny"
        )


def load(shape: Shape, dtype: str | None, device: str, attn: str | None) -> Loaded:
    """A model of the shape with random weights; it has no processor.

    Args:
        shape: its sizes.
        dtype: None: bfloat16 on a GPU, float32 on a CPU.
        device: "cpu", "cuda", "cuda:N".
        attn: attention implementation; None: transformers' choice.

    Raises:
        InputError: the device has no room for the model, or the attention implementation is not there.
    """
    chosen = getattr(torch, dtype or ("float32" if torch.device(device).type == "cpu" else "bfloat16"))
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a configuration made here has no token that ends a text
    try:
        model = build(shape, device, chosen, attn)
    except (ValueError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        if attn is None:
            raise
        raise InputError(f"argument --attn: {attn!r} can't be used ({reason}); give sdpa or eager") from error
    except torch.OutOfMemoryError:
        raise InputError(f"argument --device: {device!r} has no room for {shape.name}; give a larger GPU") from None
    finally:
        logging.set_verbosity(verbosity)
    generation = model.generation_config
    generation.eos_token_id, generation.pad_token_id = None, 0  # it answers on and on
    adapter = adapter_class(model)(model)
    return Loaded(model, None, adapter.parts.decoder, adapter.tower)


@torch.no_grad()
def spread_out(model: Any) -> None:
    """Draw all matrices with a standard deviation of 1 / sqrt(fan in): attention then differs from token to token.

    As transformers initialises them, towers look at everything alike, and methods that go by that see nothing.
    """
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(std=(len(parameter) / parameter.numel()) ** 0.5)


def inputs(shape: Shape, loaded: Loaded, batch: int) -> dict[str, Any]:
    """What the model takes for `batch` rows, on its device, pixels in its dtype."""
    model = loaded.model
    made = {name: value.to(model.device) for name, value in shape.inputs(batch).items()}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in made.items()}
