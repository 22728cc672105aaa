"""How the budget of a prune with several layers is spread over them, and checks of the fields that say so."""

import math
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from numbers import Integral

from vtc.method import budget, fields
from vtc.method.budget import Keep


def geometric(keep: Keep, present: int, stage: int, stages: int) -> int:
    """Tokens left after a stage where each of the `stages` leaves the same share of what it finds.

    Args:
        keep: share or count of the tokens that is left after the last stage.
        present: tokens that reach the first stage.
        stage: index from 0.
        stages: how many there are.

    Returns:
        floor(present · share ** ((stage + 1) / stages)), without rounding errors: present=77, keep=0.125 and 3 stages
        give 38, 19, 9. A count is exact after the last stage.
    """
    return _geometric(int(keep) if isinstance(keep, Integral) else float(keep), present, stage, stages)


@lru_cache(maxsize=1024, typed=True)  # the count 1 is not the share 1.0
def _geometric(keep: Keep, present: int, stage: int, stages: int) -> int:
    share = Fraction(keep, max(present, 1)) if isinstance(keep, int) else Fraction(str(keep))
    if share >= 1:
        return present
    power = math.floor(present**stages * share ** (stage + 1))
    low, high = 0, present  # the root is the largest number whose power fits
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if middle**stages <= power else (low, middle - 1)
    return low


def rounded_down(keep: Keep, present: int) -> int:
    """The count `keep`, or the share `keep` of `present` tokens rounded down; never more than `present`."""
    return min(int(keep) if isinstance(keep, Integral) else math.floor(present * keep), present)


def check_layer_behind(layer: object) -> None:
    """The field `layer` of a method that reads the attention of the layer before: None, or an int from 1 on.

    Raises:
        TypeError: neither None nor an int.
        ValueError: below 1.
    """
    if layer is not None:
        way_out = "the attention of the layer before is read, so give 1 or more, or None for the published one"
        fields.check_int("layer", layer, way_out, 1)


def check_layers(layers: object, example: tuple[int, ...]) -> tuple[int, ...] | None:
    """The field `layers` as a tuple, or None.

    Args:
        layers: what was given.
        example: named in messages.

    Raises:
        TypeError: neither None nor a tuple or list of int.
        ValueError: empty, below 1 or not ascending.
    """
    if layers is None:
        return None
    way_out = f"give decoder layers from 1 on, ascending, such as {example}, or None for the published ones"
    return fields.ascending("layers", layers, way_out, 1)


def check_keeps(keeps: object, layers: tuple[int, ...], example: tuple[Keep, ...]) -> tuple[Keep, ...] | None:
    """The field `keeps`, what is left after each of the `layers`, as a tuple, or None.

    Args:
        keeps: what was given.
        layers: those that the method acts in front of.
        example: named in messages.

    Raises:
        TypeError: neither None nor a tuple or list of numbers.
        ValueError: no budget, rising, or not one for each layer.
    """
    if keeps is None:
        return None
    way_out = f"give what is left after each layer, e.g. {example}"
    checked = fields.as_tuple("keeps", keeps, way_out)
    for index, keep in enumerate(checked):
        budget.check_keep(keep, f"keeps[{index}]")
    if any(type(a) is type(b) and b > a for a, b in pairwise(checked)):
        raise ValueError(f"keeps={checked!r} rises; {way_out}")
    if len(checked) != len(layers):
        raise ValueError(
            f"keeps={checked!r} does not fit layers={layers!r}; give keeps with {len(layers)} "
            f"{'entry' if len(layers) == 1 else 'entries'}"
        )
    return checked
