"""What holds for atp and atp_tf: scores, the grid, thresholds, counts, and what a model makes of them."""

import json
from itertools import pairwise
from typing import Any

import pytest
import torch
from contract import EVERY, each_alone, model_of
from families import scenario
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc.attention.scores import Attention
from vtc.method.prune import Rows
from vtc.model.layout import Grid, VisualInput
from vtc.prunes.attention.atp import ATP, above, redundancy, thresholds, to_json
from vtc.prunes.attention.atp_scores import attention_scores, grid_points, queries_that_see, rescaled, stride_for
from vtc.prunes.attention.atp_tf import ATPTrainingFree, enough, ranked

torch.set_num_threads(1)
LAYERS = (1, 2, 3)


def weights_file(folder: Any, redundant: float, spatial: float) -> str:
    """Weights whose thresholds are sigmoid(redundant) and sigmoid(spatial), whatever is seen."""
    file = folder / f"{redundant}{spatial}.json"
    weights = torch.zeros(3, 2, 4)
    weights[:, 0, 3], weights[:, 1, 3] = redundant, spatial
    file.write_text(json.dumps({"modules": to_json(weights)}))
    return str(file)


def picture(h: int, w: int, row: int = 0, start: int = 0, **more: Any) -> VisualInput:
    grid = Grid(0, 1, h, w, **more)
    return VisualInput(row, "image", torch.arange(start, start + len(grid)), (grid,))


# ---------------------------------------------------------------- scores


@pytest.mark.parametrize("mask", ["causal", "window", "padding", "both ways"])
@pytest.mark.parametrize("chunk", [3, 256])
def test_scores_are_the_column_means_of_the_whole_map(mask: str, chunk: int) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 4, 9, 8), torch.randn(2, 2, 9, 8)
    place = torch.arange(9)
    seen = (place <= place[:, None]).expand(2, 9, 9)
    given: dict[str, Any] = {}
    if mask == "window":
        given["window"] = 3
        seen = seen & (place > place[:, None] - 3)
    elif mask == "padding":
        seen = seen & (place >= torch.tensor([[[0]], [[2]]]))
        given["mask"] = torch.zeros(2, 1, 9, 9).masked_fill(~seen[:, None], torch.finfo(torch.float32).min)
    elif mask == "both ways":
        given["causal"] = False
        seen = torch.ones(2, 9, 9, dtype=torch.bool)
    logits = query @ key.repeat_interleave(2, dim=1).transpose(2, 3) * 0.3
    whole = logits.masked_fill(~seen[:, None], -torch.inf).softmax(dim=3).nan_to_num(0.0).mean(dim=1)
    visual = (place >= 2) & (place < 6) | torch.zeros(2, 1, dtype=torch.bool)
    text = (place >= 6).expand(2, 9)
    attention = Attention(query, key, 0.3, **given)
    from_visual, from_text = attention_scores(attention, visual, text[:, -4:])
    seers = (seen & visual[:, :, None]).sum(dim=1)
    assert_close(queries_that_see(attention, visual, chunk), seers.float())
    expected = (whole * visual[:, :, None]).sum(dim=1) / seers.clamp_min(1)
    assert_close(from_visual, expected)
    assert_close(from_text, whole[:, 6:].mean(dim=1))


def test_rescaling_is_over_the_visual_tokens_of_each_row() -> None:
    values = torch.tensor([[9.0, 1.0, 3.0, 2.0], [0.5, 0.5, 0.5, 7.0]])
    visual = torch.tensor([[False, True, True, True], [True, True, True, False]])
    assert_close(rescaled(values, visual), torch.tensor([[0.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.0, 0.0]]))
    assert (rescaled(values, torch.zeros_like(visual)) == 0).all()


# ---------------------------------------------------------------- the grid


