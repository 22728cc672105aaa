"""A stand-in for a GPU that notices when the host waits for it: real values, on a device that is not the host's.

Tensors of the double hold their values in ordinary ones, and say that they are on the device "meta". What makes a
program wait for a GPU (reading a value, looking for True, copying between the two in the ordinary way) is an error
where it happens in a file of vtc; what transformers does is its own affair.
"""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

from vtc.ops import host

_ROOT = Path(__file__).parent.parent
_OURS = tuple(str(_ROOT / folder) + "/" for folder in ("vtc", "adapters", "cuda"))
_DEVICE = torch.device("meta")
_aten = torch.ops.aten
#: What has to know values of its input before the host can go on.
_READING = {
    _aten._local_scalar_dense.default,
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten.equal.default,
    _aten.is_nonzero.default,
    _aten.unique_consecutive.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.bincount.default,
    _aten.repeat_interleave.Tensor,
}
_INDEXING = {_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default, _aten._index_put_impl_.default}


class Waited(AssertionError):
    """The host waited for the device."""


class OnDevice(Tensor):
    """A tensor of the double; `inner` has its values."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> "OnDevice":
        return Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=_DEVICE,
        )

    def __init__(self, inner: Tensor):
        self.inner = inner

    def item(self) -> Any:
        _wait("item")
        return self.inner.item()

    def tolist(self) -> Any:
        _wait("tolist")
        return self.inner.tolist()

    def __bool__(self) -> bool:
        return bool(self.item())

    def __int__(self) -> int:
        return int(self.item())

    def __float__(self) -> float:
        return float(self.item())

    def __index__(self) -> int:
        return int(self.item())

    def __repr__(self, **_: Any) -> str:
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Dispatch(TorchDispatchMode):
    """What is made for the device "meta" is made on the double."""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        return _run(func, args, kwargs or {})


class _Functions(TorchFunctionMode):
    """`torch.tensor`, which makes its result without anybody being asked."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        if func not in (torch.tensor, torch.as_tensor) or torch.device(kwargs.get("device") or "cpu") != _DEVICE:
            return func(*args, **kwargs)
        _wait(func)
        return OnDevice(func(*args, **{**kwargs, "device": "cpu"}))


_may_wait = True


@contextlib.contextmanager
def double(waits: bool = False) -> Iterator[None]:
    """Within it, what is made for the device "meta" is made on the double.

    Args:
        waits: whether the host may wait.
    """
    global _may_wait
    _may_wait = waits
    with _Functions(), _Dispatch():
        yield


def on_double(values: Any) -> Any:
    """Tensors, or dictionaries and lists of them, on the double; a module is moved in place."""
    if isinstance(values, nn.Module):
        for module in values.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[name] = nn.Parameter(OnDevice(parameter.data), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = OnDevice(buffer)
        return values
    return tree_map(lambda value: OnDevice(value) if isinstance(value, Tensor) else value, values)


def off_double(values: Any) -> Any:
    """The values of tensors of the double."""
    return tree_map(lambda value: value.inner if isinstance(value, OnDevice) else value, values)


def _run(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    tensors = list(_tensors((args, kwargs)))
    given = [value for value in tensors if isinstance(value, OnDevice)]
    plain = [value for value in tensors if not isinstance(value, OnDevice)]
    if any(value.device == _DEVICE and value.numel() for value in plain):
        raise Waited(f"{func} got values that are lost here, and that a GPU waits for: a list as an index?")
    target = kwargs.get("device")
    here = bool(given) if target is None else torch.device(target) == _DEVICE
    if given and func in _READING:
        _wait(func)
    if given and func in _INDEXING:
        indices = [index for index in args[1] if index is not None]
        if any(not isinstance(index, OnDevice) or index.dtype == torch.bool for index in indices):
            _wait(func)
    if func is _aten._to_copy.default and here != bool(given) and not kwargs.get("non_blocking"):
        _wait(func)
    if func is _aten.copy_.default and isinstance(args[0], OnDevice) != isinstance(args[1], OnDevice):
        if args[1].dim() and not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
            _wait(func)
    elif given and func not in _INDEXING and any(value.dim() for value in plain):
        raise RuntimeError(f"{func}: tensors on two devices")
    own = {id(value.inner): value for value in given}
    inner = _inner(args), _inner(kwargs)
    if target is not None:
        inner[1]["device"] = torch.device("cpu")
    made = func(*inner[0], **inner[1])
    if not here:
        return made
    return tree_map(lambda value: own[id(value)] if id(value) in own else _wrap(value), made)


def _inner(values: Any) -> Any:
    """`off_double` for arguments of operators, several times as fast."""
    if isinstance(values, OnDevice):
        return values.inner
    if isinstance(values, (tuple, list)):
        return type(values)(map(_inner, values))
    return {name: _inner(value) for name, value in values.items()} if isinstance(values, dict) else values


def _wrap(value: Any) -> Any:
    return OnDevice(value) if isinstance(value, Tensor) and not isinstance(value, OnDevice) else value


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, (tuple, list)):
        for value in values:
            yield from _tensors(value)
    elif isinstance(values, dict):
        yield from _tensors(list(values.values()))


def _wait(func: Any) -> None:
    """An error where the innermost line of Python that is not torch's, nor this file's, is one of vtc's."""
    frame = None if _may_wait else sys._getframe(1)
    while frame is not None:
        name = frame.f_code.co_filename
        if name not in (__file__,) and "/torch/" not in name:
            if name.startswith(_OURS) and name != host.__file__:
                raise Waited(f"{name}:{frame.f_lineno}: {func} waits for the device")
            return
        frame = frame.f_back  # type: ignore[assignment]
