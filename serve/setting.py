"""What an engine is asked to do: a spec, held against what serving can do."""

from dataclasses import dataclass, replace
from typing import Any

from vtc import spec as specs
from vtc.method.budget import Keep, check_keep
from vtc.method.fields import settable
from vtc.method.kinds import split_kinds
from vtc.method.registry import list_methods, method_class
from vtc.method.selector import Selector
from vtc.selectors.baselines import NoCompression
from vtc.serve import KEEP, SPEC

#: How a method that lets the picture decide goes by counts.
_COUNTED = {"evs": "leave threshold out", "vidcom2": "leave exact out"}


@dataclass(frozen=True, eq=False)
class Setting:
    """One selector whose counts are known before the vision tower runs.

    Attributes:
        spec: as it was given.
        selector: what it names; its `keep` is the greatest that a request may ask for.
    """

    spec: str
    selector: Selector

    @classmethod
    def of(cls, spec: Any) -> "Setting":
        """Read a spec.

        Raises:
            ValueError: malformed, or a method that an engine can't serve; the message says why, and the way out.
            TypeError: no string.
        """
        if not isinstance(spec, str):
            raise TypeError(
                f"{SPEC}={spec!r} is a {type(spec).__name__}; give a spec string such as 'divprune:keep=0.25'"
            )
        methods = specs.parse(spec)
        reducer, selector, prunes = split_kinds(methods)
        if selector is not None and selector.adaptive:
            refuse(
                selector.name,
                "lets the picture decide how many tokens stay, and an engine has to know before the tower runs",
                _COUNTED.get(selector.name, "give it a keep") if selector.name in servable() else "",
            )
        if prunes:
            refuse(
                prunes[0].name,
                "removes tokens between decoder layers, and an engine gives each token of a request one KV slot for "
                "all layers",
                _without_prunes(methods),
            )
        if reducer is not None:
            refuse(reducer.name, "shortens the vision tower's own sequence, which is the engine's code")
        if selector is None:
            selector = NoCompression()
        if getattr(selector, "compat", False):
            refuse(selector.name, "keeps fewer tokens than its count with compat=True", "leave compat out")
        if selector.per == "row":
            refuse(
                selector.name,
                "shares one budget out over all pictures of a prompt with per=row, and an engine encodes and caches "
                "each by itself",
                "give per=input or per=frame",
            )
        return cls(spec, selector)

    def asked(self, keep: Any) -> Selector:
        """The selector with the budget of one request; None: the engine's.

        Raises:
            ValueError: `keep` is out of range, or given to 'none'.
            TypeError: no number.
        """
        if keep is None:
            return self.selector
        check_keep(keep, KEEP)
        if self.selector.name == "none":
            raise ValueError(f"{KEEP}={keep!r}, but this engine removes no tokens ({SPEC}={self.spec!r})")
        return replace(self.selector, **{"keep": keep})

    @property
    def keep(self) -> Keep | None:
        """The greatest budget of a request."""
        return self.selector.keep


def refuse(name: str, reason: str, way_out: str = "") -> None:
    """Say that a method can't be served.

    Raises:
        ValueError: always.
    """
    way_out = way_out or f"serve a selector: {', '.join(servable())}"
    raise ValueError(f"{name} can't be served: it {reason}; {way_out}")


def servable() -> list[str]:
    """Names of the methods that some setting of theirs makes servable on some model."""
    never = ("holitom", "recoverable", "trim", "cdpruner", "mmtok")  # the last four read the question
    return [name for name in list_methods("selector") if name not in never and _has_counts(method_class(name))]


def _has_counts(cls: Any) -> bool:
    """Whether some setting of a method says how many tokens stay: not where what is shown always decides."""
    always = getattr(cls, "varies", False) is True  # else told by a property, from the setting
    return not always and (not cls.may_adapt or any(field.name == "keep" for field in settable(cls)))


def _without_prunes(methods: list[Any]) -> str:
    """The way out where a prune is a part of a method, or stands beside one."""
    selectors = [method for method in methods if isinstance(method, Selector) and method.name != "none"]
    without = {"todre": "threshold=0", "vscan": "later_keep=1.0", "dycoke": "decode=False"}
    if selectors and (field := without.get(selectors[0].name)):
        return f"give {selectors[0].name} {field}, which leaves its second stage out"
    return f"leave it out: {specs.to_string(selectors)!r}" if selectors else ""
