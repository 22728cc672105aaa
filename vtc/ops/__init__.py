"""Tensors only: the operators that cost time, and index arithmetic on batched sequences.

This is the only door to the operators; `vtc.ops.operators` tells how they are run.
"""

from vtc.ops.operators import attention_received, attention_rows, compact, kernels, max_min, merge

__all__ = ["attention_received", "attention_rows", "compact", "kernels", "max_min", "merge"]
