"""`vtc.ops.facility_location` and `coverage`: lazily found picks are those that all gains give."""

import itertools

import pytest
import torch
from kernel_references_choosing import check_cover
from torch import Tensor

from vtc import ops
from vtc.ops import reference
from vtc.ops.greedy import coverage as lazy

NEVER = 10**12
KINDS = ("random", "few directions", "duplicated", "integers", "zero weights", "all equal", "negative", "spoilt")


def problem(kind: str, tokens: int, demands: int | None = None) -> tuple[Tensor, Tensor | None]:
    """Values [U, N] in float64 and weights."""
    random = torch.Generator().manual_seed(tokens)
    demands = tokens + 3 if demands is None else demands
    values = torch.randn(demands, tokens, generator=random, dtype=torch.float64)
    weight = torch.rand(tokens, generator=random, dtype=torch.float64) + 0.1
    if kind == "few directions":
        left, right = (torch.randn(n, 3, generator=random, dtype=torch.float64) for n in (demands, tokens))
        values = left @ right.T + 0.05 * values
    elif kind == "duplicated":  # exact numbers, so that equal tokens are equal however they are added up
        values, weight = values.mul(4).round(), None
        values[:, tokens // 2 :] = values[:, : tokens - tokens // 2].clone()
    elif kind == "integers":
        values, weight = values.round(), (4 * weight).round()
    elif kind == "zero weights":
        weight[::2] = 0.0
        values, weight = values.mul(8).round(), weight.mul(8).round()
    elif kind == "all equal":
        values, weight = torch.ones_like(values), None
    elif kind == "negative":
        values = -values.abs()
    elif kind == "spoilt":
        values[::3, ::2], values[1::4, 1::3] = torch.nan, torch.inf
    return values, weight


def brute(values: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float = 0.0) -> list[int]:
    """One image, by its definition."""
    values = torch.where(values.isfinite() & (values > 0), values, 0.0).double()
    worth = [1.0] * values.shape[1] if weight is None else weight.tolist()
    picks: list[int] = []
    while len(picks) < k:
        covered = values[:, picks].amax(dim=1) if picks else values.new_zeros(len(values))
        gains = [float((column - covered).clamp_min(0).sum()) for column in values.T]
        gains = [gain if gain > tolerance else 0.0 for gain in gains]
        joint = [g + w if combine == "sum" else g * w for g, w in zip(gains, worth)]
        rest = [n for n in range(values.shape[1]) if n not in picks]
        score = next((s for s in (joint, gains) if max(s[n] for n in rest) > 0), worth)
        picks.append(max(rest, key=lambda n: (score[n], -n)))
    return picks


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("combine", ["product", "sum"])
@pytest.mark.parametrize("tokens", [1, 2, 7, 40])
def test_lazily_found_picks_are_those_of_all_gains(
    kind: str, combine: str, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    values, weight = problem(kind, tokens)
    wanted = brute(values, tokens, weight, combine)
    given = None if weight is None else weight[None]
    for limit in (0, NEVER):
        monkeypatch.setattr(reference, "COVER_VALUES", limit)
        for k in {1, 2, tokens // 2, tokens - 1, tokens} & {*range(1, tokens + 1)}:
            assert ops.facility_location(values[None], k, given, combine)[0].tolist() == wanted[:k]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_pick_the_same_for_several_images(
    kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = torch.stack([problem(kind, 300, 200)[0].roll(turn, 1) for turn in (0, 7)]).to(dtype)
    weight = torch.rand(2, 300)
    if kind in ("duplicated", "integers", "all equal"):
        weight = weight.mul(4).round()
    made = {}
    for limit, combine in itertools.product((0, NEVER), ("product", "sum")):
        monkeypatch.setattr(reference, "COVER_VALUES", limit)
        made[limit, combine] = ops.facility_location(values, 60, weight, combine, 1e-3)
    for combine in ("product", "sum"):
        assert torch.equal(made[0, combine], made[NEVER, combine])


def test_few_gains_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    values, _ = problem("few directions", 1000)
    computed, gains = [], lazy._gains

    def counted(rows: Tensor, covered: Tensor) -> Tensor:
        computed.append(len(rows))
        return gains(rows, covered)

    monkeypatch.setattr(lazy, "_gains", counted)
    lazy.cover(values, 100, None, "product", 0.0)
    assert sum(computed) < 1000 + 100 * 150  # of 100,000


def tokens_of(kind: str, count: int) -> Tensor:
    random = torch.Generator().manual_seed(count)
    noise = torch.randn(count, 12, generator=random, dtype=torch.float64)
    if kind == "groups":
        return torch.randn(5, 12, generator=random, dtype=torch.float64)[torch.arange(count) % 5] + 0.2 * noise
    if kind == "axes":  # similarities of exactly -1, 0 and 1
        axis = torch.randint(0, 12, (count,), generator=random)
        return torch.eye(12, dtype=torch.float64)[axis] * (1 - 2 * (torch.arange(count)[:, None] % 3 == 0).double())
    if kind == "lost":
        noise[::3], noise[1::7, 0] = 0.0, torch.nan
    return noise


@pytest.mark.parametrize("kind", ["random", "groups", "axes", "lost"])
@pytest.mark.parametrize("combine", ["product", "sum"])
@pytest.mark.parametrize("count", [1, 9, 90])
def test_tokens_cover_themselves(kind: str, combine: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    features = tokens_of(kind, count)
    unit = torch.where(features.isfinite().all(dim=1, keepdim=True), features, 0.0)
    unit = unit / unit.norm(dim=1, keepdim=True).clamp_min(1e-300)
    weight = torch.randint(1, 4, (count,), generator=torch.Generator().manual_seed(0)).double()
    wanted = brute(unit @ unit.T, count, weight, combine, tolerance=count * 2.0**-52)
    monkeypatch.setattr(lazy, "KEPT", 0)
    monkeypatch.setattr(lazy, "MOST", 16)
    for limit in (0, NEVER):
        monkeypatch.setattr(reference, "COVER_TOKENS", limit)
        for k in {1, count // 3, count} - {0}:
            picks = ops.coverage(features[None], k, weight[None], combine)[0]
            if kind == "axes":
                assert picks.tolist() == wanted[:k]
            check_cover(unit @ unit.T, picks, weight, combine, count * 2.0**-52, off=count * 2.0**-50)


@pytest.mark.parametrize("kind", ["random", "groups", "axes", "lost"])
@pytest.mark.parametrize("count", [5, 90])
def test_what_bounds_the_first_gains_bounds_them(kind: str, count: int) -> None:
    unit, _ = reference.unit_rows(tokens_of(kind, count)[None])
    for rows in (unit[0], unit[0].float()):
        bound = lazy.first_bound(rows)
        assert (bound >= (rows.double() @ rows.double().T).clamp_min(0).sum(dim=0)).all()


def test_many_tokens_make_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that is kept has an entry for each pair, and rows whose room was given away come back the same."""
    monkeypatch.setattr(lazy, "KEPT", 0)
    monkeypatch.setattr(lazy, "MOST", 8)
    unit, _ = reference.unit_rows(tokens_of("random", 200)[None])
    rows = lazy._Similarities(unit[0])
    assert rows._rows.shape == (16, 200)
    for start in (0, 8, 40, 0, 190, 44):
        index = torch.arange(start, min(start + 8, 200))
        torch.testing.assert_close(rows(index), unit[0][index] @ unit[0].T)
