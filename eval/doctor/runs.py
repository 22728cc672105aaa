"""What a model gives under a spec: run when first asked for, and kept for all checks that look at it."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

import vtc
from vtc import spec as specs
from vtc.calls.cache import keys_in_layer
from vtc.eval.doctor.by_hand import fed, feed
from vtc.eval.doctor.subject import Subject, longer, special_ids
from vtc.method.base import Method
from vtc.tracing import Trace

#: Tokens that are generated behind each prompt.
NEW = 3


@dataclass(frozen=True)
class Prefill:
    """One call of the model with a prompt.

    Attributes:
        logits: Tensor [L, V], float32, on the CPU.
        keys: keys that each decoder layer's cache holds afterwards; None where a layer does not hold all.
        trace: what vtc says of it; None of an untouched model.
    """

    logits: Tensor
    keys: list[int | None]
    trace: Trace | None


@dataclass(frozen=True)
class Decoded:
    """What `generate` made, greedily.

    Attributes:
        logits: Tensor [NEW, B, V], float32, on the CPU: in front of each token, as the model gave them.
        tokens: LongTensor [B, NEW].
    """

    logits: Tensor
    tokens: Tensor


@dataclass(frozen=True)
class Runs:
    """A model under a spec.

    Attributes:
        subject: the model and its prompts.
        spec: the methods; "": the model is untouched.
    """

    subject: Subject
    spec: str = ""

    @property
    def methods(self) -> Sequence[Method]:
        """Those of the spec, each of a single kind."""
        return [part for method in specs.parse(self.spec) for part in method.split()] if self.spec else []

    @cached_property
    def prefill(self) -> Prefill:
        """The first prompt in one call."""
        with self._patched():
            output = self.subject.model(**self.subject.rows[0], use_cache=True)
            trace = vtc.trace(self.subject.model) if self.spec else None
        return Prefill(output.logits[0].float().cpu(), _keys(output), trace)

    @cached_property
    def decoded(self) -> Decoded:
        """Generated behind the first prompt."""
        return self._generated(self.subject.rows[0])

    @cached_property
    def decoded_other(self) -> Decoded:
        """Generated behind the second prompt."""
        return self._generated(self.subject.rows[1])

    @cached_property
    def decoded_batch(self) -> Decoded:
        """Generated behind both in a batch."""
        return self._generated(self.subject.batch)

    def recomputed(self, tokens: Tensor) -> Tensor:
        """Logits [L + n, V] of the first prompt with `tokens` [1, n] behind it, in one call without a cache."""
        with self._patched():
            return self._at_once(tokens)

    def by_hand(self, tokens: Tensor) -> Tensor:
        """The same of the untouched model, fed by hand: its logits [n, V] of the tokens that are fed.

        Raises:
            NotCheckableError: it can't be.
        """
        trace, length = self.prefill.trace, self.subject.rows[0]["input_ids"].shape[1] + tokens.shape[1]
        told = feed(trace, self.methods, length, tokens.shape[1])
        given = int(trace.original_tokens[0]) if trace is not None else 0
        with fed(self.subject.model, told, length, given):
            return self._at_once(tokens)

    def _at_once(self, tokens: Tensor) -> Tensor:
        inputs = longer(self.subject.rows[0], tokens.to(self.subject.model.device))
        return self.subject.model(**inputs, use_cache=False).logits[0].float().cpu()

    def _generated(self, inputs: dict[str, Any]) -> Decoded:
        model = self.subject.model
        with self._patched():
            made = model.generate(
                **inputs,
                max_new_tokens=NEW,
                min_new_tokens=NEW,
                do_sample=False,
                num_beams=1,
                suppress_tokens=special_ids(model.config),
                return_dict_in_generate=True,
                output_logits=True,
            )
        return Decoded(torch.stack(made.logits).float().cpu(), made.sequences[:, inputs["input_ids"].shape[1] :].cpu())

    def _patched(self) -> AbstractContextManager[Any]:
        return vtc.patched(self.subject.model, self.spec) if self.spec else nullcontext()


def _keys(output: Any) -> list[int | None]:
    """Keys in each layer of the cache among a model's outputs."""
    from transformers import Cache

    cache = next((value for value in output.values() if isinstance(value, Cache)), None)
    if cache is None:
        return []
    return [
        None if getattr(layer, "is_sliding", False) else keys_in_layer(cache, index, 0)
        for index, layer in enumerate(cache.layers)
    ]
