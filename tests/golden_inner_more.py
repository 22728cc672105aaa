"""Golden checks of dart, v2drop and fitprune."""

import torch
from golden_cases import SCORE, Case, Checks, Form
from golden_inner import of_probabilities
from torch import Tensor
from torch.testing import assert_close

from vtc.method.prune import Rows, top_visual
from vtc.prunes.attention.fitprune import FitPrune, fitted, lowest_go, own_and_cross
from vtc.prunes.dart import DART, key_norms, largest, least_similar
from vtc.prunes.v2drop import V2Drop, variation

# ---------------------------------------------------------------- dart


def check_dart(case: Case) -> None:
    hidden, visual = case["hidden"][None], case.mask("visual")[None]
    norms = key_norms(case["keys"][None])
    after = torch.arange(visual.shape[1])[None] > int(visual[0].nonzero()[-1])
    image, text = case.wholes("pivots", default=[4, 4])
    checked = 0
    for name in case.named(r"kept_r(\d+)"):
        kept = released(case, hidden, norms, visual, after, int(name[1]), (image, text))
        compare_places(case, kept, case.index(name[0]), largest(norms, visual, image)[0][0])
        checked += 1
    for name in case.named(r"exact_r(\d+)"):
        method = DART(keep=len(case[name[0]]), image_pivots=image, text_pivots=text, text="all")
        rows = Rows(method.layer, hidden, visual, torch.ones_like(visual), after)
        decision = method.decide(rows, [method.count_at(0, int(visual.sum()))], {"norms": norms})
        compare_places(case, decision.alive, case.index(name[0]), largest(norms, visual, image)[0][0])
        checked += 1
    for key, among in (("image_pivots", visual), ("text_pivots", after)):
        for prefix, of in (("", among), ("exact_", visual if among is visual else ~visual)):
            if prefix + key in case:
                places = case.indices(prefix + key)
                assert largest(norms, of, len(places))[0][0].tolist() == places
    assert checked


def released(
    case: Case, hidden: Tensor, norms: Tensor, visual: Tensor, after: Tensor, removed: int, pivots: tuple[int, int]
) -> Tensor:
    """The released rule: pivots beside the budget, in the order of a set of their places, a floor for each."""
    image = largest(norms, visual, pivots[0])[0]
    text = largest(norms, after, pivots[1])[0]
    order = torch.tensor([list({*image[0].tolist(), *text[0].tolist()})])  # as the set of the released code iterates
    assert "pivot_order" not in case or order[0].tolist() == case.indices("pivot_order")
    ratio = next(ratio for ratio in case.info["ratios_removed"] if round(1000 * float(ratio)) == removed)
    each = torch.tensor([int(int(visual.sum()) * (1 - float(ratio)) / sum(pivots))])
    kept = torch.zeros_like(visual).scatter(1, image, torch.ones_like(image, dtype=torch.bool))
    official = case.index(f"kept_r{removed}")
    zero = (hidden == 0).all(dim=2).gather(1, order)
    if not zero.any():
        return kept | least_similar(hidden, visual & ~kept, order, ~zero, each, each * order.shape[1])
    assert zero.sum() == each == 1
    for place in official:  # to a pivot of zeros all are alike, so which one it took is open; the others are not
        taken = kept.index_fill(1, place, True)
        found = taken | least_similar(hidden, visual & ~taken, order, ~zero, each, each * (~zero).sum())
        if found[0].nonzero()[:, 0].tolist() == official.tolist():
            return found
    raise AssertionError(f"{case}: no choice of the pivot of zeros gives the official places")


def compare_places(case: Case, kept: Tensor, official: Tensor, pivots: Tensor) -> None:
    """The same places; where equal values decide in the official run, as many, and the same pivots among them.

    Where all norms are equal, which tokens are pivots is open too: ours are the first.
    """
    ours = kept[0].nonzero()[:, 0].tolist()
    assert len(ours) == len(official)
    if case.tie is not True:
        assert ours == official.tolist()
    elif "twin_class" in case:  # the cut falls between twins
        assert set(pivots.tolist()) <= {*ours} & {*official.tolist()}
    else:
        assert pivots.tolist() == case.mask("visual").nonzero()[: len(pivots), 0].tolist()


# ---------------------------------------------------------------- v2drop


