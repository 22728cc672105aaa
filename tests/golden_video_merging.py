"""Golden checks of llava_scissor, sttm and prunevid: the merged video, and what the question leaves of it."""

import torch
from golden_cases import HIDDEN, Case, Checks, Form, UnknownForm
from torch import Tensor
from torch.testing import assert_close

from vtc import STTM, ops
from vtc.ops.mixing import Mixing
from vtc.prunes.attention.prunevid_inner import best_of_groups
from vtc.prunes.sttm_tree import Merged, merge_video
from vtc.selectors.video.llava_scissor import merge_alike
from vtc.selectors.video.prunevid_segments import frame_labels, lengths_of, merge_segments, repaired

# ---------------------------------------------------------------- llava_scissor


def check_scissor(case: Case) -> None:
    """The official order is that of the places where the tokens stand."""
    features = case["features"]
    tokens = features.shape[0] * features.shape[1]
    kept, mixing = merge_alike(features, case.number("tau"))
    assert len(kept) == len(case["out"]) == case.whole("kept", default=len(kept))
    assert (kept.diff() > 0).all()
    if case.tie is not True:  # else how often a mean is counted is a matter of chance
        assert_close(ops.merge(features.flatten(0, 1)[None], mixing, len(kept))[0], case["out"], **HIDDEN)
        assert torch.equal(mixing.target[0, tokens:], case.index("joins"))


# ---------------------------------------------------------------- sttm


def check_sttm(case: Case) -> None:
    grid, width = case.wholes("grid"), case["features"].shape[1]
    temporal, width_of_head = case.number("temporal_threshold"), case.whole("head_dim", default=width)
    settings = {
        "tau_s": case.number("threshold"),
        "tau_t": temporal if temporal > 0 else None,
        "root": case.whole("root_level"),
        "weighted": case.flag("weighted"),
        "parts": width // width_of_head,
    }
    expected = {False: ("boxes", "tokens"), True: ("component_boxes", "component_tokens")}
    for components, (boxes, tokens) in expected.items():
        if boxes not in case:  # groups that did not stop early are the components
            boxes, tokens = expected[False]
        merged = merge_video(case["features"].unflatten(0, grid), STTM(**settings, components=components))
        kept, members = merged.into.unique(return_inverse=True)
        mixing = Mixing(torch.arange(len(members))[None], members[None], merged.weight[None])
        assert len(merged.node.unique()) == case.whole("spatial_nodes", default=len(merged.node.unique()))
        assert boxes_of(merged, kept, grid).tolist() == case.indices(boxes)
        assert_close(ops.merge(case["features"][None], mixing, len(kept))[0], case[tokens], **HIDDEN)
        if tokens == "tokens":
            assert torch.bincount(members).tolist() == case.indices("cells")


def boxes_of(merged: Merged, kept: Tensor, grid: list[int]) -> Tensor:
    """Frame, top, left, bottom, right of the node of each kept cell."""
    cells = [(merged.node == cell).view(grid).nonzero() for cell in kept]
    return torch.stack([torch.cat([of.amin(dim=0), of.amax(dim=0)[1:] + 1]) for of in cells])


# ---------------------------------------------------------------- prunevid

#: The released number of neighbours, where a file says none.
NEIGHBOURS = 7


def check_prunevid(case: Case) -> None:
    """Identical frames, where the frames' clusters are a tie, are one segment whichever they are."""
    features, tokens = case["features"], case["tokens"]
    neighbours = case.whole("neighbours", default=NEIGHBOURS)
    labels = frame_labels(features, case.number("segment_ratio"), neighbours)
    lengths = lengths_of(repaired(labels))
    assert lengths == case.wholes("windows")
    merged = merge_segments(features, lengths, case.number("tau"), case.number("cluster_ratio"), neighbours)
    assert len(merged.kept) == len(tokens)
    if case.tie is True:
        return
    assert labels == case.indices("frame_cluster") and repaired(labels) == case.indices("frame_segment")
    assert_close(ops.merge(features.flatten(0, 1)[None], merged.mixing, len(tokens))[0][merged.order], tokens, **HIDDEN)
    static, dynamic = case.wholes("static_sizes"), case.wholes("dynamic_sizes")
    names = named_in_order(static, dynamic, lengths)
    groups, expected = ({} for _ in range(2))
    for name, group in zip(names.tolist(), merged.groups[merged.order].tolist(), strict=True):
        groups.setdefault(name, set()).add(group)
        expected.setdefault(group, set()).add(name)
    assert all(len(others) == 1 for named in (groups, expected) for others in named.values())


def named_in_order(static: list[int], dynamic: list[int], lengths: list[int]) -> Tensor:
    """LongTensor [k]: a number for the static tokens of each segment, and for the others of each frame, in order."""
    sizes = []
    for still, moving, frames in zip(static, dynamic, lengths, strict=True):
        if moving % frames:
            raise UnknownForm(f"{moving} dynamic tokens in {frames} frames")
        sizes += [still, *[moving // frames] * frames]
    return torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))


def check_repair(case: Case) -> None:
    found = repaired(case.indices("labels"))
    assert found == case.indices("refined")
    assert lengths_of(found) == case.wholes("segments")


def check_prunevid_inner(case: Case) -> None:
    score = case["text_to_visual"].amax(dim=(0, 1))[None]
    groups = named_in_order(*(case.wholes(name) for name in ("static_sizes", "dynamic_sizes", "windows")))
    kept = best_of_groups(score, groups[None], case.number("alpha"))
    assert kept[0].nonzero()[:, 0].tolist() == case.indices("kept_index")


CHECKS: Checks = [
    Form(
        lambda c: c.has("features", "tokens", "frame_cluster"),
        check_prunevid,
        r"features|tokens|frame_cluster|frame_segment",
    ),
    Form(lambda c: c.has("labels", "refined"), check_repair, r"labels|refined"),
    Form(lambda c: c.has("text_to_visual", "kept_index"), check_prunevid_inner, r"text_to_visual|kept_index"),
    Form(
        lambda c: c.has("features", "tokens", "boxes", "cells"),
        check_sttm,
        r"features|tokens|boxes|cells|component_(tokens|boxes)|grid",
    ),
    Form(lambda c: c.has("features", "joins", "out"), check_scissor, r"features|joins|out|tau|epsilon"),
]
