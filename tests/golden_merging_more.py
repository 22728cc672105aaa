"""Golden checks of more methods that merge what they remove: prumerge, trim, vscan with its stage in the decoder."""

import torch
from golden_cases import SCORE, Case, Checks, Form
from golden_merging import in_heads
from torch import Tensor
from torch.nn.functional import layer_norm
from torch.testing import assert_close

from vtc import Mixing, PruMerge, Reduction, Trim, VisualTokens, VScan, ops
from vtc.attention.scores import Attention
from vtc.method.prune import top_visual
from vtc.method.reduction import top_k
from vtc.method.visual_tokens import Projection
from vtc.model.layout import Grid
from vtc.prunes.attention.fastv import last_query_row
from vtc.selectors.merging import Merged, cls_full_width, complement
from vtc.selectors.outliers import above_quartiles
from vtc.selectors.question.trim import merge_rest, relevance
from vtc.selectors.saliency.prumerge import (
    add_samples,
    merge_neighbours,
    released_count,
    spatial_samples,
    spatial_step,
)
from vtc.selectors.saliency.vscan import CLS_SIDE, SIDE, local_picks, scan, windows

#: One patch makes one token, and the projector changes nothing.
SAME = lambda rows: rows  # noqa: E731


def mixed(x: Tensor, merged: Merged) -> Tensor:
    """The new tokens of x [G, n, C], in the order in which they are made."""
    slot = torch.zeros(x.shape[:2], dtype=torch.long)
    slot.scatter_(1, merged.sequence, torch.arange(merged.sequence.shape[1]).expand_as(merged.sequence))
    return ops.merge(x, Mixing(merged.source, slot.gather(1, merged.centre), merged.weight), merged.sequence.shape[1])


def image_of(x: Tensor, grid: tuple[int, int] | None = None, **values) -> VisualTokens:
    tokens = x.shape[1]
    return VisualTokens(
        features=values.pop("features", x),
        grids=(Grid(0, 1, *(grid or (1, tokens))),),
        separators=torch.zeros(tokens, dtype=torch.bool),
        **values,
    )


# ---------------------------------------------------------------- prumerge


def check_prumerge(case: Case) -> None:
    x, keys = case["hidden"][:, 1:], case["key"][:, 1:]
    score = cls_full_width(Attention(in_heads(case["query"]), in_heads(case["key"]), scaling=1.0))[:, 1:]
    if "cls_attention" in case:
        assert_close(score, case["cls_attention"], **SCORE)
    visual = image_of(
        x, observed={"cls": score}, keys={3: in_heads(keys).transpose(1, 2)}, projection=Projection(x, None, SAME)
    )
    images, tokens = score.shape
    outliers = int(torch.stack([above_quartiles(row) for row in score]).sum())
    for found in case.named(r"tokens_(adaptive|fixed|plus|plus_fixed)"):
        mode, official = found[1], case[found[0]]
        if mode == "fixed":
            kept = top_k(score, official.shape[1] - 1)
            methods = [PruMerge(keep=official.shape[1])]
        elif mode == "adaptive":  # as released: one share for all images of a batch
            kept = top_k(score, int(tokens * (outliers / images / tokens)))
            methods = [PruMerge(compat=True)] if images == 1 and outliers else []
        elif mode == "plus":
            by_score = top_k(score, released_count(tokens, outliers))
            kept = add_samples(by_score[0], spatial_samples(tokens, outliers))[None]
            methods = [PruMerge(plus=True, compat=True)]
        else:
            kept, methods = released_plus_fixed(score, case.number("ratio")), []
        if f"kept_{mode}" in case:
            assert torch.equal(kept, case.index(f"kept_{mode}"))
        selected = [method.select(visual, method.count(tokens)).features for method in methods]
        if case.tie is True and kept.shape[1]:  # which are kept, or neighbours, is open
            assert [features.shape for features in selected if features is not None] == [official.shape]
            continue
        assert_close(released_tokens(x, score, keys, kept), official, **SCORE)
        for features in selected:
            assert_close(features, official, **SCORE)
    if not outliers:  # the released code leaves the last token alone, ours one token beside it
        reduction = PruMerge().select(visual, tokens)
        assert reduction.kept.tolist() == [[0, 1]]


