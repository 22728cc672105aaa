"""What the attention operators are called with: the one list, for operators, references, kernels and tests."""

from typing import NamedTuple

from torch import Tensor


class AttentionArguments(NamedTuple):
    """Queries, keys, and which may see which.

    Attributes:
        query: Tensor [B, H, Q, d].
        key: Tensor [B, H_kv, S, d]; H is a multiple of H_kv.
        scaling: factor of the logits.
        mask: broadcast to [B, H, Q, S]: True may attend (bool), or added to the logits (float); None: no mask.
        begin: LongTensor or IntTensor [B, Q]: the first key that each query may see; None: 0.
        end: LongTensor or IntTensor [B, Q]: the first key behind those that it may see; None: S.
        softcap: c of c · tanh(logits / c), before the mask; None: no cap.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Tensor | None = None
    begin: Tensor | None = None
    end: Tensor | None = None
    softcap: float | None = None

    def part(self, rows: slice, queries: slice) -> "AttentionArguments":
        """Those of some rows of the batch and some queries."""
        mask = self.mask
        if mask is not None:
            mask = mask if len(mask) == 1 else mask[rows]
            mask = mask if mask.shape[2] == 1 else mask[:, :, queries]
        begin, end = (None if bound is None else bound[rows, queries] for bound in (self.begin, self.end))
        return AttentionArguments(
            self.query[rows, :, queries], self.key[rows], self.scaling, mask, begin, end, self.softcap
        )


#: The same in the words of torch's dispatcher.
SCHEMA = "Tensor query, Tensor key, float scaling, Tensor? mask, Tensor? begin, Tensor? end, float? softcap"
