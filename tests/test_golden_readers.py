"""The readers of golden files, on other files of the same form.

What such a file must give is known without the methods: a change of the documented files that leaves results as they
are (how numbers are stored, heads twice, a wider decoder, one more layer that does nothing), or a run by hand
(golden_reference).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import product
from golden_cases import Case, UnknownForm, as_keeps, discovered, read
from golden_readers import FORMS, compare, form_of
from golden_reference import (
    decoder_of,
    diffrate_step,
    fastv_case,
    random_decoder,
    random_vit,
    tome_step,
    vit_case,
)
from golden_stub import head_sizes
from golden_variants import (
    as_reals,
    as_texts,
    cases_of,
    narrow,
    real_as_whole,
    rewritten,
    same_decoder_larger,
    whole_as_real,
    write,
)
from torch import Tensor

DEFAULT = Path(__file__).parent / "golden"
FILES = sorted(DEFAULT.glob("*.safetensors"))
#: Long runs, of which one for each way of storing says no more than the others.
LONG = ("encoder", "adv_uniform_attention", "e2e_llava15_high", "k2_r50_llava15")


STORED = {
    "reals-and-texts": (whole_as_real, as_texts),
    "double-and-int32": (narrow, as_reals),
    "whole-reals-as-ints": (real_as_whole, lambda infos: infos),
}


@product(name=[file.name for file in FILES], stored=STORED, each="value")
def test_how_numbers_are_stored_changes_nothing(name: str, stored: str, tmp_path: Path) -> None:
    (file,) = (file for file in FILES if file.name == name)
    change, infos = STORED[stored]
    cases = cases_of(rewritten(file, tmp_path, change, infos))
    assert len(cases) == sum(param.values[0].file == file for param in discovered(DEFAULT))
    for case in cases:
        if case.name not in LONG:
            compare(case)


# ---------------------------------------------------------------- other towers


@pytest.mark.parametrize("word", ["none", "metadata", "case", "weights"])
@pytest.mark.parametrize(
    ("heads", "width", "depth", "patches", "images", "asked"),
    [
        (4, 32, 3, 20, 3, [4, 4, 4]),
        (1, 20, 4, 17, 1, [5, 3, 1]),  # for fewer blocks than there are
        (2, 24, 5, 26, 2, [9, 9, 9, 9, 9]),  # 26 patches can't lose 45: the blocks take 9, 8, 5, 2, 1
        (6, 36, 2, 31, 1, [15, 15]),  # 30 of 31 would go, but no block takes more than half of what it finds
        (5, 40, 3, 9, 2, [99, 0, 99, 99]),  # for more blocks than there are
        (8, 16, 2, 12, 1, [0, 0]),
        (2, 16, 4, 40, 1, [8, 6, 4, 2]),
    ],
)
def test_tome_in_a_tower_of_any_size(
    word: str, heads: int, width: int, depth: int, patches: int, images: int, asked: list[int], tmp_path: Path
) -> None:
    if word != "none" and heads not in (4, 5):
        return  # where the word stands has nothing to do with the sizes
    weights = random_vit(width, depth, seed=heads)
    hidden = torch.randn(images, 1 + patches, width, generator=torch.Generator().manual_seed(depth))
    filled = [*asked, *[0] * depth][:depth]
    out = vit_case(weights, heads, hidden, tome_step(filled))
    out = {key: value for key, value in out.items() if not key.startswith("out.source")} | {
        "out.source_final": out[f"out.source{depth - 1}"]
    }
    case = {**out, "in.r_per_layer": torch.tensor(asked), "in.prop_attn": torch.tensor(1)}
    compare_vit(weights, case, heads, word, tmp_path)


@pytest.mark.parametrize(
    ("heads", "width", "patches", "prune", "merge"),
    [
        (4, 32, 20, [21, 17, 12], [19, 14, 8]),
        (1, 12, 15, [16, 14, 11, 8], [16, 14, 11, 8]),  # nothing is merged
        (2, 20, 24, [99, 99, 40], [18, 21, 15]),  # more than there are: all of them stay
        (5, 30, 18, [19, 9, 12], [15, 9, 14]),  # a later block is asked for more than is left
    ],
)
def test_diffrate_in_a_tower_of_any_size(
    heads: int, width: int, patches: int, prune: list[int], merge: list[int], tmp_path: Path
) -> None:
    weights = random_vit(width, len(prune), seed=heads)
    hidden = torch.randn(2, 1 + patches, width, generator=torch.Generator().manual_seed(width))
    out = vit_case(weights, heads, hidden, diffrate_step(prune, merge))
    case = {**out, "in.prune_kept": torch.tensor(prune), "in.merge_kept": torch.tensor(merge)}
    compare_vit(weights, case, heads, "none", tmp_path)


def compare_vit(weights: dict[str, Tensor], case: dict[str, Tensor], heads: int, word: str, folder: Path) -> None:
    """Compare a case of a ViT; the heads stand nowhere, in the file's metadata, in the case or beside the weights."""
    tensors = {f"vit/B@one/{key}": value for key, value in case.items()}
    tensors |= {f"vit/B/w/{key}": value for key, value in weights.items()}
    if word == "case":
        tensors["vit/B@one/in.heads"] = torch.tensor(float(heads))
    if word == "weights":
        tensors["vit/B/w/heads"] = torch.tensor(heads)
    metadata = {"heads": str(float(heads))} if word == "metadata" else {}
    (read_back,) = cases_of(write(folder / "vit.safetensors", tensors, metadata))
    compare(read_back)
    last = f"out.block{len(read_back.named(r'out[.]block[0-9]+')) - 1}"
    with pytest.raises(AssertionError):
        compare(changed(read_back, last))


