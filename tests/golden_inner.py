"""Golden checks of pyramiddrop and sparsevlm."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from golden_cases import HIDDEN, SCORE, Case, Checks, Form
from golden_prunes import (
    COMMON,
    STAGES,
    check_cache,
    check_stages,
    recorded,
    run_through_the_seam,
    weights_of,
)
from golden_stub import Stub, stub
from torch import Tensor
from torch.testing import assert_close

import vtc
from vtc.attention.scores import Attention
from vtc.method.prune import Rows
from vtc.ops.clusters import Clusters, density_peaks
from vtc.prunes.attention.pyramiddrop import PyramidDrop
from vtc.prunes.attention.raters import choose_raters, relevance, strongest_heads
from vtc.prunes.attention.recycling import clusters, recycled
from vtc.prunes.attention.sparsevlm import SparseVLM

# ---------------------------------------------------------------- pyramiddrop


def check_pyramiddrop(case: Case) -> None:
    layers, keeps = tuple(case.indices("layer_list")), case.keeps("ratio_list", shares=True)
    check_stages(case, recorded(PyramidDrop)(layers=layers, keeps=keeps))


def check_pyramiddrop_batch(case: Case) -> None:
    """The hidden states reach the ranking layer unchanged: the layers before add nothing."""
    layer = case.whole("rank_layer")
    weights, sizes = weights_of(case)
    silent = {f"layers.{i}.{name}.weight" for i in range(layer) for name in ("self_attn.o_proj", "mlp.down_proj")}
    tensors = {key: torch.zeros_like(value) if key in silent else value for key, value in weights.items()}
    method = PyramidDrop(layers=(layer,), keeps=case.keeps("ratio_list", shares=True)[:1])  # its first stage

    valid, batch = case.mask("attention_mask"), len(case["features"])
    order = valid.long().argsort(dim=1, stable=True)  # padding to the left
    place = torch.arange(valid.shape[1])
    start, count = case.index("image_start")[:, None], case.index("n_image")[:, None]
    visual = (start >= 0) & (place >= start) & (place < start + count)
    model = PaddedStub(stub(tensors, sizes).language_model)
    model.valid = valid.gather(1, order)
    with torch.no_grad(), vtc.patched(model, method), entering(model.language_model.layers[layer]) as entered:
        rows = torch.arange(batch)[:, None]
        model(case["features"][rows, order], visual.gather(1, order))
        trace = vtc.trace(model)
    assert trace.tokens_per_layer[layer].tolist() == [method.count_at(0, n) for n in case.indices("n_image")]
    hidden, positions = entered["hidden"], entered["position_ids"]
    images = {image.row: image for image in trace.images}
    for row in range(batch):
        official = case.mask("out_attention_mask")[row]
        length = int(official.sum())
        assert_close(hidden[row, -length:], case["out_features"][row, official], **HIDDEN)
        assert positions[row, -length:].tolist() == case.index("out_position_ids")[row, official].tolist()
        alive = valid[row] & ~visual[row]
        if row in images:
            kept = images[row].source.positions[images[row].kept(layer)]
            alive[order[row, kept]] = True
        assert alive.nonzero()[:, 0].tolist() == case.index("out_survivors")[row, official].tolist()


class PaddedStub(Stub):
    """A batch whose rows are padded on the left."""

    valid: Tensor

    def forward(self, inputs_embeds: Tensor, visual: Tensor) -> Any:
        features = self.get_image_features(visual, inputs_embeds)
        self.get_placeholder_mask(visual, inputs_embeds=inputs_embeds, image_features=features)
        return self.language_model(
            attention_mask=self.valid.long(),
            position_ids=(self.valid.cumsum(dim=1) - 1).clamp(min=0),
            inputs_embeds=inputs_embeds,
            use_cache=True,
        )


@contextmanager
def entering(layer: torch.nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the layer is called with."""
    entered: dict[str, Tensor] = {}

    def see(module: Any, args: tuple, kwargs: dict[str, Any]) -> None:
        entered.update(kwargs, hidden=args[0] if args else kwargs["hidden_states"])

    handle = layer.register_forward_pre_hook(see, with_kwargs=True)
    try:
        yield entered
    finally:
        handle.remove()


# ---------------------------------------------------------------- sparsevlm


