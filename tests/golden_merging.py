"""Golden checks of the methods that merge what they remove: visionzip, tokencorr, recoverable."""

import math
from dataclasses import replace

import torch
from golden_cases import SCORE, Case, Checks, named
from torch import Tensor
from torch.testing import assert_close

from vtc import Mixing, Recoverable, TokenCorr, VisionZip, VisualTokens, ops
from vtc.attention.scores import Attention
from vtc.method.reduction import top_k
from vtc.method.visual_tokens import Crops, Projection
from vtc.model.layout import Grid
from vtc.selectors.clip_text import text_score
from vtc.selectors.outliers import outlier_count
from vtc.selectors.recoverable import (
    LOF_ALL,
    LOF_REST,
    Counts,
    cls_full_width,
    outlier_counts,
    recover,
    remaining,
    tokens_by_reason,
)
from vtc.selectors.tokencorr import (
    aggregation_weights,
    global_tokens,
    information_density,
    informative_order,
    local_count,
    nearest_kept,
    neighbour_count,
    union_count,
)
from vtc.selectors.visionzip import visionzip

# ---------------------------------------------------------------- visionzip


def check_visionzip_budgets(case: Case) -> None:
    score, keys = case["cls_attention"][:, :, 1:].mean(dim=1), case["keys_head_mean"][:, 1:]
    for name in (key[len("tokens_") :] for key in case.tensors if key.startswith("tokens_")):
        dominant, contextual = map(int, name.split("_"))
        zipped = visionzip(score, keys, dominant - 1, contextual)
        assert torch.equal(zipped.dominant + 1, case[f"dominant_idx_{name}"][:, 1:])
        for ours, official in (("target", "targets"), ("others", "merged"), ("assigned", "assign")):
            if (key := f"{official}_{name}") in case:
                cls = 0 if ours == "assigned" else 1  # theirs counts the CLS token among the places
                assert torch.equal(getattr(zipped, ours) + cls, case[key]), key
        check_visionzip_tokens(case, dominant, contextual, case[f"tokens_{name}"])


def check_visionzip_case(case: Case) -> None:
    dominant, contextual = case.info["dominant"], case.info["contextual"]
    if case.tie is False:
        check_visionzip_tokens(case, dominant, contextual, case["tokens"])
        return
    tokens = visionzip_tokens(case, dominant, contextual)
    assert tokens.shape == case["tokens"].shape
    assert_close(tokens[:, 0], case["hidden"][:, 0], **SCORE)
    score = case["cls_attention"][:, :, 1:].mean(dim=1)
    if len(score.unique()) == score.numel():  # then the keys are what ties, and only merging may differ
        assert_close(tokens[:, :dominant], case["tokens"][:, :dominant], **SCORE)
        zipped = visionzip(score, case["keys_head_mean"][:, 1:], dominant - 1, contextual)
        unused = case["hidden"][:, 1:].gather(1, zipped.target[:, 1:, None].expand(-1, -1, tokens.shape[-1]))
        assert_close(tokens[:, dominant + 1 :], unused, **SCORE)


def check_visionzip_tokens(case: Case, dominant: int, contextual: int, official: Tensor) -> None:
    tokens = visionzip_tokens(case, dominant, contextual)
    assert_close(tokens, official, rtol=0, atol=case.info.get("atol", 1e-5))


def visionzip_tokens(case: Case, dominant: int, contextual: int) -> Tensor:
    """What the method hands to the language model, crop by crop, with a projector that changes nothing."""
    hidden, total = case["hidden"], dominant + contextual
    method = VisionZip(keep=total, dominant=dominant / total)
    separators = torch.zeros(hidden.shape[1] - 1, dtype=torch.bool)
    visual = VisualTokens(
        features=hidden[:, 1:],
        grids=(Grid(0, 1, 1, len(separators)),),
        separators=separators,
        cls={0: case["cls_attention"][:, :, 1:].mean(dim=1)},
        keys={0: case["keys_head_mean"][:, 1:, None]},
        projection=Projection(hidden[:, 1:], hidden[:, :1], lambda rows: rows),
    )
    features = method.select(visual, total).features
    assert features is not None
    return features


