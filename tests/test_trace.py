"""The trace: what was kept where, and what it cost."""

import pytest
import torch
from contract import EVERY, FAMILIES, model_of, ran
from families import scenario
from torch.utils.flop_counter import FlopCounterMode

import vtc


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("spec", ["divprune:keep=0.5", "fastv:layer=2,keep=0.25", "stride:keep=8+fastv:layer=3,keep=3"])
def test_tokens_per_layer_and_kept_agree(family, spec):
    *_, trace = ran(family, spec, "several_images")
    for layer, counts in enumerate(trace.tokens_per_layer.tolist()):
        for row, count in enumerate(counts):
            assert sum(len(image.kept(layer)) for image in trace.images if image.row == row) == count
    for image in trace.images:
        assert (image.kept().diff() > 0).all()
        assert set(image.kept().tolist()) <= set(image.kept(0).tolist())
        assert (image.kept() < len(image.source)).all()


def test_the_words_of_the_budget():
    *_, trace = ran("llava", "divprune:keep=0.5+fastv:layer=2,keep=0.25", "single")
    assert trace.original_tokens.tolist() == [16]
    assert trace.tokens_per_layer[:, 0].tolist() == [8, 8, 2, 2, 2]
    assert trace.equivalent_tokens.tolist() == pytest.approx([22 / 5])
    assert trace.spec == "divprune:keep=0.5+fastv:keep=0.25"


def test_cache_lengths_follow_the_plan():
    inputs, output, trace = ran("llava", "divprune:keep=0.5+fastv:layer=2,keep=0.25", "single")
    text = inputs["input_ids"].shape[1] - 16
    lengths = [layer.keys.shape[-2] for layer in output.past_key_values.layers]
    assert lengths == [text + count for count in trace.tokens_per_layer[:, 0].tolist()]
    assert trace.text_tokens.tolist() == [text]


def test_merged_tokens_say_where_they_went():
    *_, trace = ran("llava", "pool:keep=0.25", "single")
    (image,) = trace.images
    into = image.merged_into()
    assert into.tolist().count(-1) == 0
    assert sorted(set(into.tolist())) == image.kept().tolist()
    assert torch.bincount(into)[image.kept()].tolist() == [4, 4, 4, 4]
    *_, trace = ran("llava", "stride:keep=0.25", "single")
    assert trace.images[0].merged_into() is None


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "internvl"])
@pytest.mark.parametrize("spec", ["none", "divprune:keep=0.5", "divprune:keep=0.5+test-norm:keep=0.5"])
def test_flops_equal_those_that_torch_counts(family, spec):
    model = model_of(family, "eager")
    inputs = EVERY[family].inputs(model, scenario(EVERY[family], "single"))
    parts = vtc.model.adapter.adapter_class(model)(model).parts
    with torch.no_grad(), vtc.patched(model, spec):
        with FlopCounterMode(display=False, depth=None) as counter:
            model(**inputs, use_cache=False)
        flops = vtc.trace(model).flops()
    counts = counter.get_flop_counts()
    path = {module: f"{type(model).__name__}.{name}" for name, module in model.named_modules()}
    layers = sum(sum(counts[path[layer]].values()) for layer in parts.layers)
    blocks = sum(sum(counts[path[block]].values()) for block in parts.blocks)
    assert flops.decoder == pytest.approx(layers, rel=0.01)
    assert flops.tower == pytest.approx(blocks, rel=0.01)
    if spec == "none":
        assert flops.decoder == flops.unpatched_decoder
    else:
        assert flops.decoder < flops.unpatched_decoder


def test_its_text_is_two_readable_lines():
    *_, trace = ran("llava", "divprune:keep=0.5", "single")
    lines = str(trace).splitlines()
    assert len(lines) == 2
    assert "16 -> 8 visual tokens (equivalent 8.0)" in lines[0]
    assert "GFLOP" in lines[1] and "selection" in lines[1]
    assert trace.selection_ms > 0


@pytest.mark.parametrize("family", ["llava_next", "llava_onevision"])
def test_anyres_grids_name_thumbnail_tiles_and_newlines(family):
    *_, trace = ran(family, "divprune:keep=0.5", "ragged")
    kinds = {tuple(grid.kind for grid in image.source.grids) for image in trace.images}
    assert ("thumbnail", "tiles") in kinds
    for image in trace.images:
        assert sum(len(grid) for grid in image.source.grids) == len(image.source)
        if len(image.source.grids) == 2:
            tiles = image.source.grids[1]
            assert int(image.source.separators().sum()) == tiles.h
            assert image.grid == (1, tiles.h, tiles.w)


@pytest.mark.parametrize(
    ("family", "shapes"),
    [
        ("llava", [(1, 4, 4)] * 3),
        ("qwen2_5_vl", None),
        ("mistral3", None),
        ("gemma3", [(1, 4, 4)] * 3),
    ],
)
def test_grids_multiply_to_the_tokens(family, shapes):
    *_, trace = ran(family, "divprune:keep=0.5", "ragged")
    assert all(t * h * w == len(image.source) for image in trace.images for t, h, w in [image.grid])
    assert shapes is None or [image.grid for image in trace.images] == shapes
    if shapes is None:
        assert any(h != w and h > 1 for image in trace.images for _, h, w in [image.grid])
