"""Golden checks of transprune and fastv, and what all checks of prunes inside a decoder share."""

import re
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from golden_cases import HIDDEN, SCORE, Case, Checks, Form, as_keep, read
from golden_stub import Run, depth_of, stub
from torch import Tensor
from torch.testing import assert_close

from vtc import FastV, TransPrune
from vtc.method.budget import Keep
from vtc.method.prune import Decision, Rows
from vtc.prunes.transprune import transition


def check_transition(case: Case) -> None:
    # The official softmax is over the whole batch: one row for us.
    before, after = (case[key].flatten(0, -2)[None] for key in ("before", "after"))
    assert_close(transition(before, after)[0], case["out"].flatten(), **SCORE)


def check_transprune(case: Case) -> None:
    layers, keeps = tuple(case.indices("layer_list")), case.keeps("ratio_list", shares=True)
    method = recorded(TransPrune)(layers=layers, keeps=keeps)
    accumulated = [layer - 1 for layer in case.indices("acc_list")]
    assert list(method.watch(depth_of(weights_of(case)[0])).modules) == accumulated

    def terms(stage: int) -> None:
        seen = method.seen[stage]
        names = case.named(rf"stage{stage}_ttv_term(\d+)")
        held = [key for key in seen.memory if key.startswith("layer")]
        assert [f"layer{accumulated[int(name[1])]}" for name in names] == held[: len(names)]
        for name, key in zip(names, held):
            assert_close(seen.memory[key][0], case[name[0]], **SCORE)

    check_stages(case, method, terms)


def check_stages(case: Case, method: Any, look: Callable[[int], None] | None = None) -> None:
    """A prune with several layers: scores, counts, who survives, and the hidden states; `look` at more of a stage."""
    run = run_through_the_seam(case, method)
    check_cache(case, run)
    assert len(method.layers) == len(case.named(r"stage\d+_survivors"))
    alive = torch.arange(run.length)
    text = {place for place in range(run.length) if not run.visual[place]}
    for stage, layer in enumerate(method.layers):
        count, score = method.count_at(stage, case.whole("n_image")), case[f"stage{stage}_score"]
        assert count == case.whole(f"stage{stage}_keep", default=count)
        if stage in method.seen:
            seen = method.seen[stage]
            assert_close(seen.score[seen.visual], score, **SCORE)
            if look is not None:
                look(stage)
        else:
            assert count == len(score), f"{case}: stage {stage} leaves {count} of {len(score)} without a score"
        if count < len(score) and not case.safe(f"stage{stage}_relgap_at_k"):
            return  # which tokens go is rounding noise here, and everything after depends on it
        survivors = run.survivors(layer)
        assert survivors == case.indices(f"stage{stage}_survivors")
        relative = torch.isin(alive[run.visual[alive]], torch.tensor(survivors)).nonzero()[:, 0]
        if (key := f"stage{stage}_kept_rel") in case:
            assert relative.tolist() == sorted(case.indices(key))
        if (key := f"stage{stage}_position_ids") in case:  # survivors are numbered anew
            assert method.positions == "packed" and case.indices(key) == list(range(len(survivors)))
        assert text <= set(survivors)
        alive = torch.tensor(survivors)
    if "survivors" in case:
        assert run.survivors(-1) == case.indices("survivors")
    compare_hidden(case, run)


def kept_of(case: Case) -> Keep:
    """What stays in front of layer K: R is the share that goes, or how many; without R the file has the count alone."""
    tokens = case.whole("n_image")
    if "R" not in case:
        return case.whole("keep")
    gone = as_keep(case.number("R"))
    if isinstance(gone, int):
        return tokens - gone
    # No share of 0 can be asked for; one that rounds to no token can.
    return max(round(1 - gone, 6), 1e-9)


def check_fastv(case: Case) -> None:
    tokens, start = case.whole("n_image"), case.whole("image_start")
    method = recorded(FastV)(layer=case.whole("K"), keep=kept_of(case))
    assert method.count_at(0, tokens) == case.whole("keep", default=len(case["kept_rel"]))
    run = run_through_the_seam(case, method)
    twice = doubled(case)
    if twice:
        run.cache_lengths[case.whole("K") - 1] *= 2
    check_cache(case, run)
    if 0 in method.seen:
        seen = method.seen[0]
        assert_close(seen.score[seen.visual], case["score"], **SCORE)
    else:
        assert method.count_at(0, tokens) == tokens, f"{case}: tokens went without a score"
    if not case.safe("relgap_at_k"):
        return
    kept = [place - start for place in run.survivors(-1) if run.visual[place]]
    assert kept == sorted(case.indices("kept_rel"))
    compare_hidden(case, run, decoded=not twice)
    if "final_hidden_mask_variant" in case:
        alive = torch.tensor(run.survivors(-1))
        assert_close(run.hidden[alive], case["final_hidden_mask_variant"][alive], **HIDDEN)


