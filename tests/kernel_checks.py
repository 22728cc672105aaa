"""Where the operations of `vtc.ops` can be called, and what is right of what comes back."""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cuda_emulator
import kernel_references as exact
import kernel_references_choosing as choosing
import pytest
import torch
from torch import Tensor

from vtc.ops import AttentionArguments, reference
from vtc.ops import cuda as kernels


class Backend(NamedTuple):
    """Where the operations of `vtc.ops.reference` can be called: that module, or a Library."""

    name: str
    device: str
    operations: Any

    def run(self, op: str, *args: Any) -> Any:
        """Into poisoned memory; skips what the kernels leave to torch."""
        if self.name != "reference" and not self.operations.takes(op, *args):
            pytest.skip("torch runs here")
        with poisoned():
            return getattr(self.operations, op)(*args)


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Within it, new memory is full of NaN, True, or the largest integer."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def backend_named(name: str) -> Backend:
    if name == "reference":
        return Backend(name, "cpu", reference)
    if name == "emulated":
        if cuda_emulator.compiler() is None:
            pytest.skip("no C++ compiler")
        return Backend(name, "cpu", cuda_emulator.library())
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    loaded = kernels.load()
    if loaded is None:
        pytest.skip("no kernels for this GPU; the log says why")
    return Backend(name, "cuda", loaded)


def tensors_in(args: Any) -> list[Tensor]:
    if isinstance(args, Tensor):
        return [args]
    return [tensor for part in args for tensor in tensors_in(part)] if isinstance(args, tuple | list) else []


def flat(args: tuple[Any, ...]) -> tuple[Any, ...]:
    """The arguments of an operation as torch's dispatcher takes them."""
    each = (arg if isinstance(arg, AttentionArguments) else (arg,) for arg in args)
    return tuple(itertools.chain.from_iterable(each))


def same_bits(left: Any, right: Any) -> bool:
    pairs = zip(tensors_in(left), tensors_in(right), strict=True)
    return all(one.dtype == other.dtype and torch.equal(_bits(one), _bits(other)) for one, other in pairs)


def _bits(tensor: Tensor) -> Tensor:
    return tensor.contiguous().view(-1).view(torch.uint8)


# ---------------------------------------------------------------- what is right


def check_compact(made: list[Tensor], *args: Any) -> None:
    assert same_bits(made, exact.compact(*args))


def check_max_min(
    made: Tensor, features: Tensor, k: int, seed: Tensor | None, rule: str, counts: Tensor | None
) -> None:
    assert made.dtype == torch.int64 and made.shape == (len(features), k)
    for image, picks in enumerate(made):
        count = features.shape[1] if counts is None else int(counts[image])
        exact.check_greedy(features[image, :count], picks[:count], None if seed is None else int(seed[image]), rule)
        assert (picks[count:] == -1).all()


def check_weighted_max_min(
    made: Tensor, features: Tensor, k: int, seed: Tensor, weight: Tensor | None, bonus: Tensor | None
) -> None:
    assert made.dtype == torch.int64 and made.shape == (len(features), k)
    for image, picks in enumerate(made):
        own = (None if each is None else each[image] for each in (weight, bonus))
        exact.check_weighted(features[image], picks, int(seed[image]), *own)


def check_facility_location(
    made: Tensor, values: Tensor, k: int, weight: Tensor | None, combine: str, tolerance: float
) -> None:
    assert made.dtype == torch.int64 and made.shape == (len(values), k)
    for image, picks in enumerate(made):
        choosing.check_cover(values[image], picks, None if weight is None else weight[image], combine, tolerance)


def check_coverage(made: Tensor, features: Tensor, k: int, weight: Tensor | None, combine: str) -> None:
    assert made.dtype == torch.int64 and made.shape == (len(features), k)
    tokens, dim = features.shape[1:]
    for image, picks in enumerate(made):
        unit, _ = exact.directions(features[image])
        own = None if weight is None else weight[image]
        off = 2 * tokens * exact.rounding(dim)
        choosing.check_cover(unit @ unit.T, picks, own, combine, tokens * torch.finfo(torch.float32).eps, off)


def check_dpp_map(made: Tensor, features: Tensor, k: int, quality: Tensor | None, floor: float) -> None:
    assert made.dtype == torch.int64 and made.shape == (len(features), k)
    for image, picks in enumerate(made):
        choosing.check_span(features[image], picks, None if quality is None else quality[image], floor)


def check_density_peaks(
    made: tuple[Tensor, Tensor, Tensor],
    x: Tensor,
    count: Tensor,
    most: int,
    neighbours: Tensor | None,
    valid: Tensor | None,
    ranked: bool = False,
) -> None:
    assert [part.dtype for part in made] == [torch.float32, torch.int64, torch.int64]
    valid = torch.ones_like(made[0], dtype=torch.bool) if valid is None else valid
    for group, parts in enumerate(zip(*made, strict=True)):
        near = int((count if neighbours is None else neighbours)[group])
        choosing.check_peaks(parts, x[group], int(count[group]), most, near, valid[group], ranked)


def check_attention_rows(made: Tensor, *args: Any) -> None:
    assert made.dtype == torch.float32
    exact.within(made, *exact.attention(*args))


def check_attention_received(made: Tensor, *args: Any) -> None:
    assert made.dtype == torch.float32
    exact.within(made, *exact.received(*args))


def check_merge(made: Tensor, x: Tensor, *args: Any) -> None:
    assert made.dtype == x.dtype
    exact.within(made, *exact.merge(x, *args))


CHECKS: dict[str, Callable[..., None]] = {
    "compact": check_compact,
    "max_min": check_max_min,
    "weighted_max_min": check_weighted_max_min,
    "facility_location": check_facility_location,
    "coverage": check_coverage,
    "dpp_map": check_dpp_map,
    "density_peaks": check_density_peaks,
    "attention_rows": check_attention_rows,
    "attention_received": check_attention_received,
    "merge": check_merge,
}
