"""The contract matrix: families x attention implementations x methods x scenarios, on tiny random models."""

import pytest
import torch
from contract import (
    ATTENTIONS,
    COMPOSED,
    EVERY,
    FAMILIES,
    METHODS,
    MORE,
    NEW,
    check_rows,
    model_of,
    refusal,
    spec_of,
    specs,
)
from families import SCENARIOS, scenario

import vtc
from vtc.method.registry import method_class


def attentions(family):
    return [a for a in ATTENTIONS if "flash" not in a or (EVERY[family].flash and not EVERY[family].needs_4d_mask)]


MATRIX = [(family, attention) for family in FAMILIES for attention in attentions(family)]


@pytest.mark.parametrize(("family", "attention"), MATRIX, ids=lambda value: str(value))
@pytest.mark.parametrize("method", [*METHODS, *COMPOSED])
def test_rows_equal_their_own_run(family, attention, method):
    spec = method if method in COMPOSED else spec_of(method, family)
    for name in SCENARIOS:
        check_rows(EVERY[family], model_of(family, attention), spec, scenario(EVERY[family], name))


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
            check_rows(EVERY[family], model, spec, scenario(EVERY[family], name))
        except ValueError as error:  # pooled video frames: known only once they are seen
            assert any(method_class(m.partition(":")[0]).kind == "reducer" for m in method.split("+"))
            assert family in {"llava_onevision_video", "llava_next_video_video"} and "can't follow" in str(error)


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
