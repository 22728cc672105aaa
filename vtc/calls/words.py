"""What the names of arguments say, where a release calls them other than vtc knows."""

from typing import Any

from torch import Tensor

#: Patterns for names; each leaves out its neighbours: `visual_pos_masks`, `position_embeddings`, `cache_position`,
#: `use_cache`, `mm_token_type_ids`.
MASK = r"^(?!.*(vis|image|pixel|pos)).*(mask|bias)"
POSITIONS = r"^(?!.*(emb|mask|vis|image|video|key|cache)).*pos"
CACHE = r"^(?!.*(use|pos)).*(cache|past)"
HIDDEN = r"hidden|states|embed|input|^x$"
IDS = r"^(?!.*(pos|type|vis|image|video)).*(^|_)(ids|tokens)(_|$)"
ROTARY = r"rot|rope|pos.*emb|cos"


def is_mask(value: Any) -> bool:
    """Whether a value can be an attention mask: [B, S], [B or 1, h, Q, S], or one for each kind of layer."""
    if isinstance(value, dict):
        return bool(value) and all(item is None or is_mask(item) for item in value.values())
    return isinstance(value, Tensor) and (value.dim() == 4 or (value.dim() == 2 and not value.is_floating_point()))
