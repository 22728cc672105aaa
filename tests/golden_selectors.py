"""Golden checks of divprune, kcenter and hiprune."""

from types import SimpleNamespace

import torch
from golden_cases import SCORE, Case, Checks, Form, as_keep, as_number, as_whole, joined_tiles, same_rows
from torch import Tensor
from torch.testing import assert_close

from vtc import DivPrune, HiPrune, KCenter, VisualTokens, ops
from vtc.adapters.qwen_vl import QwenVLAdapter
from vtc.method.reduction import top_k
from vtc.model.layout import Grid
from vtc.ops import reference
from vtc.selectors.divprune import max_min_order
from vtc.selectors.kcenter import cls_pivot, k_center_order
from vtc.selectors.saliency.hiprune import anchor_count, hiprune
from vtc.tower.features import Features

#: HiPrune's share of anchors where a file says none: the published one.
ALPHA = 0.1
#: Text tokens in front of the image in HiPrune's sequences, where a file says none.
BEFORE_IMAGE = 4

# ---------------------------------------------------------------- divprune


def check_divprune_order(case: Case) -> None:
    features, official = case["features"], case.indices("order")
    order = max_min_order(features[None], len(official))[0].tolist()
    assert len(set(order)) == len(order) and min(order) >= 0 and max(order) < len(features)
    if case.tie is False:
        assert order == official
    elif "newline" in str(case.tie):
        kind = same_rows(features)
        assert [kind[i] for i in order] == [kind[i] for i in official]
    elif "twin_class" in case:
        twin = case.indices("twin_class")
        distinct = case.whole("distinct_tokens", default=len(set(twin)))
        assert {twin[i] for i in order[:distinct]} == {twin[i] for i in official[:distinct]}
    if "first_scores" in case:
        distance = 1 - reference.nearest_other(reference.unit_rows(features[None])[0])[0]
        assert_close(distance, case["first_scores"], **SCORE)
    for ratio, count in counts(case).items():
        assert DivPrune(keep=ratio).count(len(features)) == max(count, 1)  # one token at least
        if count and case.tie is False:
            assert max_min_order(features[None], count)[0].tolist() == official[:count]


def counts(case: Case) -> dict[float | int, int]:
    """What the file says of how many tokens a share ("0.1", "10%") or count leaves."""
    found = {}
    for share, count in case.info.get("counts", {}).items():
        keep = as_number(share.rstrip("%"), f"{case}: counts")
        keep = keep / 100 if share.endswith("%") else as_keep(keep)
        found[keep] = as_whole(as_number(count, f"{case}: counts"), f"{case}: counts")
    return found


def check_divprune_counts(case: Case) -> None:
    for tokens, ratio, kept in case.indices("table"):
        assert DivPrune(keep=ratio / 1e4).count(tokens) == max(kept, 1)  # one token at least


def check_divprune_sequence(case: Case) -> None:
    features, official = case["features"], case.index("keep_index")
    tokens = len(features)
    text = int(official[-1]) + 1 - tokens  # the last text token stays, so the whole length is known
    after = case.whole("text_len", default=None)
    before = case.whole("system_len", default=None if after is None else text - after)
    assert before is not None, f"{case} says neither system_len nor text_len"
    method = DivPrune(keep=as_keep(case.number("ratio")))
    kept = method.select(one_image(features, (1, tokens)), method.count(tokens)).kept[0]
    around = torch.arange(before), torch.arange(before + tokens, text + tokens)
    assert after is None or len(around[1]) == after
    assert torch.equal(torch.cat([around[0], before + kept, around[1]]), official)


# ---------------------------------------------------------------- k-center


def check_kcenter(case: Case) -> None:
    features = case["features"]
    tokens = len(features)
    attention = case["cls_attention"].reshape(1, -1) if "cls_attention" in case else None
    thumbnail = case.whole("thumbnail_tokens", default=0)
    first = case.index("order_maxsum" if "order_maxsum" in case else "order_kcenter")[:1]
    pivot = torch.tensor([case.whole("pivot", default=int(first))])
    if attention is not None:
        allowed = torch.arange(tokens) < thumbnail if thumbnail else None
        assert cls_pivot(attention, allowed).tolist() == pivot.tolist()
    for rule, key in (("max-min", "order_kcenter"), ("max-sum", "order_maxsum")):
        if key not in case:
            continue
        official = case.indices(key)
        order = k_center_order(features[None], pivot, len(official), rule)[0].tolist()
        assert len(set(order)) == len(order) and order[0] == official[0]
        if case.tie is False:
            assert order == official
        elif rule == "max-min":
            kind = same_rows(features)
            distinct = min(len(set(kind)), len(order))
            assert len({kind[i] for i in order[:distinct]}) == distinct
        if attention is not None and case.tie is False and len(official) < tokens:
            grids = (Grid(0, 1, 1, tokens),)
            if thumbnail:
                rest = Grid(thumbnail, 1, 1, tokens - thumbnail, kind="tiles")
                grids = (Grid(0, 1, 1, thumbnail, kind="thumbnail"), rest)
            visual = VisualTokens(features[None], grids, torch.zeros(tokens, dtype=torch.bool), cls={0: attention})
            kept = KCenter(keep=len(official), rule=rule).select(visual, len(official)).kept[0]
            assert kept.tolist() == sorted(official)
    for share, count in counts(case).items():
        assert KCenter(keep=share).count(tokens) == count


