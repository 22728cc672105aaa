"""Golden checks of scope, vispruner, cdpruner, mmtok and centring."""

import torch
from golden_cases import SCORE, Case, Checks, Form, joined_tiles, same_rows
from torch import Tensor
from torch.testing import assert_close

from vtc import ops
from vtc.selectors.centering import centred
from vtc.selectors.divprune import centred_order
from vtc.selectors.question.cdpruner import conditional_order, relevance, scaled
from vtc.selectors.question.mmtok import choose, demands, padded_patches
from vtc.selectors.question.reading import keywords
from vtc.selectors.saliency.vispruner import vispruner
from vtc.selectors.scope import scope_order


def images(tensor: Tensor, dims: int) -> Tensor:
    """A tensor of one image or of several, as several."""
    return tensor[None] if tensor.dim() == dims else tensor


def check_distinct(picks: Tensor, count: int, tokens: int) -> None:
    """As many tokens as were asked for, each once."""
    assert picks.shape[-1] == count and all(len(set(row)) == count for row in picks.tolist())
    assert picks.min() >= 0 and picks.max() < tokens


def mask_of(picks: Tensor, tokens: int) -> Tensor:
    """BoolTensor [G, N] of picks [G, k], which differ."""
    check_distinct(picks, picks.shape[1], tokens)
    return torch.zeros(len(picks), tokens, dtype=torch.bool).scatter_(1, picks, True)


def classes(case: Case, picks: Tensor) -> list[int]:
    twin = case.indices("twin_class")
    return [twin[pick] for pick in picks.tolist()]


# ---------------------------------------------------------------- scope


def check_scope(case: Case) -> None:
    features, official = images(case["features"], 2), images(case.index("picks"), 1)
    saliency = None if "saliency" not in case else images(case["saliency"], 1)
    tokens, alpha = features.shape[1], case.number("alpha", default=1.0)
    combine = {"": "product", "multi": "product", "add": "sum"}[case.text("combine")]
    picks = scope_order(features, saliency, official.shape[1], alpha, combine)
    check_distinct(picks, official.shape[1], tokens)
    if case.tie is False:
        assert torch.equal(picks, official)
        for count in case.wholes("counts", default=[]):
            assert torch.equal(scope_order(features, saliency, count, alpha, combine), official[:, :count])
    elif "twin_class" in case:
        distinct = case.whole("distinct_tokens", default=len(set(case.indices("twin_class"))))
        first = classes(case, picks[0, :distinct])
        assert set(first) == set(classes(case, official[0, :distinct])) and len(set(first)) == distinct
    elif case.name == "adv_identical":
        assert picks[0].tolist() == saliency[0].argsort(descending=True, stable=True)[: picks.shape[1]].tolist()
        assert picks[0, 0] == official[0, 0]
    elif case.name == "adv_zero_saliency":
        assert torch.equal(picks, scope_order(features, None, picks.shape[1]))
    else:
        assert torch.equal(picks[0], by_hand(features[0], saliency[0], picks.shape[1]))
    if "first_gains" in case:
        unit = torch.nn.functional.normalize(features, dim=-1)
        cover = (unit @ unit.mT).clamp_min(0).sum(dim=1)
        weight = torch.ones_like(cover) if saliency is None else saliency**alpha
        first = case["first_gains"]
        assert_close(
            (cover + weight if combine == "sum" else cover * weight)[0] / first.max(), first / first.max(), **SCORE
        )
        assert int(first.argmax()) == picks[0, 0]