@pytest.mark.parametrize("stem", ["tome", "diffrate"])
def test_a_tower_with_its_heads_twice_gives_the_same(stem: str, tmp_path: Path) -> None:
    """Two equal heads, with half the weight each behind them: 6 of 8 channels in a width of 24, said nowhere."""

    def change(key: str, tensor: Tensor) -> Tensor:
        if "attn.qkv" in key:
            return tensor.unflatten(0, (3, -1)).repeat_interleave(2, dim=0).flatten(0, 1)
        return torch.cat([tensor, tensor], dim=1) / 2 if "attn.proj.weight" in key else tensor

    towers = [
        case for case in cases_of(rewritten(DEFAULT / f"{stem}.safetensors", tmp_path, change)) if "@" in case.name
    ]
    assert len(towers) >= 3
    for case in towers:
        compare(case)


@pytest.mark.parametrize(("name", "setting"), [("encoder", "64_b1"), ("qwen2vl_tower", "")])
def test_an_encoder_with_its_heads_twice_gives_the_same(name: str, setting: str) -> None:
    case = read(DEFAULT / "flowcut.safetensors")[name]
    other = {
        key: value for key, value in case.tensors.items() if setting in key or not key[-1].isdigit() or "_l" in key
    }
    for key, value in case.tensors.items():
        if "attn_qkv" in key:
            other[key] = value.unflatten(1, (3, -1)).repeat_interleave(2, dim=1).flatten(1, 2)
        elif key.startswith("w.self_attn_") and "_out_" not in key:
            other[key] = torch.cat([value, value], dim=1)
        elif key in ("w.self_attn_out_proj_weight", "w.attn_proj_weight"):
            other[key] = torch.cat([value, value], dim=2) / 2
    info = {**case.info, "heads": f"{2 * case.whole('heads')}.0"}
    compare(replace(case, tensors=other, info=info))
    with pytest.raises((AssertionError, RuntimeError)):
        compare(replace(case, tensors=other))  # with half as many, the heads would be others
    silent = {key: value for key, value in info.items() if key != "heads"}
    if "rotary" in case:  # which has half the width of a head
        compare(replace(case, tensors=other, info=silent))
    else:
        with pytest.raises(UnknownForm, match="says no head_dim"):
            compare(replace(case, tensors=other, info=silent))


