"""What holds for lazyllm, and for the slow reference that its decode steps are compared with.

The paper leaves some things open. The reference (`Reviving` in decoder_reference.py) settles them so:

- Only visual tokens of the prompt are ranked. All text, and every generated token, is in every layer in every step.
- A prune point is "in front of layer l"; it reads the newest token's row of layer l-1 in the same call, a softmax over
  what that token saw there (text, generated tokens, the visual tokens chosen up to there), mean over heads.
- Each call (the prompt, and each step) keeps equally many visual tokens at a prune point: `count_at` of the prompt's
  number of visual tokens. Equal scores: the lowest place first.
- A point chooses only among those that the layer before it saw in this call.
- A chosen token whose key the layer never computed: its state is either carried (it was computed in the layer before,
  in this call) or is the one put aside at this very point. No other point is asked.
- A carried token that is not chosen is put aside at this point; one that is fetched is put aside no longer.
- A chosen token whose key is there is read, not computed. One whose key is there but who is not chosen is hidden from
  this call, and kept.
- A revived token sees, in each layer, the tokens chosen in this call at that layer up to its own place: prompt tokens
  with earlier places, those revived beside it among them, and itself. It sees no generated token.
- Places are those of the prompt; a generated token's is prompt length + number of generated tokens before it.
- So no token is computed twice in a layer, and at each prune point what the layer before holds is either held by the
  layer behind or put aside there.
"""

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from contract import EVERY, each_alone, model_of
from decoder_reference import Decoder, Prompt, Result, Reviving, Scores, best, masked_run, prompt, run, tiny_decoder
from families import scenario
from golden_stub import Stub
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc.prunes.attention.lazyllm import LazyLLM

CLOSE = {"rtol": 0, "atol": 2e-4}
LAYERS = (2, 4, 5)


def test_the_published_stages() -> None:
    method = LazyLLM()
    assert method.schedule(32) == (9, 19, 28) and method.watch(32).attention == (8, 18, 27)
    assert method.schedule(28) == (8, 17, 24) and method.schedule(5) == (1, 3, 4)
    assert [method.count_at(stage, 100) for stage in range(3)] == [70, 50, 30]
    assert method.revives and not LazyLLM(revive=False).revives and method.positions == "original"


@pytest.mark.parametrize("present", [1, 2, 7, 77, 576])
def test_counts_are_rounded_up(present: int) -> None:
    shares = [[math.ceil(round(present * left, 9)) for left in (0.7, 0.5, 0.3)], [present] * 3]
    for keep, wanted in zip((0.3, 1.0), shares):
        assert [LazyLLM(keep=keep).count_at(stage, present) for stage in range(3)] == wanted
        assert LazyLLM(keep=keep).count(present) == wanted[-1]
    counted = LazyLLM(keep=5, layers=(3, 4))
    least = min(5, present)
    assert [counted.count_at(stage, present) for stage in range(2)] == [math.ceil((present + least) / 2), least]
    assert [LazyLLM(keep=900).count_at(stage, present) for stage in range(3)] == [present] * 3


def counts_of(method: LazyLLM, layers: tuple[int, ...], given: Prompt) -> dict[int, int]:
    return {layer: method.count_at(stage, len(given.places)) for stage, layer in enumerate(layers)}


def static(model: Any, counts: dict[int, int], given: Prompt) -> Result:
    """What is dropped in prefill stays away."""

    def choose(layer: int, alive: list[int], attention: list[Tensor], outputs: list[Tensor]) -> Any:
        if layer not in counts:
            return alive, range(4)
        there = [place for place in alive if given.visual[place]]
        scores = attention[-1][:, -1].mean(dim=0)[there].tolist()
        return sorted({*given.text, *best(scores, there, counts[layer])}), range(4)

    return masked_run(Decoder(model), given.embeds, given.steps, choose)


def reviving(model: Any, counts: dict[int, int], given: Prompt, scores: Scores | None = None) -> Reviving:
    """The prompt and all its steps."""
    lazy = Reviving(Decoder(model), given.places, counts, scores)
    for embeds in (given.embeds, *given.steps[:, None]):
        lazy.call(embeds)
    return lazy


