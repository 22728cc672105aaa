"""Published settings whose speed was published too: what the paper's ratio is held up to here."""

from dataclasses import dataclass
from typing import Literal

from vtc.eval.bench.prefill.shapes import SHAPES, Shape


@dataclass(frozen=True)
class PublishedSpeed:
    """One setting.

    Attributes:
        preset: its name; the paper that the preset names is the source.
        shape: the model that it was measured on.
        ratio: time without compression over time with it.
        of: which of our speed-ups that is.
        note: what was measured, on what.
    """

    preset: str
    shape: Shape
    ratio: float
    of: Literal["prefill_speedup", "first_token_speedup"]
    note: str


PUBLISHED = (
    PublishedSpeed(
        "hiprune/llava-1.5/64",
        SHAPES["llava-1.5-7b"],
        2.47,
        "prefill_speedup",
        "prefill 54.31 to 21.96 ms, about 600 tokens in all, A100-PCIE 40 GB",
    ),
    PublishedSpeed(
        "flowcut/llava-next/160",
        SHAPES["llava-next-7b"],
        3.2,
        "prefill_speedup",
        "prefill 206 to 63.8 ms on POPE, A800",
    ),
    PublishedSpeed(
        "holitom/llava-onevision-7b/10",
        SHAPES["llava-onevision-7b-video"],
        2.28,
        "first_token_speedup",
        "first token 1687 to 741 ms, GPU not known",
    ),
)