# ---------------------------------------------------------------- hiprune


def check_hiprune_from_qk(case: Case) -> None:
    alpha = case.number("alpha", default=ALPHA)
    scores = []
    for found in case.named(r"q(\d+)"):  # the shallow layer, then the deep one
        query, key = case[found[0]], case[f"k{found[1]}"]
        official = case[f"score{found[1]}"].reshape(len(query), -1)
        prefix = query.shape[-2] - official.shape[1]
        scores.append(ops.attention_received(ops.AttentionArguments(query, key, query.shape[-1] ** -0.5))[:, prefix:])
        assert_close(scores[-1], official, **SCORE)
    images, tokens = scores[0].shape
    for found in case.named(r"mask(\d+)"):
        budget, official = int(found[1]), case.mask(found[0]).reshape(images, tokens)
        if f"anchors{budget}" in case:
            anchors = top_k(scores[0], anchor_count(budget, alpha)).sort(dim=1).values
            assert torch.equal(anchors, case.index(f"anchors{budget}").reshape(images, -1).sort(dim=1).values)
        assert torch.equal(hiprune(scores[0], scores[-1], budget, case.grid(tokens), alpha), official)


def hiprune_tiles(case: Case) -> tuple[Tensor, Tensor, Tensor]:
    """Scores of the shallow and of the deep layer [crops, N], CLS left out, and the mask."""
    names = [found[0] for found in case.named(r"score\d+_full")]
    first, deep = (case[name].reshape(-1, case[name].shape[-1]) for name in (names[0], names[-1]))
    official = case.mask("mask").reshape(len(first), -1)
    prefix = first.shape[1] - official.shape[1]
    return first[:, prefix:], deep[:, prefix:], official


