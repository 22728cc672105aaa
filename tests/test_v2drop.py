"""V2Drop: its counts, its schedule, and its score against the model's own hidden states."""

from typing import Any

import pytest
import torch
from contract import EVERY, model_of
from families import scenario

import vtc
from vtc.method.prune import Rows
from vtc.prunes.v2drop import V2Drop, variation


@pytest.mark.parametrize(
    ("fields", "present", "left"),
    [
        ({}, 576, [288, 144, 1]),
        ({"last": "none"}, 576, [288, 144, 0]),
        ({"keep": 144}, 576, [288, 144, 1]),
        ({"keep": 1.0}, 576, [576, 576, 576]),
        ({"keep": 600}, 576, [576, 576, 576]),
        ({"keep": 1e-6}, 576, [1, 1, 1]),
        ({"keep": 1e-6, "last": "none"}, 576, [0, 0, 0]),
        ({"keeps": (0.5, 0.3, 0)}, 576, [288, 86, 1]),
        ({"keeps": (0.28, 0.25, 0)}, 576, [161, 40, 1]),
        ({"keeps": (0.05, 0.05, 0)}, 576, [28, 1, 1]),
        ({"keeps": (1, 0.5, 0.5)}, 9, [9, 4, 2]),
        ({"keeps": (0.5, 0.3, 0.0), "last": "none"}, 3, [1, 0, 0]),
        ({}, 0, [0, 0, 0]),
        ({}, 1, [1, 1, 1]),
    ],
)
def test_each_layer_leaves_a_share_of_what_it_finds(fields: dict[str, Any], present: int, left: list[int]) -> None:
    method = V2Drop(**fields)
    assert [method.count_at(stage, present) for stage in range(len(left))] == left
    assert method.count(present) == left[-1]


def test_layers_are_scaled_to_the_depth() -> None:
    assert V2Drop().schedule(32) == (3, 17, 22)
    assert V2Drop().schedule(5) == (1, 3, 4)
    assert V2Drop().schedule(28) == (3, 15, 19)
    assert V2Drop().watch(32).modules == (2, 16, 21)


def test_the_change_is_a_length() -> None:
    before, after = torch.randn(2, 5, 7, dtype=torch.float16), torch.randn(2, 5, 7, dtype=torch.float16)
    expected = (after.double() - before.double()).square().sum(dim=-1).sqrt()
    torch.testing.assert_close(variation(before, after).double(), expected, rtol=1e-5, atol=1e-6)


def decided(before: torch.Tensor, after: torch.Tensor, count: int) -> list[int]:
    there = torch.ones(1, before.shape[1], dtype=torch.bool)
    memory: dict[str, torch.Tensor] = {}
    method = V2Drop(layers=(2,), keeps=(0.25,))
    method.on_modules(Rows(1, before, there, there, ~there), "attention", before, after, memory)
    return method.decide(Rows(2, after, there, there, ~there), [count], memory).alive[0].nonzero()[:, 0].tolist()


def test_ties_go_by_place_and_nan_counts_least() -> None:
    before, after = torch.zeros(1, 6, 2), torch.zeros(1, 6, 2)
    assert decided(before, after, 3) == [0, 1, 2]
    after[0, 4] = float("nan")
    after[0, 5] = 1.0
    assert decided(before, after, 5) == [0, 1, 2, 3, 5]


@pytest.mark.parametrize("name", ["ragged", "several_images", "text_row"])
def test_in_a_model_what_one_layer_added_decides(name: str) -> None:
    family, model, seen = EVERY["llava"], model_of("llava"), []
    inputs = family.inputs(model, scenario(family, name))

    class Noted(V2Drop):
        def score(self, rows: Rows, memory: dict) -> torch.Tensor:
            score = super().score(rows, memory)
            assert not memory  # the one state that is held is let go
            seen.append((rows.layer, score, rows.visual, rows.origin))
            return score

    with torch.no_grad():
        states = model(**inputs, output_hidden_states=True).hidden_states
        with vtc.patched(model, Noted(layers=(2, 3), keeps=(0.6, 0.5))):
            patched = model(**inputs, output_hidden_states=True).hidden_states
            trace = vtc.trace(model)
    (first, second), method = seen, V2Drop(layers=(2, 3), keeps=(0.6, 0.5))
    changes = (states[2].double() - states[1].double()).norm(dim=-1)
    torch.testing.assert_close(first[1].double()[first[2]], changes[first[2]], rtol=1e-4, atol=1e-5)
    for row in range(len(changes)):
        total = int(first[2][row].sum())
        places = first[2][row].nonzero()[:, 0]
        best = places[changes[row, places].topk(method.count_at(0, total)).indices].sort().values
        assert second[3][row][second[2][row]].tolist() == best.tolist()
    assert trace.tokens_per_layer[3].tolist() == [method.count_at(1, n) for n in first[2].sum(dim=1).tolist()]
    assert len(patched) == len(states)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"keep": 0.0}, "keep=0.0"),
        ({"layers": (0, 4)}, r"layers\[0\]=0 is below 1"),
        ({"keeps": (0.5, 0.3)}, r"does not fit layers=\(3, 17, 22\); give keeps with 3 entries"),
        ({"keeps": (0.5, 0.3, 2)}, r"keeps\[2\]=2 is not in \[0, 1\]; give the share that each layer leaves"),
        ({"last": "two"}, "last='two'"),
    ],
)
def test_bad_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        V2Drop(**fields)


def test_a_single_layer_needs_keeps() -> None:
    with pytest.raises(ValueError, match=r"layers=\(4,\) leaves keep=0.25 no layer, .* give keeps, such as \(0.25,\)"):
        V2Drop(layers=(4,))
