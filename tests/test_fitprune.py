"""FitPrune: its score against a whole map in float64, its tables, and the fit."""

from typing import Any

import pytest
import torch
from contract import EVERY, model_of
from families import scenario

import vtc
from vtc.attention.scores import Attention
from vtc.method.prune import Rows
from vtc.planning.calibrate import measure
from vtc.planning.fit import BatchTrials
from vtc.planning.solve import OutOfReach
from vtc.prunes.attention.fitprune import FitPrune, fitted, lowest_go, own_and_cross


@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_own_and_cross_are_of_the_largest_head(chunk: int) -> None:
    torch.manual_seed(chunk)
    length = 23
    query, key = torch.randn(2, 4, length, 8), torch.randn(2, 2, length, 8)
    attention = Attention(query, key, 8**-0.5)
    kind = torch.randint(0, 3, (2, length))
    own, cross = own_and_cross(attention, kind == 1, kind == 2, chunk)
    logits = query.double() @ key.double().repeat_interleave(2, dim=1).mT * 8**-0.5
    whole = logits.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf).softmax(dim=-1).amax(dim=1)
    for row in range(2):
        visual, text = kind[row] == 1, kind[row] == 2
        torch.testing.assert_close(
            own[row].double(), whole[row, visual].sum(dim=0) / visual.sum(), rtol=1e-4, atol=1e-6
        )
        torch.testing.assert_close(cross[row].double(), whole[row, text].sum(dim=0), rtol=1e-4, atol=1e-6)


def test_rows_without_pictures_or_text_give_zero() -> None:
    attention = Attention(torch.randn(1, 2, 5, 4), torch.randn(1, 2, 5, 4), 0.5)
    none = torch.zeros(1, 5, dtype=torch.bool)
    own, cross = own_and_cross(attention, none, none)
    assert not own.any() and not cross.any()


def spared(values: list[float], total: float, alpha: float) -> set[int]:
    """What one distribution can spare, prefix by prefix."""
    order = sorted(range(len(values)), key=lambda i: (values[i], i))
    for length in range(len(values)):
        if sum(values[i] for i in order[length:]) < (1 - alpha) * total:
            return {*order[: max(length - 1, 0)]}
    return {*order[: len(values) - 1]}


@pytest.mark.parametrize("alpha", [0.0, 0.05, 0.3, 0.8, 1.0])
def test_the_fit_spares_the_lowest(alpha: float) -> None:
    torch.manual_seed(1)
    values = torch.rand(3, 14)
    visual = torch.rand(3, 14) < 0.7
    total = (values * visual).sum(dim=1) * torch.tensor([1.0, 1.3, 0.9])
    gone = fitted(values, total, alpha, visual)
    for row in range(3):
        places = visual[row].nonzero()[:, 0].tolist()
        expected = spared(values[row, places].double().tolist(), float(total[row]), alpha)
        found = {places.index(place) for place in gone[row].nonzero()[:, 0].tolist()}
        assert len(found ^ expected) <= (0 if alpha not in (0.0, 1.0) else 1)
        assert len(found) < len(places) and found <= {*range(len(places))}


def test_of_equal_scores_the_first_goes_and_nan_counts_least() -> None:
    visual = torch.tensor([[False, True, True, True, True, True]])
    assert lowest_go(torch.ones(1, 6), visual, [2])[0].nonzero()[:, 0].tolist() == [4, 5]
    scores = torch.tensor([[9.0, 0.1, float("nan"), 0.3, 0.2, 0.3]])
    assert lowest_go(scores, visual, [3])[0].nonzero()[:, 0].tolist() == [3, 4, 5]


@pytest.mark.parametrize(
    ("fields", "present", "schedule", "left"),
    [
        ({"table": (0, 3, 0, 2)}, 12, (2, 4), [9, 7]),
        ({"table": (0, 3, 0, 2)}, 4, (2, 4), [1, 1]),
        ({"table": (0, 3)}, 0, (2,), [0]),
        ({"table": (0.0, 0.25, 0, 0.125)}, 16, (2, 4), [12, 10]),
        ({"table": (0.1, 0.1, 0.1)}, 10, (1, 2, 3), [9, 8, 7]),
        ({"table": (0.04, 0.04)}, 10, (1, 2), [10, 9]),  # what is gone is added up before it is rounded
        ({"table": (0.0, 0.0, 0.0, 1.0)}, 10, (4,), [1]),
        ({"table": (5, 0, 0, 0, 7)}, 16, (1,), [11]),  # the last layer of five
        ({"keep": 0.0625}, 16, (1, 2, 3, 4), [8, 4, 2, 1]),
        ({"keep": 1}, 16, (1, 2, 3, 4), [8, 4, 2, 1]),
        ({"keep": 1.0}, 16, (1, 2, 3, 4), [16, 16, 16, 16]),
    ],
)
def test_tables_and_shares(fields: dict[str, Any], present: int, schedule: tuple, left: list[int]) -> None:
    method = FitPrune(**fields)
    assert method.schedule(5) == schedule
    assert [method.count_at(stage, present) for stage in range(len(left))] == left
    assert "table" not in fields or len(fields["table"]) == 5 or method.count(present) == left[-1]
    assert method.watch(5).attention == tuple(layer - 1 for layer in schedule)


