"""`vtc.ops` as operators of torch: registration, compilation, gradients, what is refused."""

import dataclasses
from collections.abc import Callable
from typing import Any

import kernel_references as exact
import pytest
import torch
from kernel_cases import CASES, Case
from kernel_checks import flat
from kernel_draw import Draw
from torch import Tensor

from vtc import ops
from vtc.ops import cuda as kernels
from vtc.ops import dispatch, reference
from vtc.ops.mixing import Mixing

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
#: Small cases of each operation, one of them with all kinds of arguments.
SAMPLES = [case for case in CASES if case.name in ("smoke", "smoke-max-sum", "softcap", "empty-float32", "no-entries")]


def drawn(case: Case) -> tuple[Any, ...]:
    return case.build(Draw(DEVICE, case.name))


def opcheck(op: str, args: tuple[Any, ...]) -> None:
    torch.library.opcheck(getattr(torch.ops.vtc, op).default, flat(args))


def learnable(value: Any) -> Any:
    """The same with gradients asked of floating-point tensors."""
    if isinstance(value, Tensor):
        return value.detach().clone().requires_grad_() if value.is_floating_point() else value
    return [learnable(part) for part in value] if isinstance(value, list) else value


def a_mixing(draw: Draw, tokens: int, k: int, dtype: torch.dtype = torch.float32) -> Mixing:
    source, target = draw.integers(0, tokens, 2, 9), draw.integers(0, k, 2, 9)
    return Mixing(source, target, draw.normal(2, 9, dtype=dtype))


# ---------------------------------------------------------------- registration and compilation


@pytest.mark.parametrize("case", SAMPLES, ids="{0.op}-{0.name}".format)
def test_opcheck(case: Case) -> None:
    opcheck(case.op, drawn(case))


def test_opcheck_with_gradients() -> None:
    draw = Draw(DEVICE, "opcheck")
    hidden, places = draw.normal(2, 9, 4).requires_grad_(), draw.integers(0, 9, 2, 9)
    opcheck("compact", ([hidden, places, draw.normal(1, 9).requires_grad_()], places[:, :5], draw.chance(0.5, 2, 5)))
    mixing = a_mixing(draw, 9, 4)
    opcheck("merge", (hidden, mixing.source, mixing.target, mixing.weight.requires_grad_(), 4))


def shorten(hidden: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, ...]:
    """A decision that takes all five operations: of what is looked at, and far apart, merged and compacted."""
    batch, tokens, _ = hidden.shape
    received = ops.attention_received(ops.AttentionArguments(query, key, 0.25))
    rows = ops.attention_rows(ops.AttentionArguments(query[:, :, -1:], key, 0.25)).mean(dim=(1, 2))
    picks = ops.max_min(hidden, 6, seed=(received + rows).argmax(dim=-1))
    index = picks.sort(dim=-1).values
    kept, positions = ops.compact([hidden, torch.arange(tokens, device=hidden.device).expand(batch, -1)], index)
    source = torch.arange(tokens, device=hidden.device).expand(batch, -1)
    merged = ops.merge(hidden, Mixing(source, source % 6, received), 6)
    return received, index, kept + merged, positions


