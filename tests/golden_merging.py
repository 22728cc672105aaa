"""Golden checks of the methods that merge what they remove: visionzip, tokencorr, recoverable."""

from dataclasses import replace

import torch
from golden_cases import SCORE, Case, Checks, Form, UnknownForm, joined_tiles
from torch import Tensor
from torch.testing import assert_close

from vtc import Mixing, Recoverable, TokenCorr, VisionZip, VisualTokens, ops
from vtc.attention.scores import Attention
from vtc.method.reduction import top_k
from vtc.method.visual_tokens import Crops, Projection
from vtc.model.layout import Grid
from vtc.selectors.merging import cls_full_width
from vtc.selectors.outliers import outlier_count
from vtc.selectors.question.clip_text import text_score
from vtc.selectors.question.recoverable import (
    LOF_ALL,
    LOF_REST,
    Counts,
    outlier_counts,
    recover,
    remaining,
    tokens_by_reason,
)
from vtc.selectors.saliency.tokencorr import (
    aggregation_weights,
    global_tokens,
    information_density,
    informative_order,
    local_count,
    nearest_kept,
    neighbour_count,
    union_count,
)
from vtc.selectors.saliency.visionzip import visionzip

# ---------------------------------------------------------------- visionzip


def check_visionzip_budgets(case: Case) -> None:
    score, keys = case["cls_attention"][:, :, 1:].mean(dim=1), case["keys_head_mean"][:, 1:]
    for found in case.named(r"tokens_((\d+)_(\d+))"):
        name, dominant, contextual = found[1], int(found[2]), int(found[3])
        zipped = visionzip(score, keys, dominant - 1, contextual)
        if (key := f"dominant_idx_{name}") in case:
            assert torch.equal(zipped.dominant + 1, case.index(key)[:, 1:])
        for ours, official in (("target", "targets"), ("others", "merged"), ("assigned", "assign")):
            if (key := f"{official}_{name}") in case:
                cls = 0 if ours == "assigned" else 1  # theirs counts the CLS token among the places
                assert torch.equal(getattr(zipped, ours) + cls, case.index(key)), key
        check_visionzip_tokens(case, dominant, contextual, case[found[0]])


def visionzip_counts(case: Case, tokens: int) -> tuple[int, int]:
    """Dominant tokens, CLS included, and contextual ones, of `tokens` in all."""
    dominant = case.whole("dominant", default=case["dominant_idx"].shape[-1] if "dominant_idx" in case else None)
    if dominant is None:
        dominant = tokens - case.whole("contextual")
    return dominant, case.whole("contextual", default=tokens - dominant)


