"""Memory of decisions about long videos: of every selector, at twice the frames twice as much and no more."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import pytest
import torch

import vtc
from vtc.eval.bench.select.allocated import Allocated
from vtc.eval.bench.select.command import make_methods
from vtc.eval.bench.select.decision import Meter, Undecided, decision
from vtc.eval.bench.select.video import VideoScene

CPU = torch.device("cpu")
#: Frames of the shorter video; the longer one has twice as many. Each has 2 x 2 tokens of one patch.
FRAMES, KEEP = 1000, 0.25
SMALL = VideoScene.of_frames(4, patches=1)
#: Selectors whose memory grows faster, and why it has to; a test holds that each still does.
NOT_LINEAR: dict[str, str] = {}
#: How much more memory twice the frames may take.
MOST = 2.3


class Deciding(Meter):
    """Weighs what `select` takes, without what is read of the tower before."""

    @contextmanager
    def deciding(self) -> Iterator[None]:
        with Allocated(CPU) as peak:
            yield
        self.peak_bytes = peak.bytes


@cache
def scene(frames: int) -> VideoScene:
    return SMALL(frames, CPU)


def growth(name: str) -> float:
    """How much more memory a selector's decision takes at twice the frames."""
    (method,) = make_methods([name], KEEP)
    weighed = []
    for frames in (FRAMES, 2 * FRAMES):
        meter = Deciding(CPU)
        decision(method, scene(frames))(meter)
        weighed.append(meter.peak_bytes)
    assert all(weighed), "a decision takes some memory"
    return weighed[1] / weighed[0]


@pytest.mark.parametrize("name", sorted({*vtc.list_methods("selector")} - {"none"}))
def test_memory_is_linear_in_the_frames(name):
    """Or the method is in the table of those of which it can't be."""
    assert (growth(name) > MOST) == (name in NOT_LINEAR), NOT_LINEAR.get(name, "twice the frames")


def test_none_decides_nothing():
    with pytest.raises(Undecided):
        decision(*make_methods(["none"], KEEP), scene(FRAMES))


# ---------------------------------------------------------------- the scale


def test_the_scale_counts_what_is_held_at_once():
    with Allocated(CPU) as peak:
        first = torch.ones(1000, 250)  # 10^6 bytes
        second = torch.ones(1000, 500)
        del first
        third = torch.ones(1000, 250)
    assert peak.bytes == 3 * 10**6
    with Allocated(CPU) as peak:
        del second, third
    assert peak.bytes == 0


def test_it_counts_what_an_operation_holds_for_a_while():
    values = torch.ones(1000, 1000)
    with Allocated(CPU) as peak:
        values.sort(dim=1)
    assert peak.bytes >= 12 * 10**6  # values and their places; what it sorts a row in comes on top


def test_it_finds_a_matrix_of_all_pairs():
    def pairs(tokens: int) -> int:
        rows = torch.ones(tokens, 4)
        with Allocated(CPU) as peak:
            (rows @ rows.T).sum()
        return peak.bytes

    assert pairs(2000) > 3.9 * pairs(1000)


def test_an_error_inside_gets_out_and_the_scale_works_again(capfd):
    with pytest.raises(ValueError, match="mine"), Allocated(CPU):
        raise ValueError("mine")
    with Allocated(CPU) as peak:
        torch.ones(250)
    assert peak.bytes == 1000
    out, err = capfd.readouterr()
    assert not out and not err, "the profiler is not heard"
