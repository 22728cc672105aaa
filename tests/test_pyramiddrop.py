"""PyramidDrop: its counts, its schedule, and its score against the model's own attention."""

from decimal import Decimal, localcontext
from typing import Any

import pytest
import torch
from contract import EVERY, model_of
from families import scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

import vtc
from vtc.method.prune import Rows
from vtc.prunes.attention.pyramiddrop import PyramidDrop
from vtc.prunes.profile import geometric


@pytest.mark.parametrize(
    ("fields", "present", "left"),
    [
        ({}, 576, [288, 144, 72]),
        ({}, 77, [38, 19, 9]),
        ({}, 3, [1, 0, 0]),
        ({}, 0, [0, 0, 0]),
        ({"keep": 72}, 576, [288, 144, 72]),
        ({"keep": 1}, 1000, [100, 10, 1]),  # 1000^(2/3) is 99.99… in floating point
        ({"keep": 0.29, "layers": (5,)}, 100, [29]),  # 28.999… in floating point
        ({"keep": 0.4**3}, 576, [230, 92, 36]),
        ({"keeps": (0.4, 0.16, 0.064)}, 576, [230, 92, 36]),
        ({"keeps": (300, 0.25, 9999), "layers": (1, 2, 3)}, 576, [300, 144, 144]),
    ],
)
def test_each_layer_leaves_the_published_count(fields: dict[str, Any], present: int, left: list[int]) -> None:
    method = PyramidDrop(**fields)
    assert [method.count_at(stage, present) for stage in range(len(left))] == left
    assert method.count(present) == left[-1]


@settings(max_examples=60, deadline=None)
@given(
    present=st.integers(0, 5000),
    keep=st.one_of(st.integers(1, 6000), st.floats(0.001, 1.0)),
    stages=st.integers(1, 6),
)
def test_the_geometric_profile_is_the_formula(present: int, keep: float, stages: int) -> None:
    left = [geometric(keep, present, stage, stages) for stage in range(stages)]
    assert left == sorted(left, reverse=True)
    with localcontext(prec=60):
        share = min(Decimal(keep) / max(present, 1) if isinstance(keep, int) else Decimal(str(keep)), Decimal(1))
        exact = [present * share ** (Decimal(stage + 1) / stages) for stage in range(stages)]
    tiny = Decimal(10) ** -40  # what 60 digits leave of a root that is an integer
    assert left == [int(value + tiny) for value in exact]
    if isinstance(keep, int):
        assert left[-1] == min(keep, present)


def test_the_count_1_is_not_the_share_1() -> None:
    assert [geometric(keep, 50, 0, 1) for keep in (1.0, 1, 1.0)] == [50, 1, 50]


def test_stages_are_scaled_to_the_depth() -> None:
    assert PyramidDrop().schedule(32) == (8, 16, 24)
    assert PyramidDrop().schedule(28) == (7, 14, 21)
    assert PyramidDrop().schedule(4) == (1, 2, 3)
    assert PyramidDrop(layers=[2, 5]).schedule(32) == (2, 5)


def test_the_score_is_the_last_row_of_the_next_layers_attention() -> None:
    class Seen(PyramidDrop):
        def score(self, rows: Rows, memory: dict) -> torch.Tensor:
            score = super().score(rows, memory)
            scores.append((score, rows.visual, rows.layer))
            return score

    family, model, scores = EVERY["qwen2_5_vl"], model_of("qwen2_5_vl", "eager"), []
    inputs = family.inputs(model, scenario(family, "ragged"))
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
        with vtc.patched(model, Seen(keep=0.3, layers=(2,))):
            model(**inputs)
            trace = vtc.trace(model)
    ((score, visual, layer),) = scores
    last = attentions[layer].mean(dim=1)[:, -1]
    assert_close(score, last)
    for row, image in enumerate(trace.images):
        kept = PyramidDrop(keep=0.3, layers=(2,)).count(len(image.source))
        best = last[row, visual[row]].topk(kept).indices.sort().values
        assert image.row == row and torch.equal(image.kept(layer), best)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 0.0}, "keep=0.0"),
        ({"layers": (3, 3)}, r"layers=\(3, 3\) is not ascending; give decoder layers from 1 on"),
        ({"layers": (0, 4)}, r"layers\[0\]=0 is below 1"),
        ({"keeps": (0.5, 0.25)}, r"keeps=\(0.5, 0.25\) does not fit layers=\(8, 16, 24\); give keeps with 3 entries"),
        ({"keeps": (0.5, 0.6, 0.1)}, "rises"),
        ({"keeps": (0.5, 0.2, 0)}, r"keeps\[2\]=0 keeps no token"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PyramidDrop(**fields)
    with pytest.raises(TypeError, match="layers=5 is a int, not a tuple"):
        PyramidDrop(layers=5)  # type: ignore[arg-type]
