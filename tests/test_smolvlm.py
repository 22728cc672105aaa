"""SmolVLM and Idefics3: pictures in tiles, several in a row, rows padded with empty ones."""

import inspect
import re

import pytest
import torch
from contract import EVERY, check_rows, greedy, model_of, spec_of, stepwise
from covering import product
from families import Row
from transformers.models.smolvlm.processing_smolvlm import get_image_prompt_string

import vtc
from vtc.adapters.smolvlm import pictures, tiles
from vtc.ops.greedy.farthest import farthest_first

FAMILIES = ("smolvlm", "idefics3")
WHOLE, WIDE, LARGE = (1, 1), (1, 2), (2, 2)  # 1, 3 and 5 tiles of 16 tokens
#: Three pictures, one, none and two.
ROWS = [Row((WIDE, WHOLE, LARGE), 1), Row((WHOLE,), 2), Row((), 3), Row((WHOLE, WIDE), 4)]
SIZES = [(0, 48), (0, 16), (0, 80), (1, 16), (3, 16), (3, 48)]  # (row, tokens) of each picture

pytestmark = pytest.mark.usefixtures("no_grad")
each_family = pytest.mark.parametrize("family", FAMILIES)


def inputs_of(family, rows=ROWS, **options):
    return EVERY[family].inputs(model_of(family), rows, **options)


def traced(family, spec, inputs):
    with vtc.patched(model_of(family), spec) as model:
        logits = model(**inputs).logits
        return logits, vtc.trace(model)


# ---------------------------------------------------------------- a model


