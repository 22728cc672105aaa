"""Behind the tower: which tokens of encoded pictures stay, by the suite's own selectors. Nothing waits for a GPU."""

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vtc.ops.host import on
from vtc.seam.entry.evidence import check_scores
from vtc.seam.entry.selection import Selection, merge, select
from vtc.serve.served import Item, Row, Served
from vtc.tower.features import Features
from vtc.tower.prompt import Prompt

#: Numbers of tokens that are remembered: 16 MB, which are 4,000 pictures of 1,000 kept tokens. A GPU gives no less
#: memory than that of 128 numbers to each.
_REMEMBERED, _LEAST = 2**22, 128


@dataclass(frozen=True)
class Batch:
    """Items that the tower encoded together.

    Attributes:
        kind: as the adapter calls it.
        items: as the prompt has them.
        keys: for each, a number that names its pixels and its setting.
        left: for each, rows that the prompt has room for.
        whole: for each, whether text is among these rows.
        encoded: for each, Tensor [N, C]: what the tower and the projector made of it; the language model's width
            first, DeepStack's behind it.
        features: what was told of them, and seen of the tower.
    """

    kind: str
    items: Sequence[Item]
    keys: Sequence[int]
    left: Sequence[int]
    whole: Sequence[bool]
    encoded: Sequence[Tensor]
    features: Features


@dataclass(frozen=True)
class Kept:
    """What is left of an item.

    Attributes:
        rows: Tensor [n, C].
        places: LongTensor [n], ascending: which of the item's ids each stands for.
    """

    rows: Tensor
    places: Tensor


class Memory:
    """Which tokens of a picture stayed, so that they do again where its encoder output was evicted and is made anew.

    Beside other pictures in a batch its features may differ in their last bits, and of two tokens that are nearly equal
    the other one could be chosen: the prefix cache would hold one choice, and the rest of the prompt see another. A
    method that merges is asked again each time: its values hang on all tokens.
    """

    def __init__(self) -> None:
        self._places: OrderedDict[int, Tensor] = OrderedDict()
        self._held = 0

    def get(self, key: int) -> Tensor | None:
        """IntTensor [n]: which of an item's ids stayed."""
        if (found := self._places.get(key)) is not None:
            self._places.move_to_end(key)
        return found

    def put(self, key: int, places: Tensor) -> None:
        """Remember them; those that were asked for longest ago are forgotten."""
        if key in self._places:
            self._held -= _held(self._places.pop(key))
        self._places[key] = places.to(torch.int32)
        self._held += _held(places)
        while self._held > _REMEMBERED:
            self._held -= _held(self._places.popitem(last=False)[1])


def _held(places: Tensor) -> int:
    return max(len(places), _LEAST)


class Chooser:
    """Reduces encoded items.

    Args:
        served: what to do.
        text: gives embeddings [n, D] of ids [n].
        packed: whether survivors are numbered anew (without M-RoPE).
    """

    def __init__(self, served: Served, text: Callable[[Tensor], Tensor], packed: bool):
        self.served, self.text, self.packed = served, text, packed
        self.width: int = served.adapter.parts.decoder.config.hidden_size
        self.memory = Memory()

    def choose(self, batch: Batch) -> list[Kept]:
        """What is left of each item of a batch.

        Raises:
            RuntimeError: the method kept another number than its budget says.
        """
        row = self.served.row(batch.kind, batch.items, batch.features)
        device, width = batch.encoded[0].device, self.width
        embeds = batch.encoded[0].new_zeros(1, row.layout.shape[1], batch.encoded[0].shape[1])
        for item, start, rows in zip(batch.items, row.starts, batch.encoded):
            embeds[0, on(device, start + item.visual.nonzero()[:, 0])] = rows
        main = embeds[..., :width]
        selections, recalled = self._select(batch, row, main)
        alive = torch.ones(row.layout.shape[1], dtype=torch.bool, device=device)
        for selection in selections:
            alive[selection.places.flatten()] = False
            alive[selection.survivors.flatten()] = True
        main = merge(main, selections)
        merging = {
            row.owner[unit.images[0]]
            for selection in selections
            if selection.reduction.mixing is not None or selection.reduction.features is not None
            for unit in selection.units
        }
        kept = []
        for index, (item, start) in enumerate(zip(batch.items, row.starts)):
            visual, here = on(device, item.visual), alive[start : start + len(item)]
            if index in recalled:
                here = here & ~visual
                here[recalled[index].long()] = True
            if not batch.whole[index]:
                here = here & visual
            places = (~here).to(torch.uint8).argsort(stable=True)[: batch.left[index]]
            rows = torch.cat([main[0, start + places], embeds[0, start + places, width:]], dim=1)
            if batch.whole[index]:
                words = self.text(on(device, item.ids.clamp(min=0))[places])
                rows[:, :width] = torch.where(visual[places][:, None], rows[:, :width], words.to(rows.dtype))
            if index not in recalled and index not in merging:
                self.memory.put(batch.keys[index], places)
            kept.append(Kept(rows, places))
        return kept

    def _select(self, batch: Batch, row: Row, main: Tensor) -> tuple[list[Selection], dict[int, Tensor]]:
        """Selections for the items that lose tokens, those of one budget together; what is remembered of the others."""
        recalled: dict[int, Tensor] = {}
        groups: dict[str, list[int]] = defaultdict(list)
        for index, item in enumerate(batch.items):
            known = self.memory.get(batch.keys[index])
            if known is not None:
                recalled[index] = known
            else:
                groups[repr(item.selector)].append(index)
        prompt, selections, scores = Prompt(features={batch.kind: batch.features}), list[Selection](), None
        for members in groups.values():
            composition = self.served.with_selector(batch.items[members[0]].selector)
            images = frozenset(image for image, owner in enumerate(row.owner) if owner in members)
            if not composition.removes(row.layout):
                continue
            if scores is None:
                scores = self.served.adapter.tower_scores(prompt, row.layout)
                check_scores(composition, scores)
            selections += select(composition, row.layout, prompt, main, scores, self.packed, images)
        return selections, recalled
