"""Plans from shapes alone equal what runs do, and solved specs meet their targets."""

import pytest
import torch
from contract import EVERY, model_of, state_of
from covering import product
from families import scenario

import vtc
from vtc.eval import embedded
from vtc.planning.plan import plan
from vtc.planning.solve import solve

SPECS = (
    "none",
    "divprune:keep=0.4",
    "divprune:keep=0.6+fastv:layer=2,keep=3",
    "fastv:layer=1,keep=0.7+transprune:keep=0.2,layers=(2,3,4)",
    "tome:keep=0.5",
    "diffrate:keep=0.4+fastv:layer=3,keep=0.5",
    "zero_tprune:keep=0.4,layers=(1,2)",
    "token_transforming:keep=0.3",
)


def run(model, spec, inputs):
    with torch.no_grad(), vtc.patched(model, spec):
        model(**inputs)
        return vtc.trace(model)


def prompt_of(name, which="single", row=0):
    """A row's inputs, and what a plan is to be told of it."""
    family, model = EVERY[name], model_of(name)
    rows = scenario(family, which)[row : row + 1]
    inputs = family.inputs(model, rows)
    (sizes,) = family.visual_tokens(rows)
    shapes = {"visual_tokens": sizes[0], "images": len(sizes)}
    shapes["text_tokens"] = int(inputs["attention_mask"].sum()) - sum(sizes)
    if hasattr(family, "pinpoints"):
        shapes["crops"] = inputs["pixel_values"].shape[1]
    return model, inputs, shapes


def assert_same(planned, trace):
    assert planned.tokens_per_layer.tolist() == trace.tokens_per_layer[:, 0].tolist()
    assert planned.equivalent_tokens == pytest.approx(trace.equivalent_tokens.item())
    expected, flops = trace.flops(), planned.flops()
    for part in ("decoder", "tower", "unpatched_decoder", "unpatched_tower"):
        assert getattr(flops, part) == pytest.approx(getattr(expected, part), rel=0.01), part
    assert planned.decoder_share == pytest.approx(expected.decoder / expected.unpatched_decoder, rel=0.01)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl", "qwen3_vl", "internvl", "gemma3", "mistral3"])
def test_a_plan_equals_a_run(name, spec):
    model, inputs, shapes = prompt_of(name, "ragged")
    assert_same(plan(model, spec, **shapes), run(model, spec, inputs))


@pytest.mark.parametrize("spec", ["divprune:keep=0.4", "test-norm:keep=0.3"])
@pytest.mark.parametrize("name", ["llava_next", "llava_onevision"])
def test_tiles_are_told_by_crops(name, spec):
    model, inputs, shapes = prompt_of(name, "ragged")
    assert_same(plan(model, spec, **shapes), run(model, spec, inputs))
    del shapes["crops"]
    assert plan(model, spec, **shapes).decoder_share < 1
    with pytest.raises(ValueError, match=r"crops=.*decoder=0.2"):
        plan(model, spec, **shapes).flops()


@pytest.mark.parametrize("spec", ["divprune:keep=0.4+fastv:keep=0.3", "tome:keep=5"])
def test_several_images_have_one_budget_each_and_prunes_one_for_all(spec):
    model, inputs, shapes = prompt_of("llava", "several_images")
    assert shapes["images"] == 2
    assert_same(plan(model, spec, **shapes), run(model, spec, inputs))


def test_tokens_that_skip_a_layer_are_there_again_behind_it():
    model, inputs, shapes = prompt_of("llava")
    spec = "token_skip:keep=0.25,dense=1"
    assert plan(model, spec, **shapes).tokens_per_layer.tolist() == [16, 4, 4, 4, 16]
    spec = "token_skip:keep=0.25,dense=2+test-norm:keep=8,layer=3"
    assert plan(model, spec, **shapes).tokens_per_layer.tolist() == [16, 16, 4, 8, 8]
    assert_same(plan(model, spec, **shapes), run(model, spec, inputs))


def test_a_plan_reads_in_two_lines():
    model, _, shapes = prompt_of("llava")
    lines = str(plan(model, "divprune:keep=0.5", **shapes)).splitlines()
    assert lines[0] == "plan of divprune:keep=0.5: 16 -> 8 visual tokens (equivalent 8.0)"
    assert "GFLOP" in lines[1] and "decoder" in lines[1]
    assert "GFLOP" not in str(plan(model, "flowcut:keep=0.5", **shapes))


# ---------------------------------------------------------------- solving