@pytest.mark.parametrize("kind", [("llama", 4), ("qwen2", 2)], ids=str)
@pytest.mark.parametrize("keep", [0.3, 0.1, 0.05])
def test_a_run_without_revival_is_that_of_the_reference(keep: float, kind: tuple[str, int]) -> None:
    given, model = prompt(seed=1), tiny_decoder(kind[0], groups=kind[1])
    method = LazyLLM(keep=keep, layers=LAYERS, revive=False)
    reference = static(model, counts_of(method, LAYERS, given), given)
    stub = Stub(model)
    with vtc.patched(stub, method):
        hidden, lengths = run(stub, given)
    assert lengths == [len(computed) + len(given.steps) for computed in reference.computed[0]]
    for ours, wanted in zip(hidden, reference.hidden, strict=True):
        assert_close(ours.double(), wanted, **CLOSE)


def check_changes_nothing(*methods: Any) -> None:
    given, stub = prompt(seed=5), Stub(tiny_decoder())
    plain = run(stub, given)[0]
    for method in methods:
        with vtc.patched(stub, method):
            assert all(torch.equal(a, b) for a, b in zip(run(stub, given)[0], plain))


def test_keeping_everything_changes_nothing() -> None:
    check_changes_nothing(LazyLLM(keep=1.0), LazyLLM(keep=20), LazyLLM(keep=1.0, revive=False))


# ---------------------------------------------------------------- the reference itself


@pytest.mark.parametrize("kind", [("llama", 4), ("llama", 1), ("qwen2", 2)], ids=str)
def test_the_reference_with_everything_is_the_model(kind: tuple[str, int]) -> None:
    given, model = prompt(seed=2), tiny_decoder(kind[0], groups=kind[1])
    lazy = reviving(model, dict.fromkeys(LAYERS, 20), given)
    for ours, wanted in zip(run(Stub(model), given)[0], lazy.result.hidden, strict=True):
        assert_close(ours.double(), wanted, **CLOSE)
    assert all(len(computed) == 1 for call in lazy.result.computed[1:] for computed in call)


def test_the_references_prefill_is_the_static_one_and_later_steps_are_not() -> None:
    given, model = prompt(seed=1, steps=8), tiny_decoder()
    counts = counts_of(LazyLLM(), LAYERS, given)
    lazy, without = reviving(model, counts, given).result, static(model, counts, given)
    assert_close(lazy.hidden[0], without.hidden[0])
    assert lazy.computed[0] == without.computed[0]
    revived = [[len(computed) - 1 for computed in call] for call in lazy.computed[1:]]
    assert any(map(sum, revived)), "nothing was revived, so nothing was tested"
    assert not torch.allclose(lazy.hidden[-1], without.hidden[-1], atol=1e-2)
    for call, seen in enumerate(lazy.seen):  # equally many in every call, and nested
        assert [len(places & set(given.places)) for places in seen] == [20, 20, 14, 14, 10, 6, 6]
        assert all(later <= before for before, later in pairwise(seen))
        assert {*given.text, *range(len(given.embeds), len(given.embeds) + call)} <= seen[-1]


def test_states_and_keys_are_as_many_as_predicted() -> None:
    """Of n visual tokens, a layer that computed k after one that computed j has k keys, and j - k states lie aside."""
    given, model = prompt(seed=1, steps=8), tiny_decoder()
    result = reviving(model, counts_of(LazyLLM(), LAYERS, given), given).result
    for call, (kv, aux) in enumerate(zip(result.kv, result.aux)):
        computed = [set().union(*(one[layer] for one in result.computed[: call + 1])) for layer in range(7)]
        assert kv == computed
        assert {layer: len(held) for layer, held in aux.items()} == {
            layer: len(computed[layer - 1]) - len(computed[layer]) for layer in LAYERS
        }
    assert len(result.kv[0][-1]) == 8 + 6 and len(result.kv[-1][-1]) > 8 + 6 + 8


def test_a_token_is_back_from_the_step_on_that_wants_it() -> None:
    """Dropped at the first point in prefill, wanted at all points from step 3 on."""
    given, model = prompt(seed=1), tiny_decoder()
    counts, late = {2: 6, 4: 4, 5: 2}, 17

    def scores(step: int, stage: int, candidates: list[int], row: Tensor) -> list[float]:
        return [(100.0 if step >= 3 else -100.0) if place == late else -place for place in candidates]

    lazy = reviving(model, counts, given, scores)
    held = [[late in kv for kv in call] for call in lazy.result.kv]
    assert held == [[True, True, *[False] * 5]] * 3 + [[True] * 7] * 2
    assert [call[2] - {len(given.embeds) + step - 1} for step, call in enumerate(lazy.result.computed)][1:] == [
        set(), set(), {late}, set()
    ]  # fmt: skip
    key, _ = lazy.keys[2][late]
    without = reviving(model, counts, given, lambda *a: scores(0, *a[1:]))
    assert late not in without.keys[2]
    state = without.aux[2][late][None]
    assert_close(key, lazy.decoder.project(2, state, [late])[1][:, 0])  # at its own place