def check_hiprune_from_scores(case: Case) -> None:
    first, deep, official = hiprune_tiles(case)
    crops, tokens = first.shape
    budget = case.whole("per_crop", default=None)
    if budget is None:
        retention = as_keep(case.number("retention", default=int(official.sum())))
        budget = retention // crops if isinstance(retention, int) else round(retention * tokens)
    side = case.grid(tokens)
    mask = hiprune(first, deep, budget, side, case.number("alpha", default=ALPHA))
    assert torch.equal(mask, official)
    if "sequence" in case:
        raster = joined_tiles(side, *case.wholes("grid_wh"))
        survivors = raster[mask.flatten()[raster]]
        assert torch.equal(torch.stack([survivors // tokens, survivors % tokens], dim=1), case.index("sequence"))


def check_hiprune_constant(case: Case) -> None:
    official = case.mask("mask")
    rows, columns = case.grid(tokens := official.numel())
    scores = torch.full((1, tokens), 1.0 / (tokens + 1))
    budget = as_keep(case.number("retention", default=int(official.sum())))
    budget = budget if isinstance(budget, int) else round(budget * tokens)
    alpha = case.number("alpha", default=ALPHA)
    mask = hiprune(scores, scores, budget, (rows, columns), alpha)[0]
    assert mask.sum() == official.sum() == budget
    if not round(budget * alpha / 5):
        return  # without an anchor there is no cross
    inner = mask.view(rows, columns)
    crosses = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    corner = inner[0, 0] & inner[0, 1] & inner[1, 0]  # what is left of the cross of an anchor there
    assert crosses.any() or corner


def check_hiprune_anchor_counts(case: Case) -> None:
    for budget, alpha, anchors in case.indices("table"):
        assert anchor_count(budget, alpha / 100) == anchors


def check_hiprune_qwen(case: Case) -> None:
    first, deep = case["score_object"][None], case["score_deep"][None]
    grid = case.grid(tokens := first.shape[1])
    masks = [(name == "mask_official", case.mask(name)) for name in ("mask_exact", "mask_official") if name in case]
    alpha, retention = case.number("alpha", default=ALPHA), case.number("retention", default=None)
    keep = None if retention is None else as_keep(retention)
    if "mask_exact" in case:  # the other one may be short of it
        left = int(case.mask("mask_exact").sum())
    else:
        left = None if keep is None else HiPrune(keep=keep).count(tokens)
    budget = case.whole("budget", default=left)
    assert budget is not None, f"{case} says no budget"
    visual = one_image(torch.zeros(tokens, 1), grid, {3: first / first.sum(), 7: deep / deep.sum()})
    for compat, official in masks:
        assert torch.equal(hiprune(first, deep, budget, grid, alpha, compat=compat)[0], official)
        kept = HiPrune(keep=budget, alpha=alpha, compat=compat).select(visual, budget).kept[0]
        assert torch.equal(kept, official.nonzero()[:, 0])
    if keep is not None:
        assert HiPrune(keep=keep).count(tokens) == budget
    if "kept_positions" in case:
        before = case.whole("first_image_position", default=BEFORE_IMAGE)
        positions = case.index("kept_positions")
        image = positions[(positions >= before) & (positions < before + tokens)]
        leaky = hiprune(first, deep, budget, grid, alpha, compat=True)[0]
        assert torch.equal(before + leaky.nonzero()[:, 0], image)


def check_qwen_tower_scores(case: Case) -> None:
    """Attention in the order of the tower's windows -> scores of merged tokens in raster order."""
    index = case.index("window_index")
    layers = case.named(r"attn_layer(\d+)")
    merge = case.whole("merge", default=round((case[layers[0][0]].shape[-1] / len(index)) ** 0.5))
    adapter = QwenVLAdapter.__new__(QwenVLAdapter)
    adapter.tower = SimpleNamespace(spatial_merge_size=merge, window_size=None)
    adapter.parts = SimpleNamespace(has_cls=False)
    adapter._window_index = lambda features: index
    features = Features(kind="image", arguments={"image_grid_thw": torch.tensor([[1, 1, 1]])}, sizes=[len(index)])
    for layer in layers:
        attention = case[layer[0]].mean(dim=0)
        (tokens,) = adapter.to_tokens(attention.mean(dim=0)[None], features, [len(index)])
        assert_close(tokens * len(attention), case[f"score_layer{layer[1]}"], **SCORE)


def one_image(features: Tensor, grid: tuple[int, int], received: dict[int, Tensor] | None = None) -> VisualTokens:
    separators = torch.zeros(len(features), dtype=torch.bool)
    return VisualTokens(features[None], (Grid(0, 1, *grid),), separators, received=received or {})


def table_of(case: Case) -> str:
    """What a table of three columns is of: what the file says of its second column, or else the size of its numbers.

    Hundredths are alpha, parts of ten thousand are a ratio.
    """
    if set(case.tensors) != {"table"} or case["table"].dim() != 2 or case["table"].shape[1] != 3:
        return "no such table"
    said = case.text("columns", "note")
    named = [column for column in ("ratio", "alpha") if column in said]
    if not named and "columns" in said:
        return "another table"
    return named[0] if named else "alpha" if case["table"][:, 1].max() <= 100 else "ratio"


CHECKS: Checks = [
    Form(lambda c: c.has("features", "order"), check_divprune_order, r"features|order|first_scores|twin_class"),
    Form(lambda c: c.has("features", "keep_index"), check_divprune_sequence, r"features|keep_index|ratio"),
    Form(lambda c: table_of(c) == "ratio", check_divprune_counts, r"table"),
    Form(lambda c: table_of(c) == "alpha", check_hiprune_anchor_counts, r"table"),
    Form(
        lambda c: "features" in c and ("order_kcenter" in c or "order_maxsum" in c),
        check_kcenter,
        r"features|cls_attention|order_(kcenter|maxsum)|twin_class|pivot",
    ),
    Form(
        lambda c: bool(c.named(r"mask\d+") and c.named(r"q\d+")),
        check_hiprune_from_qk,
        r"(q|k|score|mask|anchors)\d+",
    ),
    Form(
        lambda c: "mask" in c and bool(c.named(r"score\d+_full")),
        check_hiprune_from_scores,
        r"mask|score\d+_full|sequence",
    ),
    Form(lambda c: set(c.tensors) == {"mask"}, check_hiprune_constant, r"mask"),
    Form(
        lambda c: c.has("score_object", "score_deep") and bool(c.named(r"mask_(exact|official)")),
        check_hiprune_qwen,
        r"score_(object|deep)|mask_(exact|official)|kept_positions",
    ),
    Form(
        lambda c: "window_index" in c and bool(c.named(r"attn_layer\d+")),
        check_qwen_tower_scores,
        r"window_index|cu_window_seqlens|(attn|score)_layer\d+",
    ),
]
