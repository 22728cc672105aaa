"""How transformers is told of several samples in one row of the batch, and when it keeps them apart."""

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from vtc.calls.attention import shown_by
from vtc.calls.roles import Key

_BOUNDS = re.compile(r"^cu_?seq")  # cu_seq_lens_q, cu_seq_lens_k
_LONGEST = re.compile(r"^max_?(seq_?)?len")  # max_length_q, max_length_k
_WANTED = frozenset({"cu_seq_lens_q", "cu_seq_lens_k", "max_length_q", "max_length_k"})


def is_bound(name: str) -> bool:
    """Whether an argument of this name says where the samples of a row begin, or how long the longest is."""
    return bool(_BOUNDS.search(name) or _LONGEST.search(name))


def starts_in(bounds: Mapping[Key, Any]) -> dict[str, Tensor]:
    """Those of the arguments that are the samples' first places and the end of the last: IntTensor [samples + 1]."""
    return {str(key): value for key, value in bounds.items() if isinstance(value, Tensor) and _BOUNDS.search(str(key))}


def bounds_govern(bounds: Mapping[Key, Any]) -> bool:
    """Whether FlashAttention goes by these arguments, rather than by positions: it wants all of them."""
    return all(bounds.get(name) is not None for name in _WANTED)


def bounds_of(bounds: Mapping[Key, Any], lengths: list[int]) -> dict[Key, Any]:
    """The same arguments for samples of other lengths, without waiting for the device."""
    made: dict[Key, Any] = {}
    starts = torch.tensor([0, *lengths]).cumsum(0)
    for key, value in bounds.items():
        if value is not None:
            new = starts if _BOUNDS.search(str(key)) else torch.tensor(max(lengths))
            made[key] = new.to(value.device, value.dtype) if isinstance(value, Tensor) else type(value)(new)
    return made


def axes_turned(config: Any) -> int:
    """On how many axes M-RoPE turns the tokens of a decoder with this config."""
    rope = getattr(config, "rope_parameters", None)
    return len(rope.get("mrope_section", "thw")) if isinstance(rope, dict) else 3


def text_axis(positions: Any, config: Any) -> Tensor | None:
    """The axis that transformers tells samples by; None where there is none.

    Args:
        positions: position ids [B, L], or [axes, B, L], where one more than M-RoPE turns by stands in front.
        config: the decoder's.
    """
    if not isinstance(positions, Tensor) or positions.dim() == 2:
        return positions
    return positions[0] if positions.shape[0] == axes_turned(config) + 1 else None


def samples_by_positions(axis: Tensor, flash: bool) -> Tensor:
    """LongTensor [B, L]: the sample of each token, as transformers tells it.

    Args:
        axis: LongTensor [B, L], on the host.
        flash: FlashAttention begins a sample at each token with the lowest position, the others at each that doesn't
            follow the one before.
    """
    follows = axis.diff(dim=1) == 1
    starts = axis[:, 1:] == axis.min() if flash and not follows.all() else ~follows
    return torch.nn.functional.pad(starts.long().cumsum(dim=1), (1, 0))


def samples_by_masks(masks: Any, length: int) -> Tensor | None:
    """LongTensor [B, L] on the host: the stretches of tokens between which no mask lets anything through.

    Args:
        masks: [B, h, Q, S] (bool: True may attend; numbers: added), or one for each kind of layer.
        length: L, tokens of the call.

    Returns:
        None where no row has two stretches of several tokens; a token that is alone is padding.
    """
    each = list(masks.values()) if isinstance(masks, dict) else [masks]
    if not all(isinstance(mask, Tensor) and mask.dim() == 4 and mask.shape[2] == length for mask in each):
        return None
    place = torch.arange(length, dtype=torch.int32, device=each[0].device)
    firsts, lasts = [], []
    for mask in each:
        shown = shown_by(mask).any(dim=1)[..., -length:]
        shown = shown & ~shown.all(dim=-1, keepdim=True)  # padding that sees everything links nothing
        firsts.append(torch.where(shown, place, length).amin(dim=-1).minimum(place))
        lasts.append(torch.where(shown, place, -1).amax(dim=-1).maximum(place))
    first, last = torch.stack(firsts).amin(dim=0), torch.stack(lasts).amax(dim=0)
    behind = first.flip(1).cummin(dim=1).values.flip(1)
    starts = (behind[:, 1:] >= place[1:]) & (last.cummax(dim=1).values[:, :-1] < place[1:])
    samples = torch.nn.functional.pad(starts.long().cumsum(dim=1), (1, 0)).cpu()
    several = [(torch.bincount(row) > 1).sum() > 1 for row in samples]
    return samples if any(several) else None


def block_mask(samples: Tensor, valid: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask [B, 1, n, n], to be added, under which a token sees those of its sample that stand in front of it.

    Args:
        samples: LongTensor [B, n].
        valid: BoolTensor [B, n]: False at padding.
        dtype: of the mask.
    """
    place = torch.arange(samples.shape[1], device=samples.device)
    shown = (samples[:, :, None] == samples[:, None]) & (place <= place[:, None]) & valid[:, None]
    blank = torch.zeros(shown.shape, dtype=dtype, device=shown.device)
    return blank.masked_fill(~shown, torch.finfo(dtype).min)[:, None]


def makes_cache(named: Mapping[str, Any], decoder: nn.Module) -> bool:
    """Whether a decoder that is given no cache makes one, whereupon transformers looks for no samples."""
    if decoder.training and getattr(decoder, "gradient_checkpointing", False):
        return False
    asked = named.get("use_cache")
    return bool(getattr(getattr(decoder, "config", None), "use_cache", False) if asked is None else asked)
