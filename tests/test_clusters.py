"""`vtc.ops.clusters`: density peaks in parts are those of all distances at once."""

import pytest
import torch
from kernel_checks import check_density_peaks
from torch import Tensor

from vtc.ops import clusters
from vtc.ops.greedy import peaks


def tokens_of(kind: str) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(3, 50, 8)
    if kind == "repeated":
        x[:, 1::2] = x[:, :25]
    return x


@pytest.mark.parametrize("entries", [0, 50 * 7, 2500, 2501, 5000])
@pytest.mark.parametrize("kind", ["random", "repeated"])
@pytest.mark.parametrize("ragged", [False, True])
def test_parts_give_what_all_at_once_gives(
    kind: str, ragged: bool, entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, count, near = tokens_of(kind), torch.tensor([6, 1, 4]), torch.tensor([3, 6, 2])
    valid = torch.rand(3, 50) < 0.8 if ragged else None
    monkeypatch.setattr(peaks, "_MIRRORED", 10**9 if entries % 2 else 10)
    whole = clusters.density_peaks(x, count, 6, near, valid)
    check_density_peaks((whole.score, whole.centres, whole.member_of), x, count, 6, near, valid)
    largest, distances = [], peaks._distances

    def watched(*args: Tensor) -> Tensor:
        largest.append(distances(*args))
        return largest[-1]

    monkeypatch.setattr(peaks, "ENTRIES", entries)
    monkeypatch.setattr(peaks, "_distances", watched)
    made = clusters.density_peaks(x, count, 6, near, valid)
    for part in ("score", "centres", "member_of"):
        assert torch.equal(getattr(made, part), getattr(whole, part))
    assert max(part.numel() for part in largest) <= max(entries, 50 * 6)


@pytest.mark.parametrize("entries", [0, 2**26])
def test_equal_tokens_score_alike_and_the_first_is_the_centre(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "ENTRIES", entries)
    x = tokens_of("repeated")
    made = clusters.density_peaks(x, torch.full((3,), 5), 5)
    assert torch.equal(made.score[:, 1::2], made.score[:, :25])


@pytest.mark.parametrize("entries", [0, 2**26])
def test_where_densities_are_ranked_the_first_of_equal_tokens_alone_may_be_a_centre(
    entries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peaks, "ENTRIES", entries)
    x = tokens_of("repeated")
    made = clusters.density_peaks(x, torch.full((3,), 5), 5, ranked=True)
    for tokens, score in zip(x.tolist(), made.score, strict=True):
        first = torch.tensor([tokens.index(token) == index for index, token in enumerate(tokens)])
        assert not score[~first].any() and (score[first] > 0).all()


def test_of_two_that_are_each_others_nearest_the_first_is_denser_where_ranked() -> None:
    """Two neighbours, itself among them, make the density: those of such a pair are equal."""
    x = torch.tensor([0.0, 1.0, 5.0, 6.1])[:, None].expand(1, -1, -1)
    made = clusters.density_peaks(x, torch.tensor([2]), 2, ranked=True)
    assert made.centres.tolist() == [[0, 2]] and made.member_of.tolist() == [[0, 0, 1, 1]]


def test_bad_arguments_are_refused() -> None:
    x, count = torch.zeros(2, 6, 4), torch.ones(2, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"x of shape \(6, 4\) is not \[G, M, D\]"):
        clusters.density_peaks(x[0], count, 1)
    with pytest.raises(ValueError, match=r"count of shape \(1,\) is not \[2\]"):
        clusters.density_peaks(x, count[:1], 1)
    with pytest.raises(ValueError, match=r"valid of shape \(2, 4\) is not \[2, 6\]"):
        clusters.density_peaks(x, count, 1, valid=x[:, 0] > 0)