# ---------------------------------------------------------------- decode steps that revive


@pytest.mark.parametrize("kind", [("llama", 4), ("qwen2", 2)], ids=str)
@pytest.mark.parametrize("keep", [0.3, 0.1, 3])
def test_every_step_is_that_of_the_reference(keep: float | int, kind: tuple[str, int]) -> None:
    pytest.importorskip("vtc.seam.revival")
    given, model = prompt(seed=1, steps=8), tiny_decoder(kind[0], groups=kind[1])
    method = LazyLLM(keep=keep, layers=LAYERS)
    reference = reviving(model, counts_of(method, LAYERS, given), given).result
    assert any(len(computed) > 1 for call in reference.computed[1:] for computed in call)
    stub = Stub(model)
    with vtc.patched(stub, method):
        hidden, lengths = run(stub, given)
    assert lengths == [len(held) for held in reference.kv[-1]]
    for step, (ours, wanted) in enumerate(zip(hidden, reference.hidden, strict=True)):
        assert_close(ours.double(), wanted, **CLOSE, msg=lambda text, step=step: f"call {step}: {text}")


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_vl"])
@pytest.mark.parametrize("revive", [False, True])
def test_rows_of_a_batch_are_their_own_runs(family: str, revive: bool) -> None:
    if revive:
        pytest.importorskip("vtc.seam.revival")
    model, this = model_of(family), EVERY[family]
    for name in ("ragged", "several_images", "text_row"):
        rows = scenario(this, name)
        inputs = this.inputs(model, rows)
        with torch.no_grad(), vtc.patched(model, LazyLLM(revive=revive)):
            tokens = model.generate(**inputs, max_new_tokens=5, do_sample=False)[:, -5:]
            for index, alone in enumerate(each_alone(this, model, rows)):
                again = model.generate(**alone, max_new_tokens=5, do_sample=False)
                assert torch.equal(tokens[index], again[0, -5:])


def test_bad_fields_are_refused() -> None:
    for layers in ((9, 9), (5, 3)):
        with pytest.raises(ValueError, match=r"layers=.* is not ascending"):
            LazyLLM(layers=layers)
    with pytest.raises(ValueError, match=r"layers\[0\]=0 is below 1"):
        LazyLLM(layers=(0, 3))
    with pytest.raises(ValueError, match="is empty"):
        LazyLLM(layers=())
    with pytest.raises(TypeError, match="revive='no' is a str"):
        LazyLLM(revive="no")  # type: ignore[arg-type]


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_each_beam_goes_on_with_what_it_revived_itself(family: str) -> None:
    """Beams change places in every step; each has the log-probability that its tokens have where they are fed alone."""
    model, rows, new = model_of(family), scenario(EVERY[family], "ragged"), 6
    options = {"max_new_tokens": new, "min_new_tokens": new, "do_sample": False, "return_dict_in_generate": True}
    with torch.no_grad(), vtc.patched(model, "lazyllm:keep=0.3"):
        beams = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0, "output_scores": True}
        made = model.generate(**EVERY[family].inputs(model, rows), **options, **beams)
        revived = set()
        for index, alone in enumerate(each_alone(EVERY[family], model, rows)):
            length = alone["input_ids"].shape[1]
            for beam in range(3 * index, 3 * index + 3):
                tokens = made.sequences[beam, -new:]
                told = model.generate(
                    **alone,
                    **options,
                    output_logits=True,
                    prefix_allowed_tokens_fn=lambda _, ids, tokens=tokens, length=length: [
                        int(tokens[len(ids) - length])
                    ],
                )
                revived.add((index, str(vtc.trace(model).revived_tokens.tolist())))
                scores = torch.cat(told.logits).log_softmax(dim=-1)
                assert_close(made.sequences_scores[beam], scores.gather(1, tokens[:, None]).sum(), atol=1e-4, rtol=1e-4)
    assert len(revived) > len(rows), "all beams of a row revived the same"
