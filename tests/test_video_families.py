"""Videos in every family: their grids, what their tokens have of the tower, and the contract where videos differ."""

from dataclasses import dataclass, field

import flash_stand_in
import pytest
import torch
from contract import ASKED, EVERY, METHODS, check_rows, model_of, refusal, spec_of, state_of
from covering import product
from families import Row, scenario
from tiny_base import IMAGE, siglip
from tiny_videos import LlavaOnevisionVideo, Mixed
from transformers import LlavaOnevisionConfig

import vtc
from vtc.method.registry import method_class
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid

SELECTORS = [name for name in METHODS if method_class(name).kind == "selector"]
PRUNES = [name for name in METHODS if method_class(name).kind == "prune"]
REDUCERS = [name for name in METHODS if method_class(name).kind == "reducer"]
LLAVAS = ("llava_onevision_video", "llava_next_video_video", "video_llava_video")
QWENS = ("qwen2_vl_video", "qwen2_5_vl_video", "qwen3_vl_video")
POOLED = LLAVAS[:2]


pytestmark = pytest.mark.usefixtures("no_grad")


@vtc.register("test-onlooker")
@dataclass
class Onlooker(vtc.Selector):
    """Keeps the first half and remembers what it was shown of the tower block that the projector reads."""

    keep: float = 0.5
    seen: list[VisualTokens] = field(default_factory=list, init=False, repr=False)

    def needs(self, parts):
        self.block = parts.feature_layer % len(parts.blocks)
        return vtc.Needs(received=(self.block,), keys=(self.block,), hidden=(self.block,))

    def select(self, visual, k):
        self.seen.append(visual)
        return vtc.Reduction(torch.arange(k).expand(len(visual.features), k))


def look(model, inputs):
    """What `Onlooker` is shown of a call, and the block that it reads."""
    onlooker = Onlooker()
    with vtc.patched(model, onlooker):
        model(**inputs)
    return onlooker.seen, onlooker.block


# ---------------------------------------------------------------- grids


