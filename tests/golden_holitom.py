"""Golden checks of HoliTom's inner merging: with the causal mask in place, and as released."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from golden_cases import HIDDEN, SAFE_GAP, SCORE, Case, Checks
from golden_prunes import run_through_the_seam
from torch import Tensor
from torch.testing import assert_close

from vtc.method import Decision, Rows
from vtc.prunes.holitom_inner import HoliTomInner


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

CHECKS: Checks = [
    (
        lambda c: c.has("topk_order", *(f"{v}_{part}" for v in ("causal", "shipped") for part in _PARTS)),
        check_inner_merging,
    ),
]
