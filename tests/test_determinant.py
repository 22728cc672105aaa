"""`vtc.ops.dpp_map`: picks maximise a determinant step by step, however they are found."""

import pytest
import torch
from torch import Tensor

from vtc import ops
from vtc.ops import reference
from vtc.ops.greedy import determinant as lazy

NEVER = 10**12
KINDS = ("random", "few directions", "low rank", "groups", "axes", "lost")


def tokens_of(kind: str, tokens: int, dim: int = 24) -> Tensor:
    random = torch.Generator().manual_seed(tokens)
    noise = torch.randn(tokens, dim, generator=random, dtype=torch.float64)
    if kind in ("few directions", "low rank"):
        low = torch.randn(tokens, 4, generator=random, dtype=torch.float64) @ noise[:1].new_tensor(
            torch.randn(4, dim, generator=random, dtype=torch.float64).tolist()
        )
        return low + 0.05 * noise if kind == "few directions" else low
    if kind == "groups":
        return torch.randn(7, dim, generator=random, dtype=torch.float64)[torch.arange(tokens) % 7] + 0.1 * noise
    if kind == "axes":  # every product is exactly -1, 0 or 1, with duplicates
        axis = torch.randint(0, dim // 2, (tokens,), generator=random)
        return torch.eye(dim, dtype=torch.float64)[axis] * (1 - 2 * (torch.arange(tokens)[:, None] % 2).double())
    if kind == "lost":
        noise[::3], noise[1::5, 1] = 0.0, torch.nan
    return noise


def kernel(features: Tensor, quality: Tensor) -> Tensor:
    """L [N, N] of one image."""
    unit = torch.where(features.isfinite().all(dim=1, keepdim=True), features, 0.0).double()
    unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-300)
    return quality[:, None] * (unit @ unit.T) * quality


def check(features: Tensor, quality: Tensor, picks: Tensor, floor: float, slack: float) -> None:
    """Each pick makes the determinant the largest, by its definition; then the quality decides."""
    matrix, order, most = kernel(features, quality), picks.tolist(), float(kernel(features, quality).diagonal().max())
    assert len(set(order)) == len(order)
    for step, pick in enumerate(order):
        before, rest = order[:step], [n for n in range(len(matrix)) if n not in order[:step]]
        base = torch.linalg.det(matrix[before][:, before]) if before else torch.ones(())
        left = {n: float(torch.linalg.det(matrix[[*before, n]][:, [*before, n]]) / base) for n in rest}
        best = max(left.values())
        if best > (floor + slack) * most:
            assert left[pick] >= best - slack * most, (step, pick)
        elif best < (floor - slack) * most or most == 0:
            assert order[step:] == sorted(rest, key=lambda n: (-float(quality[n]), n))[: len(order) - step]
            return


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("tokens", [1, 2, 9, 30])
def test_each_pick_makes_the_determinant_largest(
    kind: str, weighted: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    features = tokens_of(kind, tokens)
    quality = torch.arange(tokens, dtype=torch.float64).remainder(5) / 2 if weighted else None
    for limit, k in ((0, tokens), (0, max(1, tokens // 3)), (NEVER, tokens)):
        monkeypatch.setattr(reference, "SPAN_TOKENS", limit)
        picks = ops.dpp_map(features[None], k, None if quality is None else quality[None])[0]
        check(features, torch.ones(tokens).double() if quality is None else quality, picks, 1e-6, 1e-8)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pool", [(4, 1, 0), (4, 5, 2), (16, 8, 8), (256, 32, 8)])
def test_both_ways_pick_the_same(kind: str, pool: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy, "POOL", pool[0])
    monkeypatch.setattr(lazy, "BEHIND", pool[1])
    monkeypatch.setattr(lazy, "FEW", pool[2])
    features = torch.stack([tokens_of(kind, 120), tokens_of(kind, 120).flip(0)])
    quality = None if kind == "axes" else torch.rand(2, 120, dtype=torch.float64) + 0.5
    made = []
    for limit in (0, NEVER):
        monkeypatch.setattr(reference, "SPAN_TOKENS", limit)
        made.append(ops.dpp_map(features, 120, quality))
    assert torch.equal(*made)
    monkeypatch.setattr(reference, "SPAN_TOKENS", 0)
    for k in (1, 5, 60):
        assert torch.equal(ops.dpp_map(features, k, quality), made[0][:, :k])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_float32_picks_what_float64_would(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SPAN_TOKENS", 0)
    features = tokens_of("random", 300, 64).to(dtype)
    picks = ops.dpp_map(features[None], 40)[0]
    check(features.double(), torch.ones(300, dtype=torch.float64), picks[:12], 1e-6, 1e-5)
    assert len(set(picks.tolist())) == 40


@pytest.mark.parametrize("limit", [0, NEVER])
def test_without_anything_left_quality_decides(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SPAN_TOKENS", limit)
    quality = torch.tensor([[0.5, 3.0, 1.0, 3.0, 2.0, 0.0]])
    zeros = torch.zeros(1, 6, 4)
    assert ops.dpp_map(zeros, 6, quality).tolist() == [[1, 3, 4, 2, 0, 5]]
    same = torch.ones(1, 6, 4)
    assert ops.dpp_map(same, 6, quality).tolist() == [[1, 3, 4, 2, 0, 5]]
    assert ops.dpp_map(torch.randn(1, 6, 4), 6, torch.zeros(1, 6)).tolist() == [[0, 1, 2, 3, 4, 5]]
