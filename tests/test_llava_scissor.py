"""LLaVA-Scissor: components, means and folding against loops over tokens, and in models."""

from typing import Any

import pytest
import torch
from contract import EVERY, model_of, ran
from families import scenario
from test_holitom import Largest, shown, video
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc import LlavaScissor, ops
from vtc.model.layout import Grid
from vtc.ops import components
from vtc.planning.calibrate import measure
from vtc.selectors.video.llava_scissor import merge_alike

# ---------------------------------------------------------------- as the words say it


def cosine(a: Tensor, b: Tensor) -> float:
    size = float(a.norm() * b.norm())
    return float(a @ b) / size if size else 0.0


def components_of(x: Tensor, tau: float) -> list[list[int]]:
    """Key first, then the other members; components ascend by key."""
    edges = [{j for j in range(len(x)) if j != i and cosine(x[i], x[j]) > tau} for i in range(len(x))]
    found, seen = [], set()
    for start in range(len(x)):
        reached, todo = set(), [start]
        while todo and start not in seen:
            node = todo.pop()
            reached.add(node)
            todo += edges[node] - reached
        if reached:
            key = min(reached, key=lambda i: (-len(edges[i]), i))
            found.append([key, *sorted(reached - {key})])
        seen |= reached
    return sorted(found)


def by_the_words(frames: Tensor, tau: float) -> tuple[list[int], Tensor, list[int]]:
    """Places and new tokens of a video [T, S, D], and which of them each token was folded into."""
    x = frames.double()
    first, places = [], []
    for t, frame in enumerate(x):
        for part in components_of(frame, tau):
            first.append(frame[part].mean(dim=0))
            places.append(t * len(frame) + part[0])
    tokens = torch.stack(first)
    parts = components_of(tokens, tau)
    new = torch.stack([tokens[part].mean(dim=0) for part in parts])
    joined = [max(range(len(new)), key=lambda k: (cosine(token, new[k]), -k)) for token in x.flatten(0, 1)]
    folded = [
        torch.stack([new[k], *(token for token, j in zip(x.flatten(0, 1), joined) if j == k)]).mean(dim=0)
        for k in range(len(new))
    ]
    return [places[part[0]] for part in parts], torch.stack(folded), joined


# ---------------------------------------------------------------- the mathematics