def by_hand(features: Tensor, saliency: Tensor, k: int) -> Tensor:
    """Greedy coverage in float64, where a zero row is like nothing."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1)
    similarity, best, picks = (unit @ unit.T).clamp_min(0), torch.zeros(len(unit), dtype=torch.float64), []
    for _ in range(k):
        gain = saliency * (similarity - best[:, None]).clamp_min(0).sum(dim=0)
        gain[picks] = -1
        picks.append(int(gain.argmax()))
        best = torch.maximum(best, similarity[:, picks[-1]])
    return torch.tensor(picks)


# ---------------------------------------------------------------- vispruner


def check_vispruner(case: Case) -> None:
    features, attention = images(case["features"], 2), images(case["cls_attention"], 2)
    saliency, tokens = attention.mean(dim=1), features.shape[1]
    settings = {m[0]: (int(m[1]), int(m[2]) / 100) for m in case.named(r"mask(\d+)_r(\d+)")}
    if not settings:
        settings["mask"] = case.whole("k", "per_crop"), case.number("ratio")
        if "mask_fastervlm" in case:
            settings["mask_fastervlm"] = settings["mask"][0], 1.0
    for name, (count, ratio) in settings.items():
        kept, official = mask_of(vispruner(features, saliency, count, ratio), tokens), images(case.mask(name), 1)
        assert (kept.sum(dim=1) == count).all()
        if case.tie is False:
            assert torch.equal(kept, official)
        elif case.name == "adv_identical":
            important = saliency[0].argsort(descending=True, stable=True)[: int(count * ratio)]
            assert kept[0, important].all() and official[0, important].all()
        elif case.name == "adv_constant_attention":
            assert kept[0, : int(count * ratio)].all()  # index order


def check_packed_masks(case: Case) -> None:
    """Where kept tokens of tiles stand: our rows of joined tiles have them in that order too."""
    official, side = case.mask("mask"), case.whole("side")
    raster = joined_tiles((side, side), *case.wholes("tiles_wh"))
    kept = raster[official.flatten()[raster]]
    assert torch.equal(torch.stack([kept // side**2, kept % side**2], dim=1), case.index("sequence"))


# ---------------------------------------------------------------- cdpruner


def check_cdpruner(case: Case) -> None:
    features, embeds = images(case["features"], 2), images(case["image_embeds"], 2)
    tokens, text = features.shape[1], case["text_embeds"]
    told = -torch.stack([relevance(image, text) for image in embeds])
    together = scaled(told.flatten()).view_as(told)
    if "relevance" in case:
        assert_close(together, images(case["relevance"], 1), **SCORE)
    if case.name == "adv_constant_relevance":
        assert_close(told, told[:, :1].expand_as(told), **SCORE)
        picks = conditional_order(features, torch.ones_like(told), case.whole("k"))
        assert torch.equal(picks, determinants(features[0], torch.ones(tokens), case.whole("k"))[None])
        assert torch.equal(scaled(torch.full_like(told, 0.25)), torch.ones_like(told))
        return
    budgets = {m[0]: int(m[1]) for m in case.named(r"kept_mask(\d+)")} or {"mask": case.whole("k", "per_crop")}
    for name, count in budgets.items():
        picks, official = conditional_order(features, together, count), images(case.mask(name), 1)
        kept = mask_of(picks, tokens)
        if case.tie is False:
            assert torch.equal(kept, official)
        elif "twin_class" in case:
            ours = classes(case, picks[0])
            assert sorted(ours) == sorted(classes(case, official[0].nonzero()[:, 0])) and len(set(ours)) == count
        elif "order6" in case:
            assert picks[0, : case.whole("rank")].tolist() == case.indices("order6")
        else:
            lost = (features[0] == 0).all(dim=1)
            assert lost.any() and not kept[0, lost].any()
            assert torch.equal(picks[0], determinants(features[0], together[0], count))
        if "mask_each_alone" in case:
            alone = torch.stack([scaled(one) for one in told])
            assert torch.equal(mask_of(conditional_order(features, alone, count), tokens), case.mask("mask_each_alone"))
    if "picks" in case:
        official = case.index("picks")
        assert torch.equal(conditional_order(features, together, len(official))[0], official)
        half = conditional_order(features, scaled(told, 0.5), len(case.index("picks_theta50")))
        assert torch.equal(half[0], case.index("picks_theta50"))


def determinants(features: Tensor, quality: Tensor, k: int) -> Tensor:
    """The greedy choice by determinants in float64; rows without direction come last."""
    unit = torch.nn.functional.normalize(features.double(), dim=-1) * quality.double()[:, None]
    kernel, picks = unit @ unit.T, []
    for _ in range(k):
        found = [
            -1.0 if token in picks else round(float(torch.linalg.det(kernel[[*picks, token]][:, [*picks, token]])), 12)
            for token in range(len(unit))
        ]
        picks.append(max(range(len(unit)), key=found.__getitem__))
    return torch.tensor(picks)


# ---------------------------------------------------------------- mmtok


def check_mmtok(case: Case) -> None:
    features, tower = images(case["features"], 2), images(case["tower"], 2)
    tokens, text = features.shape[1], case["text"].expand(len(features), -1, -1)
    temperatures = [case.number(name) for name in ("text_temperature", "vision_temperature", "alpha")]
    values = demands(text, features, tower, *temperatures)
    padding = torch.zeros(tokens, dtype=torch.bool)
    if "padding" in case:
        padding[case.index("padding")] = True
    kept = {m[0]: int(m[1]) for m in case.named(r"kept(\d+)")} or {"kept": case.whole("k", "per_crop")}
    for name, count in kept.items():
        picks, official = choose(values, count, padding), images(case.index(name), 1)
        check_distinct(picks, count, tokens)
        if case.tie is False:
            assert torch.equal(picks.sort(dim=1).values, official)
        elif "twin_class" in case:
            ours = classes(case, picks[0])
            assert sorted(ours) == sorted(classes(case, official[0])) and len(set(ours)) == count
        else:
            assert len(set(same_rows(features[0]))) == 1 and official.shape[1] == count
    if "picks" in case:
        assert choose(values, len(case.index("picks")), padding)[0].tolist() == case.indices("picks")


def check_padding(case: Case) -> None:
    side = case.whole("target") // case.whole("patch")
    for width, height, *patches in case.indices("padding_rows"):
        official = [patch for patch in patches if patch >= 0]
        assert padded_patches(width, height, side).nonzero()[:, 0].tolist() == official


def check_keywords(case: Case) -> None:
    for text, official in case.info["pairs"]:
        assert " ".join(text[start:end] for start, end in keywords(text)) == official


# ---------------------------------------------------------------- centring


def check_centering(case: Case) -> None:
    features = case["features"][None]
    tokens = centred(features, scaled=case.text("mode") == "scaled")
    picks = centred_order(tokens, k := case.whole("k", default=features.shape[1]))
    check_distinct(picks, k, features.shape[1])
    check_distinct(ops.dpp_map(tokens.rows, k, tokens.weight), k, features.shape[1])
    assert not any(value.isnan().any() for value in vars(tokens).values())
    if "row" in case.info or case.name == "adv_identical":
        lost = (tokens.rows[0] == 0).all(dim=1).nonzero()[:, 0].tolist()
        assert lost == ([case.info["row"]] if "row" in case.info else list(range(features.shape[1])))
        assert case.name != "adv_identical" or (tokens.weight == 1).all()
    if "order_maxmin" not in case:
        return
    assert_close(tokens.weight[0], case["weight"], **SCORE)
    unit = torch.nn.functional.normalize(tokens.rows[0], dim=-1)
    assert_close(unit @ unit[0], case["centred_row0"], **SCORE)
    raw = torch.nn.functional.normalize(tokens.raw[0], dim=-1)
    mean = -((raw @ raw.T).sum(dim=1) - 1) / (len(raw) - 1)
    assert_close(mean, case["distinctiveness"], **SCORE)
    assert picks[0].tolist() == case.indices("order_maxmin")
    with_text = case["relevance"] * tokens.weight
    assert ops.dpp_map(tokens.rows, k, with_text)[0].tolist() == case.indices("order_dpp")
    assert ops.dpp_map(tokens.rows, k, tokens.weight)[0].tolist() == case.indices("order_dpp_no_text")


def of(*stems: str):
    return lambda case: case.file.stem in stems


CHECKS: Checks = [
    Form(lambda c: of("cdpruner", "vispruner")(c) and "sequence" in c, check_packed_masks, r"mask|sequence"),
    Form(of("scope"), check_scope, r"features|saliency|picks|first_gains|twin_class"),
    Form(of("vispruner"), check_vispruner, r"features|cls_attention|mask(\d+_r\d+|_fastervlm)?"),
    Form(
        of("cdpruner"),
        check_cdpruner,
        r"features|image_embeds|text_embeds|(kept_)?mask\d*|mask_each_alone|picks(_theta50)?|relevance|twin_class|order6",
    ),
    Form(lambda c: of("mmtok")(c) and "padding_rows" in c, check_padding, r"padding_rows"),
    Form(lambda c: of("mmtok")(c) and "pairs" in c.info, check_keywords, r""),
    Form(of("mmtok"), check_mmtok, r"text|features|tower|kept\d*|picks|padding|twin_class"),
    Form(
        of("centering"),
        check_centering,
        r"features|relevance|distinctiveness|weight|centred_row0|order_(maxmin|dpp|dpp_no_text)",
    ),
]
