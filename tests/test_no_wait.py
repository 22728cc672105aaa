"""The host never waits for the device where the number of tokens that are kept is fixed."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import EVERY, METHODS, model_of, spec_of
from covering import product
from device_double import Waited, double, off_double, on_double
from families import scenario
from torch import Tensor

import vtc
from vtc.adapters.llava import LlavaAdapter
from vtc.ops import host
from vtc.seam.entry import selection as selecting
from vtc.seam.hooks import Seam
from vtc.tower.prompt import Prompt

#: Methods whose counts depend on what the picture shows, so that somebody has to look; that bring tokens back in decode
#: steps; or, in a tower that packs all images into one sequence, that need to know where its parts begin afterwards.
_BY_SHOWN = {
    *("atp", "holitom", "lazyllm", "prunevid", "prunevid_inner", "recoverable", "sttm", "todre", "todre_stage2"),
    "tokencorr",
}
LOOKING = {
    "llava": _BY_SHOWN,
    "qwen2_5_vl": {*_BY_SHOWN, "diffrate", "flowcut", "pixelprune", "token_transforming", "tome"},
}
HOOKS = (
    *("_before_composite", "_before_decoder", "_after_decoder", "_before_layer", "_after_layer", "_before_block"),
    *("start_features", "record_features", "record_placeholders"),
)


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Transformers' own checks wait: they compare numbers of placeholders and features."""
    monkeypatch.setenv("TRANSFORMERS_DISABLE_TORCH_CHECK", "1")
    real = host._key
    monkeypatch.setattr(host, "_key", lambda tensor: real(getattr(tensor, "inner", tensor)))


@functools.cache
def prompt(family: str) -> tuple[dict[str, Tensor], Any]:
    """Inputs of two rows of several lengths, and a model of its own on the double."""
    inputs = EVERY[family].inputs(model_of(family), scenario(EVERY[family], "ragged"))
    return inputs, on_double(EVERY[family].build())


def refused(model: Any, spec: str) -> bool:
    try:
        with vtc.patched(model, spec):
            return False
    except ValueError:
        return True


@torch.no_grad()
def prefill_and_decode(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits of the prompt, and of one token more."""
    first = model(**inputs, use_cache=True)
    mask = torch.cat([inputs["attention_mask"], torch.ones_like(inputs["attention_mask"][:, :1])], dim=1)
    token = torch.full_like(inputs["input_ids"][:, :1], 60)
    more = {}
    if "image_grid_thw" in inputs:  # position ids on three axes, which generate would make
        more["position_ids"] = torch.full_like(token, 100).expand(3, -1, -1)
    second = model(input_ids=token, attention_mask=mask, past_key_values=first.past_key_values, **more)
    return first.logits, second.logits


@product(family=["llava", "qwen2_5_vl"], method=METHODS, each="value")
def test_nothing_waits_for_the_device(family: str, method: str) -> None:
    inputs, model = prompt(family)
    spec, there = spec_of(method, family), on_double(inputs)
    if refused(model, spec):
        pytest.skip(f"{method} refuses {family}")
    with vtc.patched(model, spec):
        with double(waits=True):  # the first call may look where placeholders are
            prefill_and_decode(model, there)
        if method in LOOKING[family]:
            with pytest.raises(Waited), double():
                prefill_and_decode(model, there)
            return
        with double():
            found = off_double(prefill_and_decode(model, there))
    plain = model_of(family)
    with vtc.patched(plain, spec):
        torch.testing.assert_close(found, prefill_and_decode(plain, inputs), rtol=0, atol=1e-4)


def test_a_wait_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, model = prompt("llava")
    planted: dict[str, Any] = {}
    source = "def on(device, values):\n    import torch\n    return torch.as_tensor(values).to(device)\n"
    exec(compile(source, str(Path(vtc.__file__).parent / "planted.py"), "exec"), planted)
    monkeypatch.setattr(selecting, "on", planted["on"])
    with vtc.patched(model, "divprune:keep=0.5"):
        with double(waits=True):
            prefill_and_decode(model, on_double(inputs))
        with pytest.raises(Waited, match=r"planted\.py:3"), double():
            prefill_and_decode(model, on_double(inputs))


def test_ids_that_do_not_tell_the_placeholders_are_not_trusted() -> None:
    inputs, model = prompt("llava")
    adapter = LlavaAdapter(model)
    ids = inputs["input_ids"]
    own, other = ids == model.config.image_token_id, ids == ids[0, -1]
    for mask, told in ((own, True), (other, False)):
        adapter._ids_tell.clear()
        prompt_seen = Prompt(ids=on_double(ids))
        with double(waits=True):
            prompt_seen.early.start(prompt_seen.ids)
            for _ in range(2):
                assert torch.equal(adapter._on_host(prompt_seen, "image", on_double(mask)), mask)
        assert adapter._ids_tell == {"image": told}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_no_hook_waits_for_a_gpu(family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = EVERY[family].build().cuda()
    inputs = {name: value.cuda() for name, value in prompt(family)[0].items()}
    spec, mode = spec_of(method, family), "default"
    if method in LOOKING[family] or refused(model, spec):
        pytest.skip(f"{method} looks, or refuses {family}")

    def strictly(hook: Any) -> Any:
        @functools.wraps(hook)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            torch.cuda.set_sync_debug_mode(mode)
            try:
                return hook(*args, **kwargs)
            finally:
                torch.cuda.set_sync_debug_mode("default")

        return wrapper

    for name in HOOKS:
        monkeypatch.setattr(Seam, name, strictly(getattr(Seam, name)))
    with vtc.patched(model, spec):
        prefill_and_decode(model, inputs)  # the first call may look where placeholders are
        mode = "error"
        prefill_and_decode(model, inputs)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_whole_prefill_waits_for_nothing() -> None:
    model = EVERY["llava"].build().cuda()
    inputs = {name: value.cuda() for name, value in prompt("llava")[0].items() if name != "attention_mask"}
    with vtc.patched(model, "divprune:keep=0.5"), torch.no_grad():
        model(**inputs)
        torch.cuda.set_sync_debug_mode("error")
        try:
            model(**inputs)
        finally:
            torch.cuda.set_sync_debug_mode("default")
