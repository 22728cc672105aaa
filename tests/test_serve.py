"""What of serving needs no engine: which settings can be served, how many tokens stay, what travels to the worker."""

import importlib.metadata
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from circles import ROOT
from families import FAMILIES, scenario
from hypothesis import given
from hypothesis import strategies as st

import vtc
from vtc.method.fields import settable
from vtc.method.registry import method_class, shipped
from vtc.serve import KEEP, SPEC, plugin
from vtc.serve.architectures import ARCHITECTURES
from vtc.serve.choosing import Memory
from vtc.serve.model import portions
from vtc.serve.served import Item, features_of, served
from vtc.serve.setting import Setting, servable
from vtc.serve.told import Told, key_of
from vtc.serve.versions import TESTED, differing

SERVED = ("llava", "llava_next", "llava_onevision", "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl")


def config(name: str, spec):
    made = FAMILIES[name].config({})
    setattr(made, SPEC, spec)
    return made


# ---------------------------------------------------------------- what can be served


REFUSED = {
    "fastv": "fastv can't be served: it removes tokens between decoder layers, and an engine gives each token",
    "divprune:keep=0.5+fastv": "leave it out: 'divprune:keep=0.5'",
    "todre": "give todre threshold=0",
    "vscan": "give vscan later_keep=1.0",
    "prumerge": "lets the picture decide how many tokens stay",
    "holitom": "holitom can't be served",
    "evs:threshold=0.2": "leave threshold out",
    "vidcom2:exact=False": "leave exact out",
    "dycoke:decode=True": "give dycoke decode=False",
    "tome": "tome can't be served: it shortens the vision tower's own sequence",
    "tokencorr": "lets the picture decide how many tokens stay",
    "hiprune:compat=True": "leave compat out",
    "divprune:per=row": "give per=input or per=frame",
    "divprne": "did you mean 'divprune'",
    "divprune:kep=0.5": "did you mean 'keep'",
    "divprune:keep=1.5": "keep=1.5 is not in",
    "": "unknown method ''",
}  # fmt: skip


@pytest.mark.parametrize(("spec", "message"), REFUSED.items(), ids=[name or "empty" for name in REFUSED])
def test_what_an_engine_can_not_do_is_refused_with_the_way_out(spec, message):
    with pytest.raises(ValueError) as caught:
        Setting.of(spec)
    assert message in str(caught.value)


@pytest.mark.parametrize("spec", [0.25, None, {"method": "divprune"}, ["divprune"]], ids=repr)
def test_a_spec_is_a_string(spec):
    with pytest.raises(TypeError, match="give a spec string such as"):
        Setting.of(spec)


def test_what_the_question_decides_is_refused():
    with pytest.raises(ValueError, match="reads the question, and an engine keeps what it made of a picture"):
        served(config("llava", "recoverable:keep=0.25"))


def test_what_the_tower_lacks_is_refused():
    with pytest.raises(ValueError, match="use pivot='mean'"):
        served(config("qwen2_5_vl", "kcenter:keep=0.25"))


@pytest.mark.parametrize("name", vtc.list_methods("selector"))
def test_every_selector_is_served_or_refused(name):
    """A method that is added is one of the two, and the list that errors show knows which."""
    once = {"todre": "todre:threshold=0", "vscan": "vscan:keep=0.5,later_keep=1.0", "none": "none"}
    has_keep = any(field.name == "keep" for field in settable(method_class(name)))
    given = once.get(name, f"{name}:keep=0.5" if has_keep else name)
    try:
        served(config("llava", given))
    except ValueError as refusal:
        assert "can't be served: it" in str(refusal)
        assert name not in servable()
    else:
        assert name in servable()


# ---------------------------------------------------------------- how many tokens stay


METHODS = ("divprune", "hiprune", "stride", "pool", "visionzip", "prumerge", "divprune:per=frame", "random")


@pytest.mark.parametrize("name", SERVED)
@pytest.mark.parametrize("method", METHODS)
def test_counts_are_those_of_a_patched_model(name, method):
    family = FAMILIES[name]
    spec = f"{method}{',' if ':' in method else ':'}keep=0.4"
    model = family.build()
    for row in scenario(family, "ragged"):
        inputs = family.inputs(model, [row])
        with vtc.patched(model, spec), torch.no_grad():
            model(**inputs)
            trace = vtc.trace(model)
        visual = inputs["input_ids"][0] == family.image_id
        ids = torch.where(visual, -1, inputs["input_ids"][0])[visual.nonzero()[0, 0] :]
        ids = ids[: int((ids == -1).nonzero()[-1, 0]) + 1]
        what = served(config(name, spec))
        told = {key: value for key, value in inputs.items() if key not in ("input_ids", "attention_mask")}
        features = features_of("image", told, [int(visual.sum())])
        short = what.shortened("image", Item(ids, what.setting.selector), features)
        assert int(trace.original_tokens.sum()) == int(visual.sum())
        assert int((~short.stays).sum()) == int(visual.sum()) - int(trace.tokens_per_layer[0].sum()) > 0


# ---------------------------------------------------------------- what a request may ask for


