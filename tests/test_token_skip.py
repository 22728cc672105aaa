"""What holds for token_skip: who skips which layer, and whole runs against a slow reference that only masks."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from contract import EVERY, check_each_alone, greedy, model_of
from covering import product
from decoder_reference import Decoder, Prompt, Result, best, masked_run, prompt, run, tiny_decoder
from families import scenario
from golden_stub import Stub
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc import DivPrune
from vtc.attention.scores import Attention
from vtc.method.prune import Rows, top_visual
from vtc.model.layout import VisualInput
from vtc.prunes.token_skip import TokenSkip

CLOSE = {"rtol": 0, "atol": 2e-4}


@pytest.mark.parametrize(
    ("depth", "dense", "layers"),
    [
        (32, 3, (3, 28)),
        (7, 3, (3, 3)),
        (6, 3, (2, 3)),
        (5, 3, (2, 2)),
        (4, 3, (1, 2)),
        (3, 9, (1, 1)),
        (32, 1, (1, 30)),
    ],
)
def test_the_first_and_last_layers_compute_all(depth: int, dense: int, layers: tuple[int, int]) -> None:
    method = TokenSkip(dense=dense)
    assert method.schedule(depth) == tuple(range(layers[0], layers[1] + 1))
    assert method.watch(depth).attention == tuple(range(layers[0] - 1, layers[1]))
    assert method.returns and method.positions == "original"


def test_every_layer_in_between_has_the_same_budget() -> None:
    assert [TokenSkip(keep=0.5).count_at(stage, 77) for stage in (0, 5)] == [38, 38]  # half to even
    assert [TokenSkip(keep=keep).count_at(0, 8) for keep in (1.0, 9, 3, 0.01)] == [8, 8, 3, 0]


def on_layer(layer: int, origin: list[list[int]], visual: list[list[int]], length: int) -> Rows:
    """Rows of a layer that computes the tokens of `origin`; visual tokens of row 0 and 1 are at those places."""
    images = tuple(VisualInput(row, "image", torch.tensor(places), ()) for row, places in enumerate(visual))
    marks = torch.tensor([[place in visual[row] for place in places] for row, places in enumerate(origin)])
    shape = (*marks.shape, 1)
    return Rows(layer, torch.zeros(shape), marks, torch.ones_like(marks), ~marks, images=images,
                origin=torch.tensor(origin))  # fmt: skip


def probabilities(rows: list[list[float]]) -> Attention:
    """An attention whose last query gives each token this share."""
    logits = torch.tensor(rows).log()[:, None, :, None]
    return Attention(torch.ones_like(logits), logits, scaling=1.0)


def test_a_token_that_skipped_a_layer_keeps_the_score_that_it_had() -> None:
    visual, whole = [[1, 2, 3], [0, 1, 2]], [[0, 1, 2, 3, 4]] * 2
    memory: dict[str, Tensor] = {}
    method = TokenSkip()
    rows = on_layer(2, whole, visual, 5)
    method.on_attention(rows, probabilities([[0.1, 0.2, 0.4, 0.1, 0.2], [0.3, 0.2, 0.3, 0.1, 0.1]]), memory)
    first = method.score(rows, memory).masked_fill(~rows.visual, 0)
    assert_close(first, torch.tensor([[0, 0.2, 0.4, 0.1, 0], [0.3, 0.2, 0.3, 0, 0]]))
    assert top_visual(first, rows.visual, [1, 1]).nonzero().tolist() == [[0, 2], [1, 0]]  # ties: the lowest index
    some = on_layer(3, [[0, 2, 4], [0, 3, 4]], visual, 5)  # others skipped layer 3
    method.on_attention(some, probabilities([[0.8, 0.15, 0.05], [0.02, 0.9, 0.08]]), memory)
    second = method.score(on_layer(4, whole, visual, 5), memory).masked_fill(~rows.visual, 0)
    assert_close(second, torch.tensor([[0, 0.2, 0.15, 0.1, 0], [0.02, 0.2, 0.3, 0, 0]]))


def choices(keep: int, dense: int, depth: int, given: Prompt) -> Any:
    """Who is computed: the `keep` visual tokens with the highest latest known attention from the last token."""

    def choose(layer: int, alive: list[int], attention: list[Tensor], outputs: list[Tensor]) -> Any:
        if not dense <= layer < depth - dense:
            return alive, range(4)
        known = torch.zeros(len(given.embeds)).double()
        for rows in attention[dense - 1 :]:
            computed = rows.sum(dim=(0, 2)) > 0
            known = torch.where(computed, rows[:, -1].mean(dim=0), known)
        return sorted({*given.text, *best(known[given.places].tolist(), given.places, keep)}), range(4)

    return choose


def reference_of(keep: int, dense: int, model: Any, given: Prompt) -> Result:
    decoder = Decoder(model)
    return masked_run(decoder, given.embeds, given.steps, choices(keep, dense, decoder.depth, given), returns=True)


@pytest.mark.parametrize("kind", [("llama", 4), ("qwen2", 2)], ids=str)
@pytest.mark.parametrize("keep", [10, 3])
def test_a_run_is_that_of_the_reference(keep: int, kind: tuple[str, int]) -> None:
    given, model = prompt(seed=7), tiny_decoder(kind[0], layers=8, groups=kind[1])
    reference = reference_of(keep, 2, model, given)
    computed, stub = reference.computed[0], Stub(model)
    with vtc.patched(stub, TokenSkip(keep=keep / 20, dense=2)):
        hidden, lengths = run(stub, given)
        trace = vtc.trace(stub)
    for layer, places in enumerate(computed):
        kept = set(trace.images[0].source.positions[trace.images[0].kept(layer)].tolist())
        assert kept == places - set(given.text), f"layer {layer}"
        assert lengths[layer] == len(places) + len(given.steps)
    if keep == 10:  # of 3 tokens each gets so much attention that none gives way
        assert any(later - before for before, later in pairwise(computed[2:6])), "nobody came back"
    assert len(computed[-1]) == len(given.embeds)
    for ours, wanted in zip(hidden, reference.hidden, strict=True):
        assert_close(ours.double(), wanted, **CLOSE)


def test_computing_everything_changes_nothing() -> None:
    given, stub = prompt(seed=5), Stub(tiny_decoder())
    plain = run(stub, given)[0]
    for method in (TokenSkip(keep=1.0), TokenSkip(keep=20)):
        with vtc.patched(stub, method):
            assert all(torch.equal(a, b) for a, b in zip(run(stub, given)[0], plain))


@product(family=["llava", "llava_onevision", "qwen2_vl", "qwen3_vl", "gemma3"], selected=[False, True], each="value")
def test_rows_of_a_batch_are_their_own_runs(family: str, selected: bool) -> None:
    model, this = model_of(family), EVERY[family]
    methods = [DivPrune(keep=0.6)] * selected + [TokenSkip(keep=0.4, dense=1)]
    for name in ("ragged", "several_images", "text_row"):
        rows = scenario(this, name)
        inputs = this.inputs(model, rows)
        with torch.no_grad(), vtc.patched(model, *methods):
            together = model(**inputs).logits[:, -1]
            layers = vtc.trace(model).tokens_per_layer
            assert torch.equal(layers[0], layers[-1]) and (layers[1] < layers[0])[layers[0] > 0].all()
            check_each_alone(this, model, rows, together, greedy(model, inputs, new=3)[:, -3:])


def test_bad_fields_are_refused() -> None:
    with pytest.raises(ValueError, match="dense=0 is below 1"):
        TokenSkip(dense=0)
    with pytest.raises(TypeError, match=r"dense=0\.5 is a float"):
        TokenSkip(dense=0.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"keep=1\.5"):
        TokenSkip(keep=1.5)
