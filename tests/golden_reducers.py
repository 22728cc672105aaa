"""Golden checks of tome, diffrate and flowcut."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from golden_cases import HIDDEN, SCORE, Case, Checks, Form, UnknownForm, as_whole, read
from reducer_driver import Block, Run, Weights, quick_gelu, run_tower
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu
from torch.testing import assert_close
from transformers.models.llava_next.modeling_llava_next import unpad_image

from vtc import DiffRate, FlowCut, Reduction, ToMe, ops
from vtc.attention.scores import Attention
from vtc.method.patches import Patches
from vtc.method.prune import Rows
from vtc.ops.mixing import Mixing
from vtc.ops.similarity import nearest, unit_rows
from vtc.reducers.diffrate import grown_sizes, match_unimportant, mean_of_merged
from vtc.reducers.diffrate_rates import candidates, expected_kept, token_mask, token_probability
from vtc.reducers.flowcut import FlowCutPrune, flow_score, prune_number, tower_flow
from vtc.reducers.tome import bipartite_merge, mean_by_size, merge_patches, merge_schedule

#: Heads and epsilon of the small ViTs where neither the file nor its numbers say: those of the documented ones.
VIT_HEADS, VIT_EPS = 3, 1e-6
#: The same of encoders whose weights are stacked over layers.
ENCODER_EPS, FUSED_EPS = 1e-5, 1e-6
#: The output that a vision-language model reads of such an encoder.
FEATURE_LAYER = -2

ACTIVATIONS = {"quick_gelu": quick_gelu, "gelu": gelu, "gelu_tanh": partial(gelu, approximate="tanh"), "silu": silu}


def activation_of(case: Case, default: str) -> Callable[[Tensor], Tensor]:
    name = case.text("activation", "act", default=default)
    if name not in ACTIVATIONS:
        raise UnknownForm(f"{case}: activation={name!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


@dataclass
class SmallViT:
    """The small ViT of a case, in timm's names.

    Attributes:
        blocks: all that have weights.
        hidden: [G, P, D], what block 0 is given.
        prefix: tokens in front of the patches: the class token.
    """

    blocks: list[Block]
    hidden: Tensor
    prefix: int


def vit_of(case: Case, run: Callable[[SmallViT], Run]) -> SmallViT:
    """The ViT whose weights lie beside the case.

    The shape of a fused projection does not tell how many heads there are. Where the file does not either, it is the
    number with which the first block gives the file's output under `run`: another one does not come near. Where none
    does, the documented one: what differs is then for the comparison to show.
    """
    stem = case.name.split("@")[0]
    names = [name for name in (stem, stem + "/w") if name in read(case.file)]
    of = [case, *map(case.beside, names)]
    weights = case.beside(stem + "/w").reals()
    hidden = case["out.block0_in"]
    width = weights["blocks.0.attn.qkv.weight"].shape[0] // 3  # of all heads
    prefix = 1
    if "in.image" in case and "patch_embed.proj.weight" in weights:
        rows, columns = (
            side // patch
            for side, patch in zip(case["in.image"].shape[-2:], weights["patch_embed.proj.weight"].shape[-2:])
        )
        prefix = hidden.shape[1] - rows * columns
    if prefix not in (0, 1):
        raise UnknownForm(f"{case} has {prefix} tokens in front of the patches; read are a class token or none")
    eps = said_by(of, "eps", "layer_norm_eps", "norm_eps")
    made = partial(vit_blocks, weights, eps=VIT_EPS if eps is None else eps, activation=activation_of(case, "gelu"))
    heads, head_dim = said_by(of, "heads", "num_heads", "n_heads"), said_by(of, "head_dim")
    if heads is None and head_dim is not None:
        heads = width / head_dim
    if heads is not None:
        return SmallViT(made(as_whole(heads, f"{case}: heads")), hidden, prefix)
    divisors = [n for n in (VIT_HEADS, *range(1, width + 1)) if width % n == 0]
    for number in divisors:
        vit = SmallViT(made(number)[:1], hidden, prefix)
        output = run(vit).outputs[0]
        official = case["out.block0"]
        if output.shape == official.shape and torch.allclose(output.sum(dim=1), official.sum(dim=1), **HIDDEN_SUM):
            return replace(vit, blocks=made(number))
    return SmallViT(made(divisors[0]), hidden, prefix)


#: Rows of a block may come in another order: their sums are compared to tell heads apart, nothing else is.
HIDDEN_SUM = {"rtol": 0, "atol": 1e-3}


def said_by(cases: list[Case], *names: str) -> float | None:
    """The first number that one of the cases has under one of the names, also as `in.<name>` or `config.<name>`."""
    everywhere = [f"{before}{name}" for name in names for before in ("", "in.", "config.")]
    found = [case.number(*everywhere, default=None) for case in cases]
    return next((number for number in found if number is not None), None)


def vit_blocks(
    weights: dict[str, Tensor], heads: int, eps: float, activation: Callable[[Tensor], Tensor]
) -> list[Block]:
    depth = 1 + max(int(key.split(".")[1]) for key in weights if key.startswith("blocks."))
    blocks = []
    for index in range(depth):

        def pair(name: str, prefix: str = f"blocks.{index}.") -> Weights:
            return weights[f"{prefix}{name}.weight"], weights.get(f"{prefix}{name}.bias")

        mlp = pair("norm2"), pair("mlp.fc1"), pair("mlp.fc2")
        blocks.append(
            Block(pair("norm1"), *in_three(pair("attn.qkv")), pair("attn.proj"), *mlp, heads, activation, eps)
        )
    return blocks


def in_three(fused: Weights) -> list[Weights]:
    """Query, key and value of a projection to all of them."""
    weight, bias = fused
    biases = (None,) * 3 if bias is None else bias.chunk(3)
    return list(zip(weight.chunk(3), biases))


def stacked_blocks(case: Case, fused: bool = False) -> list[Block]:
    """Blocks of an encoder whose weights `w.*` are stacked over layers."""
    weights = case.reals("w.")
    depth = len(next(iter(weights.values())))
    heads = case.whole("heads", "num_heads", default=None)
    if heads is None:
        width = weights["attn_qkv_weight"].shape[1] // 3 if fused else weights["self_attn_q_proj_weight"].shape[1]
        # A rotary table has half a head's width.
        head_dim = 2 * case["rotary"].shape[-1] if "rotary" in case else case.whole("head_dim")
        heads = width // head_dim
    eps = case.number("layer_norm_eps", "eps", default=FUSED_EPS if fused else ENCODER_EPS)
    activation = activation_of(case, "quick_gelu")

    def pair(name: str, index: int) -> Weights:
        biases = weights.get(f"{name}_bias")
        return weights[f"{name}_weight"][index], None if biases is None else biases[index]

    def block(i: int) -> Block:
        if fused:
            qkv = in_three(pair("attn_qkv", i))
            norm1, out, norm2 = (pair(name, i) for name in ("norm1", "attn_proj", "norm2"))
        else:
            qkv = [pair(f"self_attn_{name}_proj", i) for name in "qkv"]
            norm1, out, norm2 = (pair(name, i) for name in ("layer_norm1", "self_attn_out_proj", "layer_norm2"))
        return Block(norm1, *qkv, out, norm2, pair("mlp_fc1", i), pair("mlp_fc2", i), heads, activation, eps)

    return [block(i) for i in range(depth)]


# ---------------------------------------------------------------- tome


def check_bipartite(case: Case) -> None:
    metric, x, sizes = case["in.metric"], case["in.x"], case["in.size"][..., 0]
    r, cls, distillation = case.indices("in.r_cls_distill")
    matching = bipartite_merge(metric, r, cls + distillation)
    kept = matching.kept.shape[1]
    noop = bool(case.whole("out.noop", default=0))
    assert (matching.source.shape[1] == 0) == noop
    merged = ops.merge(x, mean_by_size(matching.group(), sizes, kept), kept)
    if noop:
        assert_close(merged, x if case.get("out.merge_mean") is None else case["out.merge_mean"], **SCORE)
        return
    assert matching.source.shape[1] == case.whole("out.r_effective", default=case["out.src_idx"].shape[1])
    sums = torch.zeros(len(sizes), kept).scatter_add_(1, matching.group(), sizes)
    if case.names_a_tie:  # which of two equal pairs merges may differ, not how many
        assert merged.shape == case["out.wavg_x"].shape
        assert_close(sums.sum(), case["out.wavg_size"].sum(), **SCORE)
        weighted = (merged * sums[..., None]).sum(dim=1)
        assert_close(weighted, (case["out.wavg_x"] * case["out.wavg_size"]).sum(dim=1), **HIDDEN)
        unit = torch.nn.functional.normalize(metric, dim=-1)
        similarity = (unit @ unit.transpose(1, 2))[:, ::2, 1::2]
        image = torch.arange(len(unit))[:, None]
        source, target = (case.index(f"out.{name}_idx").reshape_as(matching.source) for name in ("src", "dst"))
        ours, official = (
            similarity[image, matching.source // 2, matching.target // 2],
            similarity[image, source, target],
        )
        assert_close(ours, official, **SCORE)
        return
    assert torch.equal(matching.source, 2 * case.index("out.src_idx").reshape_as(matching.source))
    assert torch.equal(matching.target, 2 * case.index("out.dst_idx").reshape_as(matching.target) + 1)
    if "out.unm_idx" in case:
        even = matching.kept[matching.kept % 2 == 0].reshape(len(metric), -1)
        assert torch.equal(even, 2 * case.index("out.unm_idx").reshape(len(metric), -1))
    assert_close(merged, case["out.wavg_x"], **SCORE)
    assert_close(sums, case["out.wavg_size"][..., 0], **SCORE)
    plain = ops.merge(x, mean_by_size(matching.group(), torch.ones_like(sizes), kept), kept)
    if "out.wavg_size_unit" in case:
        counted = torch.zeros(len(sizes), kept).scatter_add_(1, matching.group(), torch.ones_like(sizes))
        assert_close(counted, case["out.wavg_size_unit"][..., 0], **SCORE)
    for key in ("out.wavg_x_unit", "out.merge_mean"):
        if key in case:
            assert_close(plain, case[key], **SCORE)
    if "out.source" in case:
        source = torch.zeros(len(metric), kept, metric.shape[1]).scatter_(1, matching.group()[:, None], 1.0)
        assert torch.equal(source, case["out.source"])


def check_every_kth(case: Case) -> None:
    """The partition of every k-th row; no method of ours has it, what it is made of is: nearest rows, and means."""
    metric, x, k = case["in.metric"], case["in.x"], case.whole("in.k")
    if "out.dst_idx" not in case:
        assert k <= 1
        assert_close(x, case["out.merge_mean"], **SCORE)
        return
    place = torch.arange(x.shape[1] // k * k)  # what is left over at the end goes
    last = place % k == k - 1
    unit = unit_rows(metric)
    target = nearest(unit[:, place[~last]], unit[:, place[last]])[1]
    assert torch.equal(target, case.index("out.dst_idx").reshape_as(target))
    rows = int(last.sum())
    group = torch.zeros(len(x), len(place), dtype=torch.long)
    group[:, last], group[:, ~last] = torch.arange(rows), target
    mixing = mean_by_size(group, torch.ones(group.shape), rows)
    assert_close(ops.merge(x[:, : len(place)], mixing, rows), case["out.merge_mean"], **SCORE)


def check_merge_schedule(case: Case) -> None:
    official = case.indices("out.schedule")
    if "in.list" in case:
        layers = case.whole("in.layers")
        assert merge_schedule(layers, case.indices("in.list")) == official[:layers]
    else:
        layers, r, inflection = case["in.layers_r_inflect"].tolist()
        assert merge_schedule(round(layers), round(r), inflection) == official


def check_tome_tower(case: Case) -> None:
    proportional = bool(case.whole("in.prop_attn", default=1))
    given = case.index("in.r_per_layer").tolist()

    def asked_of(vit: SmallViT) -> list[int]:
        return merge_schedule(len(vit.blocks), given)  # one number is for all blocks

    def listed(vit: SmallViT) -> Run:
        asked = asked_of(vit)

        class Listed(ToMe):
            def reduce(self, patches: Patches) -> Reduction | None:
                return merge_patches(patches, asked[patches.stage])

        return run_tower(vit.blocks, vit.hidden, Listed(proportional=proportional), 1, prefix=vit.prefix)

    vit = vit_of(case, listed)
    compare_tome(case, listed(vit), vit.prefix)
    start, asked = vit.hidden.shape[1] - vit.prefix, asked_of(vit)
    # A block merges half of what it finds at most: what the file's blocks did, not what they were asked for.
    rows = [vit.hidden.shape[1], *(case[f"out.block{index}"].shape[1] for index in range(len(vit.blocks)))]
    did = [before - after for before, after in pairwise(rows)]
    assert did == [min(r, (before - vit.prefix) // 2) for r, before in zip(asked, rows)]
    # What a budget makes of it, where the list is a line of such merges. A budget lets later blocks take what one could
    # not, and a list does not: a list that was not carried out in full is compared as a list alone.
    r = sum(asked) // len(asked)
    for inflection in (-1.0, 0.0, 1.0):
        if r and did == asked == merge_schedule(len(asked), r, inflection):
            method = ToMe(inflection=inflection, proportional=proportional)
            budgeted = run_tower(vit.blocks, vit.hidden, method, start - sum(did), prefix=vit.prefix)
            compare_tome(case, budgeted, vit.prefix)


def compare_tome(case: Case, run: Run, prefix: int) -> None:
    assert len(run.outputs) == len(case.named(r"out\.block\d+"))
    for index, output in enumerate(run.outputs):
        assert_close(output, case[f"out.block{index}"], **HIDDEN)
        if f"out.size{index}" in case:
            assert_close(run.sizes[index], case[f"out.size{index}"][:, prefix:, 0], **SCORE)
    if "out.source_final" in case:
        ours = (run.source[-1] > 0).float()
        assert torch.equal(ours, case["out.source_final"][:, prefix:, prefix:])


# ---------------------------------------------------------------- diffrate


def check_diffrate_merge(case: Case) -> None:
    x, sizes = case["in.x"], case["in.size"][..., 0]
    kept, cls = case.indices("in.kept_cls")
    kept = min(kept, x.shape[1])
    similarity, target = match_unimportant(case["in.metric"], kept, bool(cls))
    assert_close(similarity, case["out.node_max"].reshape_as(similarity), **SCORE)
    if not case.names_a_tie:
        assert torch.equal(target, case.index("out.dst_idx").reshape_as(target))
        row, weight = mean_of_merged(target, kept)
        source = torch.arange(x.shape[1]).expand_as(row)
        assert_close(ops.merge(x, Mixing(source, row, weight), kept), case["out.merge_mean"], **SCORE)
        assert_close(grown_sizes(sizes, similarity, target), case["out.size_similarity_weighted"][..., 0], **SCORE)
    else:
        total = case["out.size_similarity_weighted"].sum()
        assert_close(grown_sizes(sizes, similarity, target).sum(), total, rtol=1e-5, atol=1e-5)


def check_diffrate_proxy(case: Case) -> None:
    patches, granularity = case.indices("in.patch_number_granularity")
    counts = candidates(patches, granularity)
    assert torch.equal(counts, case["out.candidates"].to(counts.dtype))
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
    for found in case.named(r"out\.token_mask_from_(\d+)"):
        later = token_mask(probability, kept, present=int(found[1]))
        assert_close(later, case[found[0]].reshape_as(later), **SCORE)


def check_diffrate_tower(case: Case) -> None:
    official = [case[f"out.block{index}"] for index in range(len(case.named(r"out\.block\d+")))]

    def shares(name: str, vit: SmallViT) -> tuple[float, ...] | None:
        """What each block leaves of the patches; more than there are is all of them. None: the file does not say."""
        if f"in.{name}_kept" not in case:
            return None
        keeps, start = case.keeps(f"in.{name}_kept", shares=False), vit.hidden.shape[1] - vit.prefix
        counts = [keep if isinstance(keep, float) else (keep - vit.prefix) / start for keep in keeps]
        return tuple(min(share, 1.0) for share in counts)[: len(vit.blocks)]

    def compressed(vit: SmallViT) -> Run:
        blocks = len(vit.blocks)
        method = DiffRate(prune=shares("prune", vit), merge=shares("merge", vit))
        # What the file's blocks left, not what the last was asked for: an earlier one may have left less.
        return run_tower(vit.blocks, vit.hidden, method, official[blocks - 1].shape[1] - vit.prefix, prefix=vit.prefix)

    vit = vit_of(case, compressed)
    run, prefix = compressed(vit), vit.prefix
    assert len(run.outputs) == len(official)
    for index, output in enumerate(run.outputs):
        ours, theirs = run.source[index] > 0, case[f"out.source{index}"][:, prefix:, prefix:] > 0
        same = (ours[:, :, None] == theirs[:, None]).all(dim=-1)  # official rows are sorted anew in every block
        assert (same.sum(dim=1) == 1).all() and (same.sum(dim=2) == 1).all()
        order = same.float().argmax(dim=1)
        rows = torch.cat([torch.arange(prefix).expand(len(order), -1), order + prefix], dim=1)
        aligned = output.gather(1, rows[..., None].expand(-1, -1, output.shape[2]))
        assert_close(aligned, official[index], **HIDDEN)
        if (key := f"out.size{index}") in case:
            assert_close(run.sizes[index].gather(1, order), case[key][:, prefix:, 0], **SCORE)


# ---------------------------------------------------------------- flowcut


def check_flow_score(case: Case) -> None:
    strength = case["value_head_mean"].abs().sum(dim=-1)
    assert_close(flow_score(case["cls_attention"], strength, case["semantic_attention"]), case["score"], **SCORE)


def check_prune_number(case: Case) -> None:
    for row, remaining, target, count in case.indices("table"):
        assert prune_number(case["attention"][row][None], target, remaining) == count


def check_prune_number_of_a_batch(case: Case) -> None:
    remaining, target = case.whole("rpl"), case.whole("target")
    assert prune_number(case["attention"], target, remaining) == case.whole("official")
    if "singles" in case.info:
        assert [prune_number(row[None], target, remaining) for row in case["attention"]] == case.wholes("singles")


def check_flowcut_encoder(case: Case) -> None:
    blocks, layer = stacked_blocks(case), case.whole("feature_layer", default=FEATURE_LAYER)
    for found in case.named(r"keep_((\d+)_b(\d+))"):
        setting, target, batch = found[1], int(found[2]), int(found[3])
        hidden = case["inputs_embeds"][:batch]
        run = run_tower(blocks, hidden, FlowCut(coupled=True), target, feature_layer=layer)
        compare_flowcut(run, hidden, case, f"_{setting}")
        assert torch.equal(run.ids[layer], case.index(found[0]))
        if (name := f"features_{setting}") in case:
            assert_close(run.outputs[layer][:, 1:], case[name], rtol=0, atol=case.number("atol", default=1e-4))
        if (name := f"keep_{target}_b1") in case:
            alone = run_tower(blocks, hidden[:1], FlowCut(), target, feature_layer=layer)
            assert torch.equal(alone.ids[layer], case.index(name))


def check_flowcut_degenerate(case: Case) -> None:
    layers = len(case["lengths"]) - 1
    encoders = (other for other in read(case.file).values() if "inputs_embeds" in other)
    encoder = next((other for other in encoders if len(other["w.mlp_fc1_bias"]) == layers), None)
    if encoder is None:
        raise UnknownForm(f"{case}: the file has no encoder of {layers} layers")
    hidden = encoder["inputs_embeds"][:1, : case.indices("lengths")[0]]
    blocks = stacked_blocks(encoder)
    if "uniform" in case.name or "zeroed" in case.text("note"):
        blocks = [replace(block, query=tuple(torch.zeros_like(w) for w in block.query)) for block in blocks]
    target = case.whole("target", default=hidden.shape[1])
    layer = encoder.whole("feature_layer", default=FEATURE_LAYER)
    run = run_tower(blocks, hidden, FlowCut(coupled=True), target, feature_layer=layer)
    compare_flowcut(run, hidden, case)


def check_packed_crops(case: Case) -> None:
    """What each crop keeps, in the order of the joined tiles: that of transformers' packing, which our seam follows."""
    keep, official = case.index("keep"), case.index("sequence")
    columns, rows = case.wholes("grid_wh")
    width, height = case.wholes("image_size_wh")
    side = math.isqrt(case.whole("patches", default=576))  # of a crop: no shape tells
    numbers = torch.arange(len(keep) * side * side).view(-1, side * side)
    tiles = numbers[1:].view(rows, columns, side, side).transpose(1, 2).reshape(1, rows * side, columns * side)
    if "unpad" in case.name:
        tiles = unpad_image(tiles, (height, width))
    kept = torch.zeros(numbers.numel(), dtype=torch.bool)
    kept[(torch.arange(len(keep))[:, None] * side * side + keep).flatten()] = True
    order = torch.cat([numbers[0], tiles.flatten()])
    survivors = order[kept[order]]
    assert torch.equal(torch.stack([survivors // side**2, survivors % side**2], dim=1), official)


def compare_flowcut(run: Run, hidden: Tensor, case: Case, setting: str = "") -> None:
    if (name := f"lengths{setting}") in case:
        assert [hidden.shape[1], *(units + 1 for units in run.units)] == case.indices(name)
    if (name := f"prunes{setting}") in case:
        assert dropped(run, forced=False) == case.indices(name)
    elif not setting:
        assert not dropped(run, forced=False)


def dropped(run: Run, forced: bool) -> list[list[int]]:
    """[units, remaining blocks, dropped] of every block that decides how many go; with the last one where `forced`."""
    found = []
    for patches, reduction in run.calls:
        remaining = patches.stages - 1 - patches.stage
        if patches.units > patches.target and remaining % 2 == 0 and (remaining or forced):
            left = patches.units if reduction is None else reduction.kept.shape[1]
            found.append([patches.units, remaining, patches.units - left])
    return found


def check_flowcut_llm(case: Case) -> None:
    heads, tokens, dim = case["visual_k"].shape
    text = torch.randn(heads, 5, dim, generator=torch.Generator().manual_seed(0))

    def sequence(visual: Tensor, last: Tensor) -> Tensor:
        return torch.cat([text[:, :3], visual, text[:, 3:], last[:, None]], dim=1)[None]

    key, value = sequence(case["visual_k"], case["text_q"]), sequence(case["visual_v"], case["text_v"])
    query = sequence(torch.zeros_like(case["visual_k"]), case["text_q"])
    visual = torch.zeros(1, key.shape[2], dtype=torch.bool)
    visual[:, 3 : 3 + tokens] = True
    method, memory = FlowCutPrune(keep=case.whole("target", default=len(case["keep"]))), {}
    rows: Any = Rows(2, torch.zeros(1, key.shape[2], 4), visual, torch.ones_like(visual), ~visual, None)
    method.on_attention(rows, Attention(query, key, dim**-0.5, value=value), memory)
    score = method.score(rows, memory)[visual]
    assert_close(score, case["score"].flatten(), **SCORE)
    kept = Reduction.top(score[None], method.count(tokens)).kept[0]
    assert torch.equal(kept, case.index("keep"))


def check_flowcut_qwen_score(case: Case) -> None:
    strength = case["value"].abs().sum(dim=-1)[None]
    for found in case.named(r"score(_llava_form)?"):
        assert_close(flow_score(case["relation"], strength, case["semantic"]), case[found[0]], **SCORE)


def check_flowcut_qwen_tower(case: Case) -> None:
    blocks = stacked_blocks(case, fused=True)
    hidden, rotary = case["patch_embeds"][None], case["rotary"][None]
    width = hidden.shape[2]
    cell = case["m.mlp_0_weight"].shape[1] // width  # patches that make a token
    target = case.whole("tower_target_patches", default=cell * len(case["merged"]))
    run = run_tower(blocks, hidden, FlowCut(), target, prefix=0, rotary=rotary)
    score, attention = tower_flow(run.calls[0][0])
    assert_close(attention[0], case["attn_layer0"], **SCORE)
    assert_close(score[0] * attention.sum(), case["scores_layer0"], **HIDDEN)
    assert [len(hidden[0]), *run.units[:-1]] == case.indices("lengths")
    assert dropped(run, forced=False) == case.indices("prunes")
    eps = case.number("merger_eps", default=FUSED_EPS)
    norm = layer_norm(run.outputs[-1][0], (width,), case["m.ln_q_weight"], case["m.ln_q_bias"], eps)
    joined = linear(norm.reshape(target // cell, -1), case["m.mlp_0_weight"], case["m.mlp_0_bias"])
    merged = linear(gelu(joined), case["m.mlp_2_weight"], case["m.mlp_2_bias"])
    assert_close(merged, case["merged"], rtol=0, atol=case.number("atol", default=HIDDEN["atol"]))


_VIT = r"in\.(image|heads|num_heads|head_dim|eps)|out\.(block0_in|block\d+|size\d+|logits|flops)"

CHECKS: Checks = [
    Form(
        lambda c: c.has("in.metric", "in.x", "in.size", "in.r_cls_distill"),
        check_bipartite,
        r"in\.(metric|x|size|r_cls_distill)|out\.(noop|r_effective|(unm|src|dst)_idx|source)"
        r"|out\.(merge_(mean|sum|amax)|unmerge_of_mean|wavg_(x|size)(_unit)?)",
    ),
    Form(
        lambda c: c.has("in.k", "in.metric", "in.x", "out.merge_mean"),
        check_every_kth,
        r"in\.(k|metric|x)|out\.(dst_idx|merge_mean)",
    ),
    Form(
        lambda c: "out.schedule" in c and ("in.list" in c or "in.layers_r_inflect" in c),
        check_merge_schedule,
        r"in\.(layers|list|layers_r_inflect)|out\.schedule",
    ),
    Form(
        lambda c: c.has("in.r_per_layer", "out.block0_in"),
        check_tome_tower,
        rf"{_VIT}|in\.(r_per_layer|prop_attn)|out\.source_final",
    ),
    Form(
        lambda c: c.has("in.metric", "in.kept_cls", "out.node_max"),
        check_diffrate_merge,
        r"in\.(metric|x|size|kept_cls)|out\.(node_max|dst_idx|merge_mean|merge_sum|size_similarity_weighted)",
    ),
    Form(
        lambda c: c.has("in.logits", "in.patch_number_granularity"),
        check_diffrate_proxy,
        r"in\.(patch_number_granularity|logits)|out\.(candidates|kept|dkept_dlogits|token_probability)"
        r"|out\.(token_mask(_from_\d+)?|kept_at_zero_logits)",
    ),
    Form(
        lambda c: "out.block0_in" in c and ("in.prune_kept" in c or "in.merge_kept" in c),
        check_diffrate_tower,
        rf"{_VIT}|in\.(prune|merge)_kept|out\.source\d+",
    ),
    Form(
        lambda c: c.has("cls_attention", "semantic_attention", "value_head_mean"),
        check_flow_score,
        r"cls_attention|semantic_attention|value_head_mean|score",
    ),
    Form(
        lambda c: set(c.tensors) == {"attention", "table"} and c["table"].shape[1] == 4,
        check_prune_number,
        r"attention|table",
    ),
    Form(lambda c: set(c.tensors) == {"attention"} and "rpl" in c.info, check_prune_number_of_a_batch, r"attention"),
    Form(
        lambda c: "inputs_embeds" in c and bool(c.named(r"keep_\d+_b\d+")),
        check_flowcut_encoder,
        r"inputs_embeds|w\.\w+|(keep|lengths|prunes|features)_\d+_b\d+",
    ),
    Form(
        lambda c: "lengths" in c and set(c.tensors) <= {"lengths", "prunes", "keep"},
        check_flowcut_degenerate,
        r"lengths|prunes|keep",
    ),
    Form(lambda c: set(c.tensors) == {"keep", "sequence"}, check_packed_crops, r"keep|sequence"),
    Form(
        lambda c: c.has("text_q", "text_v", "visual_k", "visual_v"),
        check_flowcut_llm,
        r"(text_(q|v))|(visual_(k|v))|score|keep",
    ),
    Form(
        lambda c: c.has("relation", "semantic", "value", "score"),
        check_flowcut_qwen_score,
        r"relation|semantic|value|score(_llava_form)?",
    ),
    Form(
        lambda c: c.has("patch_embeds", "rotary", "scores_layer0", "merged"),
        check_flowcut_qwen_tower,
        r"patch_embeds|rotary|[wm]\.\w+|lengths|prunes|(scores|attn)_layer0|merged",
    ),
]