def test_points_are_places_of_the_picture_whatever_is_left() -> None:
    """4 x 4 with newlines behind text of 2 tokens; the second row of the batch has 2 rows of 3, and fewer tokens."""
    images = (picture(4, 4, start=2, row_end=1, end=1), picture(2, 3, row=1, start=1))
    origin = torch.tensor([[0, 1, *range(2, 23), 23], [*range(1, 7), *range(7, 25)]])
    points = grid_points(images, origin, [2, 2])
    assert origin[0, points[0]].tolist() == [2, 4, 12, 14]  # cells (0, 0), (0, 2), (2, 0), (2, 2); rows are 5 long
    assert origin[1, points[1]].tolist() == [1, 3]
    left = origin[:1, [0, 3, 4, 12, 13, 23]]
    assert grid_points(images, left.expand(2, -1), [2, 0]).nonzero().tolist() == [[0, 2], [0, 3]]
    assert [stride_for(576, 144), stride_for(4, 1), stride_for(5, 9), stride_for(12, 0)] == [2, 2, 1, 3]


def test_one_of_both_thresholds_is_enough_and_equal_is_not() -> None:
    points = grid_points((picture(4, 4),), torch.arange(16)[None], [2])
    redundant = torch.zeros(1, 16)
    redundant[0, [1, 2, 15]] = torch.tensor([0.6, 0.5, 0.9])
    assert above(redundant, points, torch.tensor([[0.5, 0.2]])).nonzero()[:, 1].tolist() == [0, 1, 2, 8, 10, 15]
    assert above(redundant, points, torch.tensor([[0.5, 0.25]])).nonzero()[:, 1].tolist() == [1, 15]


def test_thresholds_at_the_ends() -> None:
    torch.manual_seed(0)
    visual = torch.ones(2, 9, dtype=torch.bool)
    scores, other = torch.rand(2, 9), torch.rand(2, 9)
    redundant, *_ = redundancy(scores, scores, visual)
    points = torch.zeros_like(visual)
    least = torch.zeros(2, 9, dtype=torch.bool).scatter(1, scores.argmin(dim=1)[:, None], True)
    assert torch.equal(above(redundant, points, torch.zeros(2, 2)), ~least)
    assert not above(redundant, points, torch.ones(2, 2)).any()
    mixed, first, second = redundancy(scores, other, visual)
    assert_close(mixed, (rescaled(scores, visual) + rescaled(other, visual)) / 2)
    theta = thresholds(torch.tensor([[1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]), first, second, torch.tensor(0.5))
    expected = torch.sigmoid(rescaled(scores, visual).mean(1) + 2 * rescaled(other, visual).mean(1) + 3 * 0.6931472 + 4)
    assert_close(theta, torch.stack([expected, torch.full((2,), 0.5)], dim=1))


# ---------------------------------------------------------------- counts without training


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.1, 0.2, 0.5, 1.0]), min_size=1, max_size=12), st.integers(0, 999))
def test_more_mass_keeps_more_and_the_fewest_that_do(values: list[float], seed: int) -> None:
    torch.manual_seed(seed)
    scores = torch.tensor([values]) * torch.rand(1, len(values))
    visual = torch.rand(1, len(values)) > 0.3
    counts = [int(enough(scores, visual, mass / 10, 0.0, 1.0)) for mass in range(11)]
    assert counts == sorted(counts) and counts[0] >= 0 and counts[-1] <= int(visual.sum())
    ordered = scores[0, visual[0]].sort(descending=True).values
    for mass, count in enumerate(counts):
        if count:
            assert ordered[:count].sum() >= mass / 10 * ordered.sum() - 1e-6
            assert count == 1 or ordered[: count - 1].sum() < mass / 10 * ordered.sum() + 1e-6


def test_limits_of_the_count() -> None:
    flat, visual = torch.ones(1, 10), torch.ones(1, 10, dtype=torch.bool)
    assert int(enough(flat, visual, 0.0, 0.25, 0.9)) == 3
    assert int(enough(flat, visual, 1.0, 0.05, 0.55)) == 5
    assert int(enough(flat, visual, 0.45, 0.05, 0.9)) == 5


