"""Runs of a model on a few prompts, to which a method's fields are fitted."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from vtc import spec as specs
from vtc.calls.composite import last_logits_only
from vtc.method.base import Method
from vtc.model.adapter import adapter_class
from vtc.patching import patched, trace
from vtc.planning.solve import OutOfReach
from vtc.prunes.vtw import VTW, candidates, divergence

#: Below this divergence, in nats, the next token's distribution counts as unchanged. Not verified: second hand.
_UNCHANGED = 0.003


class BatchTrials:
    """A model and batches, on which one method of a spec is calibrated.

    Args:
        model: not patched; each run gives it back as it was.
        before: the methods in front of the calibrated one.
        behind: those behind it.
        batches: arguments of the model, each a dict.

    Attributes:
        num_layers: of the decoder.
    """

    def __init__(self, model: nn.Module, before: Sequence[str], behind: Sequence[str], batches: Sequence[Mapping]):
        self._model, self._before, self._behind, self._batches = model, [*before], [*behind], batches
        self.num_layers = len(adapter_class(model)(model).parts.layers)

    def tokens(self, method: Method) -> Tensor:
        """LongTensor [layers, prompts]: visual tokens that enter each layer, of the prompts that show an image.

        Raises:
            ValueError: there is none, or the methods can't be used with this model.
        """
        return tokens_under(self._model, [*self._before, method, *self._behind], self._batches)


def tokens_under(model: nn.Module, spec: specs.Spec, batches: Iterable[Mapping[str, Any]]) -> Tensor:
    """Visual tokens that enter each layer, in a prefill of each batch: LongTensor [layers, prompts that show an image].

    Raises:
        ValueError: there is none, or the spec can't be used with this model.
    """
    fewer = last_logits_only(model)
    found: list[Tensor] = []
    with patched(model, spec), torch.no_grad():
        for batch in batches:
            model(**{**fewer, **batch})
            seen = trace(model)
            found.append(seen.tokens_per_layer[:, seen.original_tokens > 0])
    if not sum(tokens.shape[1] for tokens in found):
        raise ValueError("batches hold no prompt that shows an image; give at least one")
    return torch.cat(found, dim=1)


def divergences(model: nn.Module, batches: Iterable[Mapping[str, Any]]) -> dict[int, float]:
    """For each layer that VTW's search tries, how much the next token's distribution changes if it drops there.

    Args:
        model: not patched; it is given back as it was.
        batches: arguments of the model, each a dict with the padding on the left; those of a few prompts are enough.

    Returns:
        layer -> KL divergence in nats, mean over prompts that show an image.

    Raises:
        ValueError: there is no such prompt, or the model can't be patched.
    """
    shown = list(batches)
    layers = candidates(len(adapter_class(model)(model).parts.layers))
    full = _answers(model, "none", shown)
    return {layer: float(divergence(full, _answers(model, VTW(layer=layer), shown))) for layer in layers}


def fit_vtw(model: nn.Module, batches: Iterable[Mapping[str, Any]], unchanged: float = _UNCHANGED) -> str:
    """VTW with the first layer at which dropping all visual tokens hardly changes the next token's distribution.

    Args:
        model: not patched; it is given back as it was.
        batches: arguments of the model, each a dict with the padding on the left; the paper takes 20 prompts.
        unchanged: the divergence, in nats, below which it counts as unchanged. The default is second hand, and not
            verified: `divergences` tells all of them.

    Returns:
        A spec string such as "vtw:layer=15".

    Raises:
        ValueError: no layer is below it; the message tells the least divergence.
    """
    found = divergences(model, batches)
    for layer, value in found.items():
        if value < unchanged:
            return specs.to_string([VTW(layer=layer)])
    least = min(found, key=lambda layer: found[layer])
    raise OutOfReach(
        f"unchanged={unchanged!r} is out of reach: the least divergence is {found[least]:.4g}, at layer {least}; give "
        "a higher one"
    )


def _answers(model: nn.Module, spec: specs.Spec, batches: Sequence[Mapping[str, Any]]) -> Tensor:
    """Logits [prompts, V] behind each prompt that shows an image."""
    fewer = last_logits_only(model)
    found: list[Tensor] = []
    with patched(model, spec), torch.no_grad():
        for batch in batches:
            logits = model(**{**fewer, **batch}).logits[:, -1]
            found.append(logits[(trace(model).original_tokens > 0).to(logits.device)].float().cpu())
    if not sum(map(len, found)):
        raise ValueError("batches hold no prompt that shows an image; give at least one")
    return torch.cat(found)