def check_sparsevlm(case: Case) -> None:
    stages = range(len(case["keep_lists"]))
    layers = tuple(case.whole(f"stage{i}_layer") + 1 for i in stages)
    method = recorded(SparseVLM)(layers=layers, keeps=case.keeps("keep_lists", shares=False))
    clustering = functools.partial(as_official, case, method)
    with patch("vtc.prunes.attention.recycling.density_peaks", clustering):
        run = run_through_the_seam(case, method)
    check_cache(case, run)
    tokens, start = case.whole("n_image"), case.whole("image_start")
    raters = torch.zeros(run.length - start - tokens, dtype=torch.bool)
    raters[case.index("raters_rel")] = True
    assert torch.equal(method.seen[0].memory["raters"][0, start + tokens :], raters)
    if not case.safe("min_relgap"):
        return  # which tokens stay, or which are centres, is rounding noise here
    for stage in stages:
        check_sparsevlm_stage(case, method, stage)
        tokens = len(case[f"stage{stage}_kept_rel"]) + case.whole(f"stage{stage}_cluster_num")
        assert method.count_at(stage, case.whole("n_image")) == tokens
    last = method.seen[stages[-1]]
    stand = last.decision.source[0, last.decision.alive[0] | ~last.rows.visual[0]]
    order = last.rows.origin[0, stand]  # the last tokens, in the order in which they stand
    assert run.survivors(-1) == order.sort().values.tolist()
    assert_close(run.hidden[order], case["final_hidden"], **HIDDEN)
    if "decode_hidden" in case:
        assert_close(run.decoded, case["decode_hidden"], **HIDDEN)


def check_sparsevlm_stage(case: Case, method: Any, stage: int) -> None:
    seen, found = method.seen[stage], method.clustered[stage]
    score, kept = case[f"stage{stage}_score"], case.index(f"stage{stage}_kept_rel").sort().values
    visual = seen.rows.visual[0]
    first = int(visual.nonzero()[0])
    assert_close(seen.memory["score"][0][visual], score, **SCORE)
    number, official = case.whole(f"stage{stage}_cluster_num"), case[f"stage{stage}_merge_in"]
    assert number == clusters(len(score) - len(kept)) == int(found.count)
    assert len(official) == recycled(len(score) - len(kept))
    assert_close(found.x, official, **HIDDEN)
    assert_close(found.score, case[f"stage{stage}_cluster_score"], **SCORE)
    if number > 1:  # one cluster takes all, whatever its centre
        assert found.centres[:number].tolist() == case.indices(f"stage{stage}_centers")
    hidden, places = seen.decision.hidden[0], seen.decision.alive[0].nonzero()[:, 0]
    assert torch.equal(hidden[places[: len(kept)]], seen.rows.hidden[0, first + kept])
    assert_close(hidden[places[len(kept) :]], case[f"stage{stage}_merge_out"], **HIDDEN)
    text = ~visual
    assert torch.equal(hidden[text], seen.rows.hidden[0, text])
    into = seen.decision.into[0]
    assert (into >= 0).sum() == len(official) and torch.isin(into[into >= 0], places).all()


def as_official(case: Case, method: Any, x: Tensor, count: Tensor, *args: Any, **kwargs: Any) -> Clusters:
    """The clusters of `x`; where the official run ordered two equal centres the other way round, in that order."""
    found = density_peaks(x, count, *args, **kwargs)
    clustered = method.__dict__.setdefault("clustered", [])
    ours, official = found.centres[0, : int(count)], case.index(f"stage{len(clustered)}_centers")
    tie = case.flag("two_cluster_order_tie") and int(count) == 2 and ours.flip(0).tolist() == official.tolist()
    if tie:
        first, second = found.score[0, ours].tolist()
        assert first == second
        member_of = torch.where(found.member_of < 2, 1 - found.member_of, found.member_of)
        found = replace(found, centres=found.centres.clone(), member_of=member_of)
        found.centres[0, :2] = official
    valid = kwargs["valid"][0]
    clustered.append(
        SimpleNamespace(x=x[0, valid], count=count[0], score=found.score[0, valid], centres=found.centres[0])
    )
    return found


def check_cluster(case: Case) -> None:
    x, number = case["x"][None], case.whole("cluster_num")
    found = density_peaks(x, torch.tensor([number]), number)
    merged = torch.stack([case["x"][found.member_of[0] == i].mean(dim=0) for i in range(number)])
    ties = case.flag("ties") or len(case["x"].unique(dim=0)) < len(case["x"])
    official = case.index("centers")
    if number > 1 and not ties:
        assert found.centres[0].tolist() == official.tolist()
    if not ties or number == 1:
        assert_close(merged, case["out"], **HIDDEN)
    assert merged.shape == case["out"].shape
    assert sorted(found.member_of[0, found.centres[0]].tolist()) == list(range(number))


