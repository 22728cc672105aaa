"""Timing of one `generate`: prefill, the decoder's share of it, the first token, the tokens after it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import StoppingCriteria

from vtc.calls.outputs import Output
from vtc.eval.models import Loaded
from vtc.ops.clock import Moment


class Stopwatch(StoppingCriteria):
    """Watches a model in a `with` block; give it to `generate` as a stopping criterion to time tokens as well.

    `generate` may run the tower before it calls the model, or leave that to the model: prefill starts with whichever
    comes first. The hooks stand outside those of a patch that is put in before: the decoder's time includes the
    selection. Work that the device has to do before the block is waited for; inside, nothing waits (see `Moment`), and
    what asks for a time does. Times are in milliseconds and None until they are known.

    Attributes:
        prefill_ms: tower, projector, selection, decoder, logits of the last position.
        decoder_ms: the language model's share of it, selection included.
        first_token_ms: from the start of the block until the first token is known.
        decode_ms: from the first token to the last.
        decode_steps: tokens after the first, for each row.
        kv_bytes: keys and values in the cache after prefill, of the whole batch.
    """

    def __init__(self, loaded: Loaded):
        self._model, self._device = loaded.model, loaded.model.device
        self._modules = {"prefill": loaded.model, "decoder": loaded.decoder}
        self._tower = loaded.tower
        self._handles: list[Any] = []
        self._marks: dict[str, Moment] = {}
        self.decode_steps = -1
        self.kv_bytes: int | None = None

    def __enter__(self) -> "Stopwatch":
        if self._tower is not None:
            self._handles.append(self._tower.register_forward_pre_hook(self._marker("prefill starts"), prepend=True))
        for name, module in self._modules.items():
            self._handles.append(module.register_forward_pre_hook(self._marker(f"{name} starts"), prepend=True))
            self._handles.append(module.register_forward_hook(self._marker(f"{name} ends")))
        self._handles.append(self._model.register_forward_hook(self._weigh_cache))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._mark("start")
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        """Called by `generate` after each token; never stops it."""
        self._mark("first token")
        self._marks["last token"] = Moment(self._device)
        self.decode_steps += 1
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

    @property
    def prefill_ms(self) -> float | None:
        """From the tower, or the call of the model, to its end."""
        return self._between("prefill starts", "prefill ends")

    @property
    def decoder_ms(self) -> float | None:
        """The decoder's share of it."""
        return self._between("decoder starts", "decoder ends")

    @property
    def first_token_ms(self) -> float | None:
        """Until the first token."""
        return self._between("start", "first token")

    @property
    def decode_ms(self) -> float | None:
        """From the first token to the last."""
        return self._between("first token", "last token")

    def _marker(self, name: str) -> Callable[..., None]:
        return lambda *_: self._mark(name)

    def _mark(self, name: str) -> None:
        """Note the time, the first time only."""
        if name not in self._marks:
            self._marks[name] = Moment(self._device)

    def _between(self, first: str, second: str) -> float | None:
        if first not in self._marks or second not in self._marks:
            return None
        return self._marks[first].ms_until(self._marks[second])

    def _weigh_cache(self, module: nn.Module, args: tuple, output: Any) -> None:
        if self.kv_bytes is None:
            self.kv_bytes = cache_bytes(Output(output).cache)


def cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in a cache of transformers: keys and values, and states of layers that keep such."""
    return sum(
        value.numel() * value.element_size()
        for layer in getattr(cache, "layers", ())
        for value in vars(layer).values()
        if isinstance(value, Tensor)
    )
