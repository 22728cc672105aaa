"""PixelPrune: its rule against loops over cells and pixels, and in models from pixels to what enters the decoder."""

import math
from typing import Any

import pytest
import torch
from contract import EVERY, each_alone, model_of, ran, spec_of
from families import Row
from hypothesis import given, settings
from hypothesis import strategies as st
from test_holitom import Largest
from tiny_videos import Mixed
from torch import Tensor

import vtc
from vtc import PixelPrune
from vtc.reducers.pixelprune import unpredicted

QWENS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v", "qwen3_5")
#: Mean and deviation of the channels, as published with the families.
HALF = ((0.5,) * 3, (0.5,) * 3)
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
#: Pixels along a cell of the tiny families.
SIDE = 8

# ---------------------------------------------------------------- as the words say it


def apart(one: list[float], other: list[float], metric: str) -> float:
    differences = [abs(a - b) for a, b in zip(one, other, strict=True)]
    if metric == "max":
        return max(differences)
    if metric == "mean":
        return sum(differences) / len(differences)
    return math.sqrt(sum(d * d for d in differences) / len(differences))


def by_the_words(cells: Tensor, threshold: float, metric: str, anchored: bool) -> tuple[list[int], list[int]]:
    """The cells that stay, and for each cell the one that stands for it, of cells [H, W, D] of 0 to 255."""
    high, wide = cells.shape[:2]
    pixels = (cells.double() / 255).tolist()
    shown, kept, stands = [list(row) for row in pixels], [], list(range(high * wide))
    for y in range(high):
        for x in range(wide):
            seen = shown if anchored else pixels
            left, above = (y, x - 1), (y - 1, x)
            if x and y:
                a, b, c = seen[y][x - 1], seen[y - 1][x], seen[y - 1][x - 1]
                straight = apart(c, a, metric) <= threshold and not apart(c, b, metric) <= threshold
                predicted = above if straight else left
            elif x or y:
                predicted = left if x else above
            else:
                kept.append(0)
                continue
            row, column = predicted
            if apart(pixels[y][x], seen[row][column], metric) <= threshold:
                shown[y][x] = seen[row][column]
                stands[y * wide + x] = stands[row * wide + column]
            else:
                kept.append(y * wide + x)
    return kept, stands


def picture(seed: int, high: int, wide: int, width: int) -> Tensor:
    """Cells [H, W, D] of 0 to 255 that repeat a neighbour, differ from it by little or in one pixel, or are new."""
    gen = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 256, (high, wide, width), generator=gen)
    for y in range(high):
        for x in range(wide):
            draw = int(torch.randint(0, 10, (), generator=gen))
            near = [cells[y, x - 1]] * (x > 0) + [cells[y - 1, x]] * (y > 0)
            if near and draw < 8:
                cells[y, x] = near[draw % len(near)]
                if draw in (4, 5):
                    cells[y, x] += torch.randint(-6, 7, (width,), generator=gen)
                if draw == 6:
                    cells[y, x, draw % width] += 40
    return cells.clamp(0, 255)


def between(steps: int, width: int, metric: str) -> float:
    """A threshold that no distance of cells of whole numbers is: between `steps` steps and one more."""
    if metric == "max":
        return (steps + 0.5) / 255
    whole = (steps * width + 0.5) / width
    return whole / 255 if metric == "mean" else math.sqrt(whole) / 255


SIZES = ((1, 1), (1, 12), (12, 1), (2, 2), (3, 17), (16, 5), (11, 12))


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("metric", ["max", "mean", "rms"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_what_stays_is_what_the_words_say(size: tuple[int, int], metric: Any, anchored: bool) -> None:
    found = set()
    for seed in range(6):
        cells = picture(seed, *size, 6)
        for threshold in (0.0, *(between(steps, 6, metric) for steps in (1, 3, 8, 30))):
            kept, _ = by_the_words(cells, threshold, metric, anchored)
            made = unpredicted(cells / 255, threshold, metric, anchored)
            assert made.shape == size and made.flatten().nonzero()[:, 0].tolist() == kept
            found.add(len(kept))
    assert len(found) > 3 or size == (1, 1) or size == (2, 2)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 9999), high=st.integers(1, 9), wide=st.integers(1, 9), steps=st.integers(0, 40))
