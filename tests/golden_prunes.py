"""Golden checks of transprune and fastv."""

import math
import re
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import torch
from golden_cases import HIDDEN, SAFE_GAP, SCORE, Case, Checks, read
from golden_stub import Run, stub
from torch import Tensor
from torch.testing import assert_close

from vtc import FastV, TransPrune
from vtc.prunes.transprune import transition


def check_transition(case: Case) -> None:
    # The official softmax is over the whole batch: one row for us.
    before, after = (case[key].flatten(0, -2)[None] for key in ("before", "after"))
    assert_close(transition(before, after)[0], case["out"].flatten(), **SCORE)


def check_transprune(case: Case) -> None:
    layers, ratios = case["layer_list"].tolist(), [round(ratio, 6) for ratio in case["ratio_list"].tolist()]
    accumulated = [layer - 1 for layer in case["acc_list"].tolist()]
    method = Recording.of(TransPrune)(layers=tuple(layers), keeps=tuple(ratios))
    assert list(method.watch(99).modules) == accumulated
    run = run_through_the_seam(case, method)
    stages = range(len(layers))
    gaps = [case.info.get(f"stage{i}_relgap_at_k", 1.0) for i in stages]
    assert run.cache_lengths == case["cache_lens"].tolist()
    text = [i for i in range(run.length) if not run.visual[i]]
    alive = torch.arange(run.length)
    for stage, gap in zip(stages, gaps):
        layer = layers[stage]
        seen = method.seen[stage]
        assert_close(seen.score[seen.visual], case[f"stage{stage}_score"], **SCORE)
        terms = sum(key.startswith(f"stage{stage}_ttv_term") for key in case.tensors)
        assert [f"layer{term}" for term in accumulated[:terms]] == list(seen.memory)
        for term, layer in enumerate(accumulated[:terms]):
            assert_close(seen.memory[f"layer{layer}"], case[f"stage{stage}_ttv_term{term}"], **SCORE)
        assert method.count_at(stage, int(case["n_image"])) == int(case[f"stage{stage}_keep"])
        if not (math.isnan(gap) or gap >= SAFE_GAP):
            return  # which tokens go is rounding noise here, and everything after depends on it
        survivors = run.survivors(layers[stage])
        assert survivors == case[f"stage{stage}_survivors"].tolist()
        relative = torch.isin(alive[seen.visual], torch.tensor(survivors)).nonzero()[:, 0]
        assert relative.tolist() == case[f"stage{stage}_kept_rel"].sort().values.tolist()
        assert set(text) <= set(survivors)
        alive = torch.tensor(survivors)
    assert run.survivors(-1) == case["survivors"].tolist()
    compare_hidden(case, run)


def check_fastv(case: Case) -> None:
    layer, keep = int(case["K"]), round(1 - round(float(case["R"]), 6), 6)
    tokens, start = int(case["n_image"]), int(case["image_start"])
    method = Recording.of(FastV)(layer=layer, keep=keep)
    assert method.count_at(0, tokens) == int(case["keep"])
    run = run_through_the_seam(case, method)
    assert run.cache_lengths == case["cache_lens"].tolist()
    seen = method.seen[0]
    assert_close(seen.score[seen.visual], case["score"], **SCORE)
    gap = case.info.get("relgap_at_k", 1.0)
    if not (math.isnan(gap) or gap >= SAFE_GAP):
        return
    kept = [place - start for place in run.survivors(-1) if run.visual[place]]
    assert kept == case["kept_rel"].sort().values.tolist()
    compare_hidden(case, run)
    if "final_hidden_mask_variant" in case:
        alive = torch.tensor(run.survivors(-1))
        assert_close(run.hidden[alive], case["final_hidden_mask_variant"][alive], **HIDDEN)


def run_through_the_seam(case: Case, method: Any) -> Run:
    """Prefill and a decode step of the case's decoder, in a stub of a vision-language model patched with `method`."""
    words = case.info.get("weights", "weights")
    weights = read(case.file)[words.split()[0]]
    tensors = dict(weights.tensors)
    for name in re.findall(r"every (\S+) set to 0", words):
        tensors |= {key: torch.zeros_like(value) for key, value in tensors.items() if key.endswith(name)}
    visual = torch.zeros(len(case["inputs_embeds"]), dtype=torch.bool)
    visual[int(case["image_start"]) :][: int(case["n_image"])] = True
    return stub(tensors, weights.info).run(method, case["inputs_embeds"], visual, case.tensors.get("decode_embed"))


def compare_hidden(case: Case, run: Run) -> None:
    alive = torch.tensor(run.survivors(-1))
    assert_close(run.hidden[alive], case["final_hidden"], **HIDDEN)
    kept = set(alive.tolist())
    for place in sorted(set(range(run.length)) - kept):  # zeros, but what comes next is predicted from a survivor
        ends = place + 1 in kept or place == run.length - 1
        before = [other for other in kept if other < place] if ends else []
        assert torch.equal(run.hidden[place], run.hidden[max(before)] if before else torch.zeros_like(run.hidden[0]))
    if "decode_hidden" in case:
        assert_close(run.decoded, case["decode_hidden"], **HIDDEN)


class Recording:
    """Mixed into a prune: what it scored, and (TransPrune) each layer's own transition."""

    @staticmethod
    def of(prune: type) -> Callable[..., Any]:
        class Recorded(prune):  # type: ignore[misc, valid-type]
            def score(self, rows: Any, memory: dict[str, Tensor]) -> Tensor:
                score = super().score(rows, memory)
                layers = {key: value[0].clone() for key, value in memory.items() if key.startswith("layer")}
                self.__dict__.setdefault("seen", []).append(
                    SimpleNamespace(score=score[0].clone(), visual=rows.visual[0].clone(), memory=layers)
                )
                return score

            def on_modules(self, rows: Any, module: str, before: Tensor, after: Tensor, memory: dict):
                super().on_modules(rows, module, before, after, memory)
                name = f"layer{rows.layer}"
                memory[name] = memory.get(name, 0.0) + transition(before, after, rows.valid)

        return Recorded


def doubled(case: Case) -> bool:
    """The drop-in that keeps the keys of one layer twice: documentation of a defect, no target."""
    lengths = case["cache_lens"].tolist()
    return any(later > earlier for earlier, later in pairwise(lengths))


CHECKS: Checks = [
    (lambda c: set(c.tensors) == {"before", "after", "out"}, check_transition),
    (lambda c: c.has("inputs_embeds", "layer_list", "acc_list", "final_hidden"), check_transprune),
    (lambda c: c.has("inputs_embeds", "K", "R", "kept_rel", "final_hidden") and not doubled(c), check_fastv),
]
