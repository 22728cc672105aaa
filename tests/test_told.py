"""What is not compressed, or not as a head expects, is told."""

import warnings

import pytest
import torch
from contract import EVERY, batch
from covering import product
from families import scenario
from transformers import ColPaliConfig, ColPaliForRetrieval, ColQwen2Config, ColQwen2ForRetrieval

import vtc

FAMILIES = ("llava", "qwen2_vl", "internvl", "idefics3")


def merged(family):
    """A model, and embeddings into which its features were put by hand; its own call's logits."""
    model, inputs = batch(family, "single")
    seen = {}
    inner = model.model
    decoder = inner.text_model if hasattr(inner, "text_model") else inner.language_model
    handle = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.update(kwargs), with_kwargs=True)
    model(**inputs)
    handle.remove()
    return model, seen["inputs_embeds"].detach(), inputs


def told(run):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in caught if "vtc: " in str(warning.message)]


@product(family=FAMILIES, spec=("divprune:keep=0.5", "fastv:layer=2", "tome:keep=0.5"), each="value")
@torch.no_grad()
def test_embeddings_alone_are_told(family, spec):
    model, embeds, _ = merged(family)
    plain = model(inputs_embeds=embeds).logits
    with vtc.patched(model, spec):
        logits = []
        (said,) = told(lambda: [logits.append(model(inputs_embeds=embeds).logits) for _ in range(2)])  # once
        assert "nothing was compressed, because inputs_embeds came without input_ids" in said
        assert "nothing was compressed" in str(vtc.trace(model))
        for each in logits:  # transformers turns those of qwen2_vl on by the offset of the call before; vtc does not
            torch.testing.assert_close(each, plain, atol=1e-5, rtol=1e-4)
    with vtc.patched(model, spec):
        assert len(told(lambda: model.generate(inputs_embeds=embeds, max_new_tokens=3))) == 1


@product(family=FAMILIES, each="value")
@torch.no_grad()
def test_text_and_pictures_are_not(family):
    model, inputs = batch(family, "single")
    with vtc.patched(model, "divprune:keep=0.5"):
        assert not told(lambda: model.generate(**inputs, max_new_tokens=3))
        assert not told(lambda: model.generate(input_ids=torch.tensor([[20, 21, 22]]), max_new_tokens=3))


@torch.no_grad()
def test_a_retrieval_model_is_told_of_dropped_places():
    family = EVERY["paligemma"]
    inside = family.build()
    inputs = family.inputs(inside, scenario(family, "single"))
    inputs.pop("token_type_ids", None)
    model = ColPaliForRetrieval(ColPaliConfig(vlm_config=inside.config, embedding_dim=8)).eval()
    torch.nn.init.normal_(model.embedding_proj_layer.bias)
    with pytest.warns(UserWarning, match="ColPaliForRetrieval has a head of its own, which gets zeros"):
        vtc.patch(model, "divprune:keep=0.5")
    found = model(**inputs).embeddings[0]
    image = vtc.trace(model).images[0]
    dropped = sorted(set(range(16)) - set(image.kept(0).tolist()))
    places = (inputs["input_ids"][0] == inside.config.image_token_id).nonzero().flatten()[dropped]
    assert len(dropped) == 8
    bias = torch.nn.functional.normalize(model.embedding_proj_layer.bias, dim=0)  # of zeros
    told_of = (found[places] - bias).abs().amax(dim=1) < 1e-5
    assert told_of.sum() >= 4  # a place in front of a kept token has that token's state
    vtc.unpatch(model)
    assert not told(lambda: vtc.unpatch(vtc.patch(model.vlm, "divprune:keep=0.5")))


@torch.no_grad()
def test_a_retrieval_model_that_merges_by_itself_is_told():
    family = EVERY["qwen2_vl"]
    inside = family.build()
    inputs = family.inputs(inside, scenario(family, "single"))
    inputs.pop("mm_token_type_ids", None)
    inputs["pixel_values"] = inputs["pixel_values"][None]
    model = ColQwen2ForRetrieval(ColQwen2Config(vlm_config=inside.config, embedding_dim=8)).eval()
    with pytest.warns(UserWarning, match="ColQwen2ForRetrieval has a head of its own"):
        vtc.patch(model, "divprune:keep=0.5")
    (said,) = told(lambda: model(**inputs))
    assert "nothing was compressed" in said
    vtc.unpatch(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_that_predicts_tokens_is_not(family):
    model, _ = batch(family, "single")
    assert not told(lambda: vtc.unpatch(vtc.patch(model, "divprune:keep=0.5")))
