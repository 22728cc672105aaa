"""The operations that choose by what is covered, spanned or dense: compiled, and under autocast."""

import pytest
import torch
from kernel_draw import Draw
from torch import Tensor

from vtc import ops
from vtc.ops.clusters import density_peaks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def choose(features: Tensor, values: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """All operations that choose by what is covered, spanned or dense."""
    count = torch.full((len(features),), 4, device=features.device)
    found = density_peaks(features, count, 4)
    return (
        ops.facility_location(values, 5, weight, "sum"),
        ops.coverage(features, 5, weight),
        ops.dpp_map(features, 5, weight),
        found.score,
        found.centres,
        found.member_of,
    )


@pytest.mark.parametrize("dynamic", [False, True])
def test_what_chooses_compiles_and_is_the_same_under_autocast(dynamic: bool) -> None:
    draw = Draw(DEVICE, "choose")
    compiled = torch.compile(choose, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for tokens in (20, 23):
        args = draw.normal(2, tokens, 8), draw.normal(2, 9, tokens), draw.normal(2, tokens).abs()
        plain = choose(*args)
        for function in (compiled, choose):
            torch.testing.assert_close(function(*args), plain)
            with torch.autocast(DEVICE, torch.bfloat16):
                torch.testing.assert_close(function(*args), plain)