def changed(case: Case, key: str) -> Case:
    """The case with one wrong number in a tensor."""
    tensor = case.tensors[key].clone()
    flat = tensor.view(-1)
    if tensor.dtype in (torch.bool, torch.uint8):
        flat[-1] = 1 - flat[-1].int()
    else:
        flat[-1] += 0.01 if tensor.is_floating_point() else 1
    return replace(case, tensors={**case.tensors, key: tensor})


# ---------------------------------------------------------------- other decoders


@pytest.mark.parametrize("stem", ["fastv", "pyramiddrop", "transprune", "holitom_inner", "sparsevlm_e2e"])
def test_a_decoder_with_its_heads_twice_and_one_more_layer_gives_the_same(stem: str, tmp_path: Path) -> None:
    """Wider by zeros as well, but where distances are divided by the square root of the width."""
    file = same_decoder_larger(DEFAULT / f"{stem}.safetensors", tmp_path, wider=0 if stem == "sparsevlm_e2e" else 16)
    for case in cases_of(file):
        if case.name not in LONG:
            compare(case)


@pytest.mark.parametrize("removed", ["share", "whole share", "count", "not said"])
@pytest.mark.parametrize(
    ("heads", "groups", "head_dim", "width", "depth", "layer", "biased"),
    [(2, 1, 6, 20, 3, 1, False), (6, 2, 8, 32, 5, 3, True), (1, 1, 16, 16, 2, 1, False)],
)
def test_fastv_in_a_decoder_of_any_size(
    removed: str,
    heads: int,
    groups: int,
    head_dim: int,
    width: int,
    depth: int,
    layer: int,
    biased: bool,
    tmp_path: Path,
) -> None:
    weights = random_decoder(width, heads, groups, head_dim, depth, biased, seed=width)
    gen = torch.Generator().manual_seed(depth)
    embeds, step = torch.randn(29, width, generator=gen), torch.randn(1, width, generator=gen)
    eps, theta, tokens = 1e-4, 500.0, 20
    keep = 0 if removed == "whole share" else 5
    decoder = decoder_of(weights, heads, groups, head_dim, eps, theta)
    case = fastv_case(decoder, embeds, 4, tokens, layer, keep, step)
    gone = {"share": torch.tensor(0.75), "whole share": torch.tensor(1), "count": torch.tensor(15.0)}
    case |= {"R": gone[removed]} if removed in gone else {}
    said = {"heads": str(heads), "rms_eps": str(eps), "rope_theta": f"{theta:.0f}"}
    if heads == 1:  # by the width of a head instead
        said = {**said, "head_dim": f"{head_dim}.0"}
        del said["heads"]
    infos = {"weights_other": said, "one": {"weights": "weights_other"}}
    tensors = {f"one/{key}": value for key, value in case.items()}
    tensors |= {f"weights_other/{key}": value for key, value in weights.items()}
    (read_back,) = cases_of(write(tmp_path / "fastv.safetensors", tensors, {"cases": json.dumps(infos)}))
    compare(read_back)
    for key in ("final_hidden", "decode_hidden", "cache_lens"):
        with pytest.raises(AssertionError):
            compare(changed(read_back, key))


# ---------------------------------------------------------------- wrong numbers, and what no reader knows