@pytest.mark.parametrize("tau", [0.0, 0.5, 0.8, 0.9, 0.97])
@pytest.mark.parametrize(("frames", "tokens"), [(1, 12), (4, 20), (7, 9), (9, 1)])
def test_a_video_is_merged_as_the_words_say(frames: int, tokens: int, tau: float) -> None:
    for seed in range(3):
        x = video(seed, frames, tokens)
        places, expected, joined = by_the_words(x, tau)
        kept, mixing = merge_alike(x, tau)
        assert kept.tolist() == places
        assert mixing.target[0, frames * tokens :].tolist() == joined
        assert_close(ops.merge(x.flatten(0, 1)[None], mixing, len(kept))[0].double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pairs", [1, 50, 4096])
def test_components_do_not_depend_on_how_many_pairs_are_seen_at_once(
    pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a chain of tokens, each like its two neighbours alone, in an order in which names must travel far."""
    turn = torch.arange(60) * 0.02
    chain = torch.stack([turn.cos(), turn.sin()], dim=1)[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    mixed = video(3, 3, 20, 2).flatten(0, 1)
    monkeypatch.setattr(components, "_PAIRS", pairs)
    for x, tau in ((chain, 0.9997), (mixed, 0.99), (mixed, 0.9999)):
        expected = {i: part[0] for part in components_of(x.double(), tau) for i in part}
        assert components.alike(torch.stack([x, x]), tau).tolist() == [[expected[i] for i in range(60)]] * 2
    assert len(components.alike(chain[None], 0.9997).unique()) == 1


@pytest.mark.parametrize("seed", range(6))
def test_components_of_pairs_are_those_of_a_search(seed: int) -> None:
    gen = torch.Generator().manual_seed(seed)
    first, second = torch.randint(0, 50, (2, 10 + 8 * seed), generator=gen)
    expected = list(range(50))
    for _ in range(50):
        for a, b in zip(first.tolist(), second.tolist(), strict=True):
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert components.connected(first, second, 50).tolist() == expected


def test_equal_frames_become_one_and_equal_tokens_join_the_first() -> None:
    frame = video(0, 1, 16)
    kept, mixing = merge_alike(frame.expand(5, -1, -1), 0.9)
    alone, _ = merge_alike(frame, 0.9)
    assert torch.equal(kept, alone)
    x = torch.eye(4)[None, [0, 0, 1, 2]]
    kept, mixing = merge_alike(x, 0.9)
    assert kept.tolist() == [0, 2, 3] and mixing.target[0, 4:].tolist() == [0, 0, 1, 2]


def test_a_cosine_of_just_tau_connects_nothing_and_tau_1_leaves_all() -> None:
    x = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]]])
    assert merge_alike(x, 0.0)[0].tolist() == [0, 1]
    assert merge_alike(x, 1.0)[0].tolist() == [0, 1, 2]
    assert LlavaScissor().adaptive and not LlavaScissor(tau=1.0).adaptive


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0])
def test_a_token_without_direction_is_alone(bad: float) -> None:
    x = video(0, 3, 8)
    x[0, 3] = x[2, 1] = bad
    visual = shown(x, torch.ones(3, 8), Grid(0, 3, 2, 4))
    reduction = LlavaScissor(tau=0.5).select(visual, 24)
    kept, mixing = reduction.kept[0], reduction.mixing
    for place in (3, 17):
        target = int((kept == place).nonzero())
        assert set(mixing.source[0][mixing.target[0] == target].tolist()) == {place}
    assert_close(torch.zeros(len(kept)).index_add(0, mixing.target[0], mixing.weight[0]), torch.ones(len(kept)))


def test_nothing_grows_as_all_pairs_do() -> None:
    x = torch.randn(48, 100, 32, generator=torch.Generator().manual_seed(0))
    with Largest() as largest:
        kept, _ = merge_alike(x, 0.9)
    assert len(kept) == 4800 and largest.numbers < 4800**2 / 4


# ---------------------------------------------------------------- as a method


@pytest.mark.parametrize("newline", ["none", "end", "rows"])
def test_newlines_stay_and_stand_for_nothing(newline: str) -> None:
    grid = Grid(0, 5, 4, 5, row_end=int(newline == "rows"), end=int(newline == "end"))
    x = video(1, 5, 20)
    visual = shown(x, torch.ones(5, 20), grid)
    places, expected, _ = by_the_words(x, 0.8)
    reduction = LlavaScissor(tau=0.8).select(visual, len(grid))
    cells = grid.tokens().flatten()
    separators = visual.separators.nonzero()[:, 0].tolist()
    assert reduction.kept[0].tolist() == sorted([*cells[places].tolist(), *separators])
    new = ops.merge(visual.features, reduction.mixing, reduction.kept.shape[1])[0]
    own = torch.isin(reduction.kept[0], cells)
    assert_close(new[own].double(), expected, rtol=0, atol=1e-5)
    assert (new[~own] == 7).all() and reduction.order is None


@pytest.mark.parametrize("family", ["llava_onevision_video", "qwen2_5_vl_video", "llava_next_video_video"])
def test_a_model_is_shown_what_the_words_say(family: str) -> None:
    """What enters the first layer, and at which positions."""
    model: Any = model_of(family)
    decoder = model.model.language_model
    entered: dict[str, Any] = {}
    handle = decoder.layers[0].register_forward_pre_hook(
        lambda _, args, kwargs: entered.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"]),
        with_kwargs=True,
    )
    try:
        ran(family, None)
        whole = entered["hidden"][0]
        _, _, trace = ran(family, "llava_scissor:tau=0.0")
    finally:
        handle.remove()
    image = trace.images[0].source
    grid = image.grids[0]
    cells = image.positions[grid.tokens()]
    places, expected, _ = by_the_words(whole[cells].flatten(1, 2), 0.0)
    assert len(places) < grid.t * grid.h * grid.w
    rest = [i for i in range(len(whole)) if i not in set(cells.flatten().tolist())]
    now = {**dict(zip(cells.flatten()[places].tolist(), expected)), **{i: whole[i] for i in rest}}
    assert_close(entered["hidden"][0], torch.stack([now[i].float() for i in sorted(now)]), rtol=1e-4, atol=1e-5)


def test_videos_of_a_prompt_are_merged_one_by_one() -> None:
    x, y = video(0, 4, 6), video(1, 3, 12)
    alone = [merge_alike(each, 0.8)[0] for each in (x, y)]
    visual = shown(x, torch.ones(4, 6), Grid(0, 4, 2, 3, kind="video"))
    other = shown(y, torch.ones(3, 12), Grid(24, 3, 3, 4, kind="video").moved(0))
    both = vtc.VisualTokens(
        torch.cat([visual.features, other.features], dim=1),
        (visual.grids[0], other.grids[0].moved(24)),
        torch.cat([visual.separators, other.separators]),
        "video",
    )
    kept = LlavaScissor(tau=0.8, per="row").select(both, 60).kept[0]
    assert kept.tolist() == [*alone[0].tolist(), *(24 + alone[1]).tolist()]


def test_tau_is_calibrated_to_a_number_of_tokens() -> None:
    family, model = EVERY["qwen2_5_vl_video"], model_of("qwen2_5_vl_video")
    batches = [family.inputs(model, scenario(family, name)) for name in ("single", "ragged")]
    ends = [measure(model, f"llava_scissor:tau={tau}", batches) for tau in (0.0, 1.0)]
    assert ends[0] < ends[1]
    wanted = sum(ends) / 2
    solved, measured = vtc.calibrate(model, "llava_scissor", "tau", batches, wanted)
    assert solved.startswith("llava_scissor:tau=") and abs(measured - wanted) < 0.1 * wanted


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"tau": 1.5}, ("tau=1.5", "0.9")), ({"tau": "x"}, ("tau='x'",)), ({"per": "x"}, ("per='x'",))],
)
def test_bad_fields_are_named(fields: dict, words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        LlavaScissor(**fields)
    assert all(word in str(error.value) for word in words)


def test_a_keep_is_refused_with_the_way_out() -> None:
    with pytest.raises(ValueError, match=r"no field 'keep'; it has: tau, per, positions; vtc.calibrate finds"):
        vtc.patch(model_of("llava_onevision_video"), "llava_scissor", keep=0.25)
