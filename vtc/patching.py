"""Patch a model, give it back, read what happened."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from vtc import spec as specs
from vtc.model.marks import seam_in, seam_on
from vtc.model.wrappers import adapter_in
from vtc.seam.checks.heads import warn_of_head
from vtc.seam.composition import Composition
from vtc.seam.hooks import Seam
from vtc.tested import warn_once
from vtc.tracing import Trace


def patch(model: nn.Module, *methods: specs.Spec, **fields: Any) -> nn.Module:
    """Compress the visual tokens of `model` from now on.

    Args:
        model: a vision-language model of transformers, already loaded; or what holds one: a PEFT model, a compiled one,
            DistributedDataParallel, a module of your own. Each of them, and the model inside, is patched then.
        *methods: a spec such as "divprune", "divprune:keep=0.25+fastv:layer=2", or methods such as `DivPrune(keep=64)`.
        **fields: fields of the method where one is named, e.g. `keep=0.25`.

    Returns:
        The same model.

    Raises:
        ValueError: unknown method or field, a value out of range, methods that do not compose, a model that lacks what
            a method needs, or a model that is patched already. The model is unchanged then.
        TypeError: an argument of the wrong type.

    Warns:
        UserWarning: in the first call of a process, where transformers is newer than what was tested; where the model
            has a head that reads every place of the sequence, dropped ones too.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model={model!r} is a {type(model).__name__}; give a loaded vision-language model")
    warn_once()
    if (seam := seam_in(model)) is not None:
        spec = seam.composition.spec
        raise ValueError(f"this {type(model).__name__} is patched already ({spec}); call vtc.unpatch first")
    if not methods:
        raise ValueError("no method given; name one, e.g. vtc.patch(model, 'divprune', keep=0.25)")
    if len(methods) > 1 and fields:
        raise ValueError(f"{', '.join(fields)}=… beside several methods is ambiguous; put each field into its method")
    parsed = specs.parse(methods[0], **fields) if len(methods) == 1 else specs.parse(methods)
    composition = Composition.of(adapter_in(model), parsed, specs.to_string(parsed))
    if (inside := seam_on(composition.parts.decoder)) is not None:
        raise ValueError(
            f"a part of this model is patched already ({inside.composition.spec}); call vtc.unpatch on it first"
        )
    warn_of_head(composition)
    Seam(composition).install()
    return model


def unpatch(model: nn.Module) -> nn.Module:
    """Give the model back exactly as it was before `patch`.

    Args:
        model: what was given to `patch`, what holds it, or the model in it.

    Raises:
        ValueError: the model is not patched.
    """
    seam = seam_in(model)
    if seam is None:
        raise ValueError(
            f"this {type(model).__name__} is not patched; call vtc.patch(model, 'divprune', keep=0.25) first"
        )
    seam.remove()
    return model


@contextmanager
def patched(model: nn.Module, *methods: specs.Spec, **fields: Any) -> Iterator[nn.Module]:
    """`patch` for the length of a `with` block; the model is given back also after an exception."""
    seam = seam_in(patch(model, *methods, **fields))
    try:
        yield model
    finally:
        for there in {seam, seam_in(model)} - {None}:  # others, where the block patched it anew
            there.remove()


def trace(model: nn.Module) -> Trace:
    """What the last prefill of a patched model did.

    Raises:
        ValueError: the model is not patched, or has not run yet.
    """
    seam: Seam | None = seam_in(model)
    if seam is None:
        raise ValueError(f"this {type(model).__name__} is not patched, so there is no trace; call vtc.patch first")
    if seam.trace is None:
        raise ValueError("the patched model has not run yet; call it or model.generate once, then ask for the trace")
    return seam.trace


@contextmanager
def prompt_length(model: nn.Module, length: int | Sequence[int] | Tensor) -> Iterator[None]:
    """For the length of a `with` block, tell a patched model where the prompts end that it is given.

    What stands behind a prompt is seen by no method when it decides, as if the answer were not there yet: what is asked
    for is its likelihood. `generate` needs no telling, nor does a call with labels (those of the prompt -100). Where
    nobody tells, the last token of each row ends its prompt. Holds for calls of this thread that bring images.

    Args:
        model: a patched model.
        length: tokens of the prompt as `input_ids` has them, padding and visual ones among them, such as
            `prompt_ids.shape[1]`; one for all rows, or one for each. With a cache, what it holds counts.

    Raises:
        ValueError: the model is not patched, or `length` is no length. In the call: other rows than it has, or a prompt
            that ends in front of a visual token.
        TypeError: `length` is no whole number.
    """
    seam = seam_in(model)
    if seam is None:
        raise ValueError(f"this {type(model).__name__} is not patched, so nobody asks; call vtc.patch first")
    with seam.ending.told(length):
        yield
