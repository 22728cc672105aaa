"""Golden checks of HoliTom: the outer stage with both newline styles, and the inner merging, causal and as released."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from golden_cases import HIDDEN, SAFE_GAP, SCORE, Case, Checks
from golden_prunes import run_through_the_seam
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torch.testing import assert_close

from vtc import ops
from vtc.method.prune import Decision, Rows
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid, VisualInput
from vtc.prunes.holitom_inner import HoliTomInner
from vtc.selectors.holitom import HoliTom
from vtc.selectors.holitom_segments import (
    MAX_WINDOW,
    cluster,
    corrected_ratio,
    frame_similarity,
    most_attended,
    segment,
)


class Recorded(HoliTomInner):
    """What one prefill decided."""

    def decide(self, rows: Rows, counts: Sequence[int], memory: dict[str, Tensor]) -> Decision:
        decision = super().decide(rows, counts, memory)
        seen = {"hidden": rows.hidden[0], "visual": rows.visual[0], "score": self.score(rows, memory)[0]}
        seen |= {"merged": decision.hidden[0], "into": decision.into[0], "alive": decision.alive[0]}
        self.seen = SimpleNamespace(**{name: value.clone() for name, value in seen.items()})
        return decision


def check_inner_merging(case: Case) -> None:
    for version, causal in (("causal", True), ("shipped", False)):
        check_version(case, version, causal)


def check_version(case: Case, version: str, causal: bool) -> None:
    expected = {key: case[f"{version}_{key}"] for key in _PARTS}
    start, tokens = int(case["image_start"]), int(case["n_image"])
    keep = round(1 - round(float(case["R"]), 6), 6)
    method = Recorded(layer=int(case["K"]), keep=keep, causal=causal)
    assert method.count(tokens) == int(case["keep"])
    run = run_through_the_seam(case, method)
    seen: Any = method.seen
    assert run.cache_lengths == case["cache_lens"].tolist()
    assert_close(seen.hidden, expected["hidden_after_layerKm1"], **HIDDEN)
    score = seen.score[seen.visual]
    assert_close(score, case["score"], **SCORE)
    if case.info.get("relgap_at_k", 1.0) < SAFE_GAP:
        return  # which tokens go is rounding noise here, and everything after depends on it
    kept = case["topk_order"]
    order = score.argsort(descending=True, stable=True)[: len(kept)]
    assert_close(score[order], case["score"][kept], **SCORE)  # two equal ones may stand either way
    assert sorted(order.tolist()) == sorted(kept.tolist()) == case["kept_rel"].sort().values.tolist()
    assert seen.alive.nonzero()[:, 0].tolist() == [start + place for place in sorted(kept.tolist())]
    dropped = seen.visual & ~seen.alive
    assert torch.equal(seen.into >= 0, dropped) and seen.alive[seen.into[dropped]].all()
    survivors = run.survivors(-1)
    assert_close(seen.merged[survivors], expected["merged_input_layerK"], **HIDDEN)
    assert_close(run.hidden[survivors], expected["final_hidden"], **HIDDEN)
    assert_close(run.decoded, expected["decode_hidden"], **HIDDEN)
    (image,) = run.trace.images
    assert torch.equal(image.merged_into() >= 0, dropped[start : start + tokens])


_PARTS = ("hidden_after_layerKm1", "merged_input_layerK", "final_hidden", "decode_hidden")


def number(case: Case, key: str) -> float:
    return round(float(case[key]), 6)


def pooled(case: Case, values: Tensor) -> Tensor:
    """[F, side², C] -> [F, S, C], as the family pools frames."""
    side = int(case["side"])
    square = values.view(len(values), side, side, -1).permute(0, 3, 1, 2)
    if case.info["pool"] == "bilinear":
        square = interpolate(square, size=(side + 1) // 2, mode="bilinear")
    else:
        square = avg_pool2d(square, 2)
    return square.flatten(2).transpose(1, 2)


def check_outer_stage(case: Case) -> None:
    features, attention = pooled(case, case["features"]), pooled(case, case["attn"])[..., 0]
    assert_close(frame_similarity(features), case["feature_sim"], **SCORE)
    rho, tau = number(case, "retain_ratio"), number(case, "tau")
    frames, tokens, _ = features.shape
    segments, spared = segment(case["feature_sim"], tau)
    assert (segments, spared) == (list(map(tuple, case["windows"].tolist())), int(case["total_reduced"]))
    ratio = corrected_ratio(rho, frames * tokens, spared)
    assert_close(torch.tensor(ratio), case["ratio_after_static"], rtol=0, atol=1e-6)
    side, rows = round(tokens**0.5), case.info["newline"] == "grid"
    grid = Grid(0, frames, side, side, row_end=int(rows), end=int(not rows))
    sequence = case["newline"].repeat(len(grid), 1)
    sequence[grid.tokens().flatten()] = features.flatten(0, 1)
    received = torch.full((1, len(grid)), float("nan"))
    received[0, grid.tokens().flatten()] = attention.flatten()
    separators = VisualInput(0, "video", torch.arange(len(grid)), (grid,)).separators()
    visual = VisualTokens(sequence[None], (grid,), separators, kind="video", received={0: received})
    method = HoliTom(keep=rho, tau=tau, inner=False)
    reduction = method.select(visual, len(grid))
    new = ops.merge(visual.features, reduction.mixing, reduction.kept.shape[1])[0]
    new = new if reduction.order is None else new[reduction.order[0]]
    if attention.flatten().unique().numel() > 1:  # of equal ones the released code keeps others
        assert_close(new, case["out_visual"], **HIDDEN)
    assert new.shape == case["out_visual"].shape
    last_frames = torch.tensor([last for _, last in segments])
    places = reduction.kept[0] if reduction.order is None else reduction.kept[0][reduction.order[0]]
    of_segment = torch.bucketize((places // grid.frame).clamp(max=frames - 1), last_frames)
    counted = torch.bincount(of_segment[: len(of_segment) - grid.end], minlength=len(segments))
    if not rows:  # lengths there are counted before newlines
        assert counted.tolist() == case["segment_lens"].tolist()


def check_windows(case: Case) -> None:
    longest = int(case["max_window"]) if "max_window" in case else MAX_WINDOW
    segments, spared = segment(case["feature_sim"], number(case, "tau"), longest)
    assert (segments, spared) == (list(map(tuple, case["windows"].tolist())), int(case["total_reduced"]))


def check_most_attended(case: Case) -> None:
    features, attention = case["feat"], case["attn"]
    every = torch.ones_like(attention, dtype=torch.bool)
    kept = most_attended(attention, every, number(case, "retain_ratio"))
    places = torch.stack([row.nonzero()[:, 0] for row in kept])
    assert places.tolist() == case["out_pos"].tolist()
    assert torch.equal(features.gather(1, places[..., None].expand(-1, -1, features.shape[2])), case["out"])


def check_cluster(case: Case) -> None:
    features, count = case["feat"], int(case["clusters"])
    assert count == round(len(features) * number(case, "retain_ratio"))
    if not count:
        assert not case["out"].numel()
        return
    centres, member_of, weight = cluster(features, count, None if "nobeta" in case.name else 0.6, 7)
    assert sorted(set(member_of.tolist())) == list(range(count))
    out = torch.zeros(count, features.shape[1]).index_add_(0, member_of, weight[:, None] * features)
    if "duplicates" not in case.name:  # which of equal tokens is the centre is a tie
        assert centres.tolist() == case["out_pos"].tolist()
        assert_close(out, case["out"], **HIDDEN)


CHECKS: Checks = [
    (lambda c: c.has("features", "attn", "windows", "out_visual"), check_outer_stage),
    (lambda c: c.has("feature_sim", "windows", "total_reduced"), check_windows),
    (lambda c: c.has("feat", "attn", "out_pos"), check_most_attended),
    (lambda c: c.has("feat", "clusters", "out_pos"), check_cluster),
    (
        lambda c: c.has("topk_order", *(f"{v}_{part}" for v in ("causal", "shipped") for part in _PARTS)),
        check_inner_merging,
    ),
]