def test_nothing_that_goes_is_further_than_the_threshold_from_what_stands_for_it(
    seed: int, high: int, wide: int, steps: int
) -> None:
    cells, threshold = picture(seed, high, wide, 4), between(steps, 4, "max")
    kept = unpredicted(cells / 255, threshold).flatten()
    words, stands = by_the_words(cells, threshold, "max", True)
    assert kept.nonzero()[:, 0].tolist() == words
    pixels = cells.flatten(0, 1)
    for cell, other in enumerate(stands):
        assert kept[other] and (pixels[cell] - pixels[other]).abs().max() <= 255 * threshold


def test_errors_add_up_along_a_row_unless_anchored() -> None:
    row = torch.arange(0, 60, 2)[None, :, None].expand(-1, -1, 5)  # each cell a little brighter than the last
    assert unpredicted(row / 255, 2.5 / 255, anchored=False).sum() == 1
    assert unpredicted(row / 255, 6.5 / 255).flatten().nonzero()[:, 0].tolist() == list(range(0, 30, 4))


@pytest.mark.parametrize("anchored", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.1])
def test_pixels_that_are_no_numbers_equal_nothing(threshold: float, anchored: bool) -> None:
    cells = torch.zeros(4, 5, 3)
    cells[1, 2, 0], cells[3, 4] = torch.nan, torch.inf
    kept = unpredicted(cells, threshold, "max", anchored)
    assert kept[0, 0] and kept[1, 2] and kept[3, 4]
    assert not kept[0, 1:].any() and not kept[1:, 0].any()


@pytest.mark.parametrize(("mean", "std"), [HALF, CLIP])
def test_equal_bytes_are_equal_and_others_are_not_whatever_they_were_normalised_by(mean: tuple, std: tuple) -> None:
    for seed in range(20):
        cells = picture(seed, 7, 8, 6)
        channels = cells.unflatten(2, (3, 2)).float().div(255)
        normalised = (channels - torch.tensor(mean)[:, None]) / torch.tensor(std)[:, None]
        assert torch.equal(unpredicted(normalised), unpredicted(cells.float()))


@pytest.mark.parametrize("threshold", [0.0, 0.03])
def test_no_map_of_cells_by_cells(threshold: float) -> None:
    cells = picture(1, 40, 60, 12).float()
    with Largest() as largest:
        unpredicted(cells / 255, threshold)
    assert largest.numbers <= max(cells.numel(), 4 * 2400)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"threshold": 1.5}, r"threshold=1.5 is not in \[0, 1\]; give a distance"),
        ({"threshold": float("nan")}, "threshold=nan"),
        ({"threshold": "0.1"}, "threshold='0.1' is a str"),
        ({"metric": "mae"}, "metric='mae' is not one of 'max', 'mean', 'rms'"),
        ({"anchored": 1}, "anchored=1 is a int; give True or False"),
        ({"image_std": 0.5}, r"image_std=0.5 is a float, not a tuple; give the image_std of the processor"),
        ({"image_std": (0.5, 0.0, 0.5)}, r"image_std=\(0.5, 0.0, 0.5\) is not of numbers above 0"),
        ({"image_std": (0.5, "a", 0.5)}, "is not of numbers above 0"),
        ({"keep": 0.5}, "keep"),
    ],
)
def test_bad_fields_are_refused(fields: dict, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message):
        PixelPrune(**fields)


# ---------------------------------------------------------------- in models


