"""VTW: the same as an exact removal, and the searches for its layer."""

import pytest
import torch
from contract import EVERY, model_of, stepwise
from families import scenario

import vtc
from vtc.planning.calibrate import measure
from vtc.planning.fit import divergences, fit_vtw
from vtc.planning.solve import OutOfReach
from vtc.prunes.vtw import VTW, candidates, divergence


@pytest.fixture(scope="module")
def batches():
    family = EVERY["llava"]
    return [
        family.inputs(model_of("llava"), scenario(family, name)) for name in ("ragged", "several_images", "text_row")
    ]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
@pytest.mark.parametrize("name", ["ragged", "several_images", "text_row"])
@pytest.mark.parametrize("layer", [1, 3])
def test_it_is_a_fastv_that_keeps_nothing(family: str, name: str, layer: int) -> None:
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], name))
    found = []
    for spec in (f"vtw:layer={layer}", f"fastv:layer={layer},keep=1e-9"):
        with torch.no_grad(), vtc.patched(model, spec):
            logits = model(**inputs).logits
            found.append((logits, vtc.trace(model).tokens_per_layer, stepwise(model, inputs, new=3).sequences))
    (logits, tokens, new), (other, others, again) = found
    assert torch.equal(logits, other) and torch.equal(tokens, others) and torch.equal(new, again)
    assert not tokens[layer:].any() and torch.equal(tokens[layer - 1], tokens[0])


def test_the_layer_is_scaled_to_the_depth() -> None:
    assert VTW().schedule(32) == (15,) and VTW().schedule(4) == (2,) and VTW(layer=7).schedule(32) == (7,)
    assert candidates(32) == range(5, 32) and candidates(5) == range(1, 5)
    assert VTW().count(576) == VTW().count_at(0, 576) == 0


def test_the_plan_is_what_the_page_says() -> None:
    plan = vtc.plan(model_of("llava"), "vtw:layer=2", text_tokens=10, visual_tokens=12)
    assert plan.tokens_per_layer.tolist() == [12, 12, 0, 0, 0]


def test_calibrating_by_tokens_finds_the_nearest_layer(batches) -> None:
    model = model_of("llava")
    whole = measure(model, "none", batches)
    for layer in (1, 2, 4):
        spec, measured = vtc.calibrate(model, "vtw", "layer", batches, whole * layer / 5)
        assert spec == f"vtw:layer={layer}" and measured == pytest.approx(whole * layer / 5)
    spec, _ = vtc.calibrate(model, "divprune:keep=0.5+vtw", "layer", batches, whole / 2 * 3 / 5)
    assert spec == "divprune:keep=0.5+vtw:layer=3"


def test_the_divergence_is_of_the_cut_from_the_whole() -> None:
    full, cut = torch.randn(3, 9), torch.randn(3, 9)
    expected = torch.nn.functional.kl_div(full.log_softmax(-1), cut.softmax(-1), reduction="batchmean")
    torch.testing.assert_close(divergence(full, cut), expected)
    assert divergence(full, full).abs() < 1e-7


def test_the_search_takes_the_first_layer_below_the_threshold(batches) -> None:
    model = model_of("llava")
    found = divergences(model, batches)
    assert list(found) == [1, 2, 3, 4]
    expected, total = 0.0, 0
    with torch.no_grad():
        for batch in batches:
            full = model(**batch).logits[:, -1]
            with vtc.patched(model, "vtw:layer=3"):
                cut = model(**batch).logits[:, -1]
                shows = vtc.trace(model).original_tokens > 0
            expected += float(divergence(full[shows], cut[shows])) * int(shows.sum())
            total += int(shows.sum())
    assert found[3] == pytest.approx(expected / total, rel=1e-4)
    threshold = 1.0001 * min(found.values())
    first = next(layer for layer, value in found.items() if value < threshold)
    assert fit_vtw(model, iter(batches), threshold) == f"vtw:layer={first}"
    assert fit_vtw(model, batches, 1e9) == "vtw:layer=1"
    with pytest.raises(OutOfReach, match=r"unchanged=0.0 is out of reach: the least divergence is"):
        fit_vtw(model, batches, 0.0)


def test_bad_layers_are_refused() -> None:
    with pytest.raises(ValueError, match="layer=0 is below 1; give 1 or more, or None"):
        VTW(layer=0)
    with pytest.raises(ValueError, match="out of range"):
        vtc.patch(model_of("llava"), "vtw:layer=9")
    with pytest.raises(ValueError, match="no keep to solve for"):
        vtc.solve(model_of("llava"), "vtw", "tokens=5", text_tokens=10, visual_tokens=12)