@pytest.fixture(scope="module")
def small():
    """The embedded model, inputs of one question, and its text tokens."""
    model, processor = embedded.load()
    sample = embedded.benchmark(1)[0]
    text = embedded.prompt(processor, sample.question)
    inputs = processor(images=sample.image, text=text, return_tensors="pt")
    return model, inputs, inputs["input_ids"].shape[1] - 256


@pytest.mark.parametrize(
    ("spec", "target"),
    [
        ("divprune+transprune", "flops=0.6"),
        ("divprune+transprune", "tokens=64"),
        ("divprune:keep=0.5+transprune", "decoder=0.45"),
        ("divprune", "flops=0.5"),
        ("divprune", "tokens=64"),
        ("fastv", "tokens=96"),
        ("fastv+pyramiddrop:layers=(4,6)", "tokens=128"),
        ("tome", "flops=0.3"),
        ("tome+fastv", "flops=0.4"),
        ("diffrate", "flops=0.4"),
        ("zero_tprune", "tokens=50"),
        ("token_transforming", "flops=0.4"),
        ("flowcut", "decoder=0.3"),
        ("flowcut:stages=both", "tokens=64"),
        ("token_skip", "tokens=200"),
    ],
)
def test_a_run_of_the_solved_spec_meets_the_target_to_one_percent(small, spec, target):
    model, inputs, text = small
    solved = solve(model, spec, target, text_tokens=text)
    trace = run(model, solved, inputs)
    flops, (kind, value) = trace.flops(), target.split("=")
    measured = {
        "flops": flops.total / flops.unpatched_total,
        "decoder": flops.decoder / flops.unpatched_decoder,
        "tokens": trace.equivalent_tokens.item(),
    }
    assert measured[kind] == pytest.approx(float(value), rel=0.01)
    planned = plan(model, solved, text_tokens=text)
    assert planned.tokens_per_layer.tolist() == trace.tokens_per_layer[:, 0].tolist()
    assert [method.keep for method in vtc.spec.parse(solved)] == [  # all written out
        float(part.split("keep=")[1].split(",")[0]) for part in solved.split("+")
    ]


def test_the_share_has_the_fewest_digits(small):
    assert solve(small[0], "divprune", "tokens=64", text_tokens=9) == "divprune:keep=0.25"
    assert solve(small[0], "divprune", "tokens=63", text_tokens=9) == "divprune:keep=0.245"
    assert solve(small[0], "divprune", "flops=1", text_tokens=9) == "divprune:keep=1.0"


@product(
    spec=["stride", "fastv:layer=2", "stride+fastv:layer=2", "transprune:layers=(1,2,4)"],
    target=["tokens=5.3", "decoder=0.7", "tokens=11"],
    each="value",
)
def test_no_other_share_comes_nearer(spec, target):
    model, _, shapes = prompt_of("llava")

    def miss(text):
        planned = plan(model, text, **shapes)
        kind, value = target.split("=")
        return abs((planned.equivalent_tokens if kind == "tokens" else planned.decoder_share) - float(value))

    try:
        solved = solve(model, spec, target, **shapes)
    except ValueError as error:
        assert "out of reach" in str(error)
        return
    first, *rest = spec.split("+")
    shares = [step / 100 for step in range(1, 101)]
    others = [
        "+".join(f"{part}{',' if ':' in part else ':'}keep={share}" for part in (first, *rest)) for share in shares
    ]
    assert miss(solved) <= min(map(miss, others)) + 1e-9


def test_more_is_asked_for_more_is_kept(small):
    model, _, text = small
    keeps = [vtc.spec.parse(solve(model, "tome", f"flops={i / 10}", text_tokens=text))[0].keep for i in (3, 5, 8, 10)]
    assert keeps == sorted(keeps) and keeps[-1] == 1.0 and len(set(keeps)) == len(keeps)
    shares = [
        plan(model, f"diffrate:keep={k}+fastv:keep=0.5", text_tokens=text).flops().total for k in range(9, 257, 30)
    ]
    assert shares == sorted(shares)


def test_what_is_written_out_stays(small):
    model, _, text = small
    assert solve(model, "divprune:keep=128+fastv", "tokens=80", text_tokens=text).startswith("divprune:keep=128+fastv:")
    methods = [vtc.DivPrune(keep=0.5), vtc.FastV(layer=3)]
    solved = solve(model, methods, "tokens=80", text_tokens=text)
    assert solved.startswith("divprune:keep=0.5+fastv:layer=3,keep=0.")
    assert solve(model, "hiprune/llava-1.5/192+fastv", "tokens=180", text_tokens=text).startswith("hiprune/llava")
    fixed = "transprune:keeps=(0.9,0.8,0.7)"  # its keep does nothing
    assert solve(model, f"{fixed}+divprune", "tokens=80", text_tokens=text).startswith(f"{fixed}+divprune:keep=")


