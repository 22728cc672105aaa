"""How a budget is spread over the blocks of the vision tower at which a reducer acts."""

from vtc.method import fields
from vtc.model.parts import Parts


def geometric(stage: int, stages: int, start: int, target: int, present: int) -> int:
    """Units left after `stage` of `stages`, each leaving about the same share; exactly `target` after the last.

    Args:
        stage: from 0.
        stages: how many there are.
        start: units before the first.
        target: units after the last.
        present: units before this one.
    """
    return min(round(start * (target / start) ** ((stage + 1) / stages)), present)


def check_layers(layers: object) -> tuple[int, ...]:
    """`layers`, ascending ints from 0, as a tuple.

    Raises:
        TypeError: not a tuple of ints.
        ValueError: empty, negative or not ascending.
    """
    way_out = "give blocks of the vision tower from 0, ascending, such as (5, 11, 17), or None for the default"
    return fields.ascending("layers", layers, way_out, 0)


def within_tower(layers: tuple[int, ...], parts: Parts, wanted_by: str) -> tuple[int, ...]:
    """`layers`, none of them behind the block that the projector reads.

    Raises:
        ValueError: one is, or the tower has no such block.
    """
    feature = parts.block(parts.feature_layer, wanted_by)
    if layers[-1] > feature:
        raise ValueError(
            f"{wanted_by}: layers={layers!r} goes behind tower block {feature}, whose output {parts.family} projects; "
            f"give blocks up to {feature}"
        )
    return layers
