"""Tensors only: the operators that cost time, and index arithmetic on batched sequences.

This is the only door to the operators. Each is a custom operator of torch (`torch.ops.vtc.*`), so that torch.compile
traces through it.
"""

from vtc.cuda.arguments import AttentionArguments
from vtc.ops.attention import attention_received, attention_rows
from vtc.ops.choosing import coverage, dpp_map, facility_location, max_min, weighted_max_min
from vtc.ops.dispatch import kernels
from vtc.ops.operators import compact, merge

__all__ = [
    "AttentionArguments",
    "attention_received",
    "attention_rows",
    "compact",
    "coverage",
    "dpp_map",
    "facility_location",
    "kernels",
    "max_min",
    "merge",
    "weighted_max_min",
]