def check_raters(case: Case) -> None:
    hidden = torch.cat([case["vis"], case["text"]])[None]
    visual = torch.arange(hidden.shape[1])[None] < len(case["vis"])
    text = torch.ones(1, len(case["text"]), dtype=torch.bool)
    found = relevance(hidden, visual, text)
    assert_close(found[0], case["relevance"], **SCORE)
    assert choose_raters(found, text)[0].nonzero()[:, 0].tolist() == case.indices("raters")


def check_scores(case: Case) -> None:
    """One layer, from its attention probabilities; with a rank instead of a count: the rule of v1.0."""
    probabilities, start, tokens = case["attn"], case.whole("image_start"), case.whole("n_image")
    length = probabilities.shape[-1]
    place = torch.arange(length)[None]
    visual = (place >= start) & (place < start + tokens)
    raters = torch.zeros(1, length, dtype=torch.bool)
    raters[0, start + tokens + case.index("raters_rel")] = True
    if "keep" in case:
        method = SparseVLM(layers=(1,), keeps=case.keeps("keep", shares=False), recycle=False)
    else:
        method = SparseVLM(layers=(1,), rank=(case.number("scale"), case.number("bias")), recycle=False)
    rows = Rows(0, torch.zeros(1, length, 1), visual, torch.ones_like(visual), place >= start + tokens)
    memory = {"raters": raters}
    method.on_attention(rows, of_probabilities(probabilities), memory)
    assert_close(memory["score"][visual], case["score"], **SCORE)
    decision = method.decide(rows, [method.count_at(0, tokens)], memory)
    assert decision.alive[visual].tolist() == case.mask("kept_mask").tolist()


def check_head_choice(case: Case) -> None:
    attention, raters = of_probabilities(case["attn"]), case.index("text_abs")
    place = torch.arange(case["attn"].shape[-1])[None]
    visual = (place >= case.whole("image_start")) & (place < case.whole("text_start"))
    received = attention.head_rows(raters[None]).sum(dim=2)
    assert_close((received * visual).sum(dim=2)[0], case["head_sums"], **HIDDEN)
    heads = strongest_heads(received, visual, len(case["heads"]))
    assert sorted(heads[0].tolist()) == sorted(case.indices("heads"))


def of_probabilities(probabilities: Tensor) -> Attention:
    """The attention whose probabilities [H, L, L] are given."""
    logits = probabilities.double().log().clamp_min(-1e4).float()
    return Attention(logits[None], torch.eye(logits.shape[-1]).expand(1, *logits.shape), scaling=1.0, causal=False)


CHECKS: Checks = [
    Form(
        lambda c: c.has("inputs_embeds", "layer_list", "ratio_list") and not c.has("acc_list"),
        check_pyramiddrop,
        rf"{COMMON}|{STAGES}",
    ),
    Form(
        lambda c: c.has("features", "rank_layer", "out_survivors"),
        check_pyramiddrop_batch,
        r"features|attention_mask|image_start|n_image|prompt_len|rank_layer|ratio_list"
        r"|out_(features|attention_mask|position_ids|survivors)",
    ),
    Form(
        lambda c: c.has("inputs_embeds", "keep_lists", "raters_rel"),
        check_sparsevlm,
        rf"{COMMON}|keep_lists|raters_rel"
        r"|stage\d+_(layer|score|kept_rel|cluster_num|merge_in|cluster_score|centers|merge_out)",
    ),
    Form(lambda c: c.has("x", "cluster_num", "centers", "out"), check_cluster, r"x|cluster_num|centers|out"),
    Form(lambda c: c.has("text", "vis", "relevance", "raters"), check_raters, r"text|vis|relevance|raters"),
    Form(
        lambda c: c.has("attn", "raters_rel", "kept_mask") and (c.has("keep") or c.has("scale", "bias")),
        check_scores,
        r"attn|raters_rel|image_start|n_image|keep|scale|bias|s_flag|score|kept_mask",
    ),
    Form(
        lambda c: c.has("attn", "text_abs", "head_sums", "heads"),
        check_head_choice,
        r"attn|image_start|text_start|text_abs|head_sums|heads",
    ),
]
