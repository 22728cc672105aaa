"""Which words of the instruction judge the image, and what they look at (SparseVLM, arXiv 2410.04417)."""

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.ops.similarity import as_float


def relevance(hidden: Tensor, visual: Tensor, text: Tensor, chunk: int = 512) -> Tensor:
    """How much the image asks for each token of the text: softmax over text of V · Tᵀ, mean over visual tokens.

    Raw dot products of embeddings, neither scaled nor normalised.

    Args:
        hidden: [B, n, D], embeddings.
        visual: BoolTensor [B, n].
        text: BoolTensor [B, t], t <= n: which of the last t tokens are the text.
        chunk: tokens at a time.

    Returns:
        Tensor [B, t] in float32; 0 at what is no text, and everywhere where nothing is visual.
    """
    words = as_float(hidden[:, hidden.shape[1] - text.shape[1] :]).transpose(1, 2)
    total = torch.zeros(text.shape, device=hidden.device)
    for start in range(0, hidden.shape[1], chunk):
        part = slice(start, start + chunk)
        share = (as_float(hidden[:, part]) @ words).masked_fill(~text[:, None], -torch.inf).softmax(dim=-1)
        total += (visual[:, None, part].float() @ share.nan_to_num(0.0).float())[:, 0]
    return total / visual.sum(dim=1, keepdim=True).clamp_min(1)


def choose_raters(relevance: Tensor, text: Tensor) -> Tensor:
    """The text tokens whose relevance is above its mean; all of them where none is.

    Args:
        relevance: [B, t].
        text: BoolTensor [B, t].

    Returns:
        BoolTensor [B, t].
    """
    mean = (relevance * text).sum(dim=1, keepdim=True) / text.sum(dim=1, keepdim=True).clamp_min(1)
    above = text & (relevance > mean)
    return torch.where(above.any(dim=1, keepdim=True), above, text)


def gravity(cos: Tensor, sin: Tensor, queries: slice) -> Tensor:
    """What rotary positions alone give a key: the dot product of two vectors of ones after rotation, over √d.

    Args:
        cos: rotary table [B, n, d].
        sin: the same.
        queries: which of the n tokens ask.

    Returns:
        Tensor [B, R, n] in float32: 2 Σ cos((i - j) θ) / √d. It can be 0 or negative.
    """
    cos, sin = cos.float(), sin.float()
    both = cos[:, queries] @ cos.transpose(1, 2) + sin[:, queries] @ sin.transpose(1, 2)
    return both / cos.shape[2] ** 0.5


def corrected_attention(
    attention: Attention, weights: Tensor, rotary: tuple[Tensor, Tensor], chunk: int = 64
) -> Tensor:
    """Attention from weighted queries divided by `gravity`, of each head.

    Args:
        attention: q and k of a layer with n new tokens.
        weights: [B, t] of the last t queries.
        rotary: the tables (cos, sin) that the layer is called with, each [B or 1, n, d].
        chunk: queries at a time.

    Returns:
        Tensor [B, H, n] in float32; a quotient that is not finite counts as 0.
    """
    batch, heads, new, _ = attention.query.shape
    total = torch.zeros(batch, heads, new, device=attention.query.device)
    offset = new - weights.shape[1]
    for start in range(0, weights.shape[1], chunk):
        part = weights[:, start : start + chunk]
        queries = slice(offset + start, offset + start + part.shape[1])
        index = torch.arange(queries.start, queries.stop, device=total.device).expand(batch, -1)
        rows = attention.head_rows(index)[..., -new:] / gravity(*rotary, queries)[:, None]
        total += (part[:, None, None] @ rows.nan_to_num(0.0, 0.0, 0.0))[:, :, 0]
    return total


def strongest_heads(received: Tensor, visual: Tensor, count: int) -> Tensor:
    """The heads whose attention to the image is largest in sum, best first: LongTensor [B, count].

    Args:
        received: [B, H, n], attention from the raters.
        visual: BoolTensor [B, n].
        count: how many heads.
    """
    total = (received * visual[:, None]).sum(dim=2)
    return total.argsort(dim=1, descending=True, stable=True)[:, :count]


def rank_of(attention: Attention, raters: Tensor, visual: Tensor) -> Tensor:
    """Rank of the raters' attention to the visual tokens, mean over heads; waits for the device.

    Args:
        attention: q and k of a layer with n new tokens.
        raters: BoolTensor [B, t], of the last t queries.
        visual: BoolTensor [B, n].

    Returns:
        LongTensor [B].
    """
    new, count = visual.shape[1], raters.sum(dim=1).tolist()
    index = raters.long().argsort(dim=1, descending=True, stable=True)[:, : max(count)] + new - raters.shape[1]
    rows = attention.rows(index)[:, :, -new:]
    ranks = []
    for row, number in enumerate(count):
        seen = rows[row, :number][:, visual[row]]
        ranks.append(torch.linalg.matrix_rank(seen) if seen.numel() else torch.zeros((), device=seen.device))
    return torch.stack(ranks).long()
