"""Methods of a model of which every call is seen."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from vtc.model.compiled import exports


@dataclass(frozen=True)
class Wrap:
    """Who sees every call of one method of one module; the class stays as it is.

    Attributes:
        owner: the module.
        name: of its method.
        before: called with (args, kwargs).
        after: called with (output, args, kwargs), where the call returned.
        finally_: called at the end, also when the call failed.
    """

    owner: nn.Module
    name: str
    before: Callable[..., None] = lambda *_: None
    after: Callable[..., None] = lambda *_: None
    finally_: Callable[[], None] = lambda: None

    def install(self) -> Callable[[], None]:
        """Put it around the method; what is returned takes it away again."""
        owner, name, original = self.owner, self.name, getattr(self.owner, self.name)
        watching = [self]

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if not watching or exports():  # what is exported is not looked at
                return original(*args, **kwargs)
            self.before(args, kwargs)
            try:
                output = original(*args, **kwargs)
                self.after(output, args, kwargs)
            finally:
                self.finally_()
            return output

        own = vars(owner).get(name)  # set on the instance by somebody else
        object.__setattr__(owner, name, wrapper)

        def undo() -> None:
            watching.clear()  # somebody may have put something around it, and goes on to call it
            if vars(owner).get(name) is not wrapper:
                return
            if own is None:
                object.__delattr__(owner, name)
            else:
                object.__setattr__(owner, name, own)

        return undo
