"""Inputs and outputs of the official implementations, against ours.

Every case of every `*.safetensors` file in VTC_GOLDEN_DIR (default: tests/golden) is compared by what it contains: the
names of its tensors say which check applies, so files with other cases, sizes and seeds run through the same checks.
"""

import json
import math
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from golden_stub import Run, stub
from safetensors import safe_open
from torch import Tensor
from torch.testing import assert_close

from vtc import DivPrune, FastV, HiPrune, KCenter, TransPrune, VisualTokens, ops
from vtc.adapters.qwen_vl import QwenVLAdapter
from vtc.layout import Grid
from vtc.prunes.transprune import transition
from vtc.recorded import Features
from vtc.reduction import top_k
from vtc.scores import attention_received
from vtc.selectors.divprune import max_min_order
from vtc.selectors.hiprune import anchor_count, hiprune
from vtc.selectors.kcenter import cls_pivot, k_center_order

FOLDER = Path(os.environ.get("VTC_GOLDEN_DIR") or Path(__file__).parent / "golden")
SCORE, HIDDEN = {"rtol": 0, "atol": 1e-5}, {"rtol": 0, "atol": 1e-4}
#: A cut between scores closer than this (relative to the largest) may fall either way.
SAFE_GAP = 1e-4


@dataclass
class Case:
    """One case: its tensors by name, and what the file's metadata says of it."""

    file: Path
    name: str
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def has(self, *keys: str) -> bool:
        return all(key in self.tensors for key in keys)

    @property
    def tie(self) -> bool | str:
        """Whether the official result depends on how ties fall; a text says in what."""
        if "tie" in self.info or "features" not in self:
            return self.info.get("tie", False)
        return len(set(same_rows(self["features"]))) < len(self["features"])


@cache
def read(file: Path) -> dict[str, Case]:
    """The cases of a file, weights among them."""
    with safe_open(file, "pt") as opened:
        infos = json.loads((opened.metadata() or {}).get("cases", "{}"))
        cases: dict[str, Case] = {}
        for key in opened.keys():  # noqa: SIM118 (no dict)
            known = [name for name in infos if key.startswith((name + "/", name + "."))]
            name = max(known, key=len) if known else key.split("/" if "/" in key else ".", 1)[0]
            case = cases.setdefault(name, Case(file, name, infos.get(name, {}), {}))
            case.tensors[key[len(name) + 1 :]] = opened.get_tensor(key)
    return cases


def discovered() -> list[Any]:
    return [
        pytest.param(case, id=f"{file.stem}-{name}")
        for file in sorted(FOLDER.glob("*.safetensors"))
        for name, case in read(file).items()
        if not name.startswith("weights")
    ]


@pytest.mark.parametrize("case", discovered())
def test_golden(case: Case) -> None:
    for applies, check in CHECKS:
        if applies(case):
            check(case)
            return
    pytest.skip(f"no method of this release has a check for {', '.join(sorted(case.tensors))[:100]}")


def test_the_default_folder_covers_every_method_of_this_release() -> None:
    if "VTC_GOLDEN_DIR" in os.environ:
        pytest.skip("another folder was asked for")
    checked = {check.__name__ for param in discovered() for applies, check in CHECKS if applies(param.values[0])}
    assert {check.__name__ for _, check in CHECKS} == checked


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
        distance = 1 - ops._nearest_other(ops._unit_rows(features[None])[0])[0]
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
        scores.append(attention_received(query, key, query.shape[-1] ** -0.5)[:, 1:])
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
    adapter._window_index = lambda features: index
    features = Features(kind="image", arguments={"image_grid_thw": torch.tensor([[1, 1, 1]])}, sizes=[len(index)])
    for key in [key for key in case.tensors if key.startswith("attn_layer")]:
        attention = case[key].mean(dim=0)
        (tokens,) = adapter.to_tokens(attention.mean(dim=0)[None], features, [len(index)])
        assert_close(tokens * len(attention), case[key.replace("attn", "score")], **SCORE)


# ---------------------------------------------------------------- transprune, fastv


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

            def on_modules(self, layer: int, module: str, before: Tensor, after: Tensor, valid: Tensor, memory: dict):
                super().on_modules(layer, module, before, after, valid, memory)
                memory[f"layer{layer}"] = memory.get(f"layer{layer}", 0.0) + transition(before, after, valid)

        return Recorded


# ---------------------------------------------------------------- which check is for which tensors


def one_image(features: Tensor, grid: tuple[int, int], received: dict[int, Tensor] | None = None) -> VisualTokens:
    separators = torch.zeros(len(features), dtype=torch.bool)
    return VisualTokens(features[None], (Grid(0, 1, *grid),), separators, received=received or {})


def same_rows(features: Tensor) -> list[int]:
    """A number for each row; equal rows have equal numbers."""
    return features.unique(dim=0, return_inverse=True)[1].tolist()


def doubled(case: Case) -> bool:
    """The drop-in that keeps the keys of one layer twice: documentation of a defect, no target."""
    lengths = case["cache_lens"].tolist()
    return any(later > earlier for earlier, later in pairwise(lengths))


def named(case: Case, pattern: str) -> bool:
    return any(re.fullmatch(pattern, key) for key in case.tensors)


CHECKS: list[tuple[Callable[[Case], bool], Callable[[Case], None]]] = [
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
    (lambda c: set(c.tensors) == {"before", "after", "out"}, check_transition),
    (lambda c: c.has("inputs_embeds", "layer_list", "acc_list", "final_hidden"), check_transprune),
    (lambda c: c.has("inputs_embeds", "K", "R", "kept_rel", "final_hidden") and not doubled(c), check_fastv),
]
