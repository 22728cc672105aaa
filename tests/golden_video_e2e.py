"""Golden checks of v_cast and vidcom2 in a whole model: a tiny Qwen3-VL, from the pictures of videos to logits."""

import torch
from golden_cases import HIDDEN, Case, Checks, Form
from golden_qwen3_vl import check_replayed, inputs_of, model_of
from torch import Tensor
from torch.testing import assert_close

from vtc import VCAST, VidCom2


def videos_of(case: Case) -> list[Tensor]:
    return [case.stored(match[0]) for match in case.named(r"video\d+")]


def check_videos(case: Case) -> None:
    model, none = model_of(case), torch.zeros(0, dtype=torch.long)
    inputs = inputs_of(none, "video", videos_of(case), model.config)
    with torch.no_grad():
        found = model.model.get_video_features(inputs["pixel_values_videos"], inputs["video_grid_thw"])
    assert_close(torch.cat(list(found.pooler_output)), case["visual"], **HIDDEN)


def check_video_e2e(case: Case) -> None:
    model, shown = model_of(case), case.beside("videos_" + case.name.rpartition("_")[2])
    inputs = inputs_of(case.index("input_ids"), "video", videos_of(shown), model.config)
    assert torch.equal(inputs["video_grid_thw"], case.index("video_grid_thw"))
    keep = case.number("ratio")
    method = VCAST(keep=keep) if case.text("method") == "v_cast" else VidCom2(keep=keep, exact=False)
    check_replayed(case, model, method, inputs, "kept")


CHECKS: Checks = [
    Form(lambda c: c.file.stem == "qwen3_vl_video_e2e" and "visual" in c, check_videos, r"video\d+|visual"),
    Form(
        lambda c: c.file.stem == "qwen3_vl_video_e2e" and "logits" in c,
        check_video_e2e,
        r"input_ids|video_grid_thw|kept|places|position_ids|deepstack0|logits(_unpruned)?",
    ),
]