def test_nothing_is_run_or_changed_and_no_weights_are_needed(small):
    model, _, text = small
    state, random = state_of(model), torch.get_rng_state()
    found = solve(model, "tome+fastv", "flops=0.5", text_tokens=text)
    assert state_of(model) == state
    assert torch.equal(torch.get_rng_state(), random)
    with torch.device("meta"):
        empty = type(model)(model.config)
    assert solve(empty, "tome+fastv", "flops=0.5", text_tokens=text) == found


# ---------------------------------------------------------------- refusals

BAD = [
    ("divprune:keep=0.5", "tokens=64", ["no keep to solve for", "divprune:keep=0.5"]),
    ("none", "tokens=64", ["no keep to solve for"]),
    ("transprune:keeps=(0.9,0.8,0.7)", "tokens=64", ["no keep to solve for"]),
    ("divprune", "flop=0.5", ["'flop=0.5'", "flops=0.2"]),
    ("divprune", "0.5", ["'0.5'", "decoder=0.2"]),
    ("divprune", "flops=half", ["'half'", "not a number"]),
    ("divprune", "flops=nan", ["(0, 1]"]),
    ("divprune", "flops=0", ["(0, 1]"]),
    ("divprune", "decoder=1.1", ["(0, 1]"]),
    ("divprune", "tokens=0.25", ["at least 1"]),
    ("divprune", "tokens=nan", ["at least 1"]),
    ("divprune", "tokens=inf", ["at least 1"]),
    ("divprune", "tokens=300", ["out of reach", "from 1 to 256"]),
    ("divprune", "flops=0.2", ["out of reach", "flops from 0.4", "to 1"]),
    ("fastv", "tokens=40", ["out of reach", "tokens from 64 to 256"]),
    ("tome", "tokens=1", ["out of reach", "tokens from 8 to 256"]),
    ("flowcut", "flops=0.5", ["flowcut", "decoder=0.2"]),
    ("todre_stage2", "tokens=64", ["todre_stage2", "vtc.calibrate"]),
    ("divprune+todre_stage2", "tokens=64", ["todre_stage2", "vtc.calibrate"]),
    ("spatten:keep_heads=0.5", "decoder=0.5", ["heads", "tokens=64"]),
    ("dvprune", "tokens=64", ["did you mean 'divprune'"]),
    ("divprune+stride", "tokens=64", ["can't be composed"]),
    ("fastv:layer=99", "tokens=64", ["99", "out of range"]),
]


@pytest.mark.parametrize(("spec", "target", "expected"), BAD)
def test_what_cannot_be_solved_is_refused_with_the_way_out(small, spec, target, expected):
    with pytest.raises(ValueError) as error:
        solve(small[0], spec, target, text_tokens=30)
    for part in expected:
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("given", "error", "expected"),
    [
        ({"text_tokens": -1}, ValueError, "text_tokens=-1"),
        ({"text_tokens": 3.5}, TypeError, "text_tokens=3.5"),
        ({"text_tokens": 3, "visual_tokens": 0}, ValueError, "visual_tokens=0"),
        ({"text_tokens": 3, "images": True}, TypeError, "images=True"),
        ({"text_tokens": 3, "crops": 0}, ValueError, "crops=0"),
    ],
)
def test_bad_numbers_are_named(small, given, error, expected):
    with pytest.raises(error, match=expected):
        plan(small[0], "divprune", **given)


def test_bad_types_are_named(small):
    with pytest.raises(TypeError, match=r"target=0\.5 is a float"):
        solve(small[0], "divprune", 0.5, text_tokens=3)
    with pytest.raises(TypeError, match="model='llava'"):
        plan("llava", "divprune", text_tokens=3)


def test_tokens_that_no_config_fixes_are_asked_for():
    with pytest.raises(ValueError, match=r"visual_tokens=None.*qwen2_vl.*visual_tokens=1196"):
        plan(model_of("qwen2_vl"), "divprune", text_tokens=3)
    assert plan(model_of("gemma3"), "none", text_tokens=3).original_tokens == 16
    assert plan(model_of("internvl"), "none", text_tokens=3).original_tokens == 16


def test_a_tower_that_is_not_known_leaves_the_decoder():
    model = model_of("got_ocr2")
    shapes = {"text_tokens": 9, "visual_tokens": 16}
    with pytest.raises(ValueError, match=r"got_ocr2.*decoder=0.2"):
        solve(model, "divprune", "flops=0.5", **shapes)
    assert solve(model, "divprune", "tokens=8", **shapes) == "divprune:keep=0.5"
