"""dycoke against its rule in loops, and dycoke_decode against a slow decoder whose steps see what the rule chooses."""

import pytest
import torch
from contract import EVERY, batch, each_alone, greedy, model_of, ran, stepwise
from decoder_reference import Decoder, Prompt, best, prompt, tiny_decoder
from decoder_reference import run as run_stub
from families import scenario
from golden_stub import Stub
from test_video_methods import tokens_of, unit_of
from test_video_picks import video
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc import DyCoke, DyCokeDecode
from vtc.model.layout import Grid
from vtc.selectors.video.dycoke import thinned

pytestmark = pytest.mark.usefixtures("no_grad")


# ---------------------------------------------------------------- the stage in front of the decoder


def dycoke_in_loops(x: Tensor, stays: int, every_group: bool) -> list[int]:
    """The places that stay of a video [T, S, D], where `stays` tokens of a thinned frame do."""
    frames, tokens, _ = x.shape
    kept = {frame: set(range(tokens)) for frame in range(frames)}

    def thin(frame: int, other: int) -> None:
        cosine = torch.cosine_similarity(x[frame].double(), x[other].double(), dim=-1).tolist()
        kept[frame] = set(sorted(range(tokens), key=cosine.__getitem__)[:stays])

    paired = frames // 2 * 2
    for frame in range(0, paired, 2):
        thin(frame + 1, frame)
    start = 0
    while (start + 2 < paired) if every_group else (start < frames - 4):
        thin(start + 2, start)
        start += 4
    return sorted(frame * tokens + place for frame in kept for place in kept[frame])


def kept_of(method: DyCoke, x: Tensor) -> list[int]:
    grid = Grid(0, *x.shape[:2], 1, kind="video")
    return method.select(tokens_of(x.flatten(0, 1)[None], grid), method.count_of(unit_of(grid))).kept[0].tolist()


@pytest.mark.parametrize("every_group", [False, True])
@pytest.mark.parametrize("frames", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 13])
def test_dycoke_is_its_rule(frames: int, every_group: bool) -> None:
    for tokens, drop in ((9, 0.7), (10, 0.9), (10, 0.8), (7, 0.0), (5, 1.0)):
        x, method = video(tokens, frames, tokens), DyCoke(drop=drop, every_group=every_group)
        kept = kept_of(method, x)
        assert kept == dycoke_in_loops(x, int((1 - drop) * tokens), every_group)
        assert len(kept) == method.left_of(frames, tokens, None)


@pytest.mark.parametrize("every_group", [False, True])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.77, 1.0, 5, 40, 10**6])
def test_a_budget_leaves_as_many_as_it_has_room_for(keep: float | int, every_group: bool) -> None:
    method = DyCoke(keep=keep, every_group=every_group)
    for frames in range(1, 15):
        for tokens in (1, 4, 11):
            cells, thin = frames * tokens, sum(map(len, thinned(frames, every_group)))
            budget = min(keep, cells) if isinstance(keep, int) else round(keep * cells)
            possible = [(frames - thin) * tokens + thin * n for n in range(tokens + 1)]
            left = method.left_of(frames, tokens, keep)
            assert left == max([n for n in possible if n <= budget], default=possible[0])
    x = video(1, 9, 8)
    (stays,) = {n for n in range(9) if (9 - 6) * 8 + 6 * n == DyCoke(keep=0.6).left_of(9, 8, 0.6)}
    assert kept_of(DyCoke(keep=0.6), x) == dycoke_in_loops(x, stays, False)


def test_counts_of_dycoke_as_published() -> None:
    assert DyCoke(every_group=True).left_of(32, 196, None) == 8 * (196 + 3 * 58)
    assert round(100 * DyCoke().left_of(32, 196, None) / (32 * 196), 1) == 49.4
    assert not DyCoke().adaptive and DyCoke() == DyCoke(keep=None, drop=0.7)


def test_equal_frames_of_dycoke_keep_the_first_places() -> None:
    assert kept_of(DyCoke(drop=0.75), torch.ones(4, 4, 3)) == [*range(5), *range(8, 13)]


