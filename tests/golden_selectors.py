"""Golden checks of divprune, kcenter and hiprune."""

import math
import re
from types import SimpleNamespace

import torch
from golden_cases import SCORE, Case, Checks, named, same_rows
from torch import Tensor
from torch.testing import assert_close

from vtc import DivPrune, HiPrune, KCenter, VisualTokens, ops
from vtc.adapters.qwen_vl import QwenVLAdapter
from vtc.method.reduction import top_k
from vtc.model.layout import Grid
from vtc.ops import reference
from vtc.selectors.divprune import max_min_order
from vtc.selectors.hiprune import anchor_count, hiprune
from vtc.selectors.kcenter import cls_pivot, k_center_order
from vtc.tower.features import Features

# ---------------------------------------------------------------- divprune


def check_divprune_order(case: Case) -> None:
    features, official = case["features"], case["order"].tolist()
    order = max_min_order(features[None], len(official))[0].tolist()
    assert len(set(order)) == len(order) and min(order) >= 0 and max(order) < len(features)
    if case.tie is False:
        assert order == official
    elif "newline" in str(case.tie):
        kind = same_rows(features)
        assert [kind[i] for i in order] == [kind[i] for i in official]
    elif "twin_class" in case:
        twin = case["twin_class"].tolist()
        distinct = case.info.get("distinct_tokens", len(set(twin)))
        assert {twin[i] for i in order[:distinct]} == {twin[i] for i in official[:distinct]}
    if "first_scores" in case:
        distance = 1 - reference.nearest_other(reference.unit_rows(features[None])[0])[0]
        assert_close(distance, case["first_scores"], **SCORE)
    for ratio, count in case.info.get("counts", {}).items():
        assert DivPrune(keep=float(ratio)).count(len(features)) == count
        if count and case.tie is False:
            assert max_min_order(features[None], count)[0].tolist() == official[:count]


def check_divprune_counts(case: Case) -> None:
    for tokens, ratio, kept in case["table"].tolist():
        assert DivPrune(keep=ratio / 1e4).count(tokens) == max(kept, 1)  # one token at least


def check_divprune_sequence(case: Case) -> None:
    features, official = case["features"], case["keep_index"]
    tokens = len(features)
    after = case.info["text_len"]
    before = case.info.get("system_len", len(official) - after - case.info.get("kept", 0))
    method = DivPrune(keep=case.info["ratio"])
    kept = method.select(one_image(features, (1, tokens)), method.count(tokens)).kept[0]
    text = torch.arange(before), torch.arange(before + tokens, before + tokens + after)
    assert torch.equal(torch.cat([text[0], before + kept, text[1]]), official)


# ---------------------------------------------------------------- k-center


def check_kcenter(case: Case) -> None:
    features = case["features"]
    tokens = len(features)
    attention = case["cls_attention"].reshape(1, -1) if "cls_attention" in case else None
    thumbnail = case.info.get("thumbnail_tokens")
    first = case["order_maxsum" if "order_maxsum" in case else "order_kcenter"][:1]
    pivot = torch.tensor([case.info["pivot"]]) if "pivot" in case.info else first
    if attention is not None:
        allowed = torch.arange(tokens) < thumbnail if thumbnail else None
        assert cls_pivot(attention, allowed).tolist() == pivot.tolist()
    for rule, key in (("max-min", "order_kcenter"), ("max-sum", "order_maxsum")):
        if key not in case:
            continue
        official = case[key].tolist()
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
    for share, count in case.info.get("counts", {}).items():
        assert KCenter(keep=float(share.rstrip("%")) / 100).count(tokens) == count


# ---------------------------------------------------------------- hiprune


def check_hiprune_from_qk(case: Case) -> None:
    layers = sorted(int(key[1:]) for key in case.tensors if re.fullmatch(r"q\d+", key))
    scores = []
    for layer in layers:
        query, key = case[f"q{layer}"], case[f"k{layer}"]
        scores.append(ops.attention_received(query, key, query.shape[-1] ** -0.5)[:, 1:])
        assert_close(scores[-1][0], case[f"score{layer}"].flatten(), **SCORE)
    alpha = case.info.get("alpha", 0.1)
    side = math.isqrt(scores[0].shape[1])
    for key in case.tensors:
        if found := re.fullmatch(r"mask(\d+)", key):
            budget = int(found[1])
            anchors = top_k(scores[0], anchor_count(budget, alpha))[0]
            assert anchors.sort().values.tolist() == case[f"anchors{budget}"].sort().values.tolist()
            mask = hiprune(scores[0], scores[-1], budget, (side, side), alpha)
            assert torch.equal(mask[0], case[key].flatten())