def check_visionzip_anyres(case: Case) -> None:
    hidden = case["hidden"]
    side = math.isqrt(hidden.shape[1] - 1)
    dominant, contextual = case.info["dominant"], case.info["contextual"]
    check_visionzip_tokens(case, dominant, contextual, case["per_crop_tokens"])

    columns, rows = case.info["grid_wh"]
    grid = torch.arange(columns * rows * side * side).view(rows, columns, side, side).transpose(1, 2).flatten()
    raster = torch.cat([torch.arange(side * side), side * side + grid])  # joined tiles, as places in crop by crop
    crops = Crops(raster // side**2, raster % side**2, len(hidden), (side, side))
    joined = lambda x: x.flatten(0, 1)[raster][None]  # noqa: E731
    visual = VisualTokens(
        features=joined(hidden[:, 1:]),
        grids=(
            Grid(0, 1, side, side, kind="thumbnail"),
            Grid(side * side, 1, rows * side, columns * side, kind="tiles"),
        ),
        separators=torch.zeros(len(raster), dtype=torch.bool),
        cls={0: joined(case["cls_attention"][:, :, 1:].mean(dim=1))},
        keys={0: joined(case["keys_head_mean"][:, 1:, None])},
        crops=crops,
        projection=Projection(joined(hidden[:, 1:]), hidden[None, :, 0], lambda rows: rows),
    )
    total = len(hidden) * (dominant + contextual)
    reduction = VisionZip(keep=total, dominant=dominant / (dominant + contextual)).select(visual, total)
    assert reduction.features is not None
    assert_close(reduction.features[0], case["sequence"], **SCORE)


def check_visionzip_without_cls(case: Case) -> None:
    """Merging of the visual tokens themselves, at the place of their targets."""
    features, kept = case["features"], case["kept_index"]
    dominant, total = case.info["dominant"], len(kept)
    visual = VisualTokens(
        features=features[None],
        grids=(Grid(0, 1, *case.info["merged_grid"]),),
        separators=torch.zeros(len(features), dtype=torch.bool),
        received={0: case["score"][None]},
        keys={0: case["keys"][None, :, None]},
    )
    reduction = VisionZip(keep=total, dominant=dominant / total).select(visual, total)
    assert torch.equal(reduction.kept[0], kept)
    assert reduction.features is None and reduction.mixing is not None
    assert_close(ops.merge(features[None], reduction.mixing, total)[0], case["tokens"], **SCORE)


# ---------------------------------------------------------------- tokencorr


def check_tokencorr(case: Case) -> None:
    keys, x = case["in.keys"], case["in.x"]
    deep, shallow = case["in.cls_attn_deep"], case["in.cls_attn_shallow"]
    alpha, limit = case["in.sim_threshold_count_limit"].tolist()
    count = neighbour_count(keys, alpha)
    assert torch.equal(count, case["out.neighbour_count"])
    assert torch.equal(count > limit, case["out.redundant"].bool())
    density = information_density(count, limit)
    assert_close(density, float(case["out.density"]), **SCORE)
    assert torch.equal(global_tokens(deep).nonzero()[:, 0], case["out.global_idx"])
    n_local = local_count(density, len(x))
    places = torch.arange(len(x))
    for mode, local in (("topk", shallow), ("sample", shallow / case["in.exp_noise"])):
        out = {name: case[f"out.{mode}.{name}"] for name in ("local_idx", "keep_idx", "tokens", "assign")}
        assert torch.equal(top_k(local, n_local).sort().values, out["local_idx"].sort().values)
        kept = informative_order(deep, local)[: union_count(deep, local, n_local)].sort().values
        assert torch.equal(kept, out["keep_idx"])
        target = torch.searchsorted(kept, nearest_kept(keys, places, kept))
        assert torch.equal(target[~torch.isin(places, kept)], out["assign"])
        mixing = Mixing(places[None], target[None], aggregation_weights(deep, target, len(kept))[None])
        assert_close(ops.merge(x[None], mixing, len(kept))[0], out["tokens"], **SCORE)
    # and all of it at once; a limit between two counts, so that no rounding of beta * n decides
    visual = VisualTokens(
        features=x[None],
        grids=(Grid(0, 1, 1, len(x)),),
        separators=torch.zeros(len(x), dtype=torch.bool),
        cls={1: shallow[None], 3: deep[None]},
        keys={3: keys[None, :, None]},
    )
    reduction = TokenCorr(alpha=alpha, beta=min((limit + 0.5) / len(x), 1.0)).select(visual, len(x))
    assert torch.equal(reduction.kept[0], case["out.topk.keep_idx"])
    assert reduction.mixing is not None
    merged = ops.merge(x[None], reduction.mixing, reduction.kept.shape[1])
    assert_close(merged[0], case["out.topk.tokens"], **SCORE)


# ---------------------------------------------------------------- recoverable


def check_outlier_ratio(case: Case) -> None:
    scores = case["in.scores"]
    ratio = outlier_count(scores, int(case["in.k"])) / len(scores)
    assert_close(ratio, case["out.outlier_ratio"], **SCORE)


def check_complement(case: Case) -> None:
    for chosen, rest in zip(case["in.idx"], case["out"], strict=True):
        assert torch.equal(remaining(int(case["in.dim"]), chosen), rest)


def check_text_score(case: Case) -> None:
    projected = case["in.last_hidden_state"][0, 1:] @ case["in.visual_projection_weight"].T
    assert_close(text_score(projected, case["in.text_features"][0]), case["out.similarity"].flatten(), **SCORE)


def check_recoverable(case: Case) -> None:
    query, key = (case[f"in.{name}"][0].unflatten(1, (4, -1)).transpose(0, 1)[None] for name in "qk")
    visual, text = cls_full_width(Attention(query, key, scaling=1.0))[0, 1:], case["in.text_similarity"][0]
    counts = outlier_counts(visual, text)
    by_visual, by_text = tokens_by_reason(visual, text, counts.visual, counts.text)
    assert by_visual.tolist() == case["official_default.index_by_vision"].tolist()
    assert by_text.tolist() == case["official_default.index_by_text"].tolist()
    kept = torch.cat([by_visual, by_text]).sort().values
    rest = remaining(len(visual), kept)
    assert torch.equal(kept, case["official_default.index_all_s"])
    assert torch.equal(rest, case["official_default.index_other"])
    hidden = text.clone()
    hidden[by_visual] = text.min()
    ratios = [outlier_count(s, k) / len(s) for s, k in ((visual, LOF_ALL), (hidden, LOF_ALL), (visual[rest], LOF_REST))]
    official_ratios = case["official_default.ratios_vision_text_rest"]
    assert_close(torch.stack(ratios), official_ratios, **SCORE)
    official_centres = case["official_default.centers_local"]
    assert torch.equal(top_k(visual[rest], len(official_centres)), official_centres)
    # the released code's number of centres, with the right keys
    x, keys = case["in.hidden_states"][:, 1:], case["in.k"][0, 1:]
    released = replace(counts, centres=len(official_centres))
    assert_close(recovered_tokens(x, visual, text, keys, released), case["reference_aligned_keys.out"], **SCORE)
    # and ours, by the method
    repaired = {name: case[f"reference_aligned_keys_and_base.{name}"] for name in ("keep", "centers", "out")}
    part = recover(visual, text, keys, counts)
    assert torch.equal(part.kept, repaired["keep"])
    assert torch.equal(part.centres, repaired["centers"])
    reduction = Recoverable().select(recoverable_input(case, visual), len(visual))
    assert reduction.features is not None and reduction.features.shape[1] == counts.total
    assert_close(reduction.features, repaired["out"], **SCORE)


def recovered_tokens(x: Tensor, visual: Tensor, text: Tensor, keys: Tensor, counts: Counts) -> Tensor:
    part = recover(visual, text, keys, counts)
    sequence = torch.cat([part.kept, part.centres, part.last])
    target = (part.centre[:, None] == sequence).long().argmax(dim=1)
    return ops.merge(x, Mixing(part.source[None], target[None], part.weight[None]), len(sequence))


def recoverable_input(case: Case, visual: Tensor) -> VisualTokens:
    """An image whose tokens have the case's text scores: the cosine of two-dimensional vectors to (1, 0), over √2."""
    cosine = case["in.text_similarity"].double() * 2**0.5
    features = torch.stack([cosine, (1 - cosine**2).sqrt()], dim=2)
    x = case["in.hidden_states"][:, 1:]
    return VisualTokens(
        features=features,
        grids=(Grid(0, 1, 1, len(visual)),),
        separators=torch.zeros(len(visual), dtype=torch.bool),
        observed={"cls": visual[None]},
        keys={3: case["in.k"][:, 1:].unflatten(2, (4, -1))},
        projection=Projection(x, None, lambda rows: rows),
        text=(torch.tensor([[1.0, 0.0]]),),
    )


def check_recoverable_flat(case: Case) -> None:
    """Where the released code leaves nothing, one token stays."""
    assert not case["official_default.index_all_s"].numel()
    query, key = (case[f"in.{name}"][:, None] for name in "qk")
    visual = cls_full_width(Attention(query, key, scaling=1.0))[0, 1:]
    assert outlier_counts(visual, case["in.text_similarity"][0]) == Counts(0, 0, 0)
    assert Recoverable().select(recoverable_input(case, visual), len(visual)).kept.tolist() == [[0]]


CHECKS: Checks = [
    (lambda c: c.has("cls_attention", "keys_head_mean") and named(c, r"tokens_\d+_\d+"), check_visionzip_budgets),
    (lambda c: c.has("cls_attention", "keys_head_mean", "per_crop_tokens", "sequence"), check_visionzip_anyres),
    (lambda c: c.has("cls_attention", "keys_head_mean", "hidden", "tokens"), check_visionzip_case),
    (lambda c: c.has("score", "keys", "features", "kept_index", "tokens"), check_visionzip_without_cls),
    (lambda c: c.has("in.sim_threshold_count_limit", "in.keys", "out.topk.keep_idx"), check_tokencorr),
    (lambda c: c.has("in.scores", "in.k", "out.outlier_ratio"), check_outlier_ratio),
    (lambda c: c.has("in.dim", "in.idx", "out"), check_complement),
    (lambda c: c.has("in.last_hidden_state", "in.text_features", "out.similarity"), check_text_score),
    (lambda c: c.has("in.text_similarity", "reference_aligned_keys_and_base.out"), check_recoverable),
    (lambda c: c.has("in.text_similarity", "official_default.out"), check_recoverable_flat),
]
