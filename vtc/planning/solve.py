"""From a target to a spec: the `keep` whose plan comes nearest to so many FLOPs or equivalent tokens."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import nn

from vtc import spec as specs
from vtc.method.base import Method
from vtc.planning.plan import Plan, Planner
from vtc.planning.tower import Untold

#: Halvings of the range in which `keep` is looked for: steps of whole tokens are wider than what is left then.
_HALVINGS = 40
#: A share that keeps as little as can be.
_LEAST = 1e-6
#: How far outside of what can be reached a target may lie, as a share of it.
_TOLERANCE = 0.01
_KINDS = "'flops=0.2' (share of the prefill's FLOPs), 'decoder=0.2' (of the decoder's) or 'tokens=64'"


class OutOfReach(ValueError):
    """No value gives what was asked for; the message tells the range that can be reached."""


@dataclass(frozen=True)
class Target:
    """What a plan is to meet.

    Attributes:
        kind: "flops": share of the untouched prefill's FLOPs, decoder and tower; "decoder": of the decoder's alone;
            "tokens": equivalent tokens, a count.
        value: in (0, 1] for shares, at least 1 for tokens.
    """

    kind: str
    value: float

    @classmethod
    def parse(cls, text: str) -> "Target":
        """From a text such as "flops=0.2".

        Raises:
            TypeError: not a string.
            ValueError: unknown kind, no number, or one that is out of range.
        """
        if not isinstance(text, str):
            raise TypeError(f"target={text!r} is a {type(text).__name__}; give {_KINDS}")
        kind, _, number = (part.strip() for part in text.partition("="))
        if kind not in ("flops", "decoder", "tokens"):
            raise ValueError(f"target={text!r} names no known kind; give {_KINDS}")
        try:
            value = float(number)
        except ValueError:
            raise ValueError(f"target={text!r}: {number!r} is not a number; give {_KINDS}") from None
        if kind == "tokens" and not 1 <= value < math.inf:
            raise ValueError(f"target={text!r}: equivalent tokens are a count of at least 1; give e.g. 'tokens=64'")
        if kind != "tokens" and not 0 < value <= 1:
            raise ValueError(f"target={text!r}: a share of FLOPs is in (0, 1]; give e.g. '{kind}=0.2'")
        return cls(kind, value)

    def of(self, plan: Plan) -> float:
        """What the plan has of it.

        Raises:
            ValueError: shapes alone don't tell, or the plan can't be carried out.
        """
        if self.kind == "flops":
            flops = plan.flops()
            return flops.total / flops.unpatched_total
        with contextlib.suppress(Untold):
            plan.flops()  # what a reducer can't do is refused, also where the tower does not count
        return plan.equivalent_tokens if self.kind == "tokens" else plan.decoder_share


def solve(
    model: nn.Module,
    spec: specs.Spec,
    target: str,
    *,
    text_tokens: int,
    visual_tokens: int | None = None,
    images: int = 1,
    crops: int | None = None,
    frames: int = 1,
) -> str:
    """The spec with the `keep` whose plan comes nearest to a target, from shapes alone: nothing is run.

    What is solved for is one share, the `keep` of every method in the spec that does not have one written out (of a
    method given as an object: whose `keep` is the default). Tokens are whole, so a target is met to half a step; of two
    plans equally near, the cheaper; of all shares with the same plan, the one with the fewest digits.

    Args:
        model: a vision-language model of transformers; it may be on the device "meta".
        spec: as in `vtc.patch`, e.g. "divprune+transprune", or "divprune:keep=0.5+transprune" for the second alone.
        target: "flops=0.2", share of the untouched prefill's FLOPs, decoder and tower; "decoder=0.2", of the decoder's
            alone; "tokens=64", equivalent tokens of the prompt: the mean over decoder layers of visual tokens.
        text_tokens: of the prompt, which `vtc.plan` tells more about.
        visual_tokens: of one image; None: what the config fixes.
        images: of the prompt.
        crops: tiles of one image; None: as many as make so many tokens.
        frames: of one video; 1: images.

    Returns:
        A spec string in which every `keep` is written out.

    Raises:
        ValueError: no `keep` is free, the target is malformed or out of reach, or the plan can't be made (see
            `vtc.plan`).
        TypeError: an argument of the wrong type.
    """
    planner = Planner(model, text_tokens, visual_tokens, images, crops, frames)
    return solve_with(planner, spec, target)


def solve_with(planner: Planner, spec: specs.Spec, target: str) -> str:
    """`solve` for a prompt whose shapes are known already."""
    wanted, parts = Target.parse(target), written(spec)
    free = [index for index, part in enumerate(parts) if "keep" in fields_left(part)]

    def at(keep: float, places: list[int]) -> Plan:
        """The plan with this keep at `places`, all tokens kept at other free ones."""
        others = [index for index in free if index not in places]
        return planner.plan("+".join(with_fields(with_fields(parts, places, "keep", keep), others, "keep", 1.0)))

    everything = at(1.0, []).tokens_per_layer.tolist()
    free = [index for index in free if at(_LEAST, [index]).tokens_per_layer.tolist() != everything]
    if not free:
        raise ValueError(
            f"{'+'.join(parts)}: there is no keep to solve for; leave keep out of at least one method that has one, "
            "e.g. 'divprune' or 'divprune:keep=0.5+fastv'"
        )
    keep = _nearest(lambda keep: at(keep, free), wanted, target, "+".join(parts))
    return "+".join(with_fields(parts, free, "keep", keep))


# ---------------------------------------------------------------- the search


def _nearest(plan: Callable[[float], Plan], wanted: Target, target: str, text: str) -> float:
    """The share in (0, 1] with the fewest digits whose plan is nearest to what is wanted.

    Raises:
        OutOfReach: what is wanted is.
    """
    values: dict[float, float | None] = {1.0: wanted.of(plan(1.0))}

    def value(keep: float) -> float | None:
        if keep not in values:
            try:
                values[keep] = wanted.of(plan(keep))
            except Untold:
                raise
            except ValueError:  # a reducer that can't leave so few
                values[keep] = None
        return values[keep]

    below, above = _bracket(value, wanted.value)
    found = {keep: met for keep in (below, above) if (met := values.get(keep)) is not None}
    keep = min(found, key=lambda keep: abs(found[keep] - wanted.value))
    outside = len(found) == 1 or found[keep] == values[1.0]  # nothing below was found, or nothing above can be
    if outside and abs(found[keep] - wanted.value) > _TOLERANCE * wanted.value:
        lowest = _bracket(value, -math.inf)[1]
        raise OutOfReach(
            f"target={target!r} is out of reach: for {text}, keep from {_shortest(plan, lowest):g} to 1 gives "
            f"{wanted.kind} from {values[lowest]:.4g} to {values[1.0]:.4g}; choose a target between them, or other "
            "methods"
        )
    return _shortest(plan, keep)


def _bracket(value: Callable[[float], float | None], wanted: float) -> tuple[float, float]:
    """The largest share found with less than what is wanted (0: none), and the smallest with no less (1: maybe none).

    `value` rises with the share, and is None where a share can't be planned, for it is too small.
    """
    below, above = 0.0, 1.0
    for _ in range(_HALVINGS):
        middle = (below + above) / 2
        found = value(middle)
        if found is None or found < wanted:
            below = middle
        else:
            above = middle
    return below, above


def _shortest(plan: Callable[[float], Plan], keep: float) -> float:
    """The share with the fewest digits that has the same plan as `keep`."""
    same = plan(keep).tokens_per_layer.tolist()
    for digits in range(1, 16):
        scale = 10**digits
        for whole in (math.floor(keep * scale), math.ceil(keep * scale)):
            share = whole / scale
            if 0 < share <= 1 and plan(share).tokens_per_layer.tolist() == same:
                return share
    return keep


# ---------------------------------------------------------------- specs as they are written


def written(spec: specs.Spec) -> list[str]:
    """The methods of a spec, each as a spec string of its own, with the fields that were written out.

    Raises:
        ValueError, TypeError: as `vtc.spec.parse`.
    """
    methods = specs.parse(spec)
    if isinstance(spec, str):
        return specs.split(spec)
    if isinstance(spec, Method):
        return [specs.to_string(methods)]
    assert isinstance(spec, Iterable)
    return [text for part in spec for text in written(part)]


def fields_left(part: str) -> set[str]:
    """Fields of one method that its spec string leaves at their defaults."""
    (method,) = specs.parse(part)
    every = {field.name for field in dataclasses.fields(method) if field.init}  # type: ignore[arg-type]
    if "/" in part and ":" not in part:  # a preset, whose fields are published
        return set()
    _, _, rest = part.partition(":")
    return every - {item.partition("=")[0].strip() for item in rest.split(",")}


def with_fields(parts: list[str], places: list[int], field: str, value: object) -> list[str]:
    """The spec strings with `field=value` added to those at `places`."""
    return [
        f"{part}{',' if ':' in part else ':'}{field}={repr(value).replace(' ', '')}" if index in places else part
        for index, part in enumerate(parts)
    ]
