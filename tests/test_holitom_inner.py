"""HoliTom's inner merging: its mathematics against a loop over tokens, and in models."""

import pytest
import torch
from contract import EVERY, each_alone, model_of
from families import scenario
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing import assert_close

import vtc
from vtc.method.prune import Decision, Rows
from vtc.prunes.attention.fastv import FastV
from vtc.prunes.holitom_inner import HoliTomInner, halve_into, nearest_kept


def merged_one_by_one(hidden: Tensor, score: Tensor, visual: Tensor, keep: int) -> tuple[Tensor, dict[int, int]]:
    """One row [n, D] as the words say it: token by token, in float64."""
    places = visual.nonzero()[:, 0].tolist()
    ranked = sorted(places, key=lambda place: (-float(score[place]), place))[:keep]
    new, into = hidden.double().clone(), {}
    unit = torch.nn.functional.normalize(hidden.double(), dim=-1)
    for place in places:
        if place not in ranked:
            into[place] = ranked[int((unit[ranked] @ unit[place]).argmax())]
    for place in sorted(into):
        new[into[place]] = (new[into[place]] + new[place]) / 2
    return new, into


def rows_of(seed: int, visual: list[int], first: bool = False, text: int = 3, length: int = 40) -> Rows:
    """Rows of `visual` visual tokens, between text and padded on the left with NaN; or `first`, and text behind."""
    gen = torch.Generator().manual_seed(seed)
    hidden = torch.randn(len(visual), length, 6, generator=gen)
    valid, marks = torch.zeros(2, len(visual), length, dtype=torch.bool)
    for row, count in enumerate(visual):
        start = 0 if first else length - count - text
        valid[row, max(start - text, 0) :] = True
        marks[row, start : start + count] = True
    hidden[~valid] = float("nan")
    return Rows(layer=2, hidden=hidden, visual=marks, valid=valid, instruction=valid & ~marks)


def decided(rows: Rows, counts: list[int], score: Tensor) -> Decision:
    return HoliTomInner(layer=2).decide(rows, counts, {"attention": score})


@pytest.mark.parametrize("visual", [[30], [12, 30, 1, 0, 7], [34, 34]])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_merging_is_the_running_halving(visual: list[int], first: bool, seed: int) -> None:
    rows, method = rows_of(seed, visual, first), HoliTomInner(keep=0.2)
    score = torch.rand(rows.visual.shape, generator=torch.Generator().manual_seed(seed)).mul(8).round()  # with ties
    counts = [method.count(count) for count in visual]
    decision = decided(rows, counts, score)
    assert decision.alive.sum(dim=1).tolist() == counts
    for row, count in enumerate(counts):
        new, into = merged_one_by_one(rows.hidden[row], score[row], rows.visual[row], count)
        seen = {place: target for place, target in enumerate(decision.into[row].tolist()) if target >= 0}
        assert seen == into
        on = decision.alive[row] | (rows.valid[row] & ~rows.visual[row])
        assert_close(decision.hidden[row, on].double(), new[on], rtol=0, atol=1e-6)
        still = rows.valid[row] & ~torch.isin(torch.arange(len(on)), torch.tensor([*into.values()]))
        assert torch.equal(decision.hidden[row, still], rows.hidden[row, still])


def test_the_later_of_many_dropped_tokens_weighs_more() -> None:
    hidden = torch.eye(5)[None]
    into = torch.tensor([[2, 2, -1, 2, -1]])
    expected = torch.tensor([1 / 8, 1 / 4, 1 / 8, 1 / 2, 0.0])
    assert torch.equal(halve_into(hidden, into)[0, 2], expected)
    many = halve_into(torch.ones(1, 1000, 2), torch.tensor([[-1] + [0] * 999]))
    assert_close(many[0, 0], torch.ones(2))