def test_one_object_serves_models_of_several_depths() -> None:
    method = FitPrune(keep=0.25)
    with pytest.raises(ValueError, match="call schedule"):
        method.count_at(0, 9)
    (first,), (second,) = method.split(), method.split()
    assert len(first.schedule(3)) == 2 and len(second.schedule(5)) == 4
    assert first.count_at(0, 16) == 8 and second.count_at(0, 16) == 11
    assert first == method


@pytest.mark.parametrize("name", ["ragged", "several_images"])
def test_in_a_model_the_lowest_of_the_layers_own_attention_go(name: str) -> None:
    family, model = EVERY["llava"], model_of("llava", "eager")
    inputs = family.inputs(model, scenario(family, name))
    with torch.no_grad():
        attentions = model(**inputs, output_attentions=True).attentions
        with vtc.patched(model, "fitprune:table=(0,0,5)"):
            model(**inputs)
            trace = vtc.trace(model)
    whole = attentions[2].double().amax(dim=1)
    visual = inputs["input_ids"] == model.config.image_token_id
    for row in range(len(whole)):
        places = visual[row].nonzero()[:, 0]
        own = whole[row, places].sum(dim=0)
        cross = whole[row, int(places[-1]) + 1 :].sum(dim=0)
        gone = places[(own * cross)[places].topk(5, largest=False).indices]
        kept = [image.source.positions[image.kept(3)] for image in trace.images if image.row == row]
        assert sorted(torch.cat(kept).tolist()) == sorted({*places.tolist()} - {*gone.tolist()})
        assert trace.tokens_per_layer[:, row].tolist() == [len(places)] * 3 + [len(places) - 5] * 2


def test_a_table_is_calibrated_to_a_target() -> None:
    family, model = EVERY["llava"], model_of("llava")
    batches = [family.inputs(model, scenario(family, name)) for name in ("ragged", "text_row", "several_images")]
    whole = measure(model, "none", batches)
    spec, measured = vtc.calibrate(model, "fitprune", "table", iter(batches), 0.7 * whole)
    assert spec.startswith("fitprune:table=(") and " " not in spec
    assert measured == measure(model, spec, batches) and abs(measured - 0.7 * whole) < 0.1 * whole
    assert not hasattr(model, "_vtc_seam")
    with pytest.raises(OutOfReach, match="out of reach"):
        vtc.calibrate(model, "fitprune", "table", batches, 2 * whole)
    spec, _ = vtc.calibrate(model, "divprune:keep=0.5+fitprune", "table", batches, 0.35 * whole)
    assert spec.startswith("divprune:keep=0.5+fitprune:table=(")


def test_the_fit_is_the_published_loop() -> None:
    """One pass by hand: each layer held to the totals of the whole model, with earlier tokens gone."""
    family, model, alpha = EVERY["llava"], model_of("llava"), 0.4
    batches = [family.inputs(model, scenario(family, "single"))]
    totals: dict[int, tuple] = {}
    removed: list[int] = []

    class Whole(FitPrune):
        adaptive = True

        def split(self):
            return (self,)

        def decide(self, rows: Rows, counts, memory):
            values = [memory[name][0][rows.visual[0]].double().tolist() for name in ("own", "cross")]
            if len(totals) < 4:
                totals[rows.layer] = tuple(map(sum, values))
                return vtc.Decision(rows.visual)
            gone = set.intersection(*(spared(v, t, alpha) for v, t in zip(values, totals[rows.layer])))
            removed.append(len(gone))
            places, alive = rows.visual[0].nonzero()[:, 0], rows.visual.clone()
            alive[0, places[list(gone)]] = False
            return vtc.Decision(alive)

    with torch.no_grad(), vtc.patched(model, Whole()):
        model(**batches[0])
        model(**batches[0])
    table = FitPrune().dial("table", BatchTrials(model, [], [], batches))(alpha)
    tokens = int((batches[0]["input_ids"] == model.config.image_token_id).sum())
    assert sum(removed) > 0 and [round(share * tokens, 2) for share in table] == pytest.approx(removed, abs=0.01)


@pytest.mark.parametrize(
    ("table", "error", "message"),
    [
        ((), ValueError, "table=.* is empty"),
        (5, TypeError, "table=5 is a int, not a tuple"),
        ((0, -1), ValueError, r"table\[1\]=-1 is no count or share"),
        ((0, "a"), TypeError, r"table\[1\]='a' is a str"),
        ((0, True), TypeError, r"table\[1\]=True is a bool"),
        ((0.5, 3), ValueError, "mixes counts and shares"),
        ((0.5, 0.6), ValueError, "takes more than all tokens"),
        ((0, 0), ValueError, "takes no token"),
        ((float("nan"),), ValueError, r"table\[0\]=nan"),
    ],
)
def test_bad_tables_are_refused(table: Any, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        FitPrune(table=table)


def test_a_table_of_another_depth_is_refused() -> None:
    with pytest.raises(ValueError, match="table has 6 entries, and the model 5 layers; calibrate one"):
        vtc.patch(model_of("llava"), "fitprune:table=(0,0,0,0,0,3)")
    with pytest.raises(ValueError, match="in the last layer alone"):
        vtc.patch(model_of("llava"), "fitprune:table=(0,0,0,0,3)")
