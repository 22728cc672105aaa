"""Golden checks of utrc: the paper's reduction of both branches, and its schedules."""

import torch
from golden_cases import SCORE, Case, Checks
from torch.testing import assert_close

from vtc.prunes.utrc import UTRC, pair, token_importance, unified_reduction


def check_utrc(case: Case) -> None:
    mixer, residual = case["in.mixer_out"][None], case["in.residual"][None]
    eligible = ~case["in.protected"].bool()[None]
    assert_close(token_importance(mixer)[0], case["out.score"], **SCORE)
    edges = pair(mixer, eligible, torch.ones_like(eligible))  # protected tokens take others in here
    pairs = case["out.pairs_src_dst"]
    ours = torch.stack([edges.source[0], edges.target[0]], dim=1)[: len(pairs)]
    assert torch.equal(ours, pairs)
    pruned = int(case["out.num_pruned_pairs"])
    assert pruned == len(pairs) // 2
    mixed, rest, gone = unified_reduction(mixer, residual, edges, case["in.n_remove"].view(1))
    assert int(gone.sum()) == len(pairs)
    kept = torch.ones(mixer.shape[1], dtype=torch.bool)
    kept[edges.source[gone]] = False
    assert torch.equal(kept.nonzero()[:, 0], case["out.kept_positions"])
    assert_close(mixed[0, kept], case["out.hidden"], **SCORE)
    assert_close(rest[0, kept], case["out.residual"], **SCORE)


def check_schedule(case: Case) -> None:
    depth, ratio = int(case["in.layers_ratio"][0]), float(case["in.layers_ratio"][1])
    anchors = tuple(case["in.anchors"].tolist())
    behind = tuple(anchor + 1 for anchor in anchors)
    assert UTRC().schedule(depth) == behind
    method, tokens = UTRC(keep=ratio ** len(anchors), layers=behind), 10**6
    counts = [method.count_at(stage, tokens) for stage in range(len(anchors))]
    per_layer = [([tokens, *counts])[sum(layer >= at for at in behind)] / tokens for layer in range(depth)]
    assert_close(
        torch.tensor([1 - sum(per_layer) / depth, per_layer[-1]]), case["out.mean_sparsity_final_keep"], **SCORE
    )


CHECKS: Checks = [
    (lambda c: c.has("in.mixer_out", "in.protected", "in.n_remove", "out.pairs_src_dst"), check_utrc),
    (lambda c: c.has("in.anchors", "in.layers_ratio"), check_schedule),
]