def test_equal_similarities_go_to_the_best_scored() -> None:
    hidden = torch.ones(1, 6, 4)
    score = torch.tensor([[0.0, 3.0, 5.0, 5.0, 1.0, 9.0]])
    visual = torch.tensor([[True] * 5 + [False]])
    alive = torch.tensor([[False, True, True, True, False, False]])
    into = nearest_kept(hidden, score, alive, visual & ~alive, [3])
    assert into.tolist() == [[2, -1, -1, -1, 2, -1]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    rows = rows_of(0, [30])
    rows.hidden = rows.hidden.to(dtype)
    score = torch.rand(1, 40, generator=torch.Generator().manual_seed(1))
    decision = decided(rows, [3], score)
    assert decision.hidden.dtype == dtype
    exact = halve_into(rows.hidden.double(), decision.into)
    kept = decision.alive
    assert_close(decision.hidden[kept], exact[kept].to(dtype), rtol=torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_values_without_direction_or_rank_never_lead_astray(bad: float) -> None:
    rows = rows_of(0, [30, 20])
    rows.hidden[:, ::2] = bad
    score = torch.rand(2, 40, generator=torch.Generator().manual_seed(1))
    score[:, ::3] = bad
    decision = decided(rows, [6, 2], score)
    dropped = rows.visual & ~decision.alive
    assert decision.alive.sum(dim=1).tolist() == [6, 2]
    assert torch.equal(decision.into >= 0, dropped)
    assert decision.alive.gather(1, decision.into.clamp_min(0))[dropped].all()


def test_deciding_never_waits_for_the_device() -> None:
    with FakeTensorMode():  # tensors without values: whoever asks for one fails
        hidden, score = torch.randn(2, 40, 6, dtype=torch.bfloat16), torch.rand(2, 40)
        visual = score > 0.5
        rows = Rows(layer=2, hidden=hidden, visual=visual, valid=~visual, instruction=~visual)
        decision = decided(rows, [3, 5], score)
    assert decision.hidden.shape == hidden.shape and decision.into.shape == visual.shape


def test_it_acts_where_published_and_leaves_one() -> None:
    method = HoliTomInner()
    assert (method.schedule(28), method.watch(28).attention, method.watch(28).open) == ((18,), (17,), ())
    assert HoliTomInner(causal=False, layer=3).watch(28).open == (2,)
    assert method.schedule(2) == (1,)
    assert [method.count(n) for n in (0, 1, 2, 3, 5, 160)] == [0, 1, 1, 2, 2, 80]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"layer": 0}, ("layer=0", "1 or more")),
        ({"layer": 2.0}, ("layer=2.0", "not an int")),
        ({"causal": 1}, ("causal=1", "True or False")),
        ({"keep": 0.0}, ("keep=0.0", "share")),
    ],
)
def test_bad_fields_are_named(fields: dict, words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        HoliTomInner(**fields)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_5_vl"])
@pytest.mark.parametrize("causal", [True, False])
def test_in_a_batch_each_row_equals_its_own_run(family: str, causal: bool) -> None:
    model, method = model_of(family), HoliTomInner(keep=0.3, layer=2, causal=causal)
    for name in ("ragged", "several_images"):
        rows = scenario(EVERY[family], name)
        inputs = EVERY[family].inputs(model, rows)
        with torch.no_grad(), vtc.patched(model, method):
            together = model(**inputs).logits[:, -1]
            trace = vtc.trace(model)
            for row, alone in enumerate(each_alone(EVERY[family], model, rows)):
                assert_close(together[row], model(**alone).logits[0, -1], atol=2e-4, rtol=1e-4)
        for row, present in enumerate(trace.original_tokens.tolist()):
            images = [image for image in trace.images if image.row == row]
            assert sum(len(image.kept()) for image in images) == method.count(present)


def test_it_keeps_what_fastv_keeps_and_says_where_the_others_went() -> None:
    model = model_of("llava")
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "single"))
    with torch.no_grad():
        with vtc.patched(model, FastV(layer=2, keep=0.5)):
            dropped, fastv = model(**inputs).logits, vtc.trace(model).images[0]
        with vtc.patched(model, HoliTomInner(layer=2, keep=0.5)):
            merged, image = model(**inputs).logits, vtc.trace(model).images[0]
        with vtc.patched(model, HoliTomInner(layer=2, keep=0.5, causal=False)):
            opened = model(**inputs).logits
    assert torch.equal(image.kept(), fastv.kept())
    gone = torch.ones(16, dtype=torch.bool).index_fill(0, image.kept(), False)
    assert torch.equal(image.merged_into() >= 0, gone)
    assert set(image.merged_into()[gone].tolist()) <= set(image.kept().tolist())
    assert (merged[:, -1] - dropped[:, -1]).abs().max() > 1e-3
    assert (merged[:, -1] - opened[:, -1]).abs().max() > 1e-3


def test_a_text_row_runs_as_it_is_beside_one_that_is_merged() -> None:
    model = model_of("llava")
    rows = scenario(EVERY["llava"], "text_row")
    inputs = EVERY["llava"].inputs(model, rows)
    (text,) = [row for row, one in enumerate(rows) if not one.images]
    with torch.no_grad():
        untouched = model(**inputs).logits[text, -1]
        for causal in (True, False):
            with vtc.patched(model, HoliTomInner(layer=2, keep=0.5, causal=causal)):
                assert_close(model(**inputs).logits[text, -1], untouched, atol=1e-5, rtol=1e-4)
