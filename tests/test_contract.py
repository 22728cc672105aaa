"""The contract matrix: families x attention implementations x methods x scenarios, on tiny random models."""

import pytest
import torch
from contract import ATTENTIONS, COMPOSED, EVERY, FAMILIES, METHODS, MORE, each_alone, model_of, spec_of, specs
from families import SCENARIOS, scenario

import vtc
from vtc.registry import method_class

NEW = 3


def refusal(family: str, spec: str) -> str | None:
    """The sentence with which the family refuses the methods of `spec`, if it does."""
    try:
        with vtc.patched(model_of(family), spec):
            return None
    except ValueError as error:
        return str(error)


def check_rows(family, model, spec, name):
    """Patched, every row of a batch equals its own batch-1 run, and the trace counts what was planned."""
    rows = scenario(family, name)
    inputs = family.inputs(model, rows)
    length = inputs["input_ids"].shape[1]
    with torch.no_grad(), vtc.patched(model, spec):
        output = model(**inputs)
        trace = vtc.trace(model)
        tokens = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
        assert output.logits.shape[:2] == inputs["input_ids"].shape
        assert torch.equal(tokens[:, :length], inputs["input_ids"])
        assert trace.original_tokens.tolist() == [sum(counts) for counts in family.visual_tokens(rows)]
        if spec != "none" and trace.original_tokens.max() > 0:
            fewest = trace.tokens_per_layer.amin(dim=0)
            assert (fewest < trace.original_tokens)[trace.original_tokens > 0].all()
        for index, alone in enumerate(each_alone(family, model, rows)):
            single = model(**alone).logits[0, -1]
            torch.testing.assert_close(output.logits[index, -1], single, atol=2e-4, rtol=1e-4)
            again = model.generate(**alone, max_new_tokens=NEW, do_sample=False)
            assert torch.equal(tokens[index, -NEW:], again[0, -NEW:]), f"row {index}"
    return trace


def attentions(family):
    return [a for a in ATTENTIONS if "flash" not in a or (EVERY[family].flash and not EVERY[family].needs_4d_mask)]


MATRIX = [(family, attention) for family in FAMILIES for attention in attentions(family)]


@pytest.mark.parametrize(("family", "attention"), MATRIX, ids=lambda value: str(value))
@pytest.mark.parametrize("method", [*METHODS, *COMPOSED])
def test_rows_equal_their_own_run(family, attention, method):
    spec = method if method in COMPOSED else spec_of(method, family)
    for name in SCENARIOS:
        check_rows(EVERY[family], model_of(family, attention), spec, name)


@pytest.mark.parametrize("family", MORE)
@pytest.mark.parametrize("method", [*METHODS, *COMPOSED])
def test_more_families_work_or_say_why_not(family, method):
    spec = method if method in COMPOSED else spec_of(method, family)
    model = model_of(family)
    before = {name: list(module._forward_pre_hooks) for name, module in model.named_modules()}
    why = refusal(family, spec)
    if why is not None:
        assert family.removesuffix("_video") in why or type(model).__name__ in why or "attention" in why
        assert {name: list(module._forward_pre_hooks) for name, module in model.named_modules()} == before
        return
    for name in ("ragged", "text_row"):
        try:
            check_rows(EVERY[family], model, spec, name)
        except ValueError as error:  # pooled video frames: known only once they are seen
            reducer = any(method_class(m.partition(":")[0]).kind == "reducer" for m in method.split("+"))
            known = {"llava_onevision_video", "llava_next_video_video"} if reducer else {"llava_onevision_video"}
            assert family in known and ("can't follow" if reducer else "do not map onto") in str(error)


@pytest.mark.parametrize(("family", "attention"), MATRIX)
def test_keeping_all_is_bit_exact_and_so_is_unpatching(family, attention):
    model = model_of(family, attention)
    for name in SCENARIOS:
        inputs = EVERY[family].inputs(model, scenario(EVERY[family], name))
        with torch.no_grad():
            logits, tokens = model(**inputs).logits, model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
            for spec in specs(family, keep=1.0):
                with vtc.patched(model, spec):
                    assert torch.equal(model(**inputs).logits, logits), spec
                    assert torch.equal(model.generate(**inputs, max_new_tokens=NEW, do_sample=False), tokens), spec
                    assert (vtc.trace(model).tokens_per_layer == vtc.trace(model).original_tokens).all()
            for spec in specs(family):
                with vtc.patched(model, spec):
                    model(**inputs)
                assert torch.equal(model(**inputs).logits, logits), f"after {spec}"


@pytest.mark.parametrize("family", [name for name in FAMILIES if not FAMILIES[name].needs_4d_mask])
@pytest.mark.parametrize("method", [m for m in METHODS if m != "none"])
def test_decisions_do_not_depend_on_the_attention_implementation(family, method):
    kept = []
    for attention in attentions(family):
        model = model_of(family, attention)
        inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
        with torch.no_grad(), vtc.patched(model, spec_of(method, family)):
            model(**inputs)
            kept.append([image.kept().tolist() for image in vtc.trace(model).images])
    assert all(other == kept[0] for other in kept)
