"""A segment's prompt alone: what prunes see of it, and what they decide put back among all of its tokens."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method.prune import Decision
from vtc.ops.cut import Cut, cut_mask
from vtc.ops.host import on
from vtc.seam.segments import Segment


class PromptView:
    """The tokens of a segment without those behind the prompt, right-aligned: as if the call had ended there.

    Earlier tokens don't see later ones, so whatever is read of them is what a call of the prompt alone would give.

    Args:
        segment: the segment.
        counts: tokens of each row's prompt that are alive in it.

    Attributes:
        cut: from the segment's tokens to those of the prompt; an identity where nothing stands behind.
    """

    def __init__(self, segment: Segment, counts: Sequence[int]):
        valid, behind = segment.cut.valid, segment.behind
        if behind is None:
            self.cut = Cut.whole(valid, segment.cut.padded)
        else:
            self.cut = Cut.keep(valid & ~behind.to(valid.device), counts)

    def of(self, values: Tensor) -> Tensor:
        """Those of the prompt's tokens, of values [B or 1, n, ...]; padding becomes zero."""
        return values if self.cut.identity else self.cut.take(values)

    def attention(self, seen: Attention) -> Attention:
        """The attention of the prompt's queries to its keys, and to those of the cache in front of them."""
        cut = self.cut.to(seen.query.device)
        if cut.identity:
            return seen
        old = seen.key.shape[2] - cut.length
        before = torch.arange(old, device=cut.index.device).expand(len(cut.index), old)
        columns = torch.cat([before, cut.index + old], dim=1)
        visible = torch.cat([torch.ones_like(before, dtype=torch.bool), cut.valid], dim=1)

        def keys(values: Tensor) -> Tensor:
            return torch.cat([values[:, :, :old], _tokens(cut, values[:, :, old:])], dim=2)

        mask = None if seen.mask is None else seen.mask[..., -(old + cut.length) :]
        if mask is not None:
            queries = cut if mask.dim() == 4 and mask.shape[2] == cut.length else None
            mask = cut_mask(mask, queries, columns, visible)
        elif cut.padded:
            mask = visible
        return replace(
            seen,
            query=_tokens(cut, seen.query),
            key=keys(seen.key),
            value=None if seen.value is None else keys(seen.value),
            mask=mask,
            bias=None if seen.bias is None else seen.bias.gather(1, columns),
        )

    def whole(self, decision: Decision, hidden: Tensor) -> Decision:
        """A decision about the prompt's tokens as one about all of the segment's; `hidden` [B, n, D] are all."""
        cut = self.cut.to(hidden.device)
        if cut.identity:
            return decision
        place = torch.arange(cut.length, device=hidden.device).expand(len(cut.index), -1)
        into, source = decision.into, decision.source
        if into is not None:
            into = self._spread(
                torch.where(into < 0, -1, cut.index.gather(1, into.clamp_min(0))), -torch.ones_like(place)
            )
        if source is not None:
            source = self._spread(cut.index.gather(1, source), place)
        return Decision(
            alive=self._spread(decision.alive, torch.zeros_like(place, dtype=torch.bool)),
            hidden=None if decision.hidden is None else cut.put(hidden, _as_streams(decision.hidden, hidden)),
            into=into,
            source=source,
        )

    def _spread(self, values: Tensor, others: Tensor) -> Tensor:
        """`values` [B, m] of the prompt at their places among `others` [B, n]."""
        return self.cut.to(values.device).put(others[:, :, None], values[:, :, None])[:, :, 0]


def _tokens(cut: Cut, heads: Tensor) -> Tensor:
    """The survivors of a tensor [B, H, n, d]."""
    return cut.take(heads.transpose(1, 2)).transpose(1, 2)


def behind_prompt(
    valid: Tensor, ends: Mapping[tuple[int, int], int] | None, device: torch.device
) -> tuple[Tensor | None, list[int] | None]:
    """Which tokens of a call stand behind the prompt.

    Args:
        valid: BoolTensor [B, L] on the host: tokens that are no padding.
        ends: (row, 0) -> the place where its prompt ends; None: nothing stands behind any.
        device: where the answer is wanted.

    Returns:
        BoolTensor [B, L] and how many these are in each row; None twice, where there are none.
    """
    if ends is None:
        return None, None
    end = torch.tensor([ends[row, 0] for row in range(len(valid))])
    behind = valid & (torch.arange(valid.shape[1]) >= end[:, None])
    return (on(device, behind), behind.sum(dim=1).tolist()) if behind.any() else (None, None)


def _as_streams(rows: Tensor, hidden: Tensor) -> Tensor:
    """Rows [B, m, D] in the dtype of `hidden` [B, n, ...], and with its streams apart again."""
    return rows.to(hidden.dtype).reshape(*rows.shape[:2], *hidden.shape[2:])
