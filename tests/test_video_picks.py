"""vidcom2, v_cast and evs with a threshold against their rules in float64 loops; edges of these and of dycoke."""

import math

import pytest
import torch
from contract import EVERY, batch, model_of, ran
from families import scenario
from test_holitom import Largest
from test_video_methods import tokens_of, unit_of
from tiny_base import Row
from torch import Tensor

import vtc
from vtc import EVS, VCAST, VidCom2
from vtc.model.layout import Grid
from vtc.selectors.video.v_cast import curvature, frame_budgets, frame_directions

pytestmark = pytest.mark.usefixtures("no_grad")


def video(seed: int, frames: int, tokens: int, width: int = 12) -> Tensor:
    """[T, S, D]: each frame is the one before with noise, and new tokens in some places."""
    gen = torch.Generator().manual_seed(seed)
    found = [torch.randn(tokens, width, generator=gen)]
    for _ in range(frames - 1):
        new = torch.rand(tokens, 1, generator=gen) < 0.3
        noisy = found[-1] + 0.1 * torch.randn(tokens, width, generator=gen)
        found.append(torch.where(new, torch.randn(tokens, width, generator=gen), noisy))
    return torch.stack(found) + torch.randn(width, generator=gen)


def kept_of(method: vtc.Selector, x: Tensor) -> list[int]:
    """What is left of a video [T, S, D] without separators."""
    grid = Grid(0, *x.shape[:2], 1, kind="video")
    count = method.count_of(unit_of(grid))
    return method.select(tokens_of(x.flatten(0, 1)[None], grid), count).kept[0].tolist()


# ---------------------------------------------------------------- vidcom2


def vidcom2_in_loops(x: Tensor, share: float) -> tuple[list[float], set[int]]:
    """The score of each token, and what the released rule keeps."""
    x = x.double()
    frames, tokens, width = x.shape
    flat = x.flatten(0, 1)
    variance = [float(((flat[:, c] - flat[:, c].mean()) ** 2).mean()) for c in range(width)]
    channels = sorted(range(width), key=lambda c: variance[c])[: max(int(width / 2), 1)]
    unit = x[..., channels] / x[..., channels].norm(dim=-1, keepdim=True)
    near = [[[0.0, 0.0] for _ in range(tokens)] for _ in range(frames)]
    for t in range(frames):
        for s in range(tokens):
            for which, centre in enumerate((unit.flatten(0, 1).mean(dim=0), unit[t].mean(dim=0))):
                distance = float(((unit[t, s] - centre) ** 2).sum())
                near[t][s][which] = sum(math.exp(-distance / (2 * width)) for width in (1 / 8, 1 / 4, 1 / 2, 1, 2))
    means = [sum(token[0] for token in frame) / tokens for frame in near]
    most = torch.tensor([-mean / 0.01 for mean in means], dtype=torch.float64).softmax(dim=0).tolist()
    scores, kept = [sum(token) for frame in near for token in frame], set()
    for t in range(frames):
        budget = max(round(min(1.0, share * (1 + most[t] - 1 / frames)) * tokens), 1)
        kept |= set(sorted(range(t * tokens, (t + 1) * tokens), key=scores.__getitem__)[:budget])
    return scores, kept


@pytest.mark.parametrize("share", [0.1, 0.27, 0.55, 0.83])
@pytest.mark.parametrize(("frames", "tokens", "width"), [(1, 11, 7), (2, 9, 12), (5, 14, 9), (8, 6, 16), (3, 1, 2)])
def test_vidcom2_is_its_rule(frames: int, tokens: int, width: int, share: float) -> None:
    for seed in range(4):
        x = video(seed, frames, tokens, width)
        scores, released = vidcom2_in_loops(x, share)
        assert kept_of(VidCom2(keep=share, exact=False), x) == sorted(released)
        target = max(frames, min(int(frames * tokens * (1 - (1 - share))), frames * tokens))
        order = sorted(released, key=scores.__getitem__)
        order += sorted(set(range(frames * tokens)) - released, key=scores.__getitem__)
        assert kept_of(VidCom2(keep=share), x) == sorted(order[:target])


def test_counts_of_vidcom2_are_rounded_down_and_at_least_one_of_each_frame() -> None:
    for keep, left in ((0.1, 98), (1.0, 990), (0.5, 495), (1e-9, 10), (3, 10), (500, 500), (5000, 990)):
        assert VidCom2(keep=keep).left_of(10, 99, keep) == left
    assert not VidCom2().adaptive and VidCom2(exact=False).adaptive and not VidCom2(exact=False, keep=1.0).adaptive


