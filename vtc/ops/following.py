"""Arguments of a decoder that can be shortened while its loop over layers holds on to them."""

from typing import Any

import torch
from torch import Tensor


class Following(Tensor):
    """A mask or index among the decoder's arguments that is as long as the sequence is now.

    The decoder's loop holds on to one object; whatever is done with it is done with `now`.
    """

    now: Tensor

    @classmethod
    def of(cls, value: Tensor) -> "Following":
        """Follow `value`."""
        following = value.as_subclass(cls)
        following.now = value
        return following

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        """Every operation goes to `now`."""

        def current(value: Any) -> Any:
            if isinstance(value, (list, tuple)):  # of tensors, or of sizes
                return type(value)(map(current, value)) if type(value) in (list, tuple) else value
            return value.__dict__.get("now", value) if isinstance(value, Following) else value

        args = tuple(current(a) for a in args)
        kwargs = {k: current(v) for k, v in (kwargs or {}).items()}
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)


def followed(value: Any) -> Any:
    """An argument in a form that can be shortened while the decoder runs: containers copied, masks as `Following`."""
    if isinstance(value, Tensor):
        return value if value.is_floating_point() else Following.of(value)
    if isinstance(value, dict):
        return dict(value)
    return list(value) if isinstance(value, (list, tuple)) else value
