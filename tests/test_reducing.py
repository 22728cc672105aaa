"""Encoder reducers act through the tower as they say: held against a tower that is run by hand, crop by crop."""

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from contract import ATTENTIONS, EVERY, model_of
from families import Row, scenario
from tower_reference import Tower

import vtc
from vtc.budget import Keep
from vtc.patches import Patches
from vtc.reduction import Mixing, Reduction

torch.set_num_threads(1)


@dataclass
class Largest(vtc.Reducer):
    """Keeps the units with the largest rows ("norm"), or by their place ("place"); the others go, or are merged."""

    name: ClassVar[str] = "test-largest"  # not registered: other tests count the registered ones
    keep: Keep = 0.5
    layers: tuple[int, ...] = (0, 2)
    rule: str = "norm"
    acts: str = "block"  # type: ignore[misc]
    merges: bool = False
    proportional: bool = False

    def blocks(self, parts: vtc.parts.Parts) -> tuple[int, ...]:
        return self.layers

    def left(self, patches: Patches) -> int:
        return patches.target if patches.last else -(-(patches.units + patches.target) // 2)

    def reduce(self, patches: Patches) -> Reduction | None:
        images, now = patches.sizes.shape
        left = self.left(patches)
        if left == now:
            return None
        if "number" not in patches.memory:
            patches.memory["number"] = torch.arange(now).expand(images, now)
        by_place = (patches.memory["number"] * 37.0 + 11) % 101
        score = patches.hidden.float().norm(dim=-1).mean(dim=2) if self.rule == "norm" else by_place
        order = score.argsort(dim=1, descending=True)
        kept, gone = order[:, :left], order[:, left:]
        gone = gone.gather(1, patches.memory["number"].gather(1, gone).argsort(dim=1))
        if not self.merges:
            return Reduction(kept)
        target = torch.cat([torch.arange(left), torch.arange(now - left) % left]).expand(images, now)
        source = torch.cat([kept, gone], dim=1)
        size = patches.sizes.gather(1, source)
        total = torch.zeros(images, left).scatter_add(1, target, size)
        return Reduction(kept, Mixing(source, target, size / total.gather(1, target)))


FAMILIES = (
    "llava", "llava_next", "llava_onevision", "paligemma", "gemma3", "internvl", "mistral3",
    "qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v",
)  # fmt: skip


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def see_entry(model: Any, inputs: dict, method: Any) -> tuple[dict, vtc.Trace]:
    """What the decoder of the patched model is given, and the trace."""
    seen: list[dict] = []
    with vtc.patched(model, method):
        decoder = model.model.language_model
        hook = decoder.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
        model(**inputs)
        hook.remove()
        return seen[0], vtc.trace(model)


def check_entry(family: str, model: Any, rows: list[Row], method: Any, atol=2e-5, rtol=2e-4) -> vtc.Trace:
    """The visual tokens that enter the decoder are those of the tower run by hand, in their places."""
    tiny = EVERY[family]
    inputs = tiny.inputs(model, rows)
    tower = Tower(tiny, model, inputs, rows)
    results = tower.run(method)
    given, trace = see_entry(model, inputs, method)
    plain: list[dict] = []
    hook = model.model.language_model.register_forward_pre_hook(
        lambda module, args, kwargs: plain.append(kwargs), with_kwargs=True
    )
    model(**inputs)
    hook.remove()
    image = 0
    for row, counts in enumerate(tiny.visual_tokens(rows)):
        places = (inputs["input_ids"][row] == tiny.image_id).nonzero()[:, 0].split(counts)
        alive = inputs["attention_mask"][row].bool()
        expected = plain[0]["inputs_embeds"][row].clone()
        for here, count in zip(places, counts, strict=True):
            tokens, features = tower.features(results[image])
            expected[here[tokens]] = features
            budget = method.keep if isinstance(method.keep, int) else max(round(method.keep * count), 1)
            kept = trace.images[image].kept()
            assert len(kept) == min(budget, count)
            made = torch.cat([s.tokens for s in tower.sequences if s.image == image])
            assert torch.equal(kept[torch.isin(kept, made)], tokens)  # the rest are newlines
            gone = torch.ones(count, dtype=torch.bool)
            gone[kept] = False
            alive[here[gone]] = False
            image += 1
        left = expected[alive]
        torch.testing.assert_close(given["inputs_embeds"][row, -len(left) :], left, atol=atol, rtol=rtol)
    return trace


@pytest.mark.parametrize("family", FAMILIES)
def test_the_reference_is_the_model_where_nothing_is_removed(family):
    model, tiny = model_of(family), EVERY[family]
    rows = scenario(tiny, "several_images")
    tower = Tower(tiny, model, tiny.inputs(model, rows), rows)
    check_entry(family, model, rows, Largest(keep=1.0))
    assert all(len(result.tokens) for results in tower.run(Largest(keep=1.0)) for result in results)


METHODS = {
    "drop": Largest(),
    "drop by place": Largest(keep=0.3, layers=(1,), rule="place", acts="attention"),
    "merge": Largest(keep=0.4, layers=(0, 1, 2), merges=True),
    "merge before the MLP": Largest(keep=0.4, acts="attention", merges=True, proportional=True),
}


@pytest.mark.parametrize("name", ["ragged", "several_images"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_what_enters_the_decoder_is_the_tower_run_by_hand(family, name, method):
    check_entry(family, model_of(family), scenario(EVERY[family], name), METHODS[method])


@pytest.mark.parametrize("keep", [1, 2, "the smallest image", "one less"])
@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("llava", "paligemma", "gemma3")])
def test_a_count_leaves_small_images_and_some_crops_whole_and_others_empty(family, keep):
    rows = scenario(EVERY[family], "ragged")
    least = min(count for row in EVERY[family].visual_tokens(rows) for count in row)
    most = max(count for row in EVERY[family].visual_tokens(rows) for count in row)
    count = {"the smallest image": least, "one less": most - 1}.get(keep, keep)
    for method in (Largest(keep=count), Largest(keep=count, acts="attention", merges=True, proportional=True)):
        check_entry(family, model_of(family), rows, method)


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_a_tile_that_unpadding_cuts_off_whole_takes_part_until_the_first_cut(family, monkeypatch):
    monkeypatch.setattr(EVERY[family], "pinpoints", [[48, 48]])
    model = EVERY[family].build()
    model.config.vision_aspect_ratio = "anyres_max_9"  # of llava_onevision: so many tiles are not scaled down
    check_entry(family, model, [Row(((8, 48),), 3), Row(((16, 20),), 4)], Largest(keep=0.5))


IMPLEMENTATIONS = [
    (family, attention)
    for family in ("llava", "internvl", "qwen2_5_vl", "mistral3", "llava_onevision")
    for attention in ATTENTIONS
]
TOLERANCE = {torch.float32: (2e-5, 2e-4), torch.bfloat16: (0.12, 0.05), torch.float16: (0.012, 0.01)}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("family", "attention"), IMPLEMENTATIONS)
def test_merging_under_every_attention_and_dtype(family, attention, dtype):
    """Which tokens are left is compared exactly in `check_entry`, what they are within the dtype's rounding."""
    model = model_of(family, attention, dtype)
    atol, rtol = TOLERANCE[dtype]
    method = Largest(keep=0.4, rule="place", acts="attention", merges=True, proportional=True)
    check_entry(family, model, scenario(EVERY[family], "several_images"), method, atol, rtol)
