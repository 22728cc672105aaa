"""A model inside of what somebody put around it, before or after the patch: the same as the model by itself."""

import copy
import io
import pickle

import pytest
import torch
from contract import EVERY, batch, greedy, model_of
from covering import product
from families import scenario
from peft import LoraConfig, get_peft_model
from torch import nn

import vtc
from vtc.model.wrap import Wrap

SPECS = ("divprune:keep=0.5", "hiprune:keep=0.5+fastv:layer=2,keep=0.5", "tome:keep=0.5", "lazyllm:keep=0.5")
FAMILIES = ("llava", "qwen2_5_vl", "gemma3", "internvl")


def lora(model, *names):
    """A PEFT model whose adapters change nothing yet (B is zero)."""
    return get_peft_model(model, LoraConfig(r=2, target_modules=list(names) or ["q_proj", "v_proj"])).eval()


class Held(nn.Module):
    """A module of the user's, with another model of transformers beside the one that sees."""

    def __init__(self, model):
        super().__init__()
        self.seeing = model
        self.ranker = model_of("llava").model.language_model

    def forward(self, **inputs):
        return self.seeing(**inputs)


def goes_together(cell):
    """lazyllm needs layers without a window."""
    return not (cell["family"] == "gemma3" and cell["spec"].startswith("lazyllm"))


WRAPPERS = {
    "peft": lora,
    "peft over everything": lambda model: lora(model, "q_proj", "k_proj", "fc1", "linear_1"),
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "held": Held,
    "peft held": lambda model: Held(lora(model)),
    "compiled peft": lambda model: torch.compile(lora(model), backend="eager"),
}


def ours(hook):
    """Whether a hook is of vtc; transformers puts in some of its own in a first call."""
    return getattr(hook, "func", hook).__module__.startswith("vtc")


def clean(model):
    """What a patch would leave: hooks, attributes of instances, the names of attention implementations."""
    return [
        (
            name,
            sum(map(ours, (*module._forward_hooks.values(), *module._forward_pre_hooks.values()))),
            sorted(key for key in vars(module) if key.startswith(("_vtc", "get_", "_prefill", "_prepare"))),
            getattr(getattr(module, "config", None), "_attn_implementation", None),
        )
        for name, module in model.named_modules()
    ]


def kept(model):
    """What the trace says of tokens; adapters have weights, and cost."""
    return str(vtc.trace(model)).split("prefill")[0]


def fresh(family):
    model = EVERY[family].build()
    return model, EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))


@product(family=FAMILIES, spec=SPECS, around=WRAPPERS, where=goes_together, each="value")
@torch.no_grad()
def test_a_wrapper_is_patched_and_given_back(family, spec, around):
    model, inputs = fresh(family)
    with vtc.patched(model, spec):
        want, tokens, trace = model(**inputs).logits, greedy(model, inputs), kept(model)
    outer = WRAPPERS[around](model)
    before = clean(model)
    assert vtc.patch(outer, spec) is outer
    with pytest.raises(ValueError, match="patched already"):
        vtc.patch(model, spec)
    calls = outer if "compiled" not in around else model  # compiling takes a minute: see below
    torch.testing.assert_close(calls(**inputs).logits, want)
    assert kept(outer) == trace == kept(model)
    if hasattr(calls, "generate"):
        assert torch.equal(calls.generate(**inputs, max_new_tokens=4, do_sample=False), tokens)
    vtc.unpatch(outer)
    assert clean(model) == before
    for module in (outer, model):
        with pytest.raises(ValueError, match="not patched"):
            vtc.unpatch(module)


@product(family=FAMILIES, spec=SPECS, around=("peft", "compiled", "held"), where=goes_together, each="value")
@torch.no_grad()
def test_what_is_put_around_a_patched_model(family, spec, around):
    model, inputs = fresh(family)
    before = clean(model)
    vtc.patch(model, spec)
    want = model(**inputs).logits
    outer = WRAPPERS[around](model)
    calls = outer if around != "compiled" else model
    torch.testing.assert_close(calls(**inputs).logits, want)
    assert vtc.trace(outer) is vtc.trace(model)
    vtc.unpatch(outer)
    assert [seen for seen in clean(model) if "lora" not in seen[0] and "base_layer" not in seen[0]] == before


@pytest.mark.parametrize("spec", SPECS)
@torch.no_grad()
def test_after_merging(spec):
    model, inputs = fresh("llava")
    vtc.patch(model, spec)
    want = model(**inputs).logits
    merged = lora(model).merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, want)
    vtc.unpatch(merged)
    outer = vtc.patch(lora(merged), spec)
    merged = outer.merge_and_unload()
    torch.testing.assert_close(merged(**inputs).logits, want)
    vtc.unpatch(merged)
    assert not any(seen[1] for seen in clean(merged)) and "vtc" not in str(clean(merged))
    with vtc.patched(lora(merged), spec) as again:
        merged = again.merge_and_unload()
    with pytest.raises(ValueError, match="not patched"):
        vtc.unpatch(merged)