def doubled(case: Case) -> bool:
    """The drop-in that keeps the keys of layer K-1 twice: its prefill is right, what it decodes then is no target."""
    if "decode_embed" in case or "cache_lens" not in case:
        return False
    return case.indices("cache_lens")[case.whole("K") - 1] == 2 * len(inputs_of(case)["inputs_embeds"])


def weights_of(case: Case) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The decoder of a case and what the file says of its sizes; some of its weights are zero where it says so."""
    there = [name for name in read(case.file) if name.startswith("weights")]
    words = case.text("weights", default=there[0] if len(there) == 1 else "weights")
    weights = case.beside(words.split()[0])
    tensors = weights.reals()
    for name in re.findall(r"every (\S+) set to 0", words):
        named = {key: torch.zeros_like(value) for key, value in tensors.items() if key.endswith(name)}
        assert named, f"{case}: no weight is named {name}"
        tensors |= named
    return tensors, {**weights.of_file, **weights.info}


def inputs_of(case: Case) -> Case:
    """The case that has the inputs: itself, or the one that it names."""
    if "inputs_embeds" in case:
        return case
    named = [name for name in read(case.file) if re.search(rf"\b{re.escape(name)}\b", case.text("inputs"))]
    assert named, f"{case} has no inputs, and names no case that has"
    return case.beside(max(named, key=len))


def run_through_the_seam(case: Case, method: Any) -> Run:
    """Prefill and a decode step of the case's decoder, in a stub of a vision-language model patched with `method`."""
    embeds = inputs_of(case)["inputs_embeds"]
    visual = torch.zeros(len(embeds), dtype=torch.bool)
    visual[case.whole("image_start") :][: case.whole("n_image")] = True
    return stub(*weights_of(case)).run(method, embeds, visual, case.get("decode_embed"))


def check_cache(case: Case, run: Run) -> None:
    if "cache_lens" in case:
        assert run.cache_lengths == case.indices("cache_lens")


def compare_hidden(case: Case, run: Run, decoded: bool = True) -> None:
    alive = torch.tensor(run.survivors(-1))
    assert_close(run.hidden[alive], case["final_hidden"], **HIDDEN)
    kept = set(alive.tolist())
    for place in sorted(set(range(run.length)) - kept):  # zeros, but what comes next is predicted from a survivor
        ends = place + 1 in kept or place == run.length - 1
        before = [other for other in kept if other < place] if ends else []
        assert torch.equal(run.hidden[place], run.hidden[max(before)] if before else torch.zeros_like(run.hidden[0]))
    if decoded and "decode_hidden" in case:
        assert_close(run.decoded, case["decode_hidden"], **HIDDEN)


def tensors_of(memory: dict[str, Any]) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in memory.items() if isinstance(value, Tensor)}


def recorded(prune: type) -> Callable[..., Any]:
    """The prune, with `seen`: for each stage at which it chose, what it saw, scored and decided."""

    class Recorded(prune):  # type: ignore[misc, valid-type]
        @property
        def seen(self) -> dict[int, Any]:
            return self.__dict__.setdefault("seen_by_stage", {})

        def note(self, stage: int, **what: Any) -> None:
            self.seen.setdefault(stage, SimpleNamespace()).__dict__.update(what)

        def score(self, rows: Rows, memory: dict[str, Tensor]) -> Tensor:
            score = super().score(rows, memory)
            self.note(rows.stage, score=score[0].clone(), visual=rows.visual[0].clone(), memory=tensors_of(memory))
            return score

        def decide(self, rows: Rows, counts: Any, memory: dict[str, Tensor]) -> Decision:
            decision = super().decide(rows, counts, memory)
            if decision.hidden is not None:
                entered, after = (replace(one, hidden=one.hidden.clone()) for one in (rows, decision))
                self.note(rows.stage, rows=entered, decision=after, memory=tensors_of(memory))
            return decision

        def on_modules(self, rows: Rows, module: str, before: Tensor, after: Tensor, memory: dict) -> None:
            super().on_modules(rows, module, before, after, memory)
            if issubclass(prune, TransPrune):  # it holds their sum alone
                name = f"layer{rows.layer}"
                memory[name] = memory.get(name, 0.0) + transition(before, after, rows.valid)

    return Recorded


#: Names that cases of prunes inside a decoder have in common.
COMMON = r"inputs_embeds|image_start|n_image|cache_lens|final_hidden|decode_embed|decode_hidden"
STAGES = r"layer_list|ratio_list|survivors|stage\d+_(score|keep|kept_rel|survivors|position_ids)"

CHECKS: Checks = [
    Form(lambda c: set(c.tensors) == {"before", "after", "out"}, check_transition, r"before|after|out"),
    Form(
        lambda c: c.has("inputs_embeds", "layer_list", "acc_list", "final_hidden"),
        check_transprune,
        rf"{COMMON}|{STAGES}|acc_list|stage\d+_ttv_term\d+",
    ),
    Form(
        lambda c: c.has("image_start", "n_image", "K", "kept_rel", "final_hidden"),
        check_fastv,
        rf"{COMMON}|K|R|keep|kept_rel|score|final_hidden_mask_variant",
    ),
]