def released_plus_fixed(score: Tensor, ratio: float) -> Tensor:
    """LongTensor [G, m]: samples are added whether or not they are there."""
    tokens, step = score.shape[1], int(1 / ratio)
    samples = torch.arange(int(step / 2), tokens, step).expand(len(score), -1)
    return torch.cat([top_k(score, int(tokens * ratio)), samples], dim=1)


def released_tokens(x: Tensor, score: Tensor, keys: Tensor, kept: Tensor) -> Tensor:
    """The new tokens, made of those of a list: kept ones, then the others.

    For each token that is kept twice, the first of the others is missing in the list.
    """
    found = []
    for image, own in enumerate(kept):
        unique = own.unique()
        rest = complement(x.shape[1], unique[None])[0, len(own) - len(unique) :]
        listed = torch.cat([own, rest])
        places = torch.arange(len(listed))[None]
        merged = merge_neighbours(
            score[image, listed][None], keys[image, listed][None], places[:, : len(own)], places[:, len(own) :]
        )
        found.append(mixed(x[image, listed][None], merged)[0])
    return torch.stack(found)


def check_prumerge_counts(case: Case) -> None:
    for tokens, outliers, kept in case.indices("count_rows"):
        assert released_count(tokens, outliers) == kept


def check_prumerge_steps(case: Case) -> None:
    for outliers, _, stride, places in case.indices("step_rows"):
        assert spatial_step(576, outliers) == stride
        assert len(spatial_samples(576, outliers)) == places


# ---------------------------------------------------------------- trim


def check_trim(case: Case) -> None:
    hidden = case["hidden"].double()
    weight, bias = case["ln_weight"].double(), case["ln_bias"].double()
    normed = layer_norm(hidden, weight.shape, weight, bias, eps=case.number("ln_eps", default=1e-5))
    images = normed @ case["projection"].double().T
    score = torch.stack([relevance(*pair) for pair in zip(images, case["text_embeds"].double(), strict=True)])
    probability = score.softmax(dim=1)
    if "score" in case:
        assert_close(probability.float(), case["score"], **SCORE)
    tokens = hidden.shape[1]
    for found in case.named(r"tokens_(adaptive|r(\d+))"):
        name, official = found[1], case[found[0]]
        share = int(above_quartiles(probability.float().flatten())) / score.numel()
        count = int(tokens * (int(found[2]) / 1000 if found[2] else share))
        assert official.shape[1] == count + 1
        selected = trimmed(case["hidden"], score, count + 1)
        if case.tie:
            assert selected.kept.tolist() == [list(range(count + 1))]
            continue
        merged = merge_rest(score, count)
        if (key := f"kept_{name}") in case:
            assert torch.equal(merged.sequence[:, :count], case.index(key))
        assert_close(mixed(case["hidden"], merged), official, **SCORE)
        assert_close(selected.features, official, **SCORE)


def trimmed(x: Tensor, score: Tensor, keep: int) -> Reduction:
    """What the method makes of images with these scores: cosines, in their order, of vectors with (1, 0)."""
    span = score.abs().max().clamp(min=1e-9)
    cosine = score / span * 0.9
    visual = image_of(
        x,
        features=torch.stack([cosine, (1 - cosine**2).sqrt()], dim=2),
        projection=Projection(x, None, SAME),
        text=tuple(torch.tensor([[1.0, 0.0]]) for _ in x),
    )
    return Trim(keep=keep).select(visual, keep)


# ---------------------------------------------------------------- vscan


