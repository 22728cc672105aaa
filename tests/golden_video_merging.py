"""Golden checks of llava_scissor and sttm: the merged video, and what each token went into."""

import torch
from golden_cases import HIDDEN, Case, Checks, Form
from torch import Tensor
from torch.testing import assert_close

from vtc import STTM, ops
from vtc.ops.mixing import Mixing
from vtc.prunes.sttm_tree import Merged, Rule, merge_video
from vtc.selectors.video.llava_scissor import merge_alike

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
        merged = merge_video(case["features"].unflatten(0, grid), Rule.of(STTM(**settings, components=components)))
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


CHECKS: Checks = [
    Form(
        lambda c: c.has("features", "tokens", "boxes", "cells"),
        check_sttm,
        r"features|tokens|boxes|cells|component_(tokens|boxes)|grid",
    ),
    Form(lambda c: c.has("features", "joins", "out"), check_scissor, r"features|joins|out|tau|epsilon"),
]