def test_dycoke_is_both_of_its_stages() -> None:
    assert DyCoke().split() == (DyCoke(),)
    both = DyCoke(decode=True, decode_keep=0.2, layer=2, reuse=False)
    assert both.split() == (both, DyCokeDecode(keep=0.2, layer=2, reuse=False))
    assert DyCoke(decode=True, keep=1.0).split() == (DyCoke(decode=True, keep=1.0),)


# ---------------------------------------------------------------- decode steps


def similar_steps(seed: int, before: int = 3, tokens: int = 20, steps: int = 9) -> Prompt:
    """A prompt behind which tokens come that are mostly like those before them."""
    given = prompt(seed=seed, before=before, tokens=tokens, steps=steps)
    for step in range(1, steps):
        if step % 3:
            given.steps[step] = given.steps[step - 1] + 0.02 * given.steps[step]
    return given


def decoding(model, given: Prompt, layer: int, count: int, reuse: bool) -> tuple[list[Tensor], list[bool]]:
    """The last hidden state of each call, and which steps chose anew; everything is there, and is hidden by masks."""
    decoder, length = Decoder(model), len(given.embeds)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    hidden, caches = given.embeds.double(), []
    for index in range(decoder.depth):
        q, k, v = decoder.project(index, hidden, range(length))
        caches.append((k, v))
        hidden = decoder.finish(index, hidden, decoder.attend(q, k, v, causal)[0])
    found, renewed = [decoder.norm("norm", hidden[-1])], []
    last, chosen = None, set(given.places)
    for step, embed in enumerate(given.steps.double()):
        hidden, place = embed[None], length + step
        for index in range(decoder.depth):
            q, k, v = decoder.project(index, hidden, [place])
            keys, values = caches[index] = tuple(torch.cat(pair, dim=1) for pair in zip(caches[index], (k, v)))
            seen = torch.ones(1, place + 1, dtype=torch.bool)
            if index >= layer:
                seen[0, [p for p in given.places if p not in chosen]] = False
            mixed, rows = decoder.attend(q, keys, values, seen)
            hidden = decoder.finish(index, hidden, mixed)
            if index == layer - 1:
                row = rows[:, 0].mean(dim=0)[given.places]
                renewed.append(last is None or float(torch.cosine_similarity(row, last, dim=0)) < 0.9)
                if renewed[-1]:
                    chosen = best(row.tolist(), given.places, count)
                elif not reuse:
                    chosen = set(given.places)
                last = row
        found.append(decoder.norm("norm", hidden[0]))
    return found, renewed


@pytest.mark.parametrize("kind", [("llama", 4), ("qwen2", 2)], ids=str)
@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize(("layer", "keep"), [(3, 0.3), (1, 0.1), (6, 5), (2, 0.01)])
def test_steps_are_those_of_the_reference(layer: int, keep: float | int, reuse: bool, kind: tuple[str, int]) -> None:
    given, model = similar_steps(seed=layer), tiny_decoder(kind[0], groups=kind[1])
    expected, renewed = decoding(model, given, layer, keep if isinstance(keep, int) else int(20 * keep), reuse)
    assert any(renewed[1:]) or layer == 1
    stub = Stub(model)
    plain = run_stub(stub, given)[0]
    with vtc.patched(stub, DyCokeDecode(layer=layer, keep=keep, reuse=reuse)):
        hidden, lengths = run_stub(stub, given)
        trace = vtc.trace(stub)
    for ours, wanted in zip(hidden, expected, strict=True):
        assert_close(ours.double(), wanted, rtol=0, atol=2e-4)
    assert lengths == [len(given.embeds) + len(given.steps)] * 7
    assert not trace.revived_tokens.any() and (trace.tokens_per_layer == 20).all()
    assert_close(hidden[0], plain[0])
    assert not torch.allclose(hidden[1], plain[1], atol=1e-3)


def test_some_steps_of_the_reference_choose_anew_and_some_do_not() -> None:
    renewed = [decoding(tiny_decoder(), similar_steps(seed=layer), layer, 6, True)[1] for layer in (1, 2, 3, 6)]
    assert all(steps[0] for steps in renewed) and not all(map(all, renewed))
    given = similar_steps(seed=3)
    with_reuse, without = (decoding(tiny_decoder(), given, 3, 6, reuse)[0] for reuse in (True, False))
    assert not all(torch.allclose(one, other) for one, other in zip(with_reuse, without))


