"""Golden checks of utrc: the paper's reduction of both branches, its schedules, and counts of the released code."""

import re

import torch
from golden_cases import SCORE, Case, Checks, Form, as_number
from torch.testing import assert_close

from vtc.prunes.utrc import UTRC, pair, token_importance, unified_reduction

#: Published anchors by depth: what a method with no layers given does in a model of that depth.
PUBLISHED = {64: (12, 17, 22, 27, 32, 37, 42), 48: (10, 15, 20, 25, 30, 35)}


def check_utrc(case: Case) -> None:
    mixer, residual = case["in.mixer_out"][None], case["in.residual"][None]
    tokens = mixer.shape[1]
    eligible = torch.ones(1, tokens, dtype=torch.bool)
    if "in.protected" in case:
        eligible = ~case.mask("in.protected")[None]
    assert_close(token_importance(mixer)[0], case["out.score"], **SCORE)
    edges = pair(mixer, eligible, torch.ones_like(eligible))  # protected tokens take others in here
    pairs = case.index("out.pairs_src_dst")
    ours = torch.stack([edges.source[0], edges.target[0]], dim=1)[: len(pairs)]
    assert torch.equal(ours, pairs)
    pruned = case.whole("out.num_pruned_pairs", default=len(pairs) // 2)
    assert pruned == len(pairs) // 2
    mixed, rest, gone = unified_reduction(mixer, residual, edges, case.index("in.n_remove").view(1))
    assert int(gone.sum()) == len(pairs)
    kept = torch.ones(tokens, dtype=torch.bool)
    kept[edges.source[gone]] = False
    assert torch.equal(kept.nonzero()[:, 0], case.index("out.kept_positions"))
    assert_close(mixed[0, kept], case["out.hidden"], **SCORE)
    assert_close(rest[0, kept], case["out.residual"], **SCORE)


def check_schedule(case: Case) -> None:
    depth, ratio = case["in.layers_ratio"].tolist()
    depth = round(depth)
    anchors = tuple(case.indices("in.anchors"))
    behind = tuple(anchor + 1 for anchor in anchors)
    if PUBLISHED.get(depth) == anchors:
        assert UTRC().schedule(depth) == behind
    method, tokens = UTRC(keep=ratio ** len(anchors), layers=behind), 10**6
    counts = [method.count_at(stage, tokens) for stage in range(len(anchors))]
    per_layer = [([tokens, *counts])[sum(layer >= at for at in behind)] / tokens for layer in range(depth)]
    assert_close(
        torch.tensor([1 - sum(per_layer) / depth, per_layer[-1]]), case["out.mean_sparsity_final_keep"], **SCORE
    )


def check_released_block(case: Case) -> None:
    """The released code chooses without looking at the tokens, and is no target: how many go and how they count is."""
    found = re.fullmatch(r"(.+)/ratio([\d.]+)", case.name)
    assert found, f"{case}: the ratio is read from a name that ends in /ratio<r>"
    given = case.beside(found[1])
    mixer, residual = given["in.mixer_out"], given["in.residual"]
    tokens = mixer.shape[1]
    ratio = as_number(found[2], f"{case}: ratio")
    removed = tokens - UTRC(keep=float(ratio), layers=(1,)).count_at(0, tokens)
    if "num_keep_and_removed" in case:
        assert removed == case.indices("num_keep_and_removed")[1]
    if (key := "official.score_clip_sum") in case:
        assert_close(token_importance(mixer) * mixer.shape[2], case[key], **SCORE)
    for hidden in case.named(r"official\.(prune_only|merge_only|hybrid|pumer|default)\.hidden"):
        assert case[hidden[0]].shape[1] == tokens - removed
    if (key := "official.prune_only.kept_positions") in case:
        kept = case.index(key)[..., None].expand(-1, -1, mixer.shape[2])
        assert_close(mixer.gather(1, kept), case["official.prune_only.hidden"], **SCORE)
        assert_close(residual.gather(1, kept), case["official.prune_only.residual"], **SCORE)


CHECKS: Checks = [
    Form(
        lambda c: c.has("in.mixer_out", "in.n_remove", "out.pairs_src_dst"),
        check_utrc,
        r"in\.(mixer_out|residual|protected|n_remove)"
        r"|out\.(score|pairs_src_dst|num_pruned_pairs|kept_positions|hidden|residual)",
    ),
    Form(
        lambda c: c.has("in.anchors", "in.layers_ratio"),
        check_schedule,
        r"in\.(anchors|layers_ratio)|out\.mean_sparsity_final_keep",
    ),
    Form(
        lambda c: bool(c.named(r"official\.\w+\.hidden")),
        check_released_block,
        r"num_keep_and_removed|official\.\w+\.(hidden|residual|kept_positions)|official\.score_clip_sum",
    ),
]