def test_grid_first_then_score_then_place() -> None:
    scores = torch.tensor([[0.0, 3.0, 5.0, 3.0, float("nan"), 9.0]])
    visual = torch.tensor([[False, True, True, True, True, True]])
    first = torch.tensor([[True, False, False, True, True, False]])
    assert ranked(scores, first, visual).tolist() == [[5, 4, 3, 0, 1, 2]]


@pytest.mark.parametrize(("h", "w"), [(4, 4), (1, 5), (3, 7)])
def test_fixed_counts_are_exact_and_hold_the_grid(h: int, w: int) -> None:
    torch.manual_seed(0)
    image, n = picture(h, w, start=1), h * w + 3
    visual = torch.zeros(1, n, dtype=torch.bool)
    visual[0, 1 : h * w + 1] = True
    rows = Rows(2, torch.zeros(1, n, 4), visual, torch.ones_like(visual), ~visual, images=(image,),
                origin=torch.arange(n)[None])  # fmt: skip
    memory = {"self": torch.rand(1, n), "cross": torch.rand(1, n)}
    for k in range(1, h * w):
        alive = ATPTrainingFree(keep=k).decide(rows, [k], memory).alive
        assert int(alive.sum()) == k and not (alive & ~visual).any()
        points = grid_points((image,), rows.origin, [stride_for(h * w, k // 4)] if k >= 4 else [0])  # type: ignore
        assert (alive & points).sum() == min(k, int(points.sum()))


# ---------------------------------------------------------------- in a model


def run(method: Any, family: str = "llava", name: str = "ragged", rows: Any = None) -> tuple[Tensor, vtc.Trace]:
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], name) if rows is None else rows)
    with torch.no_grad(), vtc.patched(model, method):
        logits = model(**inputs).logits[:, -1]
        return logits, vtc.trace(model)


def dense(family: str, name: str = "ragged") -> Tensor:
    model = model_of(family)
    with torch.no_grad():
        return model(**EVERY[family].inputs(model, scenario(EVERY[family], name))).logits[:, -1]


METHODS = [
    ATP(keep=0.1, layers=LAYERS),
    ATP(keep=2, layers=LAYERS),
    ATPTrainingFree(keep=0.3, layers=LAYERS),
    ATPTrainingFree(keep=None, mass=0.5, layers=LAYERS),
]


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("name", ["ragged", "several_images", "text_row"])
def test_survivors_are_nested_and_rows_are_as_alone(family: str, method: Any, name: str) -> None:
    logits, trace = run(method, family, name)
    for image in trace.images:
        kept = [set(image.kept(layer).tolist()) for layer in (0, *LAYERS)]
        assert kept[0] == set(range(len(image.source)))
        assert all(after <= before for before, after in pairwise(kept))
    assert (trace.tokens_per_layer[-1] < trace.tokens_per_layer[0]).any()
    model = model_of(family)
    for row, alone in enumerate(each_alone(EVERY[family], model, scenario(EVERY[family], name))):
        with torch.no_grad(), vtc.patched(model, method):
            assert_close(model(**alone).logits[0, -1], logits[row], atol=2e-5, rtol=1e-4)
            assert_close(vtc.trace(model).tokens_per_layer[:, 0], trace.tokens_per_layer[:, row])


@pytest.mark.parametrize("family", ["llava", "llava_next"])
def test_what_keeps_all_is_as_untouched(family: str) -> None:
    for method in (ATP(keep=1.0), ATP(keep=10_000), ATPTrainingFree(keep=1.0), ATPTrainingFree(None, 1.0, 1.0, 1.0)):
        method.layers = LAYERS
        logits, trace = run(method, family)
        assert (trace.tokens_per_layer == trace.tokens_per_layer[0]).all()
        assert_close(logits, dense(family), atol=1e-6, rtol=1e-5)
    assert not ATP(keep=1.0).adaptive and ATP(keep=1).adaptive and not ATPTrainingFree(keep=1.0).adaptive


