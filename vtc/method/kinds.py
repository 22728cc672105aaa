"""The methods of a spec by kind."""

from collections.abc import Sequence

from vtc.method.base import Method
from vtc.method.prune import Prune
from vtc.method.reducer import Reducer
from vtc.method.selector import Selector


def split_kinds(methods: Sequence[Method]) -> tuple[Reducer | None, Selector | None, list[Prune]]:
    """The reducer, the selector (or None) and the prunes among `methods`; "none" is neither.

    Raises:
        ValueError: more than one of reducers and selectors, or a method of another kind.
    """
    parts = [part for method in methods for part in method.split()]
    outer = [part for part in parts if isinstance(part, Reducer | Selector) and part.name != "none"]
    if len(outer) > 1:
        names = " and ".join(part.name for part in outer)
        raise ValueError(
            f"{names} can't be composed: both decide what enters the first decoder layer; keep one of them"
        )
    for part in parts:
        if not isinstance(part, Reducer | Selector | Prune):
            raise ValueError(f"{part.name} is neither a Reducer nor a Selector nor a Prune; derive it from one of them")
    reducer = next((part for part in outer if isinstance(part, Reducer)), None)
    selector = next((part for part in outer if isinstance(part, Selector)), None)
    return reducer, selector, [part for part in parts if isinstance(part, Prune)]