def page(seed: int, size: tuple[int, int]) -> Tensor:
    """A picture [H, W, 3] of 0 to 255 of so many patches, of cells as `picture` makes them."""
    cells = picture(seed, size[0] // 2, size[1] // 2, SIDE * SIDE * 3)
    return cells.unflatten(2, (SIDE, SIDE, 3)).transpose(1, 2).flatten(0, 1).flatten(1, 2)


def patches_of(frames: list[Tensor], normalised: tuple[tuple, tuple]) -> Tensor:
    """The patches of a picture or video as a processor leaves them: pairs of frames, cells in rows, 2 x 2 patches."""
    mean, std = map(torch.tensor, normalised)
    rows = []
    for pair in range(0, len(frames), 2):
        both = [(frame / 255 - mean) / std for frame in frames[pair : pair + 2]]
        for y in range(0, both[0].shape[0], SIDE):
            for x in range(0, both[0].shape[1], SIDE):
                for dy in (0, SIDE // 2):
                    for dx in (0, SIDE // 2):
                        top, side = y + dy, x + dx
                        cut = [f[top : top + SIDE // 2, side : side + SIDE // 2] for f in both]
                        rows.append(torch.stack(cut).permute(3, 0, 1, 2).flatten())
    return torch.stack(rows)


def published(family: str) -> tuple[tuple, tuple]:
    return HALF if family.startswith("qwen3") else CLIP


def showing(family: str, rows: list[Row], pages: list[Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """The family's model, and its inputs for rows that show these pages, in order."""
    model = model_of(family)
    inputs = EVERY[family].inputs(model, rows)
    inputs["pixel_values"] = torch.cat([patches_of([one, one], published(family)) for one in pages])
    return model, inputs


def cells_of(one: Tensor) -> Tensor:
    """Tensor [H, W, D] of a page's cells."""
    return one.unflatten(1, (-1, SIDE)).unflatten(0, (-1, SIDE)).transpose(1, 2).flatten(2)


def kept(model: Any) -> list[list[int]]:
    return [image.kept().tolist() for image in vtc.trace(model).images]


ROWS = [Row(((8, 12),), 1), Row(((6, 10), (4, 4), (12, 6)), 2), Row((), 3), Row(((2, 14),), 4)]


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("options", [{}, {"threshold": 0.03}, {"threshold": 0.03, "anchored": False}])
@pytest.mark.parametrize("family", QWENS)
def test_every_picture_of_a_batch_keeps_what_the_words_say(family: str, options: dict) -> None:
    pages = [page(seed, size) for seed, size in enumerate(size for row in ROWS for size in row.images)]
    model, inputs = showing(family, ROWS, pages)
    settings = options.get("threshold", 0.0), "max", options.get("anchored", True)
    expected = [by_the_words(cells_of(one), *settings)[0] for one in pages]
    assert all(len(cells) > 1 for cells in expected) and sum(map(len, expected)) < 70
    with vtc.patched(model, PixelPrune(**options)):
        model(**inputs)
        assert kept(model) == expected
        trace = vtc.trace(model)
    assert trace.tower_rows.tolist() == [4 * sum(map(len, expected))] * len(trace.tower_rows)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", QWENS)
def test_a_threshold_is_of_pixels_from_0_to_1_whatever_the_processor_divides_by(family: str) -> None:
    size = (4, 8)
    one = torch.full((16, 32, 3), 100.0)
    one[8:, 8:, 1] += 10  # of the second row all cells but the first
    model, inputs = showing(family, [Row((size,), 1)], [one])
    with vtc.patched(model, "pixelprune:threshold=0.037"):  # 9.4 of 255
        model(**inputs)
        assert kept(model) == [[0, 5]]
    with vtc.patched(model, "pixelprune:threshold=0.041"):  # 10.5 of 255
        model(**inputs)
        assert kept(model) == [[0]]
    inputs["pixel_values"] = patches_of([one, one], ((0.0,) * 3, (1.0, 0.1, 1.0)))
    for threshold, left in ((0.037, [0, 5]), (0.041, [0])):
        with vtc.patched(model, PixelPrune(threshold=threshold, image_std=(1.0, 0.1, 1.0))):
            model(**inputs)
            assert kept(model) == [left]
    with (
        vtc.patched(model, PixelPrune(image_std=(0.5, 0.5))),
        pytest.raises(ValueError, match=r"image_std=\(0.5, 0.5\) is not of the 3 channels"),
    ):
        model(**inputs)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", QWENS)
def test_a_picture_without_repetition_is_bit_for_bit_as_untouched(family: str) -> None:
    rows = [Row(((8, 8),), 1), Row(((6, 4),), 2)]
    noise = torch.Generator().manual_seed(0)
    pages = [torch.randint(0, 256, (4 * h, 4 * w, 3), generator=noise) for h, w in ((8, 8), (6, 4))]
    model, inputs = showing(family, rows, pages)
    more = {"max_new_tokens": 4, "do_sample": False}
    logits, tokens = model(**inputs).logits, model.generate(**inputs, **more)
    with vtc.patched(model, "pixelprune"):
        assert torch.equal(model(**inputs).logits, logits)
        assert kept(model) == [list(range(16)), list(range(6))]
        assert torch.equal(model.generate(**inputs, **more), tokens)
        assert "16" in str(vtc.trace(model))


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", QWENS)
def test_what_stays_has_the_positions_that_it_had_and_so_have_later_tokens(family: str) -> None:
    """Also where the last rows and columns of the picture are gone, so that its largest position is."""
    one = torch.full((32, 48, 3), 255)
    one[:16, :16] = page(3, (4, 4))
    model, inputs = showing(family, [Row(((8, 12),), 1)], [one])
    seen: list[Tensor] = []

    def positions(spec: str | None) -> list[Tensor]:
        seen.clear()
        decoder, more = model.model.language_model, {"max_new_tokens": 3, "do_sample": False}
        with vtc.patched(model, spec or "none"):
            hook = decoder.register_forward_pre_hook(
                lambda module, args, kwargs: seen.append(kwargs["position_ids"][-3:, 0]), with_kwargs=True
            )
            model.generate(**inputs, **more)
            hook.remove()
        return list(seen)

    whole, cut = positions(None), positions("pixelprune")
    with vtc.patched(model, "pixelprune"):
        model(**inputs)
        (left,) = kept(model)
    alive = inputs["input_ids"][0] != EVERY[family].image_id
    alive[(~alive).nonzero()[left, 0]] = True
    assert 23 not in left and torch.equal(cut[0], whole[0][:, alive])
    assert [p.tolist() for p in cut[1:]] == [p.tolist() for p in whole[1:]]


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_videos_are_left_alone_beside_pictures_unless_they_are_one_step(family: str) -> None:
    both = Mixed(EVERY[family], EVERY[f"{family}_video"])
    model = model_of(family)
    rows = [Row((("image", 8, 8), ("video", 2, 8, 4)), 1), Row((("video", 1, 4, 8),), 2), Row((("image", 4, 6),), 3)]
    inputs = both.inputs(model, rows)
    pages = [page(seed, size) for seed, size in enumerate([(8, 8), (4, 6)])]
    still = page(5, (4, 8))
    other = still.clone()
    other[:SIDE, 2 * SIDE :] = page(6, (4, 8))[:SIDE, 2 * SIDE :]  # a second frame that differs in two cells
    norm = published(family)
    inputs["pixel_values"] = torch.cat([patches_of([one, one], norm) for one in pages])
    blank = [torch.zeros(32, 16, 3)] * 4
    inputs["pixel_values_videos"] = torch.cat([patches_of(blank, norm), patches_of([still, other], norm)])
    words = [by_the_words(cells_of(one), 0.0, "max", True)[0] for one in pages]
    moving = by_the_words(torch.cat([cells_of(still), cells_of(other)], dim=2), 0.0, "max", True)[0]
    with vtc.patched(model, "pixelprune"):
        model(**inputs)
        assert kept(model) == [words[0], list(range(16)), moving, words[1]]


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl"])
def test_patches_may_stand_in_a_batch_of_one_and_beams_see_what_one_sees(family: str) -> None:
    pages = [page(1, (8, 12)), page(2, (8, 8))]
    model, inputs = showing(family, [Row(((8, 12),), 1), Row(((8, 8),), 2)], pages)
    more = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2}
    with vtc.patched(model, "pixelprune:threshold=0.03"):
        logits, left = model(**inputs).logits, kept(model)
        assert torch.equal(model(**{**inputs, "pixel_values": inputs["pixel_values"][None]}).logits, logits)
        tokens = model.generate(**inputs, **more)
        assert [kept(model)[index] for index in (0, -1)] == left
        for row, (one, alone) in enumerate(
            zip(pages, each_alone(EVERY[family], model, [Row(((8, 12),), 1), Row(((8, 8),), 2)]))
        ):
            alone["pixel_values"] = patches_of([one, one], published(family))
            assert torch.equal(model.generate(**alone, **more)[0, -3:], tokens[row, -3:])


@pytest.mark.usefixtures("no_grad")
def test_half_precision_pixels_are_compared_in_full() -> None:
    model, inputs = showing("qwen3_vl", [Row(((8, 12),), 1)], [page(2, (8, 12))])
    for dtype in (torch.bfloat16, torch.float16):
        given = {**inputs, "pixel_values": inputs["pixel_values"].to(dtype)}
        values = given["pixel_values"].float().view(4, 6, 4, -1)
        expected = unpredicted(values).flatten().nonzero()[:, 0].tolist()
        with vtc.patched(model, "pixelprune"), torch.autocast("cpu", dtype=torch.bfloat16):
            model(**given)
            assert kept(model) == [expected]


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_gradients_are_those_of_the_rows_that_stay(family: str) -> None:
    """A blank picture is one cell: the loss pulls at the patch embedding through the patches of that one alone."""
    model = EVERY[family].build()
    blank = torch.full((32, 32, 3), 255)
    _, inputs = showing(family, [Row(((8, 8),), 1)], [blank])
    pixels = inputs["pixel_values"].requires_grad_()
    with vtc.patched(model, "pixelprune"):
        model(**inputs).logits.square().sum().backward()
        assert kept(model) == [[0]]
    assert pixels.grad[:4].abs().sum() > 0 and not pixels.grad[4:].any()


# ---------------------------------------------------------------- refusals and plans


@pytest.mark.parametrize("family", ["llava", "internvl", "gemma3", "mistral3"])
def test_towers_that_are_not_given_patches_are_refused(family: str) -> None:
    with pytest.raises(ValueError, match=f"pixelprune compares.*{family} is not given them.*'tome'.*'divprune'"):
        vtc.patch(model_of(family), "pixelprune")


@pytest.mark.usefixtures("no_grad")
def test_features_made_before_are_refused() -> None:
    model, inputs = showing("qwen2_5_vl", [Row(((8, 8),), 1)], [page(1, (8, 8))])
    pixels = {name: inputs.pop(name) for name in ("pixel_values", "image_grid_thw")}
    features = model.model.get_image_features(**pixels, return_dict=True)
    rest = {**inputs, "image_grid_thw": pixels["image_grid_thw"], "mm_encoder_outputs": {"image": features}}
    with vtc.patched(model, "pixelprune"):
        with pytest.raises(ValueError, match=r"pixelprune works inside the vision tower.*make the features after"):
            model(**rest)
        made = model.model.get_image_features(**pixels, return_dict=True)
        model(**{**rest, "mm_encoder_outputs": {"image": made}})
        assert kept(model) == [by_the_words(cells_of(page(1, (8, 8))), 0.0, "max", True)[0]]


def test_no_plan_is_made_of_what_the_picture_decides() -> None:
    model, shapes = model_of("qwen2_5_vl"), {"text_tokens": 10, "visual_tokens": 16}
    for ask in (
        lambda: vtc.plan(model, "pixelprune", **shapes),
        lambda: vtc.solve(model, "pixelprune", "tokens=8", **shapes),
    ):
        with pytest.raises(ValueError, match=r"pixelprune.*depends on the picture.*vtc.calibrate"):
            ask()


@pytest.mark.usefixtures("no_grad")
def test_its_threshold_can_be_calibrated() -> None:
    model, inputs = showing("qwen3_vl", [Row(((8, 12),), 1), Row(((8, 8),), 2)], [page(1, (8, 12)), page(2, (8, 8))])
    with vtc.patched(model, "pixelprune"):
        model(**inputs)
        most = float(vtc.trace(model).equivalent_tokens.mean())
    spec, measured = vtc.calibrate(model, "pixelprune:metric=mean", "threshold", [inputs], tokens=most / 2)
    assert spec.startswith("pixelprune:metric=mean,threshold=0.") and measured < most


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("size", [(8, 8), (2, 2)])
def test_pixels_are_let_go_behind_the_call(size: tuple[int, int]) -> None:
    model, inputs = showing("qwen2_5_vl", [Row((size,), 1)], [page(1, size)])
    with vtc.patched(model, "pixelprune"):
        model(**inputs)
        seam = model._vtc_seam
        assert not seam._encoding.pixels and not any(
            features.tower.pictures for features in seam.observer._thread.made.values()
        )


@pytest.mark.usefixtures("no_grad")
def test_rows_of_the_matrix_keep_about_half() -> None:
    """The threshold with which the contract runs removes some of each picture."""
    for family in ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "glm4v"):
        _, _, trace = ran(family, spec_of("pixelprune", family), "ragged")
        assert all(0.2 < len(image.kept()) / len(image.source) < 0.9 for image in trace.images)


@pytest.mark.usefixtures("no_grad")
@pytest.mark.parametrize("family", QWENS)
def test_a_row_of_a_batch_says_what_it_says_alone(family: str) -> None:
    pages = [page(seed, size) for seed, size in enumerate(size for row in ROWS for size in row.images)]
    model, inputs = showing(family, ROWS, pages)
    more = {"max_new_tokens": 3, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    with vtc.patched(model, "pixelprune:threshold=0.03"):
        together = model.generate(**inputs, **more).logits[0]
        rest = list(pages)
        for index, alone in enumerate(each_alone(EVERY[family], model, ROWS)):
            mine = [rest.pop(0) for _ in ROWS[index].images]
            if mine:
                alone["pixel_values"] = torch.cat([patches_of([one, one], published(family)) for one in mine])
            own = model.generate(**alone, **more).logits[0][0]
            torch.testing.assert_close(together[index], own, atol=2e-4, rtol=1e-4)