@pytest.mark.parametrize(
    ("keep", "error"), [(0.0, ValueError), (2.0, ValueError), (0, ValueError), (True, TypeError), ("1", TypeError)]
)
def test_a_bad_budget_names_itself(keep, error):
    with pytest.raises(error, match=f"{KEEP}={keep!r}"):
        Setting.of("divprune:keep=0.5").asked(keep)


def test_none_has_no_budget():
    assert Setting.of("none").asked(None).name == "none"
    with pytest.raises(ValueError, match="this engine removes no tokens"):
        Setting.of("none").asked(0.5)


# ---------------------------------------------------------------- what travels


@given(
    keep=st.none() | st.integers(1, 2**31) | st.floats(1e-9, 1.0),
    key=st.integers(-(2**63), 2**63 - 1),
    ids=st.lists(st.integers(-1, 2**31), max_size=9),
)
def test_the_worker_reads_what_the_front_end_wrote(keep, key, ids):
    told = Told(len(ids), True, key, keep, torch.tensor(ids, dtype=torch.long))
    read = Told.of(told.encoded())
    assert (read.left, read.whole, read.key, read.keep) == (len(ids), True, key, keep)
    assert read.ids.tolist() == ids


def test_pictures_of_one_size_have_keys_of_their_own():
    """Pixels may be whole numbers: the engine normalises on the device."""
    pixels = [torch.randint(0, 255, (3, 8, 8), dtype=torch.uint8) for _ in range(4)] + [torch.rand(3, 8, 8)]
    pixels += [pixels[-1].bfloat16(), pixels[-1].view(3, 64)]
    keys = {key_of(["spec", None, [("pixel_values", each)]]) for each in pixels}
    assert len(keys) == len(pixels)
    assert key_of([pixels[0]]) == key_of([pixels[0].clone()]) != key_of([pixels[0], 0.5])


def test_memory_forgets_the_oldest(monkeypatch):
    monkeypatch.setattr("vtc.serve.choosing._REMEMBERED", 1000)
    memory = Memory()
    for key in (1, 2, 1, 3):
        memory.put(key, torch.arange(400))
    assert [memory.get(key) is not None for key in (1, 2, 3)] == [True, False, True]


def told(tokens: int) -> Told:
    return Told(tokens, False, 0, None, torch.full((tokens,), -1))


def test_the_tower_sees_no_more_at_once_than_its_memory_was_measured_for():
    sizes = [9, 4, 4, 20, 1]
    grids = torch.tensor([[1, 6, 6], [1, 4, 4], [1, 4, 4], [1, 8, 10], [1, 2, 2]])
    pixels = torch.arange(int(grids.prod(dim=1).sum()))
    values = {"pixel_values": pixels, "image_grid_thw": grids, "shared": torch.tensor(3)}
    parts = list(portions([told(n) for n in sizes], values, 10))
    assert [(first, last) for first, last, _ in parts] == [(0, 1), (1, 3), (3, 4), (4, 5)]
    assert torch.cat([part["pixel_values"] for *_, part in parts]).equal(pixels)
    for _, _, part in parts:
        assert len(part["pixel_values"]) == int(part["image_grid_thw"].prod(dim=1).sum())
        assert part["shared"] == 3


def test_arguments_of_which_nothing_is_known_are_not_cut():
    with pytest.raises(RuntimeError, match=r"which part of odd \(3 entries\) belongs to which of 2 items"):
        list(portions([told(9), told(9)], {"odd": torch.zeros(3)}, 10))


# ---------------------------------------------------------------- the plug-in itself


def test_the_engine_finds_it():
    (entry,) = (each for each in importlib.metadata.entry_points(group="vllm.general_plugins") if each.name == "vtc")
    assert entry.value == "vtc.serve.plugin:register"


@pytest.mark.parametrize("name", ["Gemma3ForConditionalGeneration", "LlamaForCausalLM"])
def test_a_model_that_can_not_be_served_is_refused_with_the_list(name):
    model_config = SimpleNamespace(hf_config=SimpleNamespace(vtc="divprune:keep=0.25", architectures=[name]))
    with pytest.raises(ValueError, match=f"{name} can't be served with pruning") as caught:
        plugin._ours([name], model_config)
    assert all(each in str(caught.value) for each in ARCHITECTURES)
    model_config.hf_config.vtc = None
    assert plugin._ours([name], model_config) == [name]


def test_nothing_heavy_is_imported_before_it_is_wanted():
    code = "import sys, vtc.serve.plugin; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.strip() == "[]"


class _Hook:
    def apply(self, inputs, timing_ctx, more=None): ...

    @classmethod
    def batched(cls, modality, *, keep_on_cpu=False): ...


def test_another_signature_is_noticed():
    assert differing({"apply": ("self", "inputs", "timing_ctx"), "batched": ("modality", "keep_on_cpu")}, _Hook) is None
    assert differing({"apply": ("self", "request")}, _Hook) == (
        "_Hook.apply takes self, inputs, timing_ctx, more, not self, request"
    )
    assert differing({"applied": ("self",)}, _Hook) == "_Hook has no applied"


def test_the_page_names_what_was_tested_and_served():
    page = (ROOT / "docs/serving.md").read_text(encoding="utf-8")
    assert all(f"| {release} " in page for release in TESTED)
    assert all(f"`{name}`" in page for name in ARCHITECTURES)
    assert all(f"`{name}`" in page for name in servable() if name in shipped())
