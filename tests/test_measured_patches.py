"""Which patches make a visual token: measured where no rule is known, and equal to the rules where there are some."""

import contextlib

import pytest
import torch
import transformers
from contract import EVERY, model_of
from families import scenario
from torch import nn

import vtc
import vtc.tower.observer
from vtc.calls.composite import features_method
from vtc.model.adapter import adapter_class, family_of
from vtc.tower.measuring import measured_patches

pytestmark = pytest.mark.usefixtures("no_grad")

RULES = (
    "llava", "vipllava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v",
    "internvl", "gemma3", "paligemma", "mistral3", "smolvlm", "idefics3", "aya_vision", "cohere2_vision", "deepseek_vl",
    "janus", "ernie4_5_vl_moe", "video_llava", "qwen2_5_vl_video", "qwen3_vl_video", "video_llava_video",
)  # fmt: skip


@contextlib.contextmanager
def seen_features(monkeypatch):
    """(observer, kind, output, args, kwargs) of each call that makes features, at its end."""
    calls, record = [], vtc.tower.observer.Observer.record_features

    def recorded(self, kind, output, args, kwargs):
        record(self, kind, output, args, kwargs)
        if self.encoding.depth == 1:
            calls.append((self.adapter, self.prompt.features[kind], kind, args, kwargs))

    with monkeypatch.context() as patch:
        patch.setattr(vtc.tower.observer.Observer, "record_features", recorded)
        yield calls


def measured(adapter, kind, args, kwargs):
    composite, parts = adapter.parts.composite, adapter.parts
    make = getattr(type(composite), features_method(kind))
    blocks = parts.twins[0] if kind == "video" and parts.twins else parts.blocks
    return measured_patches(lambda *a, **k: make(composite, *a, **k), args, kwargs, blocks, int(parts.has_cls))


@pytest.mark.parametrize("family", RULES)
def test_what_is_measured_is_what_the_rule_of_a_family_says(family, monkeypatch):
    model = EVERY[family].build()
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "several_images"))
    with seen_features(monkeypatch) as calls, vtc.patched(model, "divprune:keep=0.5"):
        model(**inputs)
        images = vtc.trace(model).images
    ((adapter, features, kind, args, kwargs),) = calls
    tokens = dict(sorted((image.source.origin, len(image.source)) for image in images))
    rule = torch.cat(adapter.patches(features, features.shape, list(tokens.values())))
    assert torch.equal(measured(adapter, kind, args, kwargs), rule.sort(dim=1).values)


@pytest.mark.parametrize("family", ["aria", "llava"])
def test_tokens_that_share_patches_are_not_measured(family, monkeypatch):
    model = EVERY[family].build()
    if family == "llava":
        blur(model)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "single"))
    with seen_features(monkeypatch) as calls, vtc.patched(model, "divprune:keep=0.5"):
        model(**inputs)
    ((adapter, _, kind, args, kwargs),) = calls
    assert measured(adapter, kind, args, kwargs) is None


class Behind(nn.Module):
    """A projector, and something behind it."""

    def __init__(self, projector, change):
        super().__init__()
        self.projector, self.change = projector, change

    def forward(self, rows):
        return self.change(self.projector(rows))


def blur(model):
    """Every token becomes a mean with its neighbour."""
    body = model.model
    body.multi_modal_projector = Behind(body.multi_modal_projector, lambda rows: (rows + rows.roll(1, dims=1)) / 2)


def unheard_of(change):
    """A LLaVA by a name that nobody knows, with `change` behind its projector; and its inputs."""
    model = EVERY["llava"].build()
    inputs = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "several_images"))
    model.config.model_type = "unheard_of"
    model.model.multi_modal_projector = Behind(model.model.multi_modal_projector, change)
    return model, inputs


def kept(model, inputs, spec):
    with vtc.patched(model, spec):
        model(**inputs)
        return [image.kept().tolist() for image in vtc.trace(model).images]


