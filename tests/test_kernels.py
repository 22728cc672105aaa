"""Every implementation of the operations against float64: torch, the kernels emulated on the CPU, the kernels on a GPU.

Results lie in memory that held NaN (or the largest integer) before, so that what is not written is noticed.
"""

import math
from typing import Any

import kernel_references as exact
import pytest
import torch
from covering import REST
from kernel_cases import CASES, LARGE, Case
from kernel_checks import (
    CHECKS,
    Backend,
    backend_named,
    check_attention_received,
    check_attention_rows,
    check_max_min,
    same_bits,
    tensors_in,
)
from kernel_draw import Draw
from torch import Tensor

from vtc.cuda import library
from vtc.ops import AttentionArguments, reference

BACKENDS = ("reference", "emulated", "cuda")
PAIRS = [(name, case) for name in BACKENDS for case in CASES] + [("cuda", case) for case in LARGE]


def takes_long(name: str, case: Case, *ops: str) -> bool:
    """Whether the emulator takes ten seconds or more: all pairs of many tokens."""
    return name.startswith("emulated") and case.op in ops and case.name.split("-")[0] in ("576", "1000")


def param(name: str, case: Case, *slow: str):
    """A backend, or a form of one, and a case; with --all alone where the emulator would take long."""
    marks = REST if takes_long(name, case, *slow) else ()
    return pytest.param(name, case, marks=marks, id=f"{name}-{case.op}-{case.name}")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Backend:
    return backend_named(request.param)


def draw_arguments(backend: Backend, case: Case) -> tuple[Any, ...]:
    return case.build(Draw(backend.device, f"{case.op} {case.name}"))


@pytest.mark.parametrize(("name", "case"), [param(*pair, "attention_received") for pair in PAIRS])
def test_against_float64(name: str, case: Case) -> None:
    backend = backend_named(name)
    args = draw_arguments(backend, case)
    before = [tensor.clone() for tensor in tensors_in(args)]
    made = backend.run(case.op, *args)
    CHECKS[case.op](made, *args)
    assert same_bits(tensors_in(args), before)  # inputs are not written to
    assert same_bits(made, backend.run(case.op, *args))


@pytest.mark.parametrize("case", [case for case in CASES if case.name.startswith("smoke")], ids="{0.op}".format)
def test_a_wrong_result_is_noticed(case: Case) -> None:
    args = case.build(Draw("cpu", case.name))
    made = getattr(reference, case.op)(*args)
    for spoil in (_off_by_a_little, _unwritten):
        wrong = type(made)(tensor.clone() for tensor in made) if isinstance(made, list | tuple) else made.clone()
        spoil(wrong[-1] if isinstance(wrong, list) else wrong[0] if isinstance(wrong, tuple) else wrong)
        with pytest.raises(AssertionError):
            CHECKS[case.op](wrong, *args)


def _off_by_a_little(tensor: Tensor) -> None:
    """Two picks change places, or the largest number of the first row grows by a hundredth."""
    if tensor.dtype == torch.int64:
        tensor[0, :2] = tensor[0, :2].flip(0)
    else:
        tensor.view(-1)[tensor.flatten().nan_to_num(neginf=0.0).abs().argmax()] *= 1.01


def _unwritten(tensor: Tensor) -> None:
    tensor.view(-1)[0] = torch.iinfo(torch.int64).max if tensor.dtype == torch.int64 else torch.nan


# ---------------------------------------------------------------- max_min


#: Other ways to the same picks, for many tokens: the limit to lower so that few take them too.
FORMS = {
    "reference-part": (reference, "MANY"),
    "reference-rows": (reference, "MATRIX_ENTRIES"),
    "emulated-steps": (library, "_MATRIX_TOKENS"),
    "cuda-steps": (library, "_MATRIX_TOKENS"),
}