@pytest.mark.parametrize(
    ("family", "grids"),
    {
        "llava_onevision_video": [Grid(0, 6, 2, 2, end=1)],
        "llava_next_video_video": [Grid(0, 6, 2, 2)],
        "video_llava_video": [Grid(0, 3, 4, 4, front=1)],
        "qwen2_vl_video": [Grid(0, 3, 2, 4), Grid(0, 2, 4, 4), Grid(0, 4, 3, 2)],
        "qwen2_5_vl_video": [Grid(0, 3, 2, 4), Grid(0, 2, 4, 4), Grid(0, 4, 3, 2)],
        "qwen3_vl_video": [Grid(0, 3, 2, 4), Grid(0, 2, 4, 4), Grid(0, 4, 3, 2)],
    }.items(),
)
def test_a_video_has_one_grid(family, grids):
    model, inputs = model_of(family), EVERY[family].inputs(model_of(family), scenario(EVERY[family], "ragged"))
    with vtc.patched(model, "none"):
        model(**inputs)
        images = vtc.trace(model).images
    assert [image.source.grids for image in images] == [(grid,) for grid in grids * (3 // len(grids))]
    assert all(image.kind == "video" for image in images)


def test_frames_of_internvl_are_images_of_their_row():
    family, model = EVERY["internvl_video"], model_of("internvl_video")
    with vtc.patched(model, "divprune:keep=0.5"):
        model(**family.inputs(model, scenario(family, "ragged")))
        images = vtc.trace(model).images
    assert [image.row for image in images] == [0] * 3 + [1] * 2 + [2] * 4
    assert {(image.kind, image.source.grids) for image in images} == {("image", (Grid(0, 1, 4, 4),))}


def test_cells_of_a_grid_with_something_in_front_of_each_frame():
    grid = Grid(2, 2, 2, 2, row_end=1, end=1, front=1)
    assert len(grid) == 15 and grid.frame == 7
    assert grid.tokens().tolist() == [[[3, 4], [6, 7]], [[10, 11], [13, 14]]]


def test_images_of_video_llava_may_touch():
    family, model = EVERY["video_llava"], model_of("video_llava")
    inputs = family.inputs(model, [Row(((4, 4), (4, 4)), 2)])
    ids = inputs["input_ids"][0]
    text = ids[ids != IMAGE].tolist()
    inputs["input_ids"] = torch.tensor([[*text[:3], *[IMAGE] * 32, *text[3:]]])
    with vtc.patched(model, "hiprune:keep=0.5"):
        model(**inputs)
        assert [image.source.grids for image in vtc.trace(model).images] == [(Grid(0, 1, 4, 4),)] * 2


# ---------------------------------------------------------------- what a token has of the tower


def seen_by_hand(tower, pixels, block):
    """(received, keys, hidden) [F, S, ...] of a CLIP or SigLIP tower's block for frames; a CLS token comes first."""
    states = tower(pixels, output_hidden_states=True).hidden_states
    layer = next(part for part in tower.modules() if isinstance(part, torch.nn.ModuleList))[block]
    x, attention = layer.layer_norm1(states[block]), layer.self_attn
    query, keys = (part(x).unflatten(-1, (attention.num_heads, -1)) for part in (attention.q_proj, attention.k_proj))
    logits = torch.einsum("fqhd,fkhd->fhqk", query, keys) / query.shape[-1] ** 0.5
    return logits.softmax(dim=-1).mean(dim=(1, 2)), keys, states[block + 1]


def halved(values, side):
    """Frames [F, side², ...] scaled down bilinearly to ceil(side / 2), each point worked out by itself."""
    out = -(-side // 2)
    frames = values.view(len(values), side, side, -1)
    places = ((torch.arange(out) + 0.5) * side / out - 0.5).clamp(min=0)
    low = places.floor().long()
    high, share = (low + 1).clamp(max=side - 1), places - low
    rows = frames[:, low] * (1 - share)[:, None, None] + frames[:, high] * share[:, None, None]
    cells = rows[:, :, low] * (1 - share)[:, None] + rows[:, :, high] * share[:, None]
    return cells.reshape(len(values) * out * out, *values.shape[2:])


class Odd(LlavaOnevisionVideo):
    """Frames of 5 × 5 patches, which are pooled to 3 × 3."""

    def config(self, text):
        config = super().config(text)
        return LlavaOnevisionConfig(
            vision_config=siglip(image_size=20), text_config=config.text_config, image_token_index=2,
            video_token_index=self.image_id,
        )  # fmt: skip

    def image_tokens(self, size, images_in_row):
        return [self.image_id] * (9 * size[0] + 1)

    def pixels(self, config, rows):
        pixels = super().pixels(config, rows)["pixel_values_videos"]
        return {"pixel_values_videos": torch.nn.functional.interpolate(pixels.flatten(0, 1), 20).unflatten(0, (-1, 6))}


@pytest.mark.parametrize("name", [*LLAVAS, "odd"])
def test_what_a_token_has_of_the_tower_is_made_as_the_token_is(name):
    family = Odd() if name == "odd" else EVERY[name]
    model = family.build()
    inputs = family.inputs(model, scenario(family, "several_images"))
    seen, block = look(model, inputs)
    videos, side = inputs["pixel_values_videos"], 5 if name == "odd" else 4
    (seen,) = seen  # alike, so that they are shown at once
    assert len(seen.features) == len(videos) == 3
    tower = model.model.video_tower if "video_llava" in name else model.model.vision_tower
    for index, frames in enumerate(videos):
        wanted = seen_by_hand(tower, frames, block)
        for values, found in zip(wanted, (seen.received, seen.keys, seen.hidden)):
            (found,) = found.values()
            if "video_llava" in name:  # a token for each row of the tower; CLS stands for no place
                values = values.masked_fill(torch.arange(17).view(1, -1, *[1] * (values.dim() - 2)) == 0, torch.nan)
                values = values.flatten(0, 1)
            else:
                values = halved(values[:, -(side**2) :], side)
            if "onevision" in name or name == "odd":  # the newline has nothing
                values = torch.cat([values, torch.full_like(values[:1], torch.nan)])
            torch.testing.assert_close(found[index], values, atol=1e-5, rtol=1e-4, equal_nan=True)


@pytest.mark.parametrize("family", [*LLAVAS, *QWENS])
def test_each_frame_is_a_crop(family):
    model = model_of(family)
    seen, _ = look(model, EVERY[family].inputs(model, scenario(EVERY[family], "ragged")))
    for visual in seen:
        (grid,), crops = visual.grids, visual.crops
        assert (crops.count, crops.grid) == (grid.t, (grid.h, grid.w))
        for frame, cells in enumerate(grid.tokens()):
            assert (crops.index[cells] == frame).all()
            assert crops.place[cells].flatten().tolist() == list(range(grid.h * grid.w))
        assert ((crops.index < 0) == visual.separators).all()


@pytest.mark.parametrize("family", LLAVAS)
@pytest.mark.parametrize("reducer", REDUCERS)
def test_reducers_are_refused_in_a_sentence(family, reducer):
    model, tiny = model_of(family), EVERY[family]
    inputs = tiny.inputs(model, scenario(tiny, "single"))
    logits, before = model(**inputs).logits, state_of(model)
    why = refusal(family, spec_of(reducer, family))
    if why is None:
        with vtc.patched(model, spec_of(reducer, family)), pytest.raises(ValueError) as error:
            model(**inputs)
        why = str(error.value)
    reasons = "can't follow", "is not known for video_llava", "is not given them patch by patch"
    assert any(reason in why for reason in reasons) and "'divprune'" in why
    assert state_of(model) == before
    assert torch.equal(model(**inputs).logits, logits)


# ---------------------------------------------------------------- the contract


@product(family=[*LLAVAS, *QWENS, "internvl_video"], method=[*SELECTORS, *PRUNES], each="value")
def test_two_videos_in_a_row(family, method, compared):
    rows = scenario(EVERY[family], "several_images")
    check_rows(EVERY[family], model_of(family), spec_of(method, family), rows, compared=compared)


MIXED = {
    "llava_onevision": (("image", 14, 36), ("video", 6)),
    "llava_next_video": (("image", 14, 36), ("video", 6)),
    "video_llava": (("image", 4, 4), ("video", 3)),
    "qwen2_vl": (("image", 8, 12), ("video", 3, 4, 8)),
    "qwen2_5_vl": (("image", 8, 12), ("video", 3, 4, 8)),
    "qwen3_vl": (("image", 8, 12), ("video", 3, 4, 8)),
}


@product(family=MIXED, method=[*SELECTORS, *PRUNES], each="value")
def test_an_image_and_a_video_in_one_prompt_in_both_orders(family, method, compared):
    image, video = MIXED[family]
    tiny = Mixed(EVERY[family], EVERY[f"{family}_video"])
    rows = [Row((image, video), 2), Row((video, image), 5), Row((), 7)]
    check_rows(tiny, model_of(family), spec_of(method, family), rows, compared=compared)


@product(
    family=[*LLAVAS, *QWENS],
    attention=["eager", flash_stand_in.NAME],
    method=["evs", "holitom", "hiprune", "visionzip"],
    each="value",
)
def test_rows_equal_their_own_run_however_attention_is_computed(family, attention, method, compared):
    rows = scenario(EVERY[family], "ragged")
    check_rows(EVERY[family], model_of(family, attention), spec_of(method, family), rows, compared=compared)


@product(family=[*LLAVAS, *QWENS, "internvl_video"], method=[*SELECTORS, *PRUNES], each="value")
def test_keeping_all_and_unpatching_are_bit_exact(family, method):
    tiny, model = EVERY[family], model_of(family)
    inputs = tiny.inputs(model, scenario(tiny, "several_images"))
    logits = model(**inputs).logits
    before = state_of(model)
    with vtc.patched(model, spec_of(method, family, keep=1.0)):
        assert torch.equal(model(**inputs).logits, logits)
    with vtc.patched(model, spec_of(method, family)):
        model(**inputs)
    assert torch.equal(model(**inputs).logits, logits)
    assert state_of(model) == before


@pytest.mark.parametrize("family", LLAVAS)
@pytest.mark.parametrize("method", [name for name in SELECTORS if name not in (*ASKED, "random")])
def test_two_turns_with_a_video_each_equal_one_prompt_with_both(family, method):
    """Not so for those that ask what else is in the row: videos before (`random`), text behind (`ASKED`)."""
    tiny, model = EVERY[family], model_of(family)
    alone = dict.fromkeys(("holitom", "flashvid", "prunevid"), ",inner=False")  # their prunes share a budget
    alone["vscan"] = ",later_keep=1.0"
    spec = spec_of(method, family) + alone.get(method, "")
    rows = scenario(tiny, "ragged")[:2]
    one, two = (tiny.inputs(model, [row]) for row in rows)
    both = {name: torch.cat([one[name], two[name]], dim=int(name != "pixel_values_videos")) for name in one}
    with vtc.patched(model, spec):
        cache = model(**one, use_cache=True).past_key_values
        turns = model(**two | {"attention_mask": both["attention_mask"]}, past_key_values=cache).logits[:, -1]
        assert vtc.trace(model).original_tokens.tolist() == tiny.visual_tokens(rows[1:])[0]
        torch.testing.assert_close(turns, model(**both).logits[:, -1], atol=3e-4, rtol=1e-4)


# ---------------------------------------------------------------- positions and DeepStack


@pytest.mark.parametrize("family", QWENS)
@pytest.mark.parametrize("spec", ["evs:keep=0.4", "divprune:keep=0.4", "frame_stride:keep=0.4,per=frame"])
def test_survivors_keep_their_positions_and_their_deepstack_features(family, spec):
    """The patched prefill is the untouched decoder on the survivors, all that it is given cut by hand."""
    tiny, model = EVERY[family], model_of(family)
    inputs = tiny.inputs(model, scenario(tiny, "single"))
    given = {}

    def see(module, args, kwargs):
        given.update(kwargs)

    handle = model.model.language_model.register_forward_pre_hook(see, with_kwargs=True)
    model(**inputs)
    handle.remove()
    with vtc.patched(model, spec):
        patched = model.model(**inputs).last_hidden_state
        (image,) = vtc.trace(model).images
    alive = torch.ones(given["inputs_embeds"].shape[1], dtype=torch.bool)
    alive[image.source.positions] = False
    alive[image.source.positions[image.kept()]] = True
    assert alive.sum() < len(alive)
    cut = {
        "inputs_embeds": given["inputs_embeds"][:, alive],
        "position_ids": given["position_ids"][..., alive],
        "use_cache": False,
    }
    if given.get("deepstack_visual_embeds") is not None:
        cut["visual_pos_masks"] = given["visual_pos_masks"][:, alive]
        cut["deepstack_visual_embeds"] = [features[image.kept()] for features in given["deepstack_visual_embeds"]]
    expected = model.model.language_model(**cut).last_hidden_state
    torch.testing.assert_close(patched[:, alive], expected, atol=1e-4, rtol=1e-4)
    assert (family == "qwen3_vl_video") == ("deepstack_visual_embeds" in cut)