def check_v2drop(case: Case) -> None:
    for name in case.named(r"before(\d*)"):
        stage = name[1]
        score = variation(case["before" + stage], case["after" + stage])
        assert_close(score, case["score" + stage], **SCORE)
        if "keep" + stage in case:
            kept, present = case.indices("keep" + stage), len(score)
            method = V2Drop(keeps=(len(kept) / present,), layers=(int(stage or 1),))
            there = torch.ones(1, present, dtype=torch.bool)
            rows = Rows(int(stage or 1), case["after" + stage][None], there, there, ~there)
            method.on_modules(  # what the layer before was entered with
                Rows(rows.layer - 1, case["before" + stage][None], there, there, ~there),
                "attention", *(torch.zeros(1, present, 1),) * 2, memory := {},
            )  # fmt: skip
            alive = method.decide(rows, [method.count_at(0, present)], memory).alive
            assert alive[0].nonzero()[:, 0].tolist() == kept
        else:
            there = torch.ones(1, len(score), dtype=torch.bool)
            count = case.whole("k")
            assert top_visual(score[None], there, [count])[0].nonzero()[:, 0].tolist() == list(range(count))
        if "positions" + stage in case:  # system and text stay, and all keep their numbers
            system, length = case.whole("system_len"), case.whole("system_len") + 576 + case.whole("text_len")
            place = torch.arange(length)
            for earlier in sorted(int(one[1]) for one in case.named(r"before(\d+)")):
                if earlier <= int(stage):
                    visual = (place >= system) & (place < system + 576)
                    chosen = place[visual][case.index(f"keep{earlier}")]
                    place = place[~visual | torch.isin(place, chosen)]
            assert place.tolist() == case.indices("positions" + stage)


#: What the rows of `schedule_rows` are, in their order.
SCHEDULES = ((0.5, 0.5, 0), (0.5, 0.3, 0), (0.28, 0.25, 0), (0.05, 0.05, 0), (0.25, 0.05, 0))


def check_v2drop_schedules(case: Case) -> None:
    rows = case.index("schedule_rows").tolist()
    assert len(rows) == len(SCHEDULES)
    for (layers, *official, equivalent), keeps in zip(rows, SCHEDULES):
        at = (3, 16, 22) if layers == 28 else None
        method = V2Drop(keeps=keeps, layers=at)
        counts = [method.count_at(stage, 576) for stage in range(3)]
        assert counts == official
        schedule = method.schedule(layers)
        bounds = [0, *schedule, layers]
        total = sum(count * (end - start) for count, start, end in zip([576, *counts], bounds, bounds[1:]))
        assert round(100 * total / layers) == equivalent


# ---------------------------------------------------------------- fitprune


def check_fitprune(case: Case) -> None:
    probabilities, system, tokens = case["attention"], case.whole("system_len"), case.whole("visual")
    place = torch.arange(probabilities.shape[-1])[None]
    visual, text = (place >= system) & (place < system + tokens), place >= system + tokens
    attention = of_probabilities(probabilities)
    rows = Rows(1, torch.zeros(1, place.shape[1], 1), visual, torch.ones_like(visual), text)
    method, memory = FitPrune(table=(case.whole("removed"),)), {}
    method.on_attention(rows, attention, memory)
    assert_close(method.score(rows, memory)[visual], case["score"], **SCORE)
    alive = method.decide(rows, [method.count_at(0, tokens)], memory).alive
    assert alive[visual].nonzero()[:, 0].tolist() == case.indices("keep")

    own, cross = own_and_cross(attention, visual, text, chunk=7)
    cross = cross / case.whole("text_len")
    totals = [(values * visual).sum(dim=1) for values in (own, cross)]
    assert_close(totals[0], torch.tensor([case.number("self_total")]), rtol=1e-4, atol=0)
    assert_close(totals[1], torch.tensor([case.number("cross_total")]), rtol=1e-4, atol=0)
    for percent, removed, by_cross, by_self in case.index("fit_table").tolist():
        lost = [fitted(values, total, percent / 100, visual) for values, total in zip((own, cross), totals)]
        both = lost[0] & lost[1]
        assert [int(mask.sum()) for mask in (both, lost[1], lost[0])] == [removed, by_cross, by_self]
        assert both[visual].nonzero()[:, 0].tolist() == sorted(case.indices(f"fit_removed_{percent}"))
        assert int((visual & ~lowest_go(cross, visual, [tokens - by_cross])).sum()) == by_cross


CHECKS: Checks = [
    Form(
        lambda c: c.has("hidden", "keys", "visual") and bool(c.named(r"(kept|exact)_r\d+")),
        check_dart,
        r"hidden|keys|visual|twin_class|pivot_order|(exact_)?(image|text)_pivots|(kept|exact)_r\d+",
    ),
    Form(
        lambda c: bool(c.named(r"before\d*")) and bool(c.named(r"after\d*")) and bool(c.named(r"score\d*")),
        check_v2drop,
        r"(before|after|keep|positions|score)\d*",
    ),
    Form(lambda c: c.has("schedule_rows"), check_v2drop_schedules, r"schedule_rows"),
    Form(
        lambda c: c.has("attention", "keep", "fit_table"),
        check_fitprune,
        r"attention|keep|score|fit_table|fit_removed_\d+",
    ),
]
