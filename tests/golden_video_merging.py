"""Golden checks of llava_scissor: the video merged, and which token each was folded into."""

import torch
from golden_cases import HIDDEN, Case, Checks, Form
from torch.testing import assert_close

from vtc import ops
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


CHECKS: Checks = [
    Form(lambda c: c.has("features", "joins", "out"), check_scissor, r"features|joins|out|tau|epsilon"),
]
