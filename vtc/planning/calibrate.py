"""For methods whose token counts only a run tells: the value of one field at which a model has so many tokens."""

import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from numbers import Real
from typing import Any

from torch import nn

from vtc import spec as specs
from vtc.planning.fit import BatchTrials, tokens_under
from vtc.planning.solve import OutOfReach, fields_left, with_fields, written

#: Halvings of the range at most, and how near is near enough, as a share of the tokens asked for.
_HALVINGS, _NEAR = 14, 0.002
#: How far outside of what can be reached the tokens may lie, as a share of them.
_TOLERANCE = 0.01
#: Where in the range, from an end, that end is tried in turn, since a method may refuse it (`keep=0.0`).
_ENDS = (0.0, 2**-10, 2**-6, 2**-3)


def calibrate(
    model: nn.Module,
    spec: specs.Spec,
    field: str,
    batches: Iterable[Mapping[str, Any]],
    tokens: float = 64.0,
    between: tuple[float, float] = (0.0, 1.0),
) -> tuple[str, float]:
    """Find by running the value of a field at which prompts have `tokens` equivalent tokens on average.

    For methods that let the picture decide how many tokens stay; for others `vtc.solve` tells without running. Each
    try is a prefill of all batches, 16 of them at most; whether the tokens rise or fall with the value is found out.
    Fields that a method sets in a way of its own (the `table` of `fitprune`, the `layer` of `vtw`) are found so too.

    Args:
        model: not patched; it is given back as it was.
        spec: as in `vtc.patch`; the method that has the field must not have it written out.
        field: of one method: a number such as "keep" or the threshold of `todre_stage2`, or what the method fits to
            the batches, such as the `table` of `fitprune` (one prefill more for each try).
        batches: arguments of the model, each a dict, such as a processor gives.
        tokens: equivalent tokens of a prompt, the mean over prompts that show an image.
        between: the values between which it is looked for; of a field that is no plain number, shares in [0, 1].

    Returns:
        The spec string with the field written out, and the equivalent tokens that were measured with it: of all values
        tried, those nearest to `tokens`.

    Raises:
        ValueError: no method or several have the field free, there is no batch with an image, or the tokens are out of
            reach; the message tells the range.
        TypeError: `tokens` or `between` are not numbers.
    """
    parts, tokens = written(spec), _number("tokens", tokens)
    low, high = (_number("between", value) for value in between)
    if not low < high:
        raise ValueError(f"between={between!r} is no range; give a lower and a higher value, such as (0.0, 1.0)")
    if tokens <= 0:
        raise ValueError(f"tokens={tokens!r} is not above 0; give equivalent tokens such as 64")
    place = _place(parts, field)
    shown = list(batches)

    (method,) = specs.parse(parts[place])
    dial = method.dial(field, BatchTrials(model, parts[:place], parts[place + 1 :], shown))
    value_at = cache(dial) if dial is not None else float

    def text(value: float) -> str:
        return "+".join(with_fields(parts, [place], field, value_at(value)))

    value, measured = _search(lambda value: measure(model, text(value), shown), tokens, low, high, text)
    return text(value), measured


def measure(model: nn.Module, spec: specs.Spec, batches: Iterable[Mapping[str, Any]]) -> float:
    """Mean equivalent tokens of the prompts that show an image, in a prefill of each batch.

    Raises:
        ValueError: there is none, or the spec can't be used with this model.
    """
    return float(tokens_under(model, spec, batches).double().mean(dim=0).float().mean())


def _search(
    measured_at: Callable[[float], float], tokens: float, low: float, high: float, text: Callable[[float], str]
) -> tuple[float, float]:
    """The value, among those that halving the range tries, that comes nearest to `tokens`, and what it has."""
    low, at_low = _end(measured_at, low, high)
    high, at_high = _end(measured_at, high, low)
    least, most = min(at_low, at_high), max(at_low, at_high)
    if not least - _TOLERANCE * tokens <= tokens <= most + _TOLERANCE * tokens:
        raise OutOfReach(
            f"tokens={tokens:g} is out of reach: {text(low)} has {at_low:.4g} equivalent tokens and {text(high)} "
            f"{at_high:.4g}; choose a number between them, or another range with between=…"
        )
    tried = {low: at_low, high: at_high}
    for _ in range(_HALVINGS):
        if min(abs(found - tokens) for found in tried.values()) <= _NEAR * tokens:
            break
        middle = float(f"{(low + high) / 2:.5g}")
        if middle in tried:
            break
        tried[middle] = measured_at(middle)
        if (tried[middle] < tokens) == (at_low < at_high):
            low = middle
        else:
            high = middle
    best = min(tried, key=lambda value: abs(tried[value] - tokens))
    return best, tried[best]


def _end(measured_at: Callable[[float], float], end: float, other: float) -> tuple[float, float]:
    """One end of the range, moved inwards where the method refuses it, and what was measured there."""
    refusal: ValueError | None = None
    for share in _ENDS:
        value = end + share * (other - end)
        try:
            return value, measured_at(value)
        except ValueError as error:
            refusal = error
    assert refusal is not None
    raise refusal


def _place(parts: list[str], field: str) -> int:
    """Which of the methods has the field, not written out.

    Raises:
        ValueError: none or several.
    """
    free = [index for index, part in enumerate(parts) if field in fields_left(part)]
    if len(free) != 1:
        every = sorted({name for part in parts for name in fields_left(part)})
        which = "no method has it free" if not free else f"{len(free)} methods have it, so write it out in all but one"
        raise ValueError(f"field={field!r} of {'+'.join(parts)}: {which}; free are {', '.join(every) or 'none'}")
    return free[0]


def _number(name: str, value: object) -> float:
    """`value` as a finite float.

    Raises:
        TypeError: not a number (bool included).
        ValueError: not finite.
    """
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}={value!r} is a {type(value).__name__}, not a number")
    if not math.isfinite(value):
        raise ValueError(f"{name}={value!r} is not finite; give a number such as 64")
    return float(value)
