"""Attention scores from q and k alone: chosen rows or column means, never an N × N matrix kept."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vtc import ops

_ENTRIES = 2**24


@dataclass(frozen=True)
class Attention:
    """The q and k of one attention call, after rotary embedding, heads split.

    Attributes:
        query: Tensor [B, H, Q, d].
        key: Tensor [B, H_kv, S, d]; H is a multiple of H_kv. Cached keys first, so the Q newest come last.
        scaling: factor of the logits, usually d ** -0.5.
        mask: what the attention was called with: None, a [B, S] mask of valid keys, or a [B, 1, Q, S] mask (bool:
            True may attend; float: added to the logits).
        causal: whether query i may see only keys up to its own.
        window: sliding-window length in tokens, or None.
        softcap: c of c · tanh(logits / c), or None.
        value: Tensor [B, H_kv, S, d], or None where nobody kept it.
        bias: Tensor [B, S], added to the logits of each key, or None.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Tensor | None = None
    causal: bool = True
    window: int | None = None
    softcap: float | None = None
    value: Tensor | None = None
    bias: Tensor | None = None

    def of_keys(self, keys: int) -> "Attention":
        """The same of the first `keys` keys; what a static cache gives behind them holds nothing yet."""
        if keys >= self.key.shape[2]:
            return self
        mask, value = self.mask, self.value
        return replace(
            self,
            key=self.key[:, :, :keys],
            value=None if value is None else value[:, :, :keys],
            mask=None if mask is None else mask[..., :keys],
        )

    def rows(self, index: Tensor) -> Tensor:
        """Attention probabilities of chosen queries, mean over heads, in float32.

        Args:
            index: LongTensor [B, R], queries in 0…Q-1.

        Returns:
            Tensor [B, R, S].
        """
        return self.head_rows(index).mean(dim=1)

    def head_rows(self, index: Tensor) -> Tensor:
        """Attention probabilities of chosen queries, of each head, in float32.

        Args:
            index: LongTensor [B, R], queries in 0…Q-1.

        Returns:
            Tensor [B, H, R, S].
        """
        query = self.query.gather(2, index[:, None, :, None].expand(-1, self.query.shape[1], -1, self.query.shape[3]))
        mask = self.mask
        if mask is not None and mask.dim() == 4 and mask.shape[2] > 1:
            mask = mask[:, :1].expand(len(index), -1, -1, -1)
            mask = mask.gather(2, index[:, None, :, None].expand(-1, -1, -1, mask.shape[-1]))
        return ops.attention_rows(self._arguments(query, index, mask))

    def received(self, weights: Tensor) -> Tensor:
        """Attention probability that each key receives, summed over weighted queries, mean over heads, in float32.

        Args:
            weights: [B, Q] of each query: 1 or 0 to choose some, 1 / count for their mean. Queries that are left out
                at the front cost nothing if `weights` covers only the last Q' < Q of them.

        Returns:
            Tensor [B, S]; a query that may see nothing gives nothing.
        """
        batch, length = weights.shape
        offset = self.query.shape[2] - length
        index = torch.arange(offset, offset + length, device=weights.device).expand(batch, -1)
        mask = self.mask
        if mask is not None and mask.dim() == 4 and mask.shape[2] > 1:
            mask = mask[:, :1, -length:]
        return ops.attention_received(self._arguments(self.query[:, :, offset:], index, mask), weights)

    def _arguments(self, query: Tensor, index: Tensor, mask: Tensor | None) -> ops.AttentionArguments:
        """What the operators are called with for some queries.

        Args:
            query: Tensor [B, H, R, d], those queries.
            index: LongTensor [B, R]: which of the Q they are.
            mask: the call's, of a [B, 1, Q, S] mask the rows of these queries.
        """
        keys = self.key.shape[2]
        whole = ops.AttentionArguments(query, self.key, self.scaling, softcap=self.softcap)
        if mask is not None and mask.dim() == 4:
            return whole._replace(mask=mask[..., -keys:] if mask.shape[-1] >= keys else mask)
        end = index + (keys - self.query.shape[2] + 1)  # behind the query's own place among the keys
        begin = None if self.window is None else end - self.window
        mask = None if mask is None else mask.bool()[:, None, None, -keys:]
        return whole._replace(mask=mask, begin=begin, end=end if self.causal else None)


def split_sequences(query: Tensor, key: Tensor, chunk: int) -> list[tuple[Tensor, Tensor]]:
    """The sequences of `query` [B, H, Q, d] and `key` [B, H_kv, S, d] in parts that are worked through one by one.

    The attention of `chunk` queries of one part stays below 64 MiB in float32 where a single sequence allows it.
    """
    entries = query.shape[1] * min(query.shape[2], chunk) * key.shape[2]
    size = max(1, _ENTRIES // max(entries, 1))
    return list(zip(query.split(size), key.split(size), strict=True))
