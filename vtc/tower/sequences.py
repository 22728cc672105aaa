"""What is left of the vision tower's sequences while a reducer cuts them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vtc.attention.scores import Attention
from vtc.method.budget import share_out
from vtc.method.reduction import Reduction
from vtc.ops.host import on
from vtc.ops.mixing import main_target


@dataclass
class Sequence:
    """The units that are left of one sequence: a crop, or all of an image in a packed tower.

    Attributes:
        image: which of the encoded images it belongs to.
        entry: the entry that its rows stand in.
        rows: LongTensor [U, cell]: the rows, in the untouched tower's entry, of each unit that is left.
        tokens: LongTensor [U]: the visual token, within the image, that each makes; -1 for what unpadding cuts off.
        at: LongTensor [U, cell]: where the rows stand in the entry now.
        start, target: units before the first and after the last stage; of methods that adapt, at least.
        sizes: Tensor [U]: how many units each stands for.
        owner: LongTensor [start]: the unit now that each unit of the start went into; -1 where it is gone.
        first: LongTensor [start]: the tokens at the start.
        holes: whether any of `tokens` is -1; such a sequence stays whole.
        memory: the method's store.
    """

    image: int
    entry: int
    rows: Tensor
    tokens: Tensor
    at: Tensor
    start: int
    target: int
    sizes: Tensor
    owner: Tensor
    first: Tensor
    holes: bool = False
    memory: dict[str, Tensor] = field(default_factory=dict)

    @property
    def units(self) -> int:
        """U, the units that are left."""
        return len(self.rows)

    @property
    def reduced(self) -> bool:
        """Whether it is to lose anything at all."""
        return self.target < self.start

    def cut(self, reduction: Reduction, member: int) -> None:
        """Keep what `reduction` keeps of its image `member`."""
        kept = reduction.kept[member]
        self.owner = _followed(self.owner, reduction, member, self.units)
        self.sizes = _sizes(self.sizes, reduction, member)
        self.rows, self.tokens, self.at = self.rows[kept], self.tokens[kept], self.at[kept]
        self.memory = {name: value[kept] for name, value in self.memory.items()}


@dataclass(frozen=True)
class Reduced:
    """What a reducer left of one encoded image.

    Attributes:
        total: visual tokens that the image has.
        kept: LongTensor [k], those that are left, ascending.
        merged: LongTensor [total]: the survivor that each was merged into, -1 for none; None where nothing was merged.
    """

    total: int
    kept: Tensor
    merged: Tensor | None


def sequences_of(
    image: int, rows: Tensor, budget: int | None, entries: int, length: int, prefix: int, device: torch.device
) -> list[Sequence]:
    """The sequences of one image, each with its part of the budget.

    Args:
        image: which of the encoded images.
        rows: LongTensor [N, cell]: the tower's rows of each visual token, as `Adapter.patches` tells them.
        budget: tokens that are to be left; None: any number, one of each sequence at least.
        entries: entries of the tower.
        length: rows of each in the untouched tower.
        prefix: CLS rows in front of each entry.
        device: where the tower runs.
    """
    tokens = (rows[:, 0] >= 0).nonzero()[:, 0]
    rows, per_entry = rows[tokens], length - prefix
    order = rows[:, 0].argsort()
    rows, tokens = rows[order], tokens[order]
    crops = rows[:, 0] // per_entry if entries > 1 else torch.zeros_like(tokens)
    found = crops.unique_consecutive().tolist()
    sizes, most = [int((crops == crop).sum()) for crop in found], 0 if budget is None else min(budget, len(tokens))
    parts = share_out(most, sizes) if most else [1] * len(found)
    sequences = []
    for crop, target in zip(found, parts):
        mine = crops == crop
        inside, made = rows[mine] - crop * per_entry, tokens[mine]
        if most == len(tokens) and rows.shape[1] == 1 and entries > 1:  # untouched: what is cut off later stays too
            made = torch.full((per_entry,), -1).scatter_(0, inside[:, 0], made)
            inside, target = torch.arange(per_entry)[:, None], per_entry
        holes = bool((made < 0).any())
        inside, made = on(device, inside + prefix), on(device, made)
        units, ones = len(inside), torch.ones(len(inside), device=device)
        owner = torch.arange(units, device=device)
        sequences.append(Sequence(image, crop, inside, made, inside, units, target, ones, owner, made, holes))
    return sequences


def places_of_units(group: list[Sequence], device: torch.device) -> tuple[Tensor, Tensor]:
    """Entry [G, 1] and place [G, U · cell] of the rows of the units of G sequences alike."""
    return on(device, [[s.entry] for s in group]), torch.stack([s.at.flatten() for s in group])


def left_of(rows: Tensor, budget: int, sequences: list[Sequence], merged: bool) -> Reduced:
    """What is left of one image.

    Args:
        rows: LongTensor [N, cell]: the tower's rows of each visual token; negative at separators.
        budget: tokens that are to be left, separators among them where the patches are fewer.
        sequences: of the image, as they are now.
        merged: whether anything was merged, in any image.
    """
    total = len(rows)
    tokens = torch.cat([s.tokens[s.tokens >= 0] if s.holes else s.tokens for s in sequences])
    missing = budget - len(tokens)
    separators = on(tokens.device, (rows[:, 0] < 0).nonzero()[:missing, 0]) if missing > 0 else tokens[:0]
    goes = None
    if merged:
        goes = torch.full((total + 1,), -1, dtype=torch.long, device=tokens.device)
        for sequence in sequences:
            into = torch.full_like(sequence.first, -1)
            if sequence.units:
                into = torch.where(sequence.owner >= 0, sequence.tokens[sequence.owner.clamp(min=0)], -1)
            goes[torch.where(sequence.first >= 0, sequence.first, total)] = into  # what makes none goes behind
        goes = goes[:total]
    return Reduced(total, torch.cat([tokens, separators]).sort().values, goes)


def _followed(owner: Tensor, reduction: Reduction, member: int, units: int) -> Tensor:
    """`owner` one reduction later."""
    if reduction.mixing is not None:
        into = main_target(reduction.mixing, units)[member]
    else:
        into = torch.full((units,), -1, dtype=torch.long, device=owner.device)
        into[reduction.kept[member]] = torch.arange(reduction.kept.shape[1], device=owner.device)
    return torch.where(owner >= 0, into[owner.clamp(min=0)], -1)


def _sizes(sizes: Tensor, reduction: Reduction, member: int) -> Tensor:
    """Sizes one reduction later, in the order of `kept`."""
    kept, mixing = reduction.kept[member], reduction.mixing
    if reduction.sizes is not None:
        return reduction.sizes[member].to(sizes.dtype)
    if mixing is None:
        return sizes[kept]
    mixed = sizes[mixing.source[member]].masked_fill(mixing.weight[member] <= 0, 0)
    return torch.zeros(len(kept), dtype=sizes.dtype, device=sizes.device).index_add(0, mixing.target[member], mixed)


def repeated(x: Tensor, call: Attention) -> Tensor:
    """Keys or values repeated to the number of query heads."""
    return x.repeat_interleave(call.query.shape[1] // x.shape[1], dim=1)