def check_visionzip_case(case: Case) -> None:
    dominant, contextual = visionzip_counts(case, case["tokens"].shape[1])
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
    if "dominant_idx" in case:
        score, keys = case["cls_attention"][:, :, 1:].mean(dim=1), case["keys_head_mean"][:, 1:]
        ours = visionzip(score, keys, dominant - 1, contextual).dominant
        assert torch.equal(ours + 1, case.index("dominant_idx")[:, 1:])
    assert_close(tokens, official, rtol=0, atol=case.number("atol", default=SCORE["atol"]))


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
    tall, wide = side = case.grid(patches := hidden.shape[1] - 1)
    dominant, contextual = visionzip_counts(case, case["per_crop_tokens"].shape[1])
    check_visionzip_tokens(case, dominant, contextual, case["per_crop_tokens"])

    columns, rows = case.wholes("grid_wh")
    raster = joined_tiles(side, columns, rows)
    crops = Crops(raster // patches, raster % patches, len(hidden), side)
    joined = lambda x: x.flatten(0, 1)[raster][None]  # noqa: E731
    visual = VisualTokens(
        features=joined(hidden[:, 1:]),
        grids=(
            Grid(0, 1, tall, wide, kind="thumbnail"),
            Grid(patches, 1, rows * tall, columns * wide, kind="tiles"),
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
    features, kept = case["features"], case.index("kept_index")
    total = len(kept)
    contextual = case.whole("contextual", default=None)
    dominant = case.whole("dominant", default=None if contextual is None else total - contextual)
    if dominant is None:
        dominant = round(case.number("dominant_frac") * len(features))
    visual = VisualTokens(
        features=features[None],
        grids=(Grid(0, 1, 1, len(features)),),
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
    assert torch.equal(count, case.index("out.neighbour_count"))
    assert torch.equal(count > limit, case.mask("out.redundant"))
    density = information_density(count, limit)
    assert_close(density, float(case["out.density"]), **SCORE)
    assert torch.equal(global_tokens(deep).nonzero()[:, 0], case.index("out.global_idx"))
    n_local = local_count(density, len(x))
    places = torch.arange(len(x))
    for mode in ("topk", "sample") if "out.sample.keep_idx" in case else ("topk",):
        local = shallow / case["in.exp_noise"] if mode == "sample" else shallow
        out = {name: case.index(f"out.{mode}.{name}") for name in ("local_idx", "keep_idx", "assign")}
        assert torch.equal(top_k(local, n_local).sort().values, out["local_idx"].sort().values)
        kept = informative_order(deep, local)[: union_count(deep, local, n_local)].sort().values
        assert torch.equal(kept, out["keep_idx"])
        target = torch.searchsorted(kept, nearest_kept(keys, places, kept))
        assert torch.equal(target[~torch.isin(places, kept)], out["assign"])
        mixing = Mixing(places[None], target[None], aggregation_weights(deep, target, len(kept))[None])
        assert_close(ops.merge(x[None], mixing, len(kept))[0], case[f"out.{mode}.tokens"], **SCORE)
    # and all of it at once; a limit between two counts, so that no rounding of beta * n decides
    visual = VisualTokens(
        features=x[None],
        grids=(Grid(0, 1, 1, len(x)),),
        separators=torch.zeros(len(x), dtype=torch.bool),
        cls={1: shallow[None], 3: deep[None]},
        keys={3: keys[None, :, None]},
    )
    reduction = TokenCorr(alpha=alpha, beta=min((limit + 0.5) / len(x), 1.0)).select(visual, len(x))
    assert torch.equal(reduction.kept[0], case.index("out.topk.keep_idx"))
    assert reduction.mixing is not None
    merged = ops.merge(x[None], reduction.mixing, reduction.kept.shape[1])
    assert_close(merged[0], case["out.topk.tokens"], **SCORE)


# ---------------------------------------------------------------- recoverable


def check_outlier_ratio(case: Case) -> None:
    scores = case["in.scores"].flatten().float()
    ratio = outlier_count(scores, case.whole("in.k")) / len(scores)
    assert_close(torch.as_tensor(ratio, dtype=torch.float32), case["out.outlier_ratio"].reshape(()), **SCORE)


def check_complement(case: Case) -> None:
    for chosen, rest in zip(case.index("in.idx"), case.index("out"), strict=True):
        assert torch.equal(remaining(case.whole("in.dim"), chosen), rest)


def check_text_score(case: Case) -> None:
    hidden, texts = case["in.last_hidden_state"], case["in.text_features"]
    expected = case["out.similarity"].reshape(len(hidden), -1)
    for rows, text, official in zip(hidden, texts.expand(len(hidden), -1), expected, strict=True):
        patches = rows[len(rows) - len(official) :]  # CLS first
        assert_close(text_score(patches @ case["in.visual_projection_weight"].T, text), official, **SCORE)


def in_heads(rows: Tensor) -> Tensor:
    """[1, P, C] as heads [1, H, P, d]: the method joins them again, so any number shows that it does; two if they fit.

    The file knows no heads: what is stored is the projections at full width.
    """
    return rows.unflatten(2, (2 if rows.shape[2] % 2 == 0 else 1, -1)).transpose(1, 2)


def scores_of(case: Case) -> tuple[Tensor, Tensor]:
    """What CLS, and what the text, makes of each token [N]."""
    if len(case["in.k"]) != 1:
        raise UnknownForm(f"{case} is of {len(case['in.k'])} images; what belongs to which could not be told apart")
    visual = cls_full_width(Attention(in_heads(case["in.q"]), in_heads(case["in.k"]), scaling=1.0))[0, 1:]
    return visual, case["in.text_similarity"].flatten()


def check_recoverable(case: Case) -> None:
    visual, text = scores_of(case)
    counts = outlier_counts(visual, text)
    by_visual, by_text = tokens_by_reason(visual, text, counts.visual, counts.text)
    official = {name: case.index(f"official_default.{name}") for name in ("index_all_s", "centers_local")}
    for name, ours in (("index_by_vision", by_visual), ("index_by_text", by_text)):
        if (key := f"official_default.{name}") in case:
            assert ours.tolist() == case.indices(key)
    kept = torch.cat([by_visual, by_text]).sort().values
    rest = remaining(len(visual), kept)
    assert torch.equal(kept, official["index_all_s"])
    if "official_default.index_other" in case:
        assert torch.equal(rest, case.index("official_default.index_other"))
    if (key := "official_default.ratios_vision_text_rest") in case:
        hidden = text.clone()
        hidden[by_visual] = text.min()
        of = ((visual, LOF_ALL), (hidden, LOF_ALL), (visual[rest], LOF_REST))
        ratios = [outlier_count(scores, k) / len(scores) for scores, k in of]
        assert_close(torch.stack(ratios), case[key], **SCORE)
    centres = official["centers_local"]
    assert torch.equal(top_k(visual[rest], len(centres)), centres)
    keys = case["in.k"][0, 1:]
    if (key := "reference_aligned_keys.out") in case:  # the released code's number of centres, with the right keys
        x, released = case["in.hidden_states"][:, 1:], replace(counts, centres=len(centres))
        assert_close(recovered_tokens(x, visual, text, keys, released), case[key], **SCORE)
    reduction = Recoverable().select(recoverable_input(case, visual), len(visual))
    assert reduction.features is not None and reduction.features.shape[1] == counts.total
    if "reference_aligned_keys_and_base.out" in case:  # and ours, by the method
        part = recover(visual, text, keys, counts)
        for name, ours in (("keep", part.kept), ("centers", part.centres)):
            if (key := f"reference_aligned_keys_and_base.{name}") in case:
                assert torch.equal(ours, case.index(key))
        assert_close(reduction.features, case["reference_aligned_keys_and_base.out"], **SCORE)


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
        keys={3: in_heads(case["in.k"])[:, :, 1:].transpose(1, 2)},
        projection=Projection(x, None, lambda rows: rows),
        text=(torch.tensor([[1.0, 0.0]]),),
    )


def check_recoverable_flat(case: Case) -> None:
    """Where the released code leaves nothing, one token stays."""
    visual, text = scores_of(case)
    assert outlier_counts(visual, text) == Counts(0, 0, 0)
    assert Recoverable().select(recoverable_input(case, visual), len(visual)).kept.tolist() == [[0]]


def _nothing_kept(case: Case) -> bool:
    key = "official_default.index_all_s"
    return key in case and not case[key].numel()


_ZIPPED = ("hidden", "cls_attention", "keys_head_mean")
_PIPELINE = (
    r"in\.(hidden_states|q|k|text_similarity)|official_(default|union)\.\w+"
    r"|reference_aligned_keys(_and_base)?\.(out|keep|centers)"
)

CHECKS: Checks = [
    Form(
        lambda c: c.has(*_ZIPPED) and bool(c.named(r"tokens_\d+_\d+")),
        check_visionzip_budgets,
        r"hidden|cls_attention|keys_head_mean|(tokens|dominant_idx|targets|merged|assign)_\d+_\d+",
    ),
    Form(
        lambda c: c.has(*_ZIPPED, "per_crop_tokens", "sequence"),
        check_visionzip_anyres,
        r"hidden|cls_attention|keys_head_mean|per_crop_tokens|dominant_idx|sequence",
    ),
    Form(
        lambda c: c.has(*_ZIPPED, "tokens"),
        check_visionzip_case,
        r"hidden|cls_attention|keys_head_mean|tokens|dominant_idx|targets|merged|assign",
    ),
    Form(
        lambda c: c.has("score", "keys", "features", "kept_index", "tokens"),
        check_visionzip_without_cls,
        r"score|keys|features|kept_index|tokens",
    ),
    Form(
        lambda c: c.has("in.sim_threshold_count_limit", "in.keys", "out.topk.keep_idx"),
        check_tokencorr,
        r"in\.(keys|x|cls_attn_deep|cls_attn_shallow|exp_noise|sim_threshold_count_limit)"
        r"|out\.(neighbour_count|redundant|density|q1_q3|global_idx)"
        r"|out\.(topk|sample)\.(local_idx|keep_idx|tokens|assign)",
    ),
    Form(
        lambda c: c.has("in.scores", "in.k", "out.outlier_ratio"),
        check_outlier_ratio,
        r"in\.(scores|k)|out\.outlier_ratio",
    ),
    Form(lambda c: c.has("in.dim", "in.idx", "out"), check_complement, r"in\.(dim|idx)|out"),
    Form(
        lambda c: c.has("in.last_hidden_state", "in.text_features", "out.similarity"),
        check_text_score,
        r"in\.(last_hidden_state|text_features|visual_projection_weight)|out\.similarity",
    ),
    Form(lambda c: c.has("in.text_similarity", "in.k") and _nothing_kept(c), check_recoverable_flat, _PIPELINE),
    Form(lambda c: c.has("in.text_similarity", "in.k", "official_default.centers_local"), check_recoverable, _PIPELINE),
]