@torch.no_grad()
def test_the_model_in_a_patched_one():
    model, inputs = fresh("llava")
    with vtc.patched(model, "divprune:keep=0.5"):
        model(**inputs)
        assert vtc.trace(model.model) is vtc.trace(model)
        vtc.unpatch(model.model)
        with pytest.raises(ValueError, match="not patched"):
            vtc.trace(model)


def test_chunks_are_fed_whole_through_a_wrapper():
    model, inputs = fresh("llava")
    outer = lora(model)
    with vtc.patched(outer, "divprune:keep=0.5"):
        whole = outer.generate(**inputs, max_new_tokens=4, do_sample=False)
        assert torch.equal(outer.generate(**inputs, max_new_tokens=4, do_sample=False, prefill_chunk_size=8), whole)


def test_two_models_in_one_module_are_refused():
    both = nn.ModuleList([model_of("llava"), model_of("gemma3")])
    with pytest.raises(ValueError, match="holds 2 vision-language models"):
        vtc.patch(both, "divprune")
    one, two = (vtc.patched(model, "divprune") for model in both)
    with one, two, pytest.raises(ValueError, match="several patched models"):
        vtc.trace(both)


@pytest.mark.parametrize("spec", ["divprune", "hiprune+fastv:layer=2", "tome"])
@pytest.mark.parametrize("failing", range(0, 5, 2))
def test_a_patch_that_fails_on_its_way_leaves_nothing(spec, failing, monkeypatch):
    """The hook or wrap with number `failing` can't be put in."""
    model = model_of("llava")
    before = clean(model)
    left = [failing]

    def limited(real):
        def register(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise MemoryError("no more")
            return real(*args, **kwargs)

        return register

    monkeypatch.setattr(Wrap, "install", limited(Wrap.install))
    monkeypatch.setattr(nn.Module, "register_forward_hook", limited(nn.Module.register_forward_hook))
    with pytest.raises(MemoryError):
        vtc.patch(model, spec)
    assert clean(model) == before


def test_what_others_changed_meanwhile_does_not_stop_unpatch():
    model = EVERY["llava"].build()
    before = clean(model)
    vtc.patch(model, "hiprune+fastv:layer=2")
    object.__delattr__(model.model, "get_placeholder_mask")
    seen = []
    ours = model.model.get_image_features
    model.model.get_image_features = lambda *args, **kwargs: seen.append(1) or ours(*args, **kwargs)
    vtc.unpatch(model)
    assert "get_image_features" in vars(model.model)  # theirs, around the bare method
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "single"))
    with torch.no_grad():
        got = model(**inputs).logits
        assert seen
        del model.model.get_image_features
        assert torch.equal(got, model(**inputs).logits)
    assert clean(model) == before


@pytest.mark.parametrize("spec", ["divprune", "hiprune+fastv:layer=2", "tome"])
@pytest.mark.parametrize(
    "keep",
    [copy.deepcopy, pickle.dumps, lambda model: torch.save(model, io.BytesIO())],
    ids=["deepcopy", "pickle", "save"],
)
def test_a_patched_model_is_not_copied_or_saved_whole(spec, keep):
    model, _ = batch("llava", "single")
    with vtc.patched(model, spec), pytest.raises(ValueError, match=r"call vtc\.unpatch, copy or save it"):
        keep(model)


def test_weights_of_a_patched_model_are_saved_without_the_patch(tmp_path):
    model, inputs = fresh("llava")
    with vtc.patched(model, "hiprune+fastv:layer=2"):
        model.save_pretrained(tmp_path)
    again = type(model).from_pretrained(tmp_path).eval()
    assert "vtc" not in (tmp_path / "config.json").read_text()
    with torch.no_grad():
        torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits)


def replica(module):
    """A copy as torch.nn.DataParallel makes one for each device."""
    new = module._replicate_for_data_parallel()
    new._parameters = dict(module._parameters)
    new._modules = {name: child if child is None else replica(child) for name, child in module._modules.items()}
    return new


@product(family=FAMILIES, spec=SPECS, where=goes_together, each="value")
def test_replicas_are_refused(family, spec):
    model, inputs = batch(family, "single")
    with vtc.patched(model, spec), torch.no_grad():
        copies = replica(model)
        with pytest.raises(ValueError, match="DistributedDataParallel"):
            copies(**inputs)
        model(**inputs)


@torch.no_grad()
def test_what_was_compiled_before_a_patch_sees_its_hooks():
    """By a module that is compiled in no time; a whole model with its many graph breaks takes minutes."""
    model, module, seen = EVERY["llava"].build(), nn.Linear(2, 2), []
    compiled = torch.compile(module, backend="eager")
    compiled(torch.ones(1, 2))
    handle = module.register_forward_pre_hook(lambda module, args: seen.append(1))
    compiled(torch.ones(1, 2))
    assert not seen  # torch itself does not look at hooks again; else vtc need not either
    vtc.patch(model, "divprune:keep=0.5")
    compiled(torch.ones(1, 2))
    assert len(seen) == 1
    handle.remove()
    vtc.unpatch(model)
    compiled(torch.ones(1, 2))
    assert len(seen) == 1