def test_keeping_everything_changes_nothing() -> None:
    given, stub = similar_steps(seed=5), Stub(tiny_decoder())
    plain = run_stub(stub, given)[0]
    for keep in (1.0, 20, 900):
        with vtc.patched(stub, DyCokeDecode(keep=keep)):
            assert all(torch.equal(a, b) for a, b in zip(run_stub(stub, given)[0], plain))


def test_another_image_begins_anew() -> None:
    """What was attended to in the picture before decides nothing for the next one in the same cache."""
    method = DyCokeDecode(layer=2)
    memory: dict[str, Tensor] = {}
    visual = torch.tensor([[False, True, True, True, True, False]])
    row = torch.tensor([[0.1, 0.5, 0.2, 0.1, 0.05, 0.05]])
    first = method.choose(row, visual, [1], memory)
    assert first.tolist() == [[False, True, False, False, False, False]]
    nearly = torch.tensor([[0.1, 0.4, 0.41, 0.1, 0.05, 0.05, 0.0]])
    other = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0.6, 0.05, 0.0]])
    longer = torch.nn.functional.pad(visual, (0, 1))
    assert method.choose(other, longer, [1], memory)[0].nonzero()[:, 0].tolist() == [4]
    assert method.choose(other * 0.5, longer, [1], memory)[0].nonzero()[:, 0].tolist() == [4]
    assert method.choose(nearly, longer, [1], {})[0].nonzero()[:, 0].tolist() == [2]
    nothing = torch.zeros(1, 7, dtype=torch.bool)
    assert not method.choose(nearly, nothing, [0], {}).any()


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl", "qwen3_vl", "internvl"])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_rows_beams_and_turns_are_those_of_each_row(family: str, attention: str) -> None:
    model, rows = model_of(family, attention), scenario(EVERY[family], "ragged")
    spec = "dycoke_decode:layer=2,keep=0.3"
    inputs = EVERY[family].inputs(model, rows)
    new = 6
    with vtc.patched(model, spec):
        together = stepwise(model, inputs, new=new)
        beams = greedy(model, inputs, num_beams=2, new=new)
        for index, alone in enumerate(each_alone(EVERY[family], model, rows)):
            one = stepwise(model, alone, new=new)
            for ours, wanted in zip(together.logits, one.logits):
                assert_close(ours[index], wanted[0], atol=3e-4, rtol=1e-4)
            assert torch.equal(beams[index, -new:], greedy(model, alone, num_beams=2, new=new)[0, -new:])
    plain = stepwise(model, inputs, new=new)
    assert torch.equal(plain.logits[0], together.logits[0])
    assert not torch.allclose(plain.logits[1], together.logits[1], atol=1e-5)


@pytest.mark.parametrize("family", ["llava_onevision_video", "qwen3_vl_video"])
def test_dycoke_equals_its_stages_put_together(family: str) -> None:
    model, inputs = batch(family, "several_images")
    made = []
    for spec in ("dycoke:decode=True,layer=2,decode_keep=0.3", "dycoke+dycoke_decode:layer=2,keep=0.3", "dycoke"):
        with vtc.patched(model, spec):
            made.append(stepwise(model, inputs).logits)
    assert all(torch.equal(one, other) for one, other in zip(made[0], made[1], strict=True))
    assert torch.equal(made[0][0], made[2][0]) and not torch.equal(made[0][1], made[2][1])


def test_what_cannot_choose_in_steps_says_how_to_do_without() -> None:
    with pytest.raises(ValueError, match=r"dycoke: decode=False"):
        ran("gemma3", "dycoke:decode=True,layer=2")
    ran("gemma3", "dycoke")
    model, inputs = batch("llava")
    with vtc.patched(model, "dycoke:decode=True,layer=2"):
        with pytest.raises(ValueError, match=r"has no room.*dycoke: decode=False"):
            greedy(model, inputs, cache_implementation="static")
        with pytest.raises(ValueError, match=r"without a cache.*dycoke: decode=False"):
            greedy(model, inputs, use_cache=False)
    with pytest.raises(ValueError, match=r"can't follow.*dycoke: decode=False"):
        ran("llava", "dycoke:decode=True,layer=2+fastv:layer=3,keep=0.5")
    ran("llava", "dycoke+fastv:layer=3,keep=0.5")