#: For each reader, a tensor of its expected values; a reader that is not here would not be seen to compare.
EXPECTED = {
    "check_divprune_order": "order", "check_divprune_sequence": "keep_index", "check_divprune_counts": "table",
    "check_hiprune_anchor_counts": "table", "check_kcenter": "order_kcenter", "check_hiprune_from_qk": "score9",
    "check_hiprune_from_scores": "mask", "check_hiprune_constant": "mask", "check_hiprune_qwen": "mask_exact",
    "check_qwen_tower_scores": "score_layer1", "check_transition": "out", "check_transprune": "stage0_survivors",
    "check_fastv": "final_hidden", "check_pyramiddrop": "stage0_kept_rel",
    "check_pyramiddrop_batch": "out_attention_mask",
    "check_sparsevlm": "stage2_merge_out", "check_cluster": "out", "check_raters": "relevance",
    "check_scores": "kept_mask", "check_head_choice": "heads", "check_outer_stage": "out_visual",
    "check_windows": "windows", "check_most_attended": "out_pos", "check_inner_merging": "shipped_final_hidden",
    "check_utrc": "out.residual", "check_schedule": "out.mean_sparsity_final_keep", "check_bipartite": "out.wavg_x",
    "check_merge_schedule": "out.schedule", "check_tome_tower": "out.block1", "check_diffrate_merge": "out.merge_mean",
    "check_diffrate_proxy": "out.token_mask", "check_diffrate_tower": "out.size2", "check_flow_score": "score",
    "check_prune_number": "table", "check_flowcut_encoder": "prunes_64_b1", "check_flowcut_degenerate": "lengths",
    "check_flowcut_llm": "keep", "check_flowcut_qwen_score": "score_llava_form", "check_flowcut_qwen_tower": "merged",
    "check_visionzip_budgets": "merged_54_10", "check_visionzip_anyres": "sequence", "check_visionzip_case": "tokens",
    "check_visionzip_without_cls": "tokens", "check_tokencorr": "out.topk.assign",
    "check_outlier_ratio": "out.outlier_ratio", "check_complement": "out", "check_text_score": "out.similarity",
    "check_scope": "picks", "check_vispruner": "mask64_r75", "check_packed_masks": "sequence",
    "check_cdpruner": "picks",
    "check_mmtok": "kept64", "check_padding": "padding_rows", "check_centering": "order_maxmin",
    "check_prumerge": "tokens_plus", "check_prumerge_counts": "count_rows", "check_prumerge_steps": "step_rows",
    "check_trim": "tokens_r250", "check_vscan": "tokens96", "check_vscan_counts": "count_rows",
    "check_vscan_without_cls": "tokens", "check_vscan_stage2": "keep",
    "check_recoverable": "reference_aligned_keys.out", "check_dart": "exact_r778", "check_v2drop": "keep",
    "check_v2drop_schedules": "schedule_rows", "check_fitprune": "fit_table",
    "check_vidcom2": "kept_exact", "check_vidcom2_newlines": "rows", "check_vidcom2_counts": "table",
    "check_v_cast": "score", "check_v_cast_budgets": "budgets",
    "check_unpredicted": "kept_max_0", "check_pruned_forward": "logits",
    "check_scissor": "joins", "check_sttm": "boxes",
    "check_evs_threshold": "dissimilarity", "check_dycoke": "order", "check_dycoke_counts": "table",
    "check_dycoke_decode": "kept_visual", "check_videos": "visual", "check_video_e2e": "deepstack0",
    "check_fastvid": "tokens", "check_flashvid": "clean_tokens", "check_flashvid_counts": "table",
    "check_flashvid_inner": "keep",
    "check_prunevid": "tokens", "check_repair": "refined", "check_prunevid_inner": "kept_index",
}  # fmt: skip
#: Readers whose expected values stand in the metadata, or whose case says that nothing is left.
UNCHANGED = {"check_prune_number_of_a_batch", "check_recoverable_flat", "check_keywords"}
#: Forms of which the default folder has no case.
MADE = {"check_every_kth", "check_packed_crops", "check_released_block"}


def test_every_reader_is_tried_with_a_wrong_number() -> None:
    assert {form.check.__name__ for form in FORMS} == EXPECTED.keys() | UNCHANGED | MADE


