"""Golden checks of tome, diffrate and flowcut."""

import re
from dataclasses import replace
from typing import Any

import torch
from golden_cases import HIDDEN, SCORE, Case, Checks, named, read
from reducer_driver import Block, Run, quick_gelu, run_tower
from torch import Tensor
from torch.testing import assert_close

from vtc import DiffRate, FlowCut, Reduction, ToMe, ops
from vtc.attention.scores import Attention
from vtc.method.patches import Patches
from vtc.method.prune import Rows
from vtc.ops.mixing import Mixing
from vtc.reducers.diffrate import grown_sizes, match_unimportant, mean_of_merged
from vtc.reducers.diffrate_rates import candidates, expected_kept, token_mask, token_probability
from vtc.reducers.flowcut import FlowCutPrune, flow_score, prune_number, tower_flow
from vtc.reducers.tome import bipartite_merge, mean_by_size, merge_patches, merge_schedule


def vit_blocks(case: Case) -> list[Block]:
    """The blocks of the small ViT whose weights lie beside the case, in timm's names."""
    weights = read(case.file)[case.name.split("@")[0] + "/w"].tensors
    depth = len(case["in.r_per_layer" if "in.r_per_layer" in case else "in.prune_kept"])
    blocks = []
    for index in range(depth):

        def pair(name: str, prefix: str = f"blocks.{index}.") -> tuple[Tensor, Tensor]:
            return weights[f"{prefix}{name}.weight"], weights[f"{prefix}{name}.bias"]

        qkv = list(zip(*(x.chunk(3) for x in pair("attn.qkv"))))
        heads = 3
        blocks.append(
            Block(pair("norm1"), *qkv, pair("attn.proj"), pair("norm2"), pair("mlp.fc1"), pair("mlp.fc2"), heads)
        )
    return blocks


def stacked_blocks(weights: dict[str, Tensor], heads: int, eps: float, fused: bool = False) -> list[Block]:
    """Blocks of an encoder whose weights are stacked over layers, with quick-gelu."""
    depth = len(next(iter(weights.values())))

    def pair(name: str, index: int) -> tuple[Tensor, Tensor]:
        return weights[f"{name}_weight"][index], weights[f"{name}_bias"][index]

    def block(i: int) -> Block:
        if fused:
            qkv = zip(*(x.chunk(3) for x in pair("attn_qkv", i)))
            norm1, out, norm2 = (pair(name, i) for name in ("norm1", "attn_proj", "norm2"))
        else:
            qkv = (pair(f"self_attn_{name}_proj", i) for name in "qkv")
            norm1, out, norm2 = (pair(name, i) for name in ("layer_norm1", "self_attn_out_proj", "layer_norm2"))
        return Block(norm1, *qkv, out, norm2, pair("mlp_fc1", i), pair("mlp_fc2", i), heads, quick_gelu, eps)

    return [block(i) for i in range(depth)]


# ---------------------------------------------------------------- tome