def test_counts_of_the_fixed_budget() -> None:
    _, trace = run(ATPTrainingFree(keep=0.125, layers=LAYERS))
    assert trace.tokens_per_layer[:, 0].tolist()[:4] == [16, 8, 4, 2]
    assert [ATPTrainingFree(keep=64).count_at(stage, 576) for stage in range(3)] == [276, 133, 64]
    assert ATPTrainingFree().schedule(32) == ATP().schedule(32) == (5, 15, 25)
    assert ATPTrainingFree().schedule(24) == (4, 11, 19) and ATP().schedule(8) == (1, 4, 6)


def test_thresholds_decide_in_the_model(tmp_path: Any) -> None:
    """theta_r = 1 leaves the grid while theta_s lets it, and nothing else; theta_r = 0 all but the lowest."""
    _, trace = run(ATP(weights=weights_file(tmp_path, 30.0, -3.0), layers=LAYERS))
    for image in trace.images:
        assert image.kept(1).tolist() == image.kept().tolist() == [0, 2, 8, 10]
    logits, trace = run(ATP(weights=weights_file(tmp_path, 30.0, 3.0), layers=LAYERS))
    assert (trace.tokens_per_layer[1:] == 0).all() and logits.isfinite().all()
    _, trace = run(ATP(weights=weights_file(tmp_path, -120.0, 3.0), layers=LAYERS))
    assert ((trace.tokens_per_layer[:3] - trace.tokens_per_layer[1:4]) <= 1).all()


def test_a_smaller_share_keeps_less_on_the_model_that_the_weights_are_of() -> None:
    from vtc.eval import embedded, models

    loaded = models.load("embedded", None, "cpu", None)
    samples = embedded.benchmark(9, "validation")
    inputs = loaded.inputs([[s.image] for s in samples], [s.question for s in samples])
    means = []
    for keep in (0.5, 0.25, 0.125):
        with torch.no_grad(), vtc.patched(loaded.model, ATP(keep=keep)):
            loaded.model(**inputs)
            layers = list(ATP().schedule(8))
            shares = vtc.trace(loaded.model).tokens_per_layer[layers].double().mean(dim=0) / 256
        assert shares.unique().numel() > 1  # pictures and questions differ
        means.append(float(shares.mean()))
    assert means[0] > means[1] > means[2]
    assert all(0.6 < mean / keep < 1.6 for mean, keep in zip(means, (0.5, 0.25, 0.125)))


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: ATP(keep=None), "keep=None"),  # type: ignore[arg-type]
        (lambda: ATP(keep=1.5), "keep=1.5"),
        (lambda: ATP(weights="no/such.json"), "weights='no/such.json'"),
        (lambda: ATP(weights=3), "weights=3"),  # type: ignore[arg-type]
        (lambda: ATP(layers=(3, 2, 1)), "ascending"),
        (lambda: ATP(layers=(3, 5)), "3 layers"),
        (lambda: ATPTrainingFree(mass=1.5), "mass=1.5"),
        (lambda: ATPTrainingFree(min_share=0.8, max_share=0.2), "min_share=0.8"),
        (lambda: ATPTrainingFree(layers=()), "empty"),
    ],
)
def test_bad_fields_are_named(make: Any, text: str) -> None:
    with pytest.raises((ValueError, TypeError), match=text):
        make()


BAD_FILES = {
    "empty": "",
    "a list": "[]",
    "one head": '{"modules": [{"redundancy": [1, 2, 3, 4]}]}',
    "one number": '{"modules": [{"redundancy": [1], "spatial": [2]}]}',
}


@pytest.mark.parametrize("text", BAD_FILES.values(), ids=BAD_FILES)
def test_a_file_that_holds_no_thresholds_is_refused(text: str, tmp_path: Any) -> None:
    file = tmp_path / "weights.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="train-atp"):
        ATP(weights=str(file))