@pytest.mark.parametrize("check", EXPECTED)
def test_a_wrong_number_is_seen(check: str) -> None:
    of = [param.values[0] for param in discovered(DEFAULT)]
    of = [case for case in of if form_of(case).check.__name__ == check and EXPECTED[check] in case]
    case = min((case for case in of if case[EXPECTED[check]].numel()), key=lambda case: case.names_a_tie)
    with pytest.raises(AssertionError):
        compare(changed(case, EXPECTED[check]))


def test_a_wrong_number_in_the_metadata_is_seen() -> None:
    case = read(DEFAULT / "flowcut.safetensors")["prune_number_batch"]
    compare(case)
    with pytest.raises(AssertionError):
        compare(replace(case, info={**case.info, "official": "177.0"}))


def test_what_no_reader_knows_is_named() -> None:
    case = read(DEFAULT / "divprune.safetensors")["vid12x12_d128"]
    with pytest.raises(UnknownForm, match=r"case 'vid12x12_d128' of divprune.safetensors: .* does not know second_row"):
        compare(replace(case, tensors={**case.tensors, "second_row": torch.zeros(2)}))
    with pytest.raises(UnknownForm, match=r"no method of this release has a reader for features, gone"):
        compare(replace(case, tensors={"features": torch.zeros(3, 2), "gone": torch.zeros(2)}))
    case = read(DEFAULT / "holitom_outer.safetensors")["outer_all_different"]
    for word, value in (("pool", "largest"), ("newline", "twice")):
        with pytest.raises(UnknownForm, match=f"{word}='{value}'"):
            compare(replace(case, info={**case.info, word: value}))
    without = {key: value for key, value in case.tensors.items() if key != "tau"}
    with pytest.raises(UnknownForm, match=r"case 'outer_all_different' of .* says no tau"):
        compare(replace(case, tensors=without))
    without = {key: value for key, value in case.tensors.items() if key != "newline"}
    with pytest.raises(UnknownForm, match="has no newline"):
        compare(replace(case, tensors=without))


def test_a_case_that_the_metadata_lists_and_the_file_lacks_is_named(tmp_path: Path) -> None:
    file = write(
        tmp_path / "some.safetensors", {"one/x": torch.zeros(1)}, {"cases": '{"one": {}, "two": {}, "_n": {}}'}
    )
    cases = {case.name: case for case in cases_of(file)}
    assert cases.keys() == {"one", "two"}
    with pytest.raises(UnknownForm, match=r"case 'two' of some.safetensors: .* a case without tensors"):
        compare(cases["two"])


def test_numbers_that_are_none_are_refused() -> None:
    case = read(DEFAULT / "fastv.safetensors")["k3_r75"]
    for value, words in ((torch.tensor(2.5), "no whole number"), (torch.tensor([1, 2]), "where one number is read")):
        with pytest.raises(UnknownForm, match=words):
            compare(replace(case, tensors={**case.tensors, "K": value}))
    with pytest.raises(UnknownForm, match="is not of whole numbers"):
        compare(replace(case, tensors={**case.tensors, "kept_rel": case["kept_rel"] + 0.5}))


# ---------------------------------------------------------------- one number in the forms that it is stored in


@pytest.mark.parametrize(
    ("values", "shares", "keeps"),
    [
        ([1, 0.5], True, (1.0, 0.5)), ([torch.tensor(1)], True, (1.0,)), (["1"], False, (1,)), ([1.0], False, (1,)),
        ([300.0, 120, "1"], True, (300, 120, 1)), ([0.65], False, (0.65,)),
        ([torch.tensor(0.65)], True, (0.65,)),  # fp32 holds 0.64999998
    ],
)  # fmt: skip
def test_shares_and_counts(values: list[Any], shares: bool, keeps: tuple[float | int, ...]) -> None:
    read_back = as_keeps(values, shares)
    assert read_back == keeps and [type(keep) for keep in read_back] == [type(keep) for keep in keeps]


