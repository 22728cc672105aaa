"""Who does an operation: the kernels on a GPU where these can be had, anywhere else the torch reference."""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from vtc.ops import reference

_kernels = contextvars.ContextVar("vtc_kernels", default=True)
_operators: dict[str, Callable[..., Any]] = {}


@contextlib.contextmanager
def kernels(enabled: bool) -> Iterator[None]:
    """Within it, this thread's operations run the kernels, or with False the torch references, on a GPU too."""
    token = _kernels.set(enabled)
    try:
        yield
    finally:
        _kernels.reset(token)


def register(name: str, operator: Any, pack: Callable[..., tuple] = lambda *flat: flat) -> None:
    """Let `operator` run the kernel on a GPU where there is one for these arguments, and else the reference.

    Args:
        name: of the reference, and of the kernel.
        operator: a custom operator of torch.
        pack: from its arguments, which are flat, to those of reference and kernel.
    """
    plain: Callable[..., Any] = getattr(reference, name)

    @operator.register_kernel("cuda")
    def on_cuda(*flat: Any) -> Any:
        args = pack(*flat)
        with torch.autocast("cuda", enabled=False):  # what is said to be in float32 is
            if _kernels.get():
                from vtc.ops.cuda import kernel_for

                kernel = kernel_for(name, *args)
                if kernel is not None:
                    return kernel(*args)
            return plain(*args)

    _operators[name] = operator


def operator_for(name: str, tensor: Tensor) -> Callable[..., Any] | None:
    """The operator; None on a CPU outside of compiled code: there the reference itself takes less time to call."""
    plain = tensor.device.type == "cpu" and not torch.compiler.is_compiling()
    return None if plain else _operators[name]