def check_hiprune_from_scores(case: Case) -> None:
    names = sorted((key for key in case.tensors if re.fullmatch(r"score\d+_full", key)), key=lambda k: int(k[5:-5]))
    first, deep = (case[name].reshape(-1, case[name].shape[-1])[:, 1:] for name in (names[0], names[-1]))
    official = case["mask"].reshape(len(first), -1)
    budget = case.info.get("retention", int(official.sum())) // len(first)
    side = math.isqrt(first.shape[1])
    mask = hiprune(first, deep, budget, (side, side), case.info.get("alpha", 0.1))
    assert torch.equal(mask, official)
    if "sequence" in case:
        columns, rows = case.info["grid_wh"]
        place = torch.arange(columns * rows * side * side).view(rows, columns, side, side).transpose(1, 2).flatten()
        raster = torch.cat([torch.arange(side * side), side * side + place])
        survivors = raster[mask.flatten()[raster]]
        assert torch.equal(torch.stack([survivors // side**2, survivors % side**2], dim=1), case["sequence"])


def check_hiprune_constant(case: Case) -> None:
    side = math.isqrt(case["mask"].numel())
    scores = torch.full((1, side * side), 1.0 / (side * side + 1))
    budget = case.info.get("retention", int(case["mask"].sum()))
    mask = hiprune(scores, scores, budget, (side, side), case.info.get("alpha", 0.1))[0]
    assert mask.sum() == case["mask"].sum() == budget
    inner = mask.view(side, side)
    crosses = inner[1:-1, 1:-1] & inner[:-2, 1:-1] & inner[2:, 1:-1] & inner[1:-1, :-2] & inner[1:-1, 2:]
    corner = inner[0, 0] & inner[0, 1] & inner[1, 0]  # what is left of the cross of an anchor there
    assert crosses.any() or corner


def check_hiprune_anchor_counts(case: Case) -> None:
    for budget, alpha, anchors in case["table"].tolist():
        assert anchor_count(budget, alpha / 100) == anchors


def check_hiprune_qwen(case: Case) -> None:
    height, width = case.info["merged_grid"]
    alpha, budget = case.info.get("alpha", 0.1), case.info.get("budget", int(case["mask_exact"].sum()))
    first, deep = case["score_object"][None], case["score_deep"][None]
    assert torch.equal(hiprune(first, deep, budget, (height, width), alpha)[0], case["mask_exact"])
    leaky = hiprune(first, deep, budget, (height, width), alpha, compat=True)[0]
    assert torch.equal(leaky, case["mask_official"])
    visual = one_image(torch.zeros(height * width, 1), (height, width), {3: first / first.sum(), 7: deep / deep.sum()})
    for compat, mask in ((False, "mask_exact"), (True, "mask_official")):
        kept = HiPrune(keep=budget, alpha=alpha, compat=compat).select(visual, budget).kept[0]
        assert torch.equal(kept, case[mask].nonzero()[:, 0])
    if "retention" in case.info and isinstance(case.info["retention"], float):
        assert HiPrune(keep=case.info["retention"]).count(height * width) == budget
    if "kept_positions" in case:
        before = case.info.get("first_image_position", 4)
        positions = case["kept_positions"]
        image = positions[(positions >= before) & (positions < before + height * width)]
        assert torch.equal(before + leaky.nonzero()[:, 0], image)


def check_qwen_tower_scores(case: Case) -> None:
    """Attention in the order of the tower's windows -> scores of merged tokens in raster order."""
    index = case["window_index"]
    adapter = QwenVLAdapter.__new__(QwenVLAdapter)
    adapter.tower = SimpleNamespace(spatial_merge_size=2, window_size=None)
    adapter.parts = SimpleNamespace(has_cls=False)
    adapter._window_index = lambda features: index
    features = Features(kind="image", arguments={"image_grid_thw": torch.tensor([[1, 1, 1]])}, sizes=[len(index)])
    for key in [key for key in case.tensors if key.startswith("attn_layer")]:
        attention = case[key].mean(dim=0)
        (tokens,) = adapter.to_tokens(attention.mean(dim=0)[None], features, [len(index)])
        assert_close(tokens * len(attention), case[key.replace("attn", "score")], **SCORE)


def one_image(features: Tensor, grid: tuple[int, int], received: dict[int, Tensor] | None = None) -> VisualTokens:
    separators = torch.zeros(len(features), dtype=torch.bool)
    return VisualTokens(features[None], (Grid(0, 1, *grid),), separators, received=received or {})


CHECKS: Checks = [
    (lambda c: c.has("features", "order"), check_divprune_order),
    (lambda c: c.has("features", "keep_index") and "ratio" in c.info, check_divprune_sequence),
    (lambda c: set(c.tensors) == {"table"} and c["table"][:, 1].max() > 100, check_divprune_counts),
    (lambda c: set(c.tensors) == {"table"} and c["table"][:, 1].max() <= 100, check_hiprune_anchor_counts),
    (lambda c: c.has("features") and ("order_kcenter" in c or "order_maxsum" in c), check_kcenter),
    (lambda c: named(c, r"mask\d+"), check_hiprune_from_qk),
    (lambda c: "mask" in c and named(c, r"score\d+_full"), check_hiprune_from_scores),
    (lambda c: set(c.tensors) == {"mask"}, check_hiprune_constant),
    (lambda c: c.has("score_object", "mask_exact", "mask_official") and "merged_grid" in c.info, check_hiprune_qwen),
    (lambda c: c.has("window_index", "attn_layer0", "score_layer0"), check_qwen_tower_scores),
]