def test_heads_of_a_decoder() -> None:
    assert head_sizes(32, 16, {}) == (4, 8)  # as documented where a file says nothing
    assert head_sizes(48, 16, {"heads": "6.0"}) == (6, 8)
    assert head_sizes(48, 16, {"num_attention_heads": 3, "head_dim": 99}) == (3, 16)
    assert head_sizes(48, 16, {"head_dim": 16}) == (3, 16)
    assert head_sizes(48, 16, {"kv_heads": "2"}) == (6, 8)
    with pytest.raises(ValueError, match="do not divide"):
        head_sizes(32, 16, {"heads": 5})


# ---------------------------------------------------------------- shares that are whole, and layers with other numbers


def test_a_schedule_of_whole_shares_keeps_all(tmp_path: Path) -> None:
    """Ratios of 1, stored as integers, are shares: every token stays, and the decoder is as it was."""
    width, start, tokens = 24, 2, 9
    weights = random_decoder(width, 3, 3, 8, 4, biased=False)
    gen = torch.Generator().manual_seed(1)
    embeds, step = torch.randn(15, width, generator=gen), torch.randn(1, width, generator=gen)
    plain = fastv_case(decoder_of(weights, 3, 3, 8, 1e-5, 1e4), embeds, start, tokens, 2, tokens, step)
    case = {key: value for key, value in plain.items() if key not in ("K", "keep", "score", "kept_rel")}
    case |= {"layer_list": torch.tensor([2.0, 3.0]), "ratio_list": torch.tensor([1, 1])}
    for stage in range(2):
        case |= {
            f"stage{stage}_keep": torch.tensor(float(tokens)), f"stage{stage}_kept_rel": torch.arange(tokens),
            f"stage{stage}_survivors": torch.arange(15), f"stage{stage}_score": plain["score"],
        }  # fmt: skip
    tensors = {f"whole/{key}": value for key, value in case.items()}
    tensors |= {f"weights/{key}": value for key, value in weights.items()}
    infos = {"weights": {"heads": 3}}
    (read_back,) = cases_of(write(tmp_path / "pyramiddrop.safetensors", tensors, {"cases": json.dumps(infos)}))
    assert form_of(read_back).check.__name__ == "check_pyramiddrop"
    compare(read_back)
    with pytest.raises(AssertionError):
        compare(changed(read_back, "final_hidden"))


def test_a_ratio_of_one_in_the_metadata_is_a_share() -> None:
    case = read(DEFAULT / "divprune.safetensors")["e2e_llava15"]
    features = case["features"][:30]
    for ratio in (1, 1.0, "1", "1.0"):
        info = {"ratio": ratio, "system_len": "7", "tie": False}
        compare(replace(case, tensors={"features": features, "keep_index": torch.arange(41)}, info=info))


def test_layers_have_the_numbers_of_their_tensors() -> None:
    case = read(DEFAULT / "hiprune.safetensors")["llava15_qk"]
    other = {
        key.replace("9", "3") if key in ("q9", "k9", "score9") else key: value for key, value in case.tensors.items()
    }
    other = {key.replace("23", "11"): value for key, value in other.items()}
    compare(replace(case, tensors=other))
    case = read(DEFAULT / "hiprune.safetensors")["qwen_agg_12x20"]
    other = {key.replace("layer1", "layer12"): value for key, value in case.tensors.items() if "layer0" not in key}
    compare(replace(case, tensors=other, info={}))


def test_several_images_in_one_case() -> None:
    """The same image twice, and with its heads in another order, gives the same twice."""
    case = read(DEFAULT / "hiprune.safetensors")["llava15_qk"]
    twice = {key: torch.cat([value, value.flip(1)]) for key, value in case.tensors.items() if key[0] in "qk"}
    twice |= {key: value[None].repeat(2, 1) for key, value in case.tensors.items() if key[0] not in "qk"}
    compare(replace(case, tensors=twice))
    case = read(DEFAULT / "visionzip.safetensors")["llava15"]
    compare(replace(case, tensors={key: torch.cat([value] * 3) for key, value in case.tensors.items()}))
    case = read(DEFAULT / "tome.safetensors")["bsm/rand_cls_n17_r3"]
    twice = {key: torch.cat([value.flip(0), value]) for key, value in case.tensors.items() if value.dim() > 1}
    compare(replace(case, tensors={**case.tensors, **twice}))