def check_bipartite(case: Case) -> None:
    metric, x, sizes = case["in.metric"], case["in.x"], case["in.size"][..., 0]
    r, cls, distillation = case["in.r_cls_distill"].tolist()
    matching = bipartite_merge(metric, r, cls + distillation)
    kept = matching.kept.shape[1]
    assert (matching.source.shape[1] == 0) == bool(case["out.noop"])
    merged = ops.merge(x, mean_by_size(matching.group(), sizes, kept), kept)
    if case["out.noop"]:
        assert_close(merged, case["out.merge_mean"], **SCORE)
        return
    assert matching.source.shape[1] == int(case["out.r_effective"])
    sums = torch.zeros(len(sizes), kept).scatter_add_(1, matching.group(), sizes)
    if "tie" in case.name or "constant" in case.name:  # which of two equal pairs merges may differ, not how many
        assert merged.shape == case["out.wavg_x"].shape
        assert_close(sums.sum(), case["out.wavg_size"].sum(), **SCORE)
        weighted = (merged * sums[..., None]).sum(dim=1)
        assert_close(weighted, (case["out.wavg_x"] * case["out.wavg_size"]).sum(dim=1), **HIDDEN)
        unit = torch.nn.functional.normalize(metric, dim=-1)
        similarity = (unit @ unit.transpose(1, 2))[:, ::2, 1::2]
        image = torch.arange(len(unit))[:, None]
        source, target = (case[f"out.{name}_idx"].reshape_as(matching.source) for name in ("src", "dst"))
        ours, official = (
            similarity[image, matching.source // 2, matching.target // 2],
            similarity[image, source, target],
        )
        assert_close(ours, official, **SCORE)
        return
    assert torch.equal(matching.source, 2 * case["out.src_idx"].reshape_as(matching.source))
    assert torch.equal(matching.target, 2 * case["out.dst_idx"].reshape_as(matching.target) + 1)
    even = matching.kept[matching.kept % 2 == 0].reshape(len(metric), -1)
    assert torch.equal(even, 2 * case["out.unm_idx"].reshape(len(metric), -1))
    assert_close(merged, case["out.wavg_x"], **SCORE)
    assert_close(sums, case["out.wavg_size"][..., 0], **SCORE)
    plain = ops.merge(x, mean_by_size(matching.group(), torch.ones_like(sizes), kept), kept)
    assert_close(plain, case["out.wavg_x_unit"], **SCORE)
    if "out.source" in case:
        source = torch.zeros(len(metric), kept, metric.shape[1]).scatter_(1, matching.group()[:, None], 1.0)
        assert torch.equal(source, case["out.source"])


def check_merge_schedule(case: Case) -> None:
    official = case["out.schedule"].tolist()
    if "in.list" in case:
        layers = int(case["in.layers"])
        assert merge_schedule(layers, case["in.list"].tolist()) == official[:layers]
    else:
        layers, r, inflection = case["in.layers_r_inflect"].tolist()
        assert merge_schedule(int(layers), int(r), inflection) == official


def check_tome_tower(case: Case) -> None:
    blocks, hidden = vit_blocks(case), case["out.block0_in"]
    asked, proportional = case["in.r_per_layer"].tolist(), bool(case["in.prop_attn"])

    class Listed(ToMe):
        def reduce(self, patches: Patches) -> Reduction | None:
            return merge_patches(patches, asked[patches.stage])

    compare_tome(case, run_tower(blocks, hidden, Listed(proportional=proportional), 1))
    start = hidden.shape[1] - 1
    for inflection in (-1.0, 0.0, 1.0):  # what a budget makes of it, where the list is such a line
        r = sum(asked) // len(asked)
        if r and merge_schedule(len(asked), r, inflection) == asked and start > 2 * max(asked):
            method = ToMe(inflection=inflection, proportional=proportional)
            compare_tome(case, run_tower(blocks, hidden, method, start - sum(asked)))


def compare_tome(case: Case, run: Run) -> None:
    for index, output in enumerate(run.outputs):
        assert_close(output, case[f"out.block{index}"], **HIDDEN)
        if f"out.size{index}" in case:
            assert_close(run.sizes[index], case[f"out.size{index}"][:, 1:, 0], **SCORE)
    if "out.source_final" in case:
        assert torch.equal((run.source[-1] > 0).float(), case["out.source_final"][:, 1:, 1:])


# ---------------------------------------------------------------- diffrate


def check_diffrate_merge(case: Case) -> None:
    x, sizes = case["in.x"], case["in.size"][..., 0]
    kept, cls = case["in.kept_cls"].tolist()
    kept = min(kept, x.shape[1])
    similarity, target = match_unimportant(case["in.metric"], kept, bool(cls))
    assert_close(similarity, case["out.node_max"].reshape_as(similarity), **SCORE)
    if "tie" not in case.name:
        assert torch.equal(target, case["out.dst_idx"].reshape_as(target))
        row, weight = mean_of_merged(target, kept)
        source = torch.arange(x.shape[1]).expand_as(row)
        assert_close(ops.merge(x, Mixing(source, row, weight), kept), case["out.merge_mean"], **SCORE)
        assert_close(grown_sizes(sizes, similarity, target), case["out.size_similarity_weighted"][..., 0], **SCORE)
    else:
        total = case["out.size_similarity_weighted"].sum()
        assert_close(grown_sizes(sizes, similarity, target).sum(), total, rtol=1e-5, atol=1e-5)


def check_diffrate_proxy(case: Case) -> None:
    patches, granularity = case["in.patch_number_granularity"].tolist()
    counts = candidates(patches, granularity)
    assert torch.equal(counts, case["out.candidates"])
    logits = case["in.logits"].clone().requires_grad_()
    kept = expected_kept(logits, counts)
    assert_close(kept.detach(), case["out.kept"].reshape(()), **SCORE)
    (gradient,) = torch.autograd.grad(kept, logits)
    assert_close(gradient, case["out.dkept_dlogits"], **SCORE)
    assert_close(expected_kept(torch.zeros_like(counts), counts), case["out.kept_at_zero_logits"].reshape(()), **SCORE)
    probability = token_probability(logits, counts)
    assert_close(probability, case["out.token_probability"].reshape_as(probability), **SCORE)
    mask = token_mask(probability, kept)
    assert_close(mask, case["out.token_mask"].reshape_as(mask), **SCORE)
    assert torch.autograd.grad(mask.sum(), logits)[0].abs().sum() > 0
    for key in case.tensors:
        if found := re.fullmatch(r"out\.token_mask_from_(\d+)", key):
            later = token_mask(probability, kept, present=int(found[1]))
            assert_close(later, case[key].reshape_as(later), **SCORE)


def check_diffrate_tower(case: Case) -> None:
    blocks, hidden = vit_blocks(case), case["out.block0_in"]
    start = hidden.shape[1] - 1
    prune, merge = (tuple((k - 1) / start for k in case[f"in.{name}_kept"].tolist()) for name in ("prune", "merge"))
    target = round(min(merge[-1], *merge) * start)
    run = run_tower(blocks, hidden, DiffRate(prune=prune, merge=merge), target)
    for index, output in enumerate(run.outputs):
        ours, official = run.source[index] > 0, case[f"out.source{index}"][:, 1:, 1:] > 0
        same = (ours[:, :, None] == official[:, None]).all(dim=-1)  # official rows are sorted anew in every block
        assert (same.sum(dim=1) == 1).all() and (same.sum(dim=2) == 1).all()
        order = same.float().argmax(dim=1)
        rows = torch.cat([torch.zeros_like(order[:, :1]), order + 1], dim=1)
        aligned = output.gather(1, rows[..., None].expand(-1, -1, output.shape[2]))
        assert_close(aligned, case[f"out.block{index}"], **HIDDEN)
        assert_close(run.sizes[index].gather(1, order), case[f"out.size{index}"][:, 1:, 0], **SCORE)


# ---------------------------------------------------------------- flowcut


def check_flow_score(case: Case) -> None:
    strength = case["value_head_mean"].abs().sum(dim=-1)
    assert_close(flow_score(case["cls_attention"], strength, case["semantic_attention"]), case["score"], **SCORE)


def check_prune_number(case: Case) -> None:
    for row, remaining, target, count in case["table"].tolist():
        assert prune_number(case["attention"][row][None], target, remaining) == count


def check_prune_number_of_a_batch(case: Case) -> None:
    remaining, target = case.info["rpl"], case.info["target"]
    assert prune_number(case["attention"], target, remaining) == case.info["official"]
    assert [prune_number(row[None], target, remaining) for row in case["attention"]] == case.info["singles"]


def check_flowcut_encoder(case: Case) -> None:
    blocks = encoder_blocks(case)
    for key in case.tensors:
        if not (found := re.fullmatch(r"keep_(\d+)_b(\d)", key)):
            continue
        target, batch = int(found[1]), int(found[2])
        hidden = case["inputs_embeds"][:batch]
        run = run_tower(blocks, hidden, FlowCut(coupled=True), target, feature_layer=-2)
        compare_flowcut(run, hidden, case[f"lengths_{target}_b{batch}"], case[f"prunes_{target}_b{batch}"])
        assert torch.equal(run.ids[-2], case[key])
        if (name := f"features_{target}_b{batch}") in case:
            assert_close(run.outputs[-2][:, 1:], case[name], rtol=0, atol=case.info["atol"])
        alone = run_tower(blocks, hidden[:1], FlowCut(), target, feature_layer=-2)
        assert torch.equal(alone.ids[-2], case[f"keep_{target}_b1"])


def check_flowcut_degenerate(case: Case) -> None:
    encoder = read(case.file)["encoder"]
    hidden = encoder["inputs_embeds"][:1, : int(case["lengths"][0])]
    blocks = encoder_blocks(encoder)
    if "uniform" in case.name:
        blocks = [replace(block, query=tuple(torch.zeros_like(w) for w in block.query)) for block in blocks]
    target = case.info.get("target", hidden.shape[1])
    run = run_tower(blocks, hidden, FlowCut(coupled=True), target, feature_layer=-2)
    compare_flowcut(run, hidden, case["lengths"], case.tensors.get("prunes", torch.empty(0, 3)))


def compare_flowcut(run: Run, hidden: Tensor, lengths: Tensor, prunes: Tensor) -> None:
    assert [hidden.shape[1], *(units + 1 for units in run.units)] == lengths.tolist()
    assert dropped(run, forced=False) == prunes.tolist()


def dropped(run: Run, forced: bool) -> list[list[int]]:
    """[units, remaining blocks, dropped] of every block that decides how many go; with the last one where `forced`."""
    found = []
    for patches, reduction in run.calls:
        remaining = patches.stages - 1 - patches.stage
        if patches.units > patches.target and remaining % 2 == 0 and (remaining or forced):
            left = patches.units if reduction is None else reduction.kept.shape[1]
            found.append([patches.units, remaining, patches.units - left])
    return found


def encoder_blocks(case: Case) -> list[Block]:
    weights = {key[2:]: value for key, value in case.tensors.items() if key.startswith("w.")}
    return stacked_blocks(weights, case.info["heads"], case.info["layer_norm_eps"])


def check_flowcut_llm(case: Case) -> None:
    heads, tokens, dim = case["visual_k"].shape
    text = torch.randn(heads, 5, dim, generator=torch.Generator().manual_seed(0))

    def sequence(visual: Tensor, last: Tensor) -> Tensor:
        return torch.cat([text[:, :3], visual, text[:, 3:], last[:, None]], dim=1)[None]

    key, value = sequence(case["visual_k"], case["text_q"]), sequence(case["visual_v"], case["text_v"])
    query = sequence(torch.zeros_like(case["visual_k"]), case["text_q"])
    visual = torch.zeros(1, key.shape[2], dtype=torch.bool)
    visual[:, 3 : 3 + tokens] = True
    method, memory = FlowCutPrune(keep=int(case.info["target"])), {}
    rows: Any = Rows(2, torch.zeros(1, key.shape[2], 4), visual, torch.ones_like(visual), ~visual, None)
    method.on_attention(rows, Attention(query, key, dim**-0.5, value=value), memory)
    score = method.score(rows, memory)[visual]
    assert_close(score, case["score"].flatten(), **SCORE)
    kept = Reduction.top(score[None], method.count(tokens)).kept[0]
    assert torch.equal(kept, case["keep"])


def check_flowcut_qwen_score(case: Case) -> None:
    strength = case["value"].abs().sum(dim=-1)[None]
    for key in ("score", "score_llava_form"):
        assert_close(flow_score(case["relation"], strength, case["semantic"]), case[key], **SCORE)


def check_flowcut_qwen_tower(case: Case) -> None:
    weights = {key[2:]: value for key, value in case.tensors.items() if key.startswith("w.")}
    blocks = stacked_blocks(weights, case.info["heads"], 1e-6, fused=True)
    hidden, target = case["patch_embeds"][None], case.info["tower_target_patches"]
    rotary = case["rotary"][None]
    run = run_tower(blocks, hidden, FlowCut(), target, prefix=0, rotary=rotary)
    score, attention = tower_flow(run.calls[0][0])
    assert_close(attention[0], case["attn_layer0"], **SCORE)
    assert_close(score[0] * attention.sum(), case["scores_layer0"], **HIDDEN)
    assert [len(hidden[0]), *run.units[:-1]] == case["lengths"].tolist()
    assert dropped(run, forced=False) == case["prunes"].tolist()
    norm = torch.nn.functional.layer_norm(
        run.outputs[-1][0], hidden.shape[-1:], case["m.ln_q_weight"], case["m.ln_q_bias"], 1e-6
    )
    joined = torch.nn.functional.linear(norm.reshape(target // 4, -1), case["m.mlp_0_weight"], case["m.mlp_0_bias"])
    merged = torch.nn.functional.linear(torch.nn.functional.gelu(joined), case["m.mlp_2_weight"], case["m.mlp_2_bias"])
    assert_close(merged, case["merged"], rtol=0, atol=case.info["atol"])


CHECKS: Checks = [
    (lambda c: c.has("in.metric", "in.size", "in.r_cls_distill", "out.noop"), check_bipartite),
    (lambda c: "out.schedule" in c and ("in.list" in c or "in.layers_r_inflect" in c), check_merge_schedule),
    (lambda c: c.has("in.r_per_layer", "in.prop_attn", "out.block0_in"), check_tome_tower),
    (lambda c: c.has("in.metric", "in.kept_cls", "out.node_max"), check_diffrate_merge),
    (lambda c: c.has("in.logits", "in.patch_number_granularity"), check_diffrate_proxy),
    (lambda c: c.has("in.prune_kept", "in.merge_kept", "out.block0_in"), check_diffrate_tower),
    (lambda c: c.has("cls_attention", "semantic_attention", "value_head_mean"), check_flow_score),
    (lambda c: set(c.tensors) == {"attention", "table"} and c["table"].shape[1] == 4, check_prune_number),
    (lambda c: set(c.tensors) == {"attention"} and "rpl" in c.info, check_prune_number_of_a_batch),
    (lambda c: "inputs_embeds" in c and named(c, r"keep_\d+_b\d"), check_flowcut_encoder),
    (lambda c: "lengths" in c and set(c.tensors) <= {"lengths", "prunes", "keep"}, check_flowcut_degenerate),
    (lambda c: c.has("text_q", "text_v", "visual_k", "visual_v"), check_flowcut_llm),
    (lambda c: c.has("relation", "semantic", "value", "score"), check_flowcut_qwen_score),
    (lambda c: c.has("patch_embeds", "rotary", "scores_layer0", "merged"), check_flowcut_qwen_tower),
]
