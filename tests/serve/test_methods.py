"""Every method that can be served, on towers of each kind, equal to transformers under `vtc.patch`."""

from dataclasses import replace

import pytest
from engines import Ask, engine, picture, right, video

CASES = {
    "llava": (
        "random", "stride", "pool", "hiprune", "kcenter", "kcenter:rule=max-sum", "todre:threshold=0", "visionzip",
        "tokencorr", "tokencorr:sample=True", "scope", "vispruner", "mmr", "prumerge", "vscan:later_keep=1.0",
        "divprune:centering=True",
    ),
    "llava_next": ("stride", "hiprune", "visionzip", "kcenter", "scope", "vispruner"),
    "llava_onevision": ("pool", "hiprune", "visionzip", "kcenter:pivot=mean", "divprune:per=frame"),
    "qwen2_vl": ("hiprune", "frame_stride"),
    "qwen2_5_vl": (
        "pool", "hiprune", "visionzip", "tokencorr", "evs", "divprune:per=frame", "divprune:centering=True", "scope",
        "prumerge",
    ),
    "qwen3_vl": ("pool", "hiprune", "visionzip", "evs", "divprune:per=frame"),
    "internvl": ("pool", "hiprune", "kcenter", "visionzip"),
}  # fmt: skip
VIDEOS = ("pool", "hiprune", "evs", "frame_stride", "divprune:per=frame")


@pytest.mark.parametrize(("name", "method"), [(name, method) for name, methods in CASES.items() for method in methods])
def test_equal(name, method):
    spec = f"{method}{',' if ':' in method else ':'}keep=0.4"
    images = [] if method == "evs" else [picture(1), picture(2, 168, 112), picture(3, 140, 196)]
    videos = [video(4), video(5)] if name not in ("llava", "llava_next") and method in VIDEOS else []
    asks = [Ask((f"number {i} ", shown, " what?"), 0.3 if i == 1 else None) for i, shown in enumerate(images + videos)]
    wanted = [
        right(name, replace(a, keep=None), spec if a.keep is None else spec.replace("0.4", str(a.keep))) for a in asks
    ]
    with engine(name, spec) as running:
        assert running.ask(asks) == wanted
        running.llm.reset_prefix_cache()
        assert running.ask(asks[::-1]) == wanted[::-1]
    full = [right(name, replace(a, keep=None), None) for a in asks]
    assert sum(a != b for a, b in zip(wanted, full)) >= len(asks) - 1
