"""A pruning engine generates what transformers generates under `vtc.patch`, token for token, in fp32."""

import functools
from dataclasses import replace

import pytest
import torch
from checkpoints import save
from engines import FAMILIES, MROPE, VIDEO_FAMILIES, Ask, engine, kept_tokens, picture, right, video
from vllm import SamplingParams

#: Sizes that give grids of their own.
SIZES = [(112, 112), (112, 168), (168, 112), (140, 140), (112, 196), (196, 112), (168, 168), (140, 112)]


def question(number: int, *shown, keep=None) -> Ask:
    parts = [part for each in shown for part in (f" {number}: ", each)]
    return Ask((f"question {number}", *parts, " what is it?"), keep)


@functools.cache
def eight(keeps: tuple = (None,)) -> list[Ask]:
    """Eight pictures, with several budgets."""
    return [question(i, picture(i, *size), keep=keeps[i % len(keeps)]) for i, size in enumerate(SIZES)]


def expected(name: str, asks: list[Ask], keep, new: int = 8) -> list[tuple[int, ...]]:
    """What transformers says, where the engine's own budget is `keep`."""
    return [right(name, replace(a, keep=None), spec(keep if a.keep is None else a.keep), new) for a in asks]


def spec(keep) -> str | None:
    return None if keep == 1.0 else f"divprune:keep={keep}"


@pytest.fixture(scope="module", params=FAMILIES)
def whole(request):
    """An engine that removes nothing but for requests that ask for it."""
    with engine(request.param, "divprune:keep=1.0") as running:
        yield running


KEEPS = (None, 0.5, 0.25, 7)


def test_eight_at_once_each_with_a_budget_of_its_own(whole):
    asks = eight(KEEPS)
    got = whole.ask(asks)
    assert got == expected(whole.name, asks, 1.0)
    assert len(set(got)) > 5
    counts = [kept_tokens(whole.name, replace(a, keep=None), f"divprune:keep={a.keep or 1.0}") for a in asks]
    assert [len(prompt) for prompt in whole.prompts] == [length - removed for length, removed in counts]
    assert all(removed > 0 for ask, (_, removed) in zip(asks, counts) if ask.keep is not None)


def test_asked_again_the_prefix_cache_answers(whole):
    asks = eight(KEEPS)
    first = whole.ask(asks)
    assert whole.ask(asks) == first
    assert any(whole.cached)
    assert whole.ask(asks[::-1]) == first[::-1]


def test_a_hit_that_ends_inside_a_picture(whole):
    shown = picture(3, 196, 196)
    told = "a question as long as "
    asks = [Ask((told, shown, " and this?"), 0.9), Ask((told, shown, " or something else?"), 0.9)]
    whole.ask(asks[:1])
    assert whole.ask(asks[1:]) == expected(whole.name, asks[1:], 1.0)
    (prompt,), (cached,) = whole.prompts, whole.cached
    start, end = place_of_picture(whole, prompt)
    assert start < cached < end


def place_of_picture(running, prompt: list[int]) -> tuple[int, int]:
    """(first, behind the last) place of the visual tokens of a prompt's one picture."""
    config = running.runner.model_config.hf_config
    token = getattr(config, "image_token_id", None) or config.image_token_index
    return prompt.index(token), len(prompt) - prompt[::-1].index(token)


def test_several_pictures_in_any_order(whole):
    if whole.name == "llava_onevision":
        pytest.skip("transformers shows several pictures of a prompt without tiles, vLLM with them")
    a, b, c = picture(1, 112, 168), picture(2, 168, 112), picture(3)
    asks = [question(0, *order, keep=keep) for order in ((a, b), (b, a), (a, b, c), (a, a)) for keep in (0.5, 0.25)]
    assert whole.ask(asks) == expected(whole.name, asks, 1.0)


def test_a_picture_beside_a_video(whole):
    if whole.name not in VIDEO_FAMILIES:
        pytest.skip("the engine shows this model no videos")
    a, b = picture(1, 112, 168), video(2)
    asks = [question(0, *order, keep=keep) for order in ((a, b), (b, a), (b,)) for keep in (0.5, 0.25, None)]
    assert whole.ask(asks) == expected(whole.name, asks, 1.0)


def test_one_name_with_two_budgets(whole):
    shown = picture(5, 168, 168)
    asks = [Ask(("question", shown, " what?"), keep, ("the one",)) for keep in (0.5, 0.25, 0.5, None)]
    assert whole.ask(asks) == expected(whole.name, [replace(a, uuids=()) for a in asks], 1.0)


def test_a_bad_budget_is_refused_and_the_engine_goes_on(whole):
    good = eight()[0]
    for bad, message in ((0.0, "0.0"), (1.5, "1.5"), (-3, "-3"), ("a", "str"), (True, "bool")):
        with pytest.raises((ValueError, TypeError), match=message):
            whole.ask([replace(good, keep=bad)])
    assert whole.ask([good]) == expected(whole.name, [good], 1.0)


# ---------------------------------------------------------------- little room


