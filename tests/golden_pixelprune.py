"""Golden checks of pixelprune: cells of pictures, and whole forwards of a Qwen3-VL."""

from typing import Any

import torch
from golden_cases import SCORE, Case, Checks, Form, as_number
from golden_qwen3_vl import check_replayed, inputs_of, model_of
from torch.testing import assert_close

import vtc
from vtc.reducers.pixelprune import unpredicted

#: The official names of the metrics; "exact" ignores its threshold.
METRICS: dict[str, Any] = {"max": "max", "mae": "mean", "rmse": "rms", "exact": "max"}
#: Where a case tells no settings, it has one: the default.
PLAIN = {"kept_max_0": {"metric": "max", "threshold": 0, "anchored": True}}


def check_unpredicted(case: Case) -> None:
    settings = case.info.get("settings", PLAIN)
    assert {f"kept_{key}" for key in case.reals("kept_")} == settings.keys()
    for key, setting in settings.items():
        threshold = 0.0 if setting["metric"] == "exact" else as_number(setting["threshold"], f"{case}: threshold")
        kept = unpredicted(case["cells"] / 255, threshold, METRICS[setting["metric"]], setting["anchored"])
        assert torch.equal(kept.flatten().nonzero()[:, 0], case.index(key))


@torch.no_grad()
def check_pruned_forward(case: Case) -> None:
    model: Any = model_of(case)
    ids, config = case.index("input_ids"), model.config
    inputs = inputs_of(ids, "image", [case[found[0]] for found in case.named(r"image\d+")], config)
    assert torch.equal(inputs["image_grid_thw"], case.index("image_grid_thw"))
    method = vtc.PixelPrune(threshold=case.number("threshold"), metric=METRICS[case.text("metric")])
    given = check_replayed(case, model, method, inputs, "kept_cells")
    assert_close(given["inputs_embeds"][given["visual_pos_masks"]], case["visual_tokens"], **SCORE)
    with vtc.patched(model, method):
        tokens = model.generate(**inputs, max_new_tokens=len(case.stored("generated")), do_sample=False)
    assert torch.equal(tokens[0, len(ids) :], case.index("generated"))


def of_pixelprune(case: Case) -> bool:
    return case.file.stem.startswith("pixelprune")


CHECKS: Checks = [
    Form(lambda c: of_pixelprune(c) and "cells" in c, check_unpredicted, r"cells|kept_\w+"),
    Form(
        of_pixelprune,
        check_pruned_forward,
        r"image\d+|input_ids|image_grid_thw|kept_cells|places|position_ids|visual_tokens|deepstack0|"
        r"logits(_unpruned)?|generated",
    ),
]