@each_family
@pytest.mark.parametrize("keep", [0.25, 7])
def test_a_picture_is_its_tiles_and_has_one_budget(family, keep):
    _, trace = traced(family, vtc.DivPrune(keep=keep), inputs_of(family))
    assert [(image.row, len(image.source)) for image in trace.images] == SIZES
    kept = [len(image.kept()) for image in trace.images]
    assert kept == [keep if keep == 7 else size // 4 for _, size in SIZES]
    assert trace.original_tokens.tolist() == [144, 16, 0, 64]


@each_family
def test_its_grids_are_its_tiles_and_the_view_behind_them(family):
    _, trace = traced(family, "stride:keep=0.25", inputs_of(family))
    for image, (_, size) in zip(trace.images, SIZES, strict=True):
        grids = image.source.grids
        assert [(grid.start, grid.t, grid.h, grid.w) for grid in grids] == [(at, 1, 4, 4) for at in range(0, size, 16)]
        kinds = [grid.kind for grid in grids]
        assert kinds == (["image"] if size == 16 else ["tile"] * (size // 16 - 1) + ["thumbnail"])
        assert torch.bincount(image.kept() // 16).tolist() == [4] * (size // 16)
        assert not image.source.separators().any() and image.grid == (1, 4, 4)


@each_family
def test_what_is_kept_and_the_logits_are_those_of_the_bare_model_fed_by_hand(family):
    """Each picture's share of DivPrune on its own features, in a decoder that gets the survivors at their places."""
    model, inputs = model_of(family), inputs_of(family)
    logits, trace = traced(family, vtc.DivPrune(keep=0.25), inputs)
    given = {name: inputs[name] for name in ("pixel_values", "pixel_attention_mask")}
    pooled = model.model.get_image_features(**given).pooler_output
    features = iter(torch.cat([part.flatten(0, -2) for part in pooled]).split([size for _, size in SIZES]))
    decoder, images = model.model.text_model, iter(trace.images)
    for row, ids in enumerate(inputs["input_ids"]):
        alive = inputs["attention_mask"][row].bool()
        positions = (alive.cumsum(0) - 1).clamp(min=0)
        embeds, places = decoder.embed_tokens(ids), (ids == EVERY[family].image_id).nonzero()[:, 0]
        for here in places.split([size for of, size in SIZES if of == row] or [0]):
            if not len(here):
                continue
            embeds[here] = own = next(features)
            unit = torch.nn.functional.normalize(own.float(), dim=-1)
            kept = farthest_first(unit, torch.full((len(own),), -torch.inf), len(own) // 4, None).sort().values
            image = next(images)
            assert torch.equal(image.kept(), kept) and torch.equal(image.source.positions, here)
            alive[here] = False
            alive[here[kept]] = True
        if vtc.DivPrune.positions == "packed":
            positions = alive.cumsum(0) - 1
        hidden = decoder(inputs_embeds=embeds[alive][None], position_ids=positions[alive][None]).last_hidden_state
        torch.testing.assert_close(logits[row, -1], model.lm_head(hidden)[0, -1], atol=2e-4, rtol=1e-4)


SPECS = [spec_of(name, "smolvlm") for name in ("divprune", "hiprune", "pool", "fastv", "sparsevlm", "tome")]


@product(family=FAMILIES, spec=SPECS)
def test_rows_of_unequal_numbers_of_pictures_equal_each_row_alone(family, spec):
    trace = check_rows(EVERY[family], model_of(family), spec, ROWS)
    assert [(image.row, len(image.source)) for image in trace.images] == SIZES


@product(family=FAMILIES, spec=["divprune:keep=0.5", "pool:keep=0.5", "hiprune:keep=0.5", "tome:keep=0.5"])
def test_steps_through_several_pictures_equal_recomputing(family, spec):
    model, inputs = model_of(family), inputs_of(family)
    with vtc.patched(model, spec):
        steps = stepwise(model, inputs)
        assert torch.equal(steps.sequences, greedy(model, inputs, use_cache=False))
        torch.testing.assert_close(steps.logits[0], model(**inputs).logits[:, -1], atol=2e-4, rtol=1e-4)


@product(family=FAMILIES, spec=["none", "divprune:keep=0.5", "tome:keep=0.5"])
def test_beams_of_unequal_rows_equal_those_of_each_row(family, spec):
    """Where transformers itself repeats pictures rightly, that is."""
    model, inputs = model_of(family), inputs_of(family)
    bare = greedy(model, inputs, num_beams=2)
    with vtc.patched(model, spec):
        beams = greedy(model, inputs, num_beams=2)
        assert spec != "none" or torch.equal(beams, bare)
        for index, row in enumerate(ROWS):
            assert torch.equal(greedy(model, inputs_of(family, [row]), num_beams=2)[0, -4:], beams[index, -4:])


@product(family=FAMILIES, spec=["divprune:keep=0.5", "hiprune:keep=0.5", "tome:keep=0.5"])
def test_pictures_that_pad_the_batch_are_ignored(family, spec):
    inputs = inputs_of(family)
    logits, trace = traced(family, spec, inputs)
    more = {
        name: torch.cat([value, torch.zeros_like(value[:, :2])], dim=1) if "pixel" in name else value
        for name, value in inputs.items()
    }
    again, retraced = traced(family, spec, more)
    assert torch.equal(again, logits)
    assert all(torch.equal(a.kept(), b.kept()) for a, b in zip(trace.images, retraced.images, strict=True))


@each_family
def test_a_picture_in_a_later_turn(family):
    """Two turns with a picture each equal one prompt with both."""
    model, rows = model_of(family), [Row((WIDE,), 5), Row((LARGE,), 6)]
    one, two = (inputs_of(family, [row]) for row in rows)
    both = {name: torch.cat([one[name], two[name]], dim=1) for name in one}
    for spec in ("none", "divprune:keep=0.5", "hiprune:keep=0.5"):
        with vtc.patched(model, spec):
            cache = model(**one, use_cache=True).past_key_values
            turn = model(**{**two, "attention_mask": both["attention_mask"]}, past_key_values=cache).logits[:, -1]
            torch.testing.assert_close(turn, model(**both).logits[:, -1], atol=2e-4, rtol=1e-4)


@each_family
def test_embeddings_in_place_of_ids_count_by_the_tile(family):
    model, inputs = model_of(family), inputs_of(family)
    ids = inputs.pop("input_ids")
    inputs["inputs_embeds"] = model.get_input_embeddings()(ids)
    with vtc.patched(model, "stride:keep=0.25"):
        by_tile = model(**inputs).logits
        assert [len(image.source) for image in vtc.trace(model).images] == [16] * 14
        inputs.pop("inputs_embeds")
        torch.testing.assert_close(by_tile, model(input_ids=ids, **inputs).logits)  # stride shares out by the tile, too
        assert [len(image.source) for image in vtc.trace(model).images] == [size for _, size in SIZES]


@each_family
def test_features_made_before(family):
    model, inputs = model_of(family), inputs_of(family)
    given = {name: inputs.pop(name) for name in ("pixel_values", "pixel_attention_mask")}
    if (name := "mm_encoder_outputs") not in inspect.signature(model.forward).parameters:
        pytest.skip("this release takes none")
    with vtc.patched(model, "divprune:keep=0.5"):
        expected = model(**inputs, **given).logits
        made = model.model.get_image_features(**given)
        assert torch.equal(model(**inputs, **{name: {"image": made}}).logits, expected)


@each_family
def test_a_reducer_needs_the_ids(family):
    model, inputs = model_of(family), inputs_of(family)
    embeds = model.get_input_embeddings()(inputs.pop("input_ids"))
    with vtc.patched(model, "tome:keep=0.5"), pytest.raises(ValueError, match=f"{family}: which tiles make a picture"):
        model(inputs_embeds=embeds, **inputs)


# ---------------------------------------------------------------- which tiles make a picture

TILE = 4


def picture(rows, columns, line_breaks="\n\n"):
    """What the processor writes for a picture in so many rows and columns of tiles; 0, 0: not cut."""
    text = get_image_prompt_string(
        rows, columns, TILE, fake_token_around_image="<fake>", image_token="<image>", global_image_token="<global-img>"
    )
    return text.replace("\n\n", line_breaks)


def sizes(text, marks=r"<[\w-]+>"):
    """Tokens of each picture of a prompt; `marks`: what its tokenizer takes for one token."""
    words = re.findall(rf"<image>|{marks}|\n+|\w+|[^\w\n]", text)
    numbers = {word: number for number, word in enumerate(dict.fromkeys(words))}
    ids = [numbers[word] for word in words]
    places = torch.tensor([place for place, word in enumerate(words) if word == "<image>"], dtype=torch.long)
    found = pictures(places, ids)
    assert torch.equal(torch.cat(found), places) if found else not len(places)
    return [len(places) // TILE for places in found]


CUT = [(1, 2), (2, 1), (2, 2), (3, 4), (4, 3), (6, 6), (1, 6)]


@pytest.mark.parametrize("marks", [r"<[\w-]+>", "<fake>"], ids=["marks in a token", "marks in several"])
@pytest.mark.parametrize("between", ["", "\n", " and ", "<end>\n\nUser: ", "\n\n", "<row_1_col_1>"])
@pytest.mark.parametrize("line_breaks", ["\n\n", "\n \n"], ids=["line breaks in a token", "line breaks in several"])
def test_pictures_are_read_from_what_the_processor_writes(marks, between, line_breaks):
    for grid in CUT:
        expected = grid[0] * grid[1] + 1
        cut, whole = picture(*grid, line_breaks), picture(0, 0)
        assert sizes(f"User: {cut}What?", marks) == [expected]
        for order, counts in (
            ((cut, cut), [expected, expected]),
            ((whole, cut, whole, whole), [1, expected, 1, 1]),
            ((picture(2, 3, line_breaks), whole, cut), [7, 1, expected]),
        ):
            assert sizes(between.join(("User: ", *order, "What?\n\nIs it?")), marks) == counts


def test_frames_of_a_video_are_pictures():
    frames = "".join(f"\nFrame from 00:0{second}:{picture(0, 0)}" for second in range(5))
    assert sizes(f"User: three frames of a video.\n{frames}\n\nWhat?") == [1] * 5


@pytest.mark.parametrize("between", ["", "\n", "\n\n", ", ", " a\n", "<fake>"])
@pytest.mark.parametrize("behind", ["", "\n", ", ", "<fake>"])
def test_what_the_processor_does_not_write_counts_by_the_tile(between, behind):
    tile = "<image>" * TILE
    if between:
        assert sizes(f"User:\n{between.join([tile] * 3)}{behind}") == [1, 1, 1]
    else:  # nothing tells them apart
        assert sizes(f"User:\n{tile * 3}{behind}") == [3]


def test_lines_of_unequal_length_count_by_the_tile():
    whole = picture(2, 2)
    assert sizes(f"a{whole}b") == [5]
    assert sizes(f"a{whole.replace('<fake><row_2_col_2>' + '<image>' * TILE, '')}b") == [1, 1, 1, 1]
    assert sizes(f"a{whole.replace(2 * chr(10), '')}b") == [1] * 5  # the view in a line of tiles
    assert sizes(f"a{picture(1, 2).replace(chr(10), '')}b") == [1] * 3


def test_no_placeholders_no_pictures():
    assert pictures(torch.empty(0, dtype=torch.long), [1, 2, 3]) == []
    assert not tiles(torch.arange(3, 9), "smolvlm")[0].known  # no square