@pytest.fixture(scope="module", params=FAMILIES)
def narrow(request):
    """An engine that splits pictures over steps, has room for few requests, and keeps few encoder outputs."""
    room = 48 if request.param == "llava_onevision" else 24  # its largest picture vLLM takes for smaller
    options = {"max_num_batched_tokens": room, "num_gpu_blocks_override": 18, "max_model_len": 512}
    with engine(request.param, "divprune:keep=0.5", **options) as running:
        yield running


def test_split_over_steps_preempted_evicted_and_made_again(narrow):
    asks = eight((None, 0.25)) * 2
    right_ones = expected(narrow.name, asks, 0.5, 40)
    for _ in range(2):
        assert narrow.ask(asks, 40) == right_ones
    assert narrow.counter("vllm:num_preemptions") > 0
    assert narrow.ask(asks[:1], 40) == right_ones[:1]


def test_more_than_the_engine_was_started_with_is_refused(narrow):
    with pytest.raises(ValueError, match=r"vtc_keep=0.75 is more than .*divprune:keep=0.5"):
        narrow.ask([replace(eight()[0], keep=0.75)])
    with pytest.raises(ValueError, match="vtc_keep=900 is more than"):
        narrow.ask([replace(eight()[0], keep=900)])


# ---------------------------------------------------------------- as it was, and that these tests can fail


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_without_a_spec_it_is_the_engine_as_it_was(name):
    asks = eight()
    with engine(name) as running:
        assert not type(running.runner.model).__name__.startswith("Vtc")
        stock = running.ask(asks)
    with engine(name, "divprune:keep=1.0") as running:
        assert type(running.runner.model).__name__.startswith("Vtc")
        assert running.ask(asks) == stock
    with engine(name, "none") as running:
        assert running.ask(asks) == stock


@pytest.mark.parametrize("name", ["llava", "qwen2_5_vl"])
def test_another_choice_would_be_noticed(name, monkeypatch):
    from vtc.serve.choosing import Chooser

    def first_ones(self, batch, row, main):
        return [], dict(enumerate(map(torch.arange, batch.left)))

    monkeypatch.setattr(Chooser, "_select", first_ones)
    asks = eight()
    with engine(name, "divprune:keep=0.5") as running:
        got = running.ask(asks)
    assert sum(a != b for a, b in zip(got, expected(name, asks, 0.5))) >= 6


@pytest.mark.parametrize("name", MROPE[1:2])
def test_positions_without_gaps_would_be_noticed(name, monkeypatch):
    from vtc.serve.positions import PruningMRopeModel

    relative = PruningMRopeModel._vtc_relative
    monkeypatch.setattr(PruningMRopeModel, "_vtc_relative", lambda *args: relative(*args) * 0)
    asks = eight()
    with engine(name, "divprune:keep=0.5") as running:
        got = running.ask(asks)
    assert sum(a != b for a, b in zip(got, expected(name, asks, 0.5))) >= 4


# ---------------------------------------------------------------- what breaks it


@pytest.mark.parametrize("name", ["qwen2_5_vl", "qwen3_vl"])
def test_prompts_whose_positions_can_not_be_told_are_refused_and_leave_nothing_behind(name):
    """Each with a picture that is new to the engine, and then asked for as it should be."""

    def bare(text: str, shown) -> dict:
        return {"prompt": text, "multi_modal_data": {"image": [each.value for each in shown]}}

    params = SamplingParams(max_tokens=8, min_tokens=8, temperature=0, ignore_eos=True)
    with engine(name, "divprune:keep=0.5") as running:
        for text, numbers, message in (
            ("hello<|image_pad|>", [21], "no text behind it"),
            ("a<|image_pad|><|image_pad|>b", [22, 23], "no text behind it"),
            ("a <|video_pad|> b <|vision_start|><|image_pad|><|vision_end|> c", [24], "outside the places"),
        ):
            shown = [picture(number) for number in numbers]
            with pytest.raises(ValueError, match=message):
                running.llm.generate([bare(text, shown)], params, use_tqdm=False)
            asks = [question(0, each) for each in shown]
            assert running.ask(asks) == expected(name, asks, 0.5)
        behind = "<|vision_start|><|image_pad|><|vision_end|> what is <|image_pad|>?"
        (answer,) = running.llm.generate([bare(behind, [picture(1)])], params, use_tqdm=False)
        assert len(answer.outputs[0].token_ids) == 8


@pytest.mark.parametrize("spec", ["divprune:keep=0.5", "kcenter:keep=0.5"])
def test_other_weights_choose_anew(spec, tmp_path):
    """`kcenter` reads a block of the tower that the engine itself would not load."""
    other = save("llava", tmp_path / "llava", seed=1)
    asks = eight()
    with engine("llava", spec) as running:
        first = running.ask(asks)
        running.llm.collective_rpc("reload_weights", kwargs={"weights_path": str(other)})
        for forget in (running.llm.reset_prefix_cache, running.llm.reset_mm_cache, running.runner.reset_encoder_cache):
            forget()
        second = running.ask(asks)
    with engine("llava", spec, model=str(other)) as running:
        assert running.ask(asks) == second != first
