"""Golden checks of HoliTom: the outer stage with both newline styles, and the inner merging, causal and as released."""

import math

import torch
from golden_cases import HIDDEN, SCORE, Case, Checks, Form, UnknownForm, as_keep
from golden_prunes import COMMON, check_cache, kept_of, recorded, run_through_the_seam
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate
from torch.testing import assert_close

from vtc import ops
from vtc.method.visual_tokens import VisualTokens
from vtc.model.layout import Grid, VisualInput
from vtc.prunes.holitom_inner import HoliTomInner
from vtc.selectors.video.holitom import HoliTom
from vtc.selectors.video.holitom_segments import (
    MAX_WINDOW,
    cluster,
    corrected_ratio,
    frame_similarity,
    most_attended,
    segment,
)


def check_inner_merging(case: Case) -> None:
    for version, causal in (("causal", True), ("shipped", False)):
        if f"{version}_final_hidden" in case:
            check_version(case, version, causal)


def check_version(case: Case, version: str, causal: bool) -> None:
    expected = {key: case.get(f"{version}_{key}") for key in _PARTS}
    start, tokens = case.whole("image_start"), case.whole("n_image")
    method = recorded(HoliTomInner)(layer=case.whole("K"), keep=kept_of(case), causal=causal)
    kept = case.index("topk_order")
    assert method.count(tokens) == case.whole("keep", default=len(kept))
    run = run_through_the_seam(case, method)
    check_cache(case, run)
    ((stage, seen),) = method.seen.items()
    into, alive, visual = seen.decision.into[0], seen.decision.alive[0], seen.rows.visual[0]
    if expected["hidden_after_layerKm1"] is not None:
        assert_close(seen.rows.hidden[0], expected["hidden_after_layerKm1"], **HIDDEN)
    score = seen.score[visual]
    assert stage == 0
    assert_close(score, case["score"], **SCORE)
    if not case.safe("relgap_at_k"):
        return  # which tokens go is rounding noise here, and everything after depends on it
    order = score.argsort(descending=True, stable=True)[: len(kept)]
    assert_close(score[order], case["score"][kept], **SCORE)  # two equal ones may stand either way
    assert sorted(order.tolist()) == sorted(kept.tolist())
    if "kept_rel" in case:
        assert sorted(kept.tolist()) == sorted(case.indices("kept_rel"))
    assert alive.nonzero()[:, 0].tolist() == [start + place for place in sorted(kept.tolist())]
    dropped = visual & ~alive
    assert torch.equal(into >= 0, dropped) and alive[into[dropped]].all()
    survivors = run.survivors(-1)
    if expected["merged_input_layerK"] is not None:
        assert_close(seen.decision.hidden[0][survivors], expected["merged_input_layerK"], **HIDDEN)
    assert_close(run.hidden[survivors], expected["final_hidden"], **HIDDEN)
    if expected["decode_hidden"] is not None:
        assert_close(run.decoded, expected["decode_hidden"], **HIDDEN)
    (image,) = run.trace.images
    assert torch.equal(image.merged_into() >= 0, dropped[start : start + tokens])


_PARTS = ("hidden_after_layerKm1", "merged_input_layerK", "final_hidden", "decode_hidden")
#: The released values of the clustering, where a file says none: weight of a centre, and tokens that make a density.
BETA, NEIGHBOURS = 0.6, 7