@pytest.mark.parametrize("dynamic", [False, True])
def test_a_compiled_function_has_no_graph_break(dynamic: bool) -> None:
    draw = Draw(DEVICE, "compile")
    compiled = torch.compile(shorten, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (20, 23):
        args = draw.normal(2, tokens, 8), draw.normal(2, 4, tokens, 16), draw.normal(2, 2, tokens, 16)
        for ours, eager in zip(compiled(*args), shorten(*args), strict=True):
            torch.testing.assert_close(ours, eager)


def test_a_compiled_function_is_differentiable() -> None:
    draw = Draw(DEVICE, "compile")
    args = [draw.normal(2, 20, 8), draw.normal(2, 4, 20, 16), draw.normal(2, 2, 20, 16)]
    compiled = torch.compile(shorten, fullgraph=True, backend="aot_eager")
    by_function = []
    for function in (compiled, shorten):
        inputs = [learnable(arg) for arg in args]
        function(*inputs)[2].square().sum().backward()
        by_function.append([tensor.grad for tensor in inputs])
        assert all(gradient.any() for gradient in by_function[-1])
    torch.testing.assert_close(*by_function)


# ---------------------------------------------------------------- gradients


def gradcheck(function: Callable[..., Any], inputs: list[Tensor]) -> None:
    """In float64, where torch adds on a GPU in no fixed order."""
    torch.autograd.gradcheck(function, inputs, nondet_tol=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("ragged", [False, True])
def test_gradients_of_compact(shared: bool, ragged: bool) -> None:
    draw = Draw(DEVICE, "gradients")
    tensors = [draw.normal(1 if shared else 2, 5, *rest, dtype=torch.float64).requires_grad_() for rest in ((), (3, 2))]
    index, valid = draw.integers(0, 5, 2, 4), draw.chance(0.6, 2, 4) if ragged else None
    gradcheck(lambda *given: ops.compact(list(given), index, valid), tensors)


def test_gradients_of_merge() -> None:
    draw = Draw(DEVICE, "gradients")
    mixing = a_mixing(draw, 7, 4, torch.float64)
    gradcheck(
        lambda x, weight: ops.merge(x, dataclasses.replace(mixing, weight=weight), 4),
        [draw.normal(2, 7, 3, dtype=torch.float64).requires_grad_(), mixing.weight.requires_grad_()],
    )


@pytest.mark.parametrize("kind", ["rows", "received"])
def test_gradients_of_attention(kind: str) -> None:
    """Computed in float32, and so held against those that torch derives from the float64 reference."""
    draw = Draw(DEVICE, "gradients")
    query, key = draw.normal(2, 4, 9, 8), draw.normal(2, 2, 12, 8)
    seen, cap = (draw.chance(0.8, 2, 1, 9, 12), None, draw.integers(1, 13, 2, 9)), 3.0
    weights, outer = draw.normal(2, 9), draw.normal(2, 4, 9, 12) if kind == "rows" else draw.normal(2, 12)
    ours, theirs = (
        [learnable(tensor.to(dtype)) for tensor in (query, key)] for dtype in (torch.float32, torch.float64)
    )
    mine, right = (ops.AttentionArguments(*both, 0.5, *seen, cap) for both in (ours, theirs))
    if kind == "rows":
        made, true = ops.attention_rows(mine), exact.attention(right)[0]
    else:
        made, true = ops.attention_received(mine, weights), exact.received(right, weights)[0]
    (made * outer).sum().backward()
    (true * outer).sum().backward()
    for got, wanted in zip(ours, theirs, strict=True):
        torch.testing.assert_close(got.grad, wanted.grad.float(), rtol=1e-4, atol=1e-6)


# ---------------------------------------------------------------- arguments


def test_int32_gives_what_int64_gives() -> None:
    draw = Draw(DEVICE, "integers")
    features, mixing = draw.normal(2, 12, 8), a_mixing(draw, 12, 4)
    query, key = draw.normal(2, 4, 12, 8), draw.normal(2, 2, 12, 8)
    index, counts, seed = draw.integers(0, 12, 2, 5), draw.integers(3, 13, 2), draw.integers(0, 3, 2)
    begin, cu_seqlens = draw.integers(0, 6, 2, 12), torch.tensor([0, 5, 7, 12], device=DEVICE)
    given = ops.AttentionArguments(query, key, 0.3)
    packed = ops.AttentionArguments(query[:1], key[:1], 0.3)
    calls: list[tuple[Callable[..., Any], tuple[Tensor, ...]]] = [
        (lambda index: ops.compact([features], index)[0], (index,)),
        (lambda seed, counts: ops.max_min(features, 7, seed, counts=counts), (seed, counts)),
        (lambda begin, end: ops.attention_rows(given._replace(begin=begin, end=end)), (begin, begin + 4)),
        (lambda begin, end: ops.attention_received(given._replace(begin=begin, end=end)), (begin, begin + 4)),
        (lambda cu: ops.attention_received(packed, cu_seqlens=cu), (cu_seqlens,)),
        (lambda *st: ops.merge(features, Mixing(*st, mixing.weight), 4), (mixing.source, mixing.target)),
    ]
    for call, integers in calls:
        assert torch.equal(call(*integers), call(*(tensor.int() for tensor in integers)))


@pytest.mark.parametrize("weighted", [False, True])
def test_packed_sequences_see_themselves(weighted: bool) -> None:
    draw, lengths = Draw(DEVICE, "packed"), [5, 1, 0, 70, 24]
    query, key = draw.normal(1, 4, 100, 16), draw.normal(1, 2, 100, 16)
    weights = draw.normal(1, 100) if weighted else None
    cu_seqlens = torch.tensor([0, *lengths], device=DEVICE).cumsum(0)
    packed = ops.attention_received(ops.AttentionArguments(query, key, 0.25), weights, cu_seqlens)
    for start, length in zip(cu_seqlens.tolist(), lengths):
        if not length:
            continue
        own = slice(start, start + length)
        part = None if weights is None else weights[:, own]
        alone = ops.AttentionArguments(query[:, :, own], key[:, :, own], 0.25)
        true, allowed = exact.received(alone, part)
        exact.within(packed[:, own], true, allowed + exact.rounding(1) * true.abs())


Q, K, X = torch.zeros(2, 4, 3, 8), torch.zeros(2, 2, 5, 8), torch.zeros(2, 6, 8)
WHOLE = torch.zeros(2, 3, dtype=torch.int64)
GIVEN = ops.AttentionArguments(Q, K, 1.0)
REFUSED: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("compact-index-shape", lambda: ops.compact([X], WHOLE[0]), ValueError, r"index of shape \(3,\)"),
    ("compact-index-dtype", lambda: ops.compact([X], WHOLE.float()), TypeError, r"index is torch.float32"),
    ("compact-tensor", lambda: ops.compact([X, X[:, 0, 0]], WHOLE), ValueError, r"tensors\[1\] of shape \(2,\)"),
    (
        "compact-batch",
        lambda: ops.compact([X.repeat(2, 1, 1)], WHOLE),
        ValueError,
        r"tensors\[0\] of shape \(4, 6, 8\)",
    ),
    (
        "compact-valid-shape",
        lambda: ops.compact([X], WHOLE, WHOLE[:, :2].bool()),
        ValueError,
        r"valid of shape \(2, 2\)",
    ),
    ("compact-valid-dtype", lambda: ops.compact([X], WHOLE, WHOLE), TypeError, r"valid is torch.int64"),
    ("max-min-shape", lambda: ops.max_min(X[0], 2), ValueError, r"features of shape \(6, 8\)"),
    ("max-min-no-pick", lambda: ops.max_min(X, 0), ValueError, r"k=0 is not in 1…6"),
    ("max-min-too-many", lambda: ops.max_min(X, 7), ValueError, r"k=7 is not in 1…6"),
    ("max-min-rule", lambda: ops.max_min(X, 2, rule="mean"), ValueError, r"rule='mean'"),
    ("max-min-seed", lambda: ops.max_min(X, 2, seed=WHOLE[0]), ValueError, r"seed of shape \(3,\)"),
    ("max-min-counts", lambda: ops.max_min(X, 2, counts=X[:, 0, 0]), TypeError, r"counts is torch.float32"),
    ("cover-shape", lambda: ops.facility_location(X[0], 2), ValueError, r"values of shape \(6, 8\)"),
    ("cover-too-many", lambda: ops.facility_location(X, 9), ValueError, r"k=9 is not in 1…8"),
    ("cover-combine", lambda: ops.facility_location(X, 2, combine="max"), ValueError, r"combine='max'"),
    ("cover-weight", lambda: ops.facility_location(X, 2, X[:, :, 0]), ValueError, r"weight of shape \(2, 6\)"),
    ("coverage-no-pick", lambda: ops.coverage(X, 0), ValueError, r"k=0 is not in 1…6"),
    ("coverage-combine", lambda: ops.coverage(X, 2, combine="max"), ValueError, r"combine='max'"),
    ("coverage-weight", lambda: ops.coverage(X, 2, X[0]), ValueError, r"weight of shape \(6, 8\)"),
    ("dpp-too-many", lambda: ops.dpp_map(X, 7), ValueError, r"k=7 is not in 1…6"),
    ("dpp-quality", lambda: ops.dpp_map(X, 2, X[0]), ValueError, r"quality of shape \(6, 8\)"),
    ("rows-query", lambda: ops.attention_rows(GIVEN._replace(query=Q[0])), ValueError, r"query of shape \(4, 3, 8\)"),
    ("rows-key", lambda: ops.attention_rows(GIVEN._replace(key=K[..., :4])), ValueError, r"key of shape \(2, 2, 5, "),
    ("rows-heads", lambda: ops.attention_rows(GIVEN._replace(query=Q[:, :3])), ValueError, r"H a multiple of H_kv"),
    ("rows-mask", lambda: ops.attention_rows(GIVEN._replace(mask=X.bool())), ValueError, r"mask of shape \(2, 6, 8\)"),
    ("rows-begin", lambda: ops.attention_rows(GIVEN._replace(begin=WHOLE[:1])), ValueError, r"begin of shape \(1, 3\)"),
    ("rows-end", lambda: ops.attention_rows(GIVEN._replace(end=WHOLE.float())), TypeError, r"end is torch.float32"),
    (
        "received-weights",
        lambda: ops.attention_received(GIVEN, X[:, :, 0]),
        ValueError,
        r"weights of shape \(2, 6\)",
    ),
    (
        "received-both",
        lambda: ops.attention_received(GIVEN._replace(end=WHOLE), cu_seqlens=WHOLE[0]),
        ValueError,
        "cu_seqlens says which keys",
    ),
    (
        "received-unpacked",
        lambda: ops.attention_received(GIVEN, cu_seqlens=WHOLE[0]),
        ValueError,
        r"cu_seqlens is for one packed row .* \(2, 4, 3, 8\)",
    ),
    ("merge-x", lambda: ops.merge(X[0], Mixing(WHOLE, WHOLE, WHOLE.float()), 3), ValueError, r"x of shape \(6, 8\)"),
    ("merge-target", lambda: ops.merge(X, Mixing(WHOLE, WHOLE[:1], WHOLE.float()), 3), ValueError, "mixing.target of"),
    ("merge-weight", lambda: ops.merge(X, Mixing(WHOLE, WHOLE, X[:, 0]), 3), ValueError, "mixing.weight of shape"),
    (
        "merge-source",
        lambda: ops.merge(X, Mixing(WHOLE.float(), WHOLE, WHOLE.float()), 3),
        TypeError,
        "mixing.source is",
    ),
]


@pytest.mark.parametrize(("call", "kind", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_bad_arguments_are_refused(call: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        call()


# ---------------------------------------------------------------- kernels or torch


@pytest.mark.parametrize("case", SAMPLES, ids="{0.op}-{0.name}".format)
def test_where_kernels_run(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch calls for tensors of a GPU runs the kernel if there is one, and not within `kernels(False)`."""
    args = tuple(case.build(Draw("cpu", case.name)))
    operator = dispatch._operators[case.op]._backend_fns["cuda"]
    asked: list[str] = []

    def kernel_for(name: str, *_: Any) -> Callable[..., Any] | None:
        asked.append(name)
        return (lambda *_: "the kernel's") if len(asked) == 1 else None

    monkeypatch.setattr(kernels, "kernel_for", kernel_for)
    plain = getattr(reference, case.op)(*args)
    assert operator(*flat(args)) == "the kernel's"
    torch.testing.assert_close(operator(*flat(args)), plain)  # none for these arguments
    with ops.kernels(False):
        torch.testing.assert_close(operator(*flat(args)), plain)
        with ops.kernels(True):
            operator(*flat(args))
    assert asked == [case.op] * 3


def test_kernels_are_back_after_an_error() -> None:
    with pytest.raises(KeyError), ops.kernels(False):
        raise KeyError
    assert dispatch._kernels.get()
