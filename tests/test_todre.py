"""ToDRE: the ratios of stage 2 against whole attention maps, what a drop leaves behind, and both stages together."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from contract import EVERY, check_each_alone, greedy, has_cls, model_of, ran
from families import scenario
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc.attention.scores import Attention
from vtc.method.kinds import split_kinds
from vtc.method.prune import Decision, Rows
from vtc.prunes import todre_stage2
from vtc.prunes.todre_stage2 import TodreStage2, cross_attention, text_after
from vtc.selectors.kcenter import KCenter
from vtc.selectors.todre import Todre

ALWAYS, LAYER = 2.0, 1


class Recorded(TodreStage2):
    """What the last decision was made of."""

    def decide(self, rows: Rows, counts: Sequence[int], memory: dict[str, Tensor]) -> Decision:
        self.ratios = torch.stack([memory["text_to_visual"], memory["visual_to_text"]], dim=1)
        self.rows = rows
        return super().decide(rows, counts, memory)


@pytest.mark.parametrize("family", ["llava", "llava_onevision", "qwen2_5_vl", "mistral3", "gemma3", "paligemma"])
@pytest.mark.parametrize("name", ["ragged", "several_images"])
def test_both_ratios_equal_those_of_whole_attention_maps(family: str, name: str) -> None:
    method = Recorded(threshold=ALWAYS, layers=(LAYER,))
    inputs, untouched, _ = ran(family, None, name, "eager", output_attentions=True)
    ran(family, method, name)
    images = [len(row.images) for row in scenario(EVERY[family], name)]
    attention = untouched.attentions[LAYER].double().mean(dim=1)
    valid = inputs["attention_mask"].bool()
    visual = inputs["input_ids"] == EVERY[family].image_id
    assert torch.equal(method.rows.visual, visual)
    for row in range(len(visual)):
        first = int(visual[row].nonzero()[0])
        text = [place for place in range(first, len(visual[row])) if valid[row, place] and not visual[row, place]]
        picture = visual[row].nonzero()[:, 0].tolist()
        between = attention[row][text][:, picture], attention[row][picture][:, text]
        whole = attention[row][text], attention[row][picture]
        expected = torch.stack([part.sum() / all_.sum() for part, all_ in zip(between, whole)])
        assert_close(method.ratios[row].double(), expected, rtol=0, atol=1e-6)
        if family == "llava":
            assert (method.ratios[row, 1] == 0) == (images[row] == 1)  # all of the text comes after one image
        if family == "paligemma":
            assert method.ratios[row, 1] > 0  # the prompt attends both ways


def test_the_ratios_are_worked_through_in_chunks() -> None:
    gen = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 4, 23, 8, generator=gen), torch.randn(2, 2, 30, 8, generator=gen)
    attention = Attention(query, key, scaling=0.5)
    visual = torch.zeros(2, 23, dtype=torch.bool)
    visual[0, 4:9] = visual[0, 12:20] = True
    text = text_after(visual, torch.ones_like(visual))
    assert text[0].nonzero()[:, 0].tolist() == [9, 10, 11, 20, 21, 22] and not text[1].any()
    whole = cross_attention(attention, text, visual)
    assert not whole[0][0].isnan() and whole[0][1].isnan()
    for part, all_ in zip(cross_attention(attention, text, visual, chunk=5), whole):
        assert_close(part, all_, rtol=1e-6, atol=0, equal_nan=True)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl"])
def test_behind_a_drop_layers_run_as_on_the_text_alone(family: str) -> None:
    model = model_of(family)
    decoder = model.model.language_model
    entered: dict[str, Any] = {}

    def see(_: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        entered.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])

    handle = decoder.layers[LAYER + 1].register_forward_pre_hook(see, with_kwargs=True)
    inputs, _, _ = ran(family, None, use_cache=False)
    handle.remove()
    text = inputs["input_ids"][0] != EVERY[family].image_id
    tables = tuple(table[..., text, :] for table in entered["position_embeddings"])
    with torch.no_grad():
        hidden = entered["hidden"][:, text]
        for layer in decoder.layers[LAYER + 1 :]:
            hidden = layer(hidden, attention_mask=None, position_embeddings=tables)
        expected = model.lm_head(decoder.norm(hidden))
    _, output, trace = ran(family, TodreStage2(threshold=ALWAYS, layers=(LAYER,)))
    assert_close(output.logits[:, text], expected, rtol=1e-5, atol=1e-5)
    total = len(text) - int(text.sum())
    assert trace.tokens_per_layer[:, 0].tolist() == [total] * (LAYER + 1) + [0] * (len(decoder.layers) - LAYER - 1)


def test_up_to_the_dropping_layer_nothing_changes_and_the_cache_holds_all() -> None:
    method = TodreStage2(threshold=ALWAYS, layers=(3,))
    inputs, untouched, _ = ran("llava", None, output_hidden_states=True)
    _, dropped, _ = ran("llava", method, output_hidden_states=True)
    for before, after in zip(untouched.hidden_states[:5], dropped.hidden_states[:4]):
        assert torch.equal(before, after)
    model, length = model_of("llava"), inputs["input_ids"].shape[1]
    with torch.no_grad(), vtc.patched(model, method):
        output = model(**inputs)
        cache = output.past_key_values
        for step in range(3):
            lengths = [layer.keys.shape[-2] for layer in cache.layers]
            assert lengths == [length + step] * 4 + [length - 16 + step]
            mask = torch.ones(1, length + step + 1, dtype=torch.long)
            model(input_ids=torch.tensor([[20]]), attention_mask=mask, past_key_values=cache)


def test_the_last_layer_has_nothing_behind_it() -> None:
    depth = len(model_of("llava").model.language_model.layers)
    with pytest.raises(ValueError, match=f"behind layer {depth - 1} of {depth}"):
        ran("llava", TodreStage2(layers=(depth - 1,)))
    assert [TodreStage2().schedule(n) for n in (2, 5, 16, 28, 32)] == [(1,), (4,), (15,), (25,), (29,)]
    assert TodreStage2(layers=(2, 4)).watch(8).attention == (2, 4)


@pytest.mark.parametrize("name", ["ragged", "several_images", "text_row"])
def test_threshold_zero_leaves_all_and_a_large_one_drops_all(name: str) -> None:
    _, untouched, _ = ran("llava", None, name)
    _, output, trace = ran("llava", TodreStage2(threshold=0, layers=(LAYER,)), name)
    assert torch.equal(output.logits, untouched.logits)
    assert (trace.tokens_per_layer == trace.original_tokens).all()
    *_, trace = ran("llava", TodreStage2(threshold=ALWAYS), name)
    assert trace.tokens_per_layer[-1].max() == 0
    assert torch.equal(trace.tokens_per_layer[-2], trace.original_tokens)


@pytest.mark.parametrize("family", ["llava", "qwen2_5_vl", "gemma3"])
@pytest.mark.parametrize("name", ["ragged", "several_images", "text_row"])
def test_rows_decide_alone_and_equal_their_own_run(family: str, name: str) -> None:
    recorded = Recorded(threshold=ALWAYS, layers=(LAYER,))
    ran(family, recorded, name)
    needed = recorded.ratios.amax(dim=1)
    threshold = float(needed[~needed.isnan()].mean())
    method = TodreStage2(threshold=threshold, layers=(LAYER,))
    model, rows = model_of(family), scenario(EVERY[family], name)
    inputs = EVERY[family].inputs(model, rows)
    with torch.no_grad(), vtc.patched(model, method):
        together = model(**inputs).logits[:, -1]
        left = vtc.trace(model).tokens_per_layer[-1]
        check_each_alone(EVERY[family], model, rows, together, greedy(model, inputs, new=3)[:, -3:])
    pictured = torch.tensor([bool(row.images) for row in rows])
    assert torch.equal(left == 0, ~pictured | (needed < threshold))
    if name != "text_row":
        assert 0 < int((left == 0).sum()) < len(left)


def test_once_dropped_later_candidates_are_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def counted(*args: Any) -> Any:
        asked.append(args)
        return cross_attention(*args)

    monkeypatch.setattr(todre_stage2, "cross_attention", counted)
    *_, trace = ran("llava", TodreStage2(threshold=ALWAYS, layers=(0, 1, 2)))
    assert len(asked) == 1 and trace.tokens_per_layer[:, 0].tolist() == [16, 0, 0, 0, 0]
    asked.clear()
    ran("llava", TodreStage2(threshold=1e-9, layers=(0, 1, 2)))
    assert len(asked) == 3
    ratios = []
    for layer in (0, 1, 2):
        recorded = Recorded(threshold=1e-9, layers=(layer,))
        ran("llava", recorded)
        ratios.append(float(recorded.ratios.max()))
    lowest = min(ratios)
    threshold = lowest + 1e-6
    *_, trace = ran("llava", TodreStage2(threshold=threshold, layers=(0, 1, 2)))
    first = 1 + next(layer for layer, ratio in enumerate(ratios) if ratio < threshold)
    assert trace.tokens_per_layer[:, 0].tolist() == [16] * first + [0] * (5 - first)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"threshold": -0.1}, ("threshold=-0.1", "0 or more")),
        ({"threshold": float("nan")}, ("threshold=nan", "0 or more")),
        ({"threshold": True}, ("threshold=True", "bool")),
        ({"layers": 28}, ("layers=28", "tuple", "(28,)")),
        ({"layers": (3, 2)}, ("layers=(3, 2)", "ascending")),
        ({"layers": (-1,)}, ("layers[0]=-1", "below 0")),
    ],
)
@pytest.mark.parametrize("method", [TodreStage2, Todre])
def test_bad_fields_are_named(method: Any, fields: dict, words: tuple[str, ...]) -> None:
    with pytest.raises((TypeError, ValueError)) as error:
        method(**fields)
    assert all(word in str(error.value) for word in words)


def test_todre_is_both_of_its_stages() -> None:
    assert split_kinds([Todre()]) == (None, Todre(), [TodreStage2()])
    assert split_kinds([Todre(threshold=0.0)]) == (None, Todre(threshold=0.0), [])
    assert Todre(keep=1.0).split() == (Todre(keep=1.0),)
    assert len(Todre(keep=1).split()) == 2
    assert Todre(layers=[2]).layers == (2,)


@pytest.mark.parametrize("family", ["llava", "llava_next", "qwen2_5_vl"])
@pytest.mark.parametrize("rule", ["max-sum", "max-min"])
def test_todre_equals_its_stages_put_together(family: str, rule: str) -> None:
    fields = {"keep": 0.5, "rule": rule, "pivot": "cls" if has_cls(family) else "mean"}
    _, both, trace = ran(family, Todre(**fields, threshold=ALWAYS, layers=(LAYER,)), "ragged")
    _, apart, _ = ran(family, [KCenter(**fields), TodreStage2(threshold=ALWAYS, layers=(LAYER,))], "ragged")
    _, first, _ = ran(family, KCenter(**fields), "ragged")
    assert torch.equal(both.logits, apart.logits) and not torch.equal(both.logits, first.logits)
    kept = [round(n / 2) for n in trace.original_tokens.tolist()]
    assert trace.tokens_per_layer.tolist() == [kept] * (LAYER + 1) + [[0] * len(kept)] * (4 - LAYER)