def pooled(case: Case, values: Tensor) -> Tensor:
    """[F, side², C] -> [F, S, C], as the family pools frames."""
    side = case.whole("side", default=math.isqrt(values.shape[1]))
    square = values.view(len(values), side, side, -1).permute(0, 3, 1, 2)
    match case.text("pool"):
        case "bilinear":
            square = interpolate(square, size=(side + 1) // 2, mode="bilinear")
        case "average":
            square = avg_pool2d(square, 2)
        case other:
            raise UnknownForm(f"{case}: pool={other!r} is neither 'bilinear' nor 'average'")
    return square.flatten(2).transpose(1, 2)


def windows_of(case: Case) -> tuple[list[tuple[int, int]], int]:
    """Inclusive pairs of frames, and how many tokens merging them spares."""
    return [(first, last) for first, last in case.indices("windows")], case.whole("total_reduced")


def check_outer_stage(case: Case) -> None:
    features, attention = pooled(case, case["features"]), pooled(case, case["attn"])[..., 0]
    assert_close(frame_similarity(features), case["feature_sim"], **SCORE)
    rho, tau = as_keep(case.number("retain_ratio")), case.number("tau")
    frames, tokens, _ = features.shape
    segments, spared = segment(case["feature_sim"], tau)
    assert (segments, spared) == windows_of(case)
    ratio = corrected_ratio(rho, frames * tokens, spared)
    assert_close(torch.tensor(float(ratio)), case["ratio_after_static"], rtol=0, atol=1e-6)
    if (style := case.text("newline")) not in ("grid", "one_token"):
        raise UnknownForm(f"{case}: newline={style!r} is neither 'grid' nor 'one_token'")
    side, rows = math.isqrt(tokens), style == "grid"
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
    if not rows and "segment_lens" in case:  # lengths there are counted before newlines
        assert counted.tolist() == case.indices("segment_lens")


def check_windows(case: Case) -> None:
    longest = case.whole("max_window", default=MAX_WINDOW)
    assert segment(case["feature_sim"], case.number("tau"), longest) == windows_of(case)


def check_most_attended(case: Case) -> None:
    features, attention = case["feat"], case["attn"]
    every = torch.ones_like(attention, dtype=torch.bool)
    kept = most_attended(attention, every, case.number("retain_ratio"))
    places = torch.stack([row.nonzero()[:, 0] for row in kept])
    assert places.tolist() == case.indices("out_pos")
    assert torch.equal(features.gather(1, places[..., None].expand(-1, -1, features.shape[2])), case["out"])


def check_cluster(case: Case) -> None:
    features, count = case["feat"], case.whole("clusters", default=len(case["out"]))
    if "retain_ratio" in case:
        assert count == round(len(features) * case.number("retain_ratio"))
    if not count:
        assert not case["out"].numel()
        return
    beta = None if "nobeta" in case.name else case.number("beta", default=BETA)
    centres, member_of, weight = cluster(features, count, beta, case.whole("neighbours", "k", default=NEIGHBOURS))
    assert sorted(set(member_of.tolist())) == list(range(count))
    out = torch.zeros(count, features.shape[1]).index_add_(0, member_of, weight[:, None] * features)
    assert out.shape == case["out"].shape
    if len(features.unique(dim=0)) == len(features):  # which of equal tokens is the centre is a tie
        assert centres.tolist() == case.indices("out_pos")
        assert_close(out, case["out"], **HIDDEN)


CHECKS: Checks = [
    Form(
        lambda c: c.has("features", "attn", "windows", "out_visual"),
        check_outer_stage,
        r"features|attn|side|retain_ratio|tau|newline|feature_sim|windows|total_reduced|ratio_after_static"
        r"|segment_lens|out_visual",
    ),
    Form(
        lambda c: c.has("feature_sim", "windows", "total_reduced"),
        check_windows,
        r"feature_sim|tau|max_window|windows|total_reduced",
    ),
    Form(lambda c: c.has("feat", "attn", "out_pos"), check_most_attended, r"feat|attn|retain_ratio|out|out_pos"),
    Form(
        lambda c: c.has("feat", "out", "out_pos"),
        check_cluster,
        r"feat|retain_ratio|clusters|beta|neighbours|k|out|out_pos",
    ),
    Form(
        lambda c: c.has("K", "topk_order") and bool(c.named(r"(causal|shipped)_final_hidden")),
        check_inner_merging,
        rf"{COMMON}|K|R|keep|score|topk_order|kept_rel|(causal|shipped)_({'|'.join(_PARTS)})",
    ),
]
