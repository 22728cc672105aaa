"""Attention scores from q and k alone: chosen rows or column means, never an N × N matrix kept."""

from dataclasses import dataclass

import torch
from torch import Tensor

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
        return attention_rows(query, self.key, self.scaling, self._bias(index), self.softcap)

    def received(self, weights: Tensor, chunk: int = 256) -> Tensor:
        """Attention probability that each key receives, summed over weighted queries, mean over heads, in float32.

        Works through the queries in chunks: memory stays O(chunk · S).

        Args:
            weights: [B, Q] of each query: 1 or 0 to choose some, 1 / count for their mean. Queries that are left out
                at the front and the end cost nothing if `weights` covers only the last Q' < Q of them.
            chunk: queries at a time.

        Returns:
            Tensor [B, S]; a query that may see nothing gives nothing.
        """
        weights = weights.float()
        batch, length = weights.shape
        offset = self.query.shape[2] - length
        total = torch.zeros(batch, self.key.shape[2], device=self.key.device)
        for start in range(0, length, chunk):
            part = weights[:, start : start + chunk]
            index = torch.arange(offset + start, offset + start + part.shape[1], device=part.device)
            total += (part[:, None] @ self.rows(index.expand(batch, -1)))[:, 0]
        return total

    def _bias(self, index: Tensor) -> Tensor:
        """What is added to the logits of queries `index` [B, R]: [B, 1, R, S], 0 or -inf, or a float mask's values."""
        batch, _, queries, _ = self.query.shape
        keys = self.key.shape[2]
        place = index[:, :, None] + (keys - queries)  # of the query among the keys
        column = torch.arange(keys, device=index.device)
        if self.mask is not None and self.mask.dim() == 4:
            mask = self.mask[..., -keys:] if self.mask.shape[-1] >= keys else self.mask
            mask = mask.expand(batch, -1, -1, -1)[:, 0]
            mask = mask.gather(1, index[:, :, None].expand(-1, -1, mask.shape[-1]))[:, None]
            return mask.float() if mask.is_floating_point() else _minus_infinity(mask)
        seen = column <= place if self.causal else torch.ones_like(place, dtype=torch.bool).expand(-1, -1, keys)
        if self.window is not None:
            seen = seen & (column > place - self.window)
        if self.mask is not None:
            seen = seen & self.mask.bool()[:, None, -keys:]
        return _minus_infinity(seen)[:, None]


def _minus_infinity(seen: Tensor) -> Tensor:
    return torch.zeros(seen.shape, device=seen.device).masked_fill(~seen, float("-inf"))


def attention_rows(
    query: Tensor, key: Tensor, scaling: float, bias: Tensor | None = None, softcap: float | None = None
) -> Tensor:
    """Rows of softmax(Q Kᵀ) for few queries, grouped heads, in float32.

    Args:
        query: [B, H, R, d].
        key: [B, H_kv, S, d].
        scaling: factor of the logits.
        bias: added to the logits, broadcast to [B, H, R, S].
        softcap: c of c · tanh(logits / c), before the bias.

    Returns:
        Tensor [B, H, R, S]; a row that may see nothing is all zeros.
    """
    batch, heads, rows, dim = query.shape
    groups = key.shape[1]
    grouped = query.float().reshape(batch, groups, heads // groups * rows, dim)
    logits = (grouped @ key.float().transpose(-1, -2) * scaling).reshape(batch, heads, rows, -1)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if bias is not None:
        logits = logits + bias
    return torch.softmax(logits, dim=-1).nan_to_num(0.0)


def attention_received(
    query: Tensor, key: Tensor, scaling: float, mask: Tensor | None = None, chunk: int = 256
) -> Tensor:
    """Mean attention probability that each key receives, over all queries and heads: column means of softmax(Q Kᵀ).

    Works through the queries in chunks, and through many sequences in parts, so that memory stays O(chunk · N).

    Args:
        query: [B, H, Q, d].
        key: [B, H_kv, S, d].
        scaling: factor of the logits.
        mask: None, or [B or 1, 1, Q, S] as attention takes it (bool: True may attend; float: added).
        chunk: queries at a time.

    Returns:
        Tensor [B, S] in float32; sums to 1.
    """
    parts = split_sequences(query, key, chunk)
    if len(parts) > 1:
        masks = [mask] * len(parts) if mask is None or len(mask) == 1 else mask.split([len(q) for q, _ in parts])
        return torch.cat([attention_received(q, k, scaling, m, chunk) for (q, k), m in zip(parts, masks, strict=True)])
    total = torch.zeros(key.shape[0], key.shape[2], device=key.device)
    for start in range(0, query.shape[2], chunk):
        bias = mask[:, :, start : start + chunk] if mask is not None else None
        if bias is not None:
            bias = bias.float() if bias.is_floating_point() else _minus_infinity(bias)
        rows = attention_rows(query[:, :, start : start + chunk], key, scaling, bias)
        total += rows.sum(dim=(1, 2))
    return total / (query.shape[1] * query.shape[2])


def split_sequences(query: Tensor, key: Tensor, chunk: int) -> list[tuple[Tensor, Tensor]]:
    """The sequences of `query` [B, H, Q, d] and `key` [B, H_kv, S, d] in parts that are worked through one by one.

    The attention of `chunk` queries of one part stays below 64 MiB in float32 where a single sequence allows it.
    """
    entries = query.shape[1] * min(query.shape[2], chunk) * key.shape[2]
    size = max(1, _ENTRIES // max(entries, 1))
    return list(zip(query.split(size), key.split(size), strict=True))
