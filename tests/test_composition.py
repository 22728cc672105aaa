"""Any selector or reducer with any prune, and prunes with each other, under one trace."""

import pytest
import torch
from contract import EVERY, IN_STEPS, METHODS, ON_VIDEOS, model_of, spec_of, taken
from covering import product
from families import scenario
from torch.utils._python_dispatch import TorchDispatchMode

import vtc
from vtc.eval.bench.select.decision import Meter, pruning
from vtc.eval.bench.select.scene import AFTER, BEFORE, Scene
from vtc.method.registry import method_class
from vtc.spec import parse

LEAVING = {"none", "prunevid", *ON_VIDEOS}  # images, at least in front of the decoder
SHIPPED = [name for name in METHODS if name not in LEAVING and not name.startswith("test-")]
PRUNES = [name for name in SHIPPED if method_class(name).kind == "prune" and name not in IN_STEPS]
OUTER = [name for name in SHIPPED if method_class(name).kind != "prune"]
OWN = ("todre", "holitom", "vscan")  # bring a prune of their own
FAMILIES = ("llava", "qwen2_5_vl")
TOGETHER = {("fastv", "holitom_inner"), ("fastv", "todre_stage2")}  # these two must not be refused
CLASHES = ("both prune in front of", "brings tokens back", "which tokens skip by")


def run(family: str, spec: str) -> vtc.Trace:
    """Prefill and two decode steps of a ragged batch; the caches hold what the trace says."""
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    with torch.no_grad(), vtc.patched(model, spec):
        cache = model(**inputs).past_key_values
        trace = vtc.trace(model)
        rows = trace.tokens_per_layer + trace.text_tokens
        assert [layer.keys.shape[-2] for layer in cache.layers] == rows.amax(dim=1).tolist()
        tokens = model.generate(**inputs, max_new_tokens=2, do_sample=False)
        assert torch.equal(tokens[:, : inputs["input_ids"].shape[1]], inputs["input_ids"])
    return trace


@product(family=FAMILIES, outer=OUTER, prune=PRUNES, where=taken)
def test_every_selector_and_reducer_composes_with_every_prune(family, outer, prune):
    own = {"todre": ",layers=(2,)", "holitom": ",layer=2", "vscan": ",layer=2"}
    outer_spec = spec_of(outer, family, 0.6) + own.get(outer, "")
    try:
        trace = run(family, f"{outer_spec}+{spec_of(prune, family)}")
    except ValueError as error:
        assert outer in OWN and any(word in str(error) for word in CLASHES)
        return
    first, last = trace.tokens_per_layer[0], trace.tokens_per_layer.amin(dim=0)
    assert (first < trace.original_tokens).all()
    assert (last < first).all()


@product(family=FAMILIES, one=PRUNES, other=PRUNES, where=lambda cell: cell["one"] != cell["other"], each="value")
def test_two_prunes_compose_or_say_why_not(family, one, other):
    model = model_of(family)
    try:
        trace = run(family, f"{spec_of(one, family)}+{spec_of(other, family)}")
    except ValueError as error:
        assert (one, other) not in TOGETHER
        assert one in str(error) or other in str(error)
        assert any(word in str(error) for word in CLASHES)
        assert not hasattr(model, "_vtc_seam")
        return
    assert (trace.tokens_per_layer[0] == trace.original_tokens).all()


def test_three_stages_under_one_trace():
    trace = run("llava", "divprune:keep=0.75+fastv:layer=1,keep=0.5+todre_stage2:threshold=2.0,layers=(3,)")
    assert trace.tokens_per_layer[:, 0].tolist() == [12, 6, 6, 6, 0]
    image = trace.images[0]
    assert set(image.kept(1).tolist()) <= set(image.kept(0).tolist())
    assert len(image.kept(4)) == 0


class Shapes(TorchDispatchMode):
    """Takes note of tensors with two dimensions that are as long as a sequence with all or most visual tokens."""

    def __init__(self, lengths: range):
        super().__init__()
        self.lengths = lengths
        self.found: list[tuple[int, ...]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        for value in output if isinstance(output, (tuple, list)) else (output,):
            if isinstance(value, torch.Tensor) and sum(size in self.lengths for size in value.shape) > 1:
                self.found.append(tuple(value.shape))
        return output


@pytest.mark.parametrize("name", PRUNES)
def test_no_prune_makes_a_map_of_all_pairs(name):
    """In a decoder of 24 layers with 14 heads; chunks of 256 queries are far from the 730 tokens of the sequence."""
    tokens = 700
    (prune,) = parse(spec_of(name, "llava", 0.9))
    prune = type(prune)() if name in ("fastv", "transprune") else prune
    scene = Scene(tokens, torch.device("cpu"))
    with Shapes(range(tokens - tokens // 8, BEFORE + tokens + AFTER + 1)) as shapes:
        pruning(prune, scene)(Meter(torch.device("cpu")))
    assert not shapes.found
    with Shapes(range(600, 731)) as shapes:  # the check itself can fail
        scene.decoder_attention(730).query @ scene.decoder_attention(730).query.mT
    assert shapes.found