def test_equal_tokens_of_vidcom2_keep_the_first_of_each_frame() -> None:
    x = torch.ones(3, 8, 4)
    assert kept_of(VidCom2(keep=0.25), x) == kept_of(VidCom2(keep=0.25, exact=False), x) == [0, 1, 8, 9, 16, 17]


# ---------------------------------------------------------------- v_cast


def v_cast_in_loops(x: Tensor, keep: float) -> list[int]:
    x = x.double()
    frames, tokens, _ = x.shape
    if frames == 1:
        return list(range(tokens))
    means = [frame.mean(dim=0) / max(float(frame.mean(dim=0).norm()), 1e-6) for frame in x]
    bends = [1.0] * frames
    for t in range(1, frames - 1):
        before, behind = means[t] - means[t - 1], means[t + 1] - means[t]
        bends[t] = 1 - float(before @ behind) / (max(float(before.norm()), 1e-6) * max(float(behind.norm()), 1e-6))
    raised = [math.exp(bend / 0.7) for bend in bends]
    total = max(min(max(round(frames * tokens * keep), 1), frames * tokens), frames)
    kept = []
    for t, budget in enumerate(released_budgets([value / sum(raised) for value in raised], total, tokens)):
        length = [float(token.norm()) for token in x[t]]
        score = [
            1 - float(token @ means[t]) / float(token.norm())
            + (length[s] - min(length)) / (max(length) - min(length) + 1e-6)
            for s, token in enumerate(x[t])
        ]  # fmt: skip
        kept += sorted(range(t * tokens, (t + 1) * tokens), key=lambda place: -score[place - t * tokens])[:budget]
    return sorted(kept)


def released_budgets(weights: list[float], total: int, tokens: int) -> list[int]:
    """Token by token: to the largest fraction among frames with room, which it keeps."""
    spread = total - len(weights)
    parts = [weight / sum(weights) * spread for weight in weights]
    budgets = [1 + min(math.floor(part), tokens - 1) for part in parts]
    while sum(budgets) < total:
        open_frames = [t for t, budget in enumerate(budgets) if budget < tokens]
        budgets[max(open_frames, key=lambda t: parts[t] - math.floor(parts[t]))] += 1
    return budgets


@pytest.mark.parametrize("keep", [0.05, 0.24, 0.51, 0.9])
@pytest.mark.parametrize(("frames", "tokens", "width"), [(1, 11, 7), (2, 9, 12), (5, 14, 9), (9, 6, 16), (4, 1, 3)])
def test_v_cast_is_its_rule(frames: int, tokens: int, width: int, keep: float) -> None:
    for seed in range(4):
        x = video(seed, frames, tokens, width)
        assert kept_of(VCAST(keep=keep), x) == v_cast_in_loops(x, keep)