@pytest.mark.parametrize("width", [50, 49])
def test_recoverable_knows_no_heads(width: int) -> None:
    """Zeros make keys wider; the scale that the method divides by grows with the width, and the queries with it."""
    case = read(DEFAULT / "recoverable.safetensors")["pipeline/n144_c48"]
    had = case["in.k"].shape[2]
    pad = {f"in.{name}": torch.nn.functional.pad(case[f"in.{name}"], (0, width - had)) for name in "qk"}
    pad["in.q"] = pad["in.q"] * (width / had) ** 0.5
    compare(replace(case, tensors={**case.tensors, **pad}))


# ---------------------------------------------------------------- forms that only files elsewhere have


def test_every_kth() -> None:
    x = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [3, 0.3], [1, 3], [9, 9]]])  # rows 2 is a target, 5 too
    out = torch.stack([(x[0, 2]), (x[0, 5])])
    tensors = {"in.metric": x, "in.x": x, "in.k": torch.tensor(3.0), "out.dst_idx": torch.tensor([[0, 0, 0, 0]])}
    merged = (x[0, [0, 1, 3, 4]].sum(dim=0) + out[0]) / 5
    case = Case(
        Path("tome.safetensors"), "kth/one", {}, {**tensors, "out.merge_mean": torch.stack([merged, out[1]])[None]}
    )
    compare(case)
    with pytest.raises(AssertionError):
        compare(changed(case, "out.merge_mean"))


def test_packed_crops() -> None:
    """A thumbnail and two tiles of 2 × 2 side by side: rows of the joined tiles run through both."""
    keep = torch.tensor([[1, 3], [0, 3], [0, 1]])
    sequence = torch.tensor([[0, 1], [0, 3], [1, 0], [2, 0], [2, 1], [1, 3]])
    info = {"grid_wh": ["2", 1.0], "image_size_wh": [4, 2], "patches": 4}
    case = Case(Path("flowcut.safetensors"), "anyres", info, {"keep": keep, "sequence": sequence})
    compare(case)
    with pytest.raises(AssertionError):
        compare(changed(case, "sequence"))


def test_released_block(tmp_path: Path) -> None:
    """10 tokens at a ratio of 0.75: 8 stay, whatever the released code makes of them."""
    gen = torch.Generator().manual_seed(0)
    mixer, residual = torch.randn(2, 1, 10, 4, generator=gen)
    kept = torch.tensor([[0, 1, 2, 4, 6, 7, 8, 9]])
    tensors = {
        "block/n10/in.mixer_out": mixer, "block/n10/in.residual": residual,
        "block/n10/ratio0.75/num_keep_and_removed": torch.tensor([8.0, 2.0]),
        "block/n10/ratio0.75/official.score_clip_sum": mixer.clamp_min(0).sum(dim=2),
        "block/n10/ratio0.75/official.prune_only.hidden": mixer[:, kept[0]],
        "block/n10/ratio0.75/official.prune_only.residual": residual[:, kept[0]],
        "block/n10/ratio0.75/official.prune_only.kept_positions": kept,
    }  # fmt: skip
    (case,) = cases_of(write(tmp_path / "ssm.safetensors", tensors))
    compare(case)
    for key in ("num_keep_and_removed", "official.score_clip_sum", "official.prune_only.hidden"):
        wrong = changed(case, key) if key[0] == "o" else replace(case, tensors={**case.tensors, key: case[key].flip(0)})
        with pytest.raises(AssertionError):
            compare(wrong)