def check_vscan(case: Case) -> None:
    features = case["features"]
    shallow, deep = (case[f"attention_{name}"].mean(dim=1) for name in ("shallow", "deep"))
    grid = case.grid(features.shape[1])
    visual = image_of(features, grid, cls={5: shallow, 22: deep})
    for found in case.named(r"kept_mask(\d+)"):
        k, official = int(found[1]), case.mask(found[0])
        reduction = VScan(keep=k, compat=True).select(visual, k)
        kept = torch.zeros_like(official).scatter(1, reduction.kept, True)
        if case.name.endswith("constant_attention"):  # which of a window, and which others, is open
            window = windows(grid, CLS_SIDE)
            least = torch.stack([window[row].bincount(minlength=16) for row in kept]).amin()
            assert least >= k // 2 // 16 and torch.equal(kept.sum(dim=1), official.sum(dim=1))
            continue
        assert torch.equal(kept, official)
        if (key := f"tokens{k}") in case:
            assert reduction.mixing is not None
            merged = ops.merge(features, reduction.mixing, reduction.kept.shape[1])
            assert_close(merged, case[key], rtol=0, atol=case.number("atol", default=SCORE["atol"]))


def check_vscan_counts(case: Case) -> None:
    window = windows((24, 24), CLS_SIDE)
    score = torch.rand(1, 576, generator=torch.Generator().manual_seed(0))
    for asked, local, kept in case.indices("count_rows"):
        assert local_picks(score, window, asked // 2, quota=False).shape[1] == local
        assert scan(score, score, window, asked, quota=False, compat=True).shape[1] == kept
        assert scan(score, score, window, asked, quota=False).shape[1] == asked


def check_vscan_without_cls(case: Case) -> None:
    features, kept = case["features"], case.index("kept")
    grid = case.grid(len(features))
    local = local_picks(case["score_local"][None], windows(grid, SIDE), len(kept) // 2, quota=True)
    if "kept_local" in case:
        assert torch.equal(local[0].sort().values, case.index("kept_local").sort().values)
    visual = image_of(features[None], grid, received={7: case["score_local"][None], 31: case["score_global"][None]})
    reduction = VScan(keep=len(kept)).select(visual, len(kept))
    assert torch.equal(reduction.kept[0], kept)
    assert reduction.mixing is not None
    merged = ops.merge(features[None], reduction.mixing, len(kept))
    assert_close(merged[0], case["tokens"], rtol=0, atol=case.number("atol", default=SCORE["atol"]))


def check_vscan_stage2(case: Case) -> None:
    query, key = case["query"], case["key"]
    length, start = key.shape[1], case.whole("image_start")
    visual = torch.zeros(1, length, dtype=torch.bool)
    visual[:, start : start + case.whole("image_tokens")] = True
    score = last_query_row(Attention(query[None, :, None], key[None], scaling=query.shape[-1] ** -0.5))
    if "score" in case:
        assert_close(score[visual], case["score"], **SCORE)
    alive = top_visual(score, visual, [len(case["keep"])])
    assert torch.equal(alive[0].nonzero()[:, 0] - start, case.index("keep"))
    if "positions" in case:
        assert torch.equal((alive | ~visual)[0].nonzero()[:, 0], case.index("positions"))


CHECKS: Checks = [
    Form(
        lambda c: c.has("hidden", "query", "key"),
        check_prumerge,
        r"hidden|query|key|cls_attention|(tokens|kept)_(adaptive|fixed|plus|plus_fixed)",
    ),
    Form(lambda c: c.file.stem == "prumerge" and "count_rows" in c, check_prumerge_counts, r"count_rows"),
    Form(lambda c: "step_rows" in c, check_prumerge_steps, r"step_rows"),
    Form(
        lambda c: c.has("hidden", "ln_weight", "ln_bias", "projection", "text_embeds"),
        check_trim,
        r"hidden|ln_weight|ln_bias|projection|text_embeds|score|(tokens|kept)_(adaptive|r\d+)",
    ),
    Form(
        lambda c: c.has("features", "attention_shallow", "attention_deep"),
        check_vscan,
        r"features|attention_shallow|attention_deep|(kept_mask|tokens)\d+",
    ),
    Form(lambda c: c.file.stem == "vscan" and "count_rows" in c, check_vscan_counts, r"count_rows"),
    Form(
        lambda c: c.has("features", "score_local", "score_global", "kept", "tokens"),
        check_vscan_without_cls,
        r"features|score_local|score_global|kept|kept_local|tokens",
    ),
    Form(
        lambda c: c.has("query", "key", "keep", "positions"),
        check_vscan_stage2,
        r"query|key|keep|positions|score",
    ),
]