def test_budgets_of_v_cast_are_those_of_the_released_loop() -> None:
    gen = torch.Generator().manual_seed(0)
    for case in range(60):
        frames, tokens = 2 + case % 7, 1 + case % 13
        weights = (torch.randn(2, frames, generator=gen, dtype=torch.float64) * (1 + case % 3)).softmax(dim=1)
        for total in {frames, min(frames + 3, frames * tokens), frames * tokens * 3 // 4, frames * tokens}:
            if total >= frames:
                expected = [released_budgets(row, total, tokens) for row in weights.tolist()]
                assert frame_budgets(weights, total, tokens).tolist() == expected
    assert frame_budgets(torch.full((1, 5), 0.2), 3, 4).sum() == 3


def test_v_cast_turns_nowhere_in_a_still_video() -> None:
    x = video(0, 1, 8).expand(6, -1, -1)[None]
    assert curvature(frame_directions(x))[0].tolist() == [1.0] * 6
    straight = torch.tensor([[[0.0, 0], [1, 0], [2, 0], [1, 0], [1, 1]]])
    assert curvature(straight)[0].tolist() == [1, 0, 2, 1, 1]
    assert kept_of(VCAST(keep=0.5), torch.ones(2, 4, 3)) == [0, 1, 4, 5]
    assert kept_of(VCAST(keep=5), torch.ones(2, 4, 3)) == [0, 1, 2, 4, 5]  # an odd remainder is the first frame's
    assert VCAST().left_of(1, 9, 0.25) == 9 and VCAST().left_of(4, 2, 0.1) == 4


# ---------------------------------------------------------------- evs with a threshold


def evs_in_loops(x: Tensor, threshold: float, reference: str) -> dict[int, float]:
    """What passes the threshold, with how much it differs from the frame before."""
    unit = torch.nn.functional.normalize(x.double(), dim=-1)
    frames, tokens, _ = x.shape
    passed = dict.fromkeys(range(tokens), 255.0)
    for place in range(tokens):
        shown = unit[0, place]
        for frame in range(1, frames):
            before = unit[frame - 1, place] if reference == "previous" else shown
            if 1 - float(unit[frame, place] @ before) > threshold:
                passed[frame * tokens + place] = 1 - float(unit[frame, place] @ unit[frame - 1, place])
                shown = unit[frame, place]
    return passed


@pytest.mark.parametrize("reference", ["kept", "previous"])
@pytest.mark.parametrize("threshold", [0.0, 0.003, 0.02, 0.3, 1.0, 1.9])
@pytest.mark.parametrize(("frames", "tokens"), [(1, 5), (2, 9), (7, 11), (30, 3)])
def test_evs_with_a_threshold_is_its_rule(frames: int, tokens: int, threshold: float, reference: str) -> None:
    for seed in range(3):
        x = video(seed, frames, tokens)
        passed = evs_in_loops(x, threshold, reference)
        assert kept_of(EVS(threshold=threshold, reference=reference), x) == sorted(passed)
        budget = min(max(tokens, int(0.4 * frames * tokens)), frames * tokens)
        ranked = sorted(sorted(passed), key=lambda place: -passed[place])[:budget]
        assert kept_of(EVS(keep=0.4, threshold=threshold, reference=reference), x) == sorted(ranked)


def test_slow_change_is_seen_against_what_was_kept_alone() -> None:
    angles = torch.arange(40.0) * 0.05
    x = torch.stack([angles.cos(), angles.sin()], dim=-1)[:, None]
    assert kept_of(EVS(threshold=0.01, reference="previous"), x) == [0]
    assert kept_of(EVS(threshold=0.01), x) == [*range(0, 40, 3)]
    still = video(0, 1, 9).expand(5, -1, -1)
    assert kept_of(EVS(threshold=0.0), still) == list(range(9))


def test_what_evs_decides_by() -> None:
    assert EVS() == EVS(keep=0.25) and not EVS().adaptive
    assert EVS(threshold=0.2).keep is None and EVS(threshold=0.2).adaptive and EVS(keep=9, threshold=0.2).adaptive
    assert not EVS(keep=1.0, threshold=0.2).adaptive


@pytest.mark.parametrize("keep", [None, 19, 20, 500, 0.99])
def test_the_threshold_comes_first_whatever_the_budget_has_room_for(keep: int | float | None) -> None:
    still = torch.ones(4, 5, 8)
    assert kept_of(vtc.EVS(keep=keep, threshold=0.2), still) == [0, 1, 2, 3, 4]


def test_a_threshold_is_calibrated_to_a_share() -> None:
    model, inputs = batch("llava_onevision_video", "several_images")
    whole = vtc.trace
    with vtc.patched(model, "evs:threshold=0"):
        model(**inputs)
        tokens = float(whole(model).original_tokens.double().mean())
    spec, measured = vtc.calibrate(model, "evs", "threshold", [inputs], tokens / 2, between=(0.0, 1.9))
    assert spec.startswith("evs:threshold=") and abs(measured - tokens / 2) <= 1.5
    with vtc.patched(model, spec):
        model(**inputs)
        assert vtc.trace(model).equivalent_tokens.mean() == pytest.approx(measured)


# ---------------------------------------------------------------- all of them

METHODS = [
    VidCom2(), VidCom2(exact=False), VCAST(), EVS(), EVS(threshold=0.02), EVS(threshold=0.02, reference="previous"),
    EVS(keep=0.4, threshold=0.02), vtc.DyCoke(), vtc.DyCoke(keep=0.6), vtc.DyCoke(every_group=True),
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_videos_shown_at_once_are_decided_about_alone(method: vtc.Selector) -> None:
    grid = Grid(0, 6, 3, 4, row_end=1, end=1, kind="video")
    x = torch.randn(3, len(grid), 10, generator=torch.Generator().manual_seed(0))
    count = method.count_of(unit_of(grid))
    alone = [method.select(tokens_of(one[None], grid), count).kept[0].tolist() for one in x]
    if not method.adaptive:
        assert method.select(tokens_of(x, grid), count).kept.tolist() == alone
    separators = set(range(len(grid))) - set(grid.places().tolist())
    assert all(separators < set(kept) and kept == sorted(set(kept)) for kept in alone)


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("odd", [0.0, float("nan"), float("inf"), 1e30])
def test_values_without_direction_never_lead_astray(odd: float, method: vtc.Selector) -> None:
    x = video(0, 7, 10)
    x[2], x[3, ::2], x[:, 4, ::3] = odd, odd, odd
    kept = kept_of(method, x)
    assert kept == sorted(set(kept)) and kept[0] >= 0 and kept[-1] < 70
    assert method.adaptive or len(kept) == method.left_of(7, 10, method.keep)
    whole = torch.full((3, 4, 6), odd)
    assert len(kept_of(method, whole)) >= 3


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_a_thousand_frames_need_no_more_than_the_video_itself(method: vtc.Selector) -> None:
    x = video(0, 4, 6, 16).repeat(250, 1, 1)
    with Largest() as largest:
        kept = kept_of(method, x)
    assert 0 < len(kept) < 6000 and largest.numbers <= x.numel()


@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("family", ["llava_onevision_video", "qwen3_vl_video", "video_llava_video"])
def test_a_model_is_shown_what_the_rule_keeps_of_each_video(family: str, method: vtc.Selector) -> None:
    """Of what enters the decoder, video by video, by the selector alone."""
    tiny, model = EVERY[family], model_of(family)
    inputs = tiny.inputs(model, scenario(tiny, "several_images"))
    entered: list[Tensor] = []
    handle = model.model.language_model.register_forward_pre_hook(
        lambda _, args, kwargs: entered.append(kwargs["inputs_embeds"]), with_kwargs=True
    )
    model(**inputs)
    handle.remove()
    with vtc.patched(model, method):
        model(**inputs)
        images = vtc.trace(model).images
    assert len(images) > 2
    for image in images:
        source = image.source
        (grid,) = source.grids
        x = entered[0][source.row, source.positions]
        cells = kept_of(method, x[grid.places()].view(grid.t, grid.h * grid.w, -1))
        separators = source.separators().nonzero()[:, 0].tolist()
        assert image.kept().tolist() == sorted([*grid.places()[cells].tolist(), *separators])


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_images_stay_bit_exact(method: vtc.Selector) -> None:
    for family in ("llava_next", "qwen2_5_vl"):
        _, output, trace = ran(family, method, "ragged")
        assert torch.equal(output.logits, ran(family, None, "ragged")[1].logits)
        assert torch.equal(trace.tokens_per_layer[-1], trace.original_tokens)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_frames_by_themselves_are_videos_of_one_frame(method: vtc.Selector) -> None:
    model, tiny = model_of("llava_onevision_video"), EVERY["llava_onevision_video"]
    again = type(method)(**{**{name: getattr(method, name) for name in vars(method)}, "per": "frame"})
    with vtc.patched(model, again):
        model(**tiny.inputs(model, [Row(((5,),), 3)]))
        (image,) = vtc.trace(model).images
    assert len(image.kept()) == (5 + 1 if isinstance(method, VidCom2) else 21)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: VidCom2(keep=0.0), ("keep=0.0", "share")),
        (lambda: VidCom2(keep=None), ("keep=None", "share")),
        (lambda: VidCom2(keep=2.0, exact=False), ("keep=2.0", "share")),
        (lambda: VidCom2(exact=1), ("exact=1", "True or False")),
        (lambda: VCAST(keep=True), ("keep=True", "share")),
        (lambda: EVS(keep=0.0, threshold=0.2), ("keep=0.0", "share")),
        (lambda: EVS(threshold=2), ("threshold=2", "0.2")),
        (lambda: EVS(threshold=float("nan")), ("threshold=nan", "0.2")),
        (lambda: EVS(threshold=True), ("threshold=True", "None")),
        (lambda: EVS(threshold="0.2"), ("threshold='0.2'", "number")),
        (lambda: EVS(threshold=0.1, reference="first"), ("reference='first'", "'previous'")),
        (lambda: vtc.DyCoke(drop=1.5), ("drop=1.5", "0.7")),
        (lambda: vtc.DyCoke(keep=0), ("keep=0", "share")),
        (lambda: vtc.DyCoke(every_group=1), ("every_group=1", "True or False")),
        (lambda: vtc.DyCoke(decode=None), ("decode=None", "True or False")),
        (lambda: vtc.DyCoke(decode_keep=0.0), ("decode_keep=0.0", "share")),
        (lambda: vtc.DyCoke(layer=0), ("layer=0", "1 or more")),
        (lambda: vtc.DyCoke(per="video"), ("per='video'", "'frame'")),
        (lambda: vtc.DyCokeDecode(reuse=0), ("reuse=0", "True or False")),
    ],
)
def test_bad_fields_are_named(make, words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        make()
    assert all(word in str(error.value) for word in words)