@pytest.mark.parametrize("spec", ["hiprune:keep=0.5", "visionzip:keep=0.5", "tokencorr:keep=0.5"])
def test_an_unknown_family_whose_tokens_share_patches_is_refused(spec):
    model, inputs = unheard_of(lambda rows: (rows + rows.roll(1, dims=1)) / 2)
    with vtc.patched(model, spec), pytest.raises(ValueError, match=r"unheard_of: how 48 patches.* 'divprune'"):
        model(**inputs)
    assert all(len(image) == 8 for image in kept(model, inputs, "divprune:keep=0.5"))


def test_an_unknown_family_in_an_order_of_its_own_is_followed(monkeypatch):
    order = torch.randperm(16, generator=torch.Generator().manual_seed(1))
    model, inputs = unheard_of(lambda rows: rows[:, order])
    with seen_features(monkeypatch) as calls, vtc.patched(model, "hiprune:keep=0.5"):
        model(**inputs)
        model(**inputs)
    for _, features, *_ in calls:
        assert torch.equal(features.measured.view(3, 16), order + 16 * torch.arange(3)[:, None])


def test_a_geometry_is_measured_once(monkeypatch):
    passes = []
    model, inputs = unheard_of(lambda rows: rows)
    model.model.vision_tower.register_forward_hook(lambda *_: passes.append(1))
    with vtc.patched(model, "hiprune:keep=0.5"):
        for expected in (2, 3, 4):
            model(**inputs)
            assert len(passes) == expected
        with torch.inference_mode():
            one = EVERY["llava"].inputs(model, scenario(EVERY["llava"], "single"))
            model(**one)
        assert len(passes) == 6
    assert all(not parameter.grad_fn for parameter in model.parameters()) and not torch.is_grad_enabled()


SISTERS = {"glm46v": ("glm4v", "Glm46VConfig", "Glm46VForConditionalGeneration")}
SISTERS |= {"unheard_of": ("qwen2_5_vl", "", ""), "unheard_of_too": ("qwen3_vl", "", ""), "another": ("gemma3", "", "")}


@pytest.mark.parametrize("spec", ["hiprune:keep=0.5", "visionzip:keep=0.5"])
@pytest.mark.parametrize("sister", SISTERS)
def test_sisters_with_the_same_weights_keep_the_same(sister, spec):
    family, config, cls = SISTERS[sister]
    model = EVERY[family].build()
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    expected, logits = kept(model, inputs, spec), model(**inputs).logits
    if cls:
        fields = model.config.to_dict()
        del fields["model_type"], fields["architectures"]
        twin = getattr(transformers, cls)(getattr(transformers, config)(**fields)).eval()
        twin.load_state_dict(model.state_dict())
        model = twin
    else:
        for part in (model, model.model):
            part.config.model_type = sister
    assert torch.equal(model(**inputs).logits, logits)
    assert adapter_class(model).__name__ == "Adapter"
    assert kept(model, inputs, spec) == expected


# ---------------------------------------------------------------- wrappers


class Wrapper(nn.Module):
    """A module of one's own, without a config or with one that nobody knows."""

    def __init__(self, inner, config=None):
        super().__init__()
        self.first, self.inner = nn.Linear(2, 2), inner
        if config is not None:
            self.config = config

    def forward(self, **inputs):
        return self.inner(**inputs)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "glm4v", "llava_next", "internvl", "smolvlm", "llama4"])
def test_the_adapter_is_that_of_the_model_inside(family):
    model = model_of(family)
    own = transformers.PretrainedConfig()
    own.model_type = "mine"
    for wrapped in (Wrapper(model), Wrapper(model, own), Wrapper(Wrapper(model)), nn.DataParallel(model)):
        assert adapter_class(wrapped) is adapter_class(model)
        assert family_of(wrapped) == adapter_class(wrapped)(wrapped).family == model.config.model_type


@pytest.mark.parametrize("family", ["qwen2_5_vl", "glm4v", "llava_next"])
def test_a_wrapped_model_keeps_the_same(family):
    model = model_of(family)
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "ragged"))
    for spec in ("hiprune:keep=0.5", "tome:keep=0.5"):
        assert kept(Wrapper(model), inputs, spec) == kept(model, inputs, spec)