@pytest.mark.parametrize(
    ("form", "case"), [param(form, case, "max_min") for case in CASES if case.op == "max_min" for form in FORMS]
)
def test_max_min_as_for_many_tokens(form: str, case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_named(form.split("-")[0])
    features, k, *rest = draw_arguments(backend, case)
    monkeypatch.setattr(*FORMS[form], 0)
    for count in {k, max(1, features.shape[1] // 4)}:
        made = backend.run("max_min", features, count, *rest)
        check_max_min(made, features, count, *rest)
        assert same_bits(made, backend.run("max_min", features, count, *rest))


@pytest.mark.parametrize("rule", ["max-min", "max-sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_well_separated_tokens_have_one_order(backend: Backend, rule: str, dtype: torch.dtype) -> None:
    draw, compared = Draw(backend.device, rule), 0
    for _ in range(40):
        features = draw.normal(1, 24, 5, dtype=dtype)
        order, lead = exact.greedy(features[0], 8, None, rule)
        if lead > 1e-3:
            compared += 1
            assert backend.run("max_min", features, 8, None, rule, None).tolist() == [order]
    assert compared > 3


@pytest.mark.parametrize("rule", ["max-min", "max-sum"])
@pytest.mark.parametrize("tokens", [5, 40, 130])
@pytest.mark.parametrize("seeded", [False, True])
def test_of_equally_far_tokens_the_first(backend: Backend, rule: str, tokens: int, seeded: bool) -> None:
    """Signed powers of two along the axes: every cosine is exactly -1, 0 or 1, so that most distances are equal."""
    draw = Draw(backend.device, rule)
    axes = torch.nn.functional.one_hot(draw.integers(0, 6, 2, tokens), 6).float()
    features = axes * torch.exp2(draw.integers(-3, 4, 2, tokens, 1)) * draw.integers(0, 2, 2, tokens, 1).mul(2).sub(1)
    seed = draw.integers(0, tokens, 2) if seeded else None
    made = backend.run("max_min", features, tokens, seed, rule, None)
    for image, picks in enumerate(made.tolist()):
        first = None if seed is None else int(seed[image])
        assert picks == exact.greedy(features[image], tokens, first, rule)[0]


def test_padding_is_no_token(backend: Backend) -> None:
    """Three tokens that all point apart: with zeros behind them, which are less far, the choice is the same."""
    angle = torch.tensor([0.0, 100.0, 215.0], device=backend.device).deg2rad()  # 100°, 115° and 145° apart
    alone = torch.stack([angle.cos(), angle.sin()], dim=-1)[None]
    padded = torch.cat([alone, torch.zeros(1, 4, 2, device=backend.device)], dim=1)
    assert backend.run("max_min", alone, 3, None, "max-min", None).tolist() == [[2, 0, 1]]
    counts = torch.tensor([3], device=backend.device)
    assert backend.run("max_min", padded, 4, None, "max-min", counts).tolist() == [[2, 0, 1, -1]]


# ---------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_is_not_seen_does_not_count(backend: Backend, dtype: torch.dtype) -> None:
    """NaN in keys that no query sees changes nothing; a query with NaN gives nothing."""
    draw = Draw(backend.device, "unseen")
    query, key = draw.normal(1, 2, 70, 16, dtype=dtype), draw.normal(1, 2, 80, 16, dtype=dtype)
    clean = key.clone()
    key[:, :, 66:], query[:, :, 5] = torch.nan, torch.nan
    end = torch.full((1, 70), 66, device=backend.device)
    mask = (torch.arange(80, device=backend.device) < 66).view(1, 1, 1, 80)
    for mask_, end_ in ((mask, None), (None, end)):
        given, right = (AttentionArguments(query, keys, 0.25, mask_, None, end_) for keys in (key, clean))
        rows = backend.run("attention_rows", given)
        assert not rows[:, :, 5].any() and not rows[..., 66:].any()
        check_attention_rows(rows, right)
        check_attention_received(backend.run("attention_received", given, None), right, None)


@pytest.mark.parametrize("of", [torch.float32, torch.bfloat16], ids=str)
def test_rows_of_the_smallest_number(backend: Backend, of: torch.dtype) -> None:
    """A float mask that holds the smallest finite number, in some rows everywhere, as transformers fills it."""
    draw = Draw(backend.device, "smallest")
    query, key = draw.normal(2, 2, 9, 16), draw.normal(2, 2, 9, 16)
    mask = torch.zeros(2, 1, 9, 9, dtype=of, device=backend.device)
    mask.masked_fill_(draw.chance(0.4, 2, 1, 9, 9), torch.finfo(of).min)
    mask[0, 0, :3] = torch.finfo(of).min
    given = AttentionArguments(query, key, 0.25, mask)
    check_attention_rows(backend.run("attention_rows", given), given)
    check_attention_received(backend.run("attention_received", given, None), given, None)


def test_probabilities_received_add_up(backend: Backend) -> None:
    draw = Draw(backend.device, "sum")
    query, key = draw.normal(2, 4, 50, 32), draw.normal(2, 2, 90, 32)
    received = backend.run("attention_received", AttentionArguments(query, key, 0.2), None)
    assert (received.double().sum(dim=1) - 1).abs().max() < math.sqrt(90) * exact.rounding(50)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("lowest", [-65504.0, -1e9, torch.finfo(torch.float32).min])
def test_queries_masked_everywhere_by_a_number_see_all_alike(
    backend: Backend, dtype: torch.dtype, lowest: float
) -> None:
    draw = Draw(backend.device, "masked")
    query, key = (draw.normal(1, 2, 70, 16).to(dtype) for _ in range(2))
    mask = torch.zeros(1, 1, 70, 70, device=backend.device)
    mask[:, :, :10] = lowest
    weights = torch.zeros(1, 70, device=backend.device)
    weights[:, 3] = 1.0
    received = backend.run("attention_received", AttentionArguments(query, key, 0.25, mask), weights)
    rows = backend.run("attention_rows", AttentionArguments(query[:, :, 3:4], key, 0.25, mask[:, :, 3:4]))
    torch.testing.assert_close(received, rows.mean(dim=1)[:, 0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(received.sum(), torch.ones_like(received.sum()), rtol=1e-5, atol=0)


def test_a_query_that_sees_a_nan_gives_nothing(backend: Backend) -> None:
    draw = Draw(backend.device, "nan")
    query, key = draw.normal(1, 2, 70, 16), draw.normal(1, 2, 70, 16)
    key[:, :, 64] = float("nan")
    end = torch.arange(1, 71, device=backend.device)[None]
    weights = torch.zeros(1, 70, device=backend.device)
    weights[:, 64:68] = 1.0  # the four whose window of four has the NaN
    received = backend.run("attention_received", AttentionArguments(query, key, 0.25, None, end - 4, end), weights)
    assert not received.any()
