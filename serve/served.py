"""What a setting means for one model: how its pictures are laid out, and how many tokens of each stay.

The suite's own adapter is asked, on a model of transformers of the same shapes that has no memory (device "meta"), so
that grids, budgets and what is read of the tower are what `vtc.patch` makes of them.
"""

import copy
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from vtc.method.selector import Selector
from vtc.method.units import units
from vtc.model.adapter import adapter_class
from vtc.model.layout import Layout
from vtc.seam.composition import Composition
from vtc.serve import SPEC
from vtc.serve.setting import Setting, refuse
from vtc.tower.features import Features
from vtc.tower.prompt import Prompt

#: What stands in `Item.ids` where a row of the encoder's output goes.
ROW = -1


@dataclass(frozen=True)
class Item:
    """One picture or video of a prompt, as the engine's own processor wants it written.

    Attributes:
        ids: LongTensor [L]: the ids that stand for it in the prompt, -1 at each visual token.
        selector: with the budget of its request.
    """

    ids: Tensor
    selector: Selector

    @property
    def visual(self) -> Tensor:
        """BoolTensor [L]: its visual tokens."""
        return self.ids == ROW

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Shortened:
    """What is left of an item.

    Attributes:
        stays: BoolTensor [L]: ids that are left in the prompt. At visual tokens only how many are left counts, which
            ones is decided behind the tower.
        whole: whether the encoder's output has a row for every id, text among them: where tokens are chosen over runs
            with text between (frames with time stamps), where that text goes is known only then.
    """

    stays: Tensor
    whole: bool


@dataclass(frozen=True)
class Row:
    """Some items of one kind, one behind the other with a gap between, as if they were a row of a batch.

    Attributes:
        layout: of their visual tokens.
        starts: where each item begins.
        owner: for each image of the layout, the item that it belongs to.
    """

    layout: Layout
    starts: list[int]
    owner: list[int]


class Served:
    """One model under one setting.

    Args:
        config: the model's, as transformers reads it.
        setting: what to do.

    Raises:
        ValueError: the model lacks what the method needs, or the method reads what an engine can't show.
    """

    def __init__(self, config: Any, setting: Setting):
        self.config, self.setting = config, setting
        self.adapter = _adapter(config)
        self.composition = Composition.of(self.adapter, [setting.selector], setting.spec)
        if self.composition.needs.text:
            refuse(
                setting.selector.name,
                "reads the question, and an engine keeps what it made of a picture for other questions",
            )

    @property
    def reads_tower(self) -> bool:
        """Whether the method reads more than the visual tokens."""
        needs = self.composition.needs
        wanted = (needs.received, needs.cls, needs.keys, needs.hidden, needs.observe, needs.projection)
        return any(wanted)

    def kind(self, modality: str) -> str:
        """What the adapter calls a modality of the engine: InternVL's videos are pictures, frame by frame."""
        return modality if hasattr(self.adapter.parts.composite, f"get_{modality}_features") else "image"

    def row(self, kind: str, items: Sequence[Item], features: Features) -> Row:
        """Items of one kind, laid out.

        Args:
            kind: as the adapter calls it.
            items: one for each encoded picture.
            features: what was told of them, in order.

        Raises:
            ValueError: how their tokens lie is not known.
        """
        starts, at = [], 0
        for item in items:
            starts.append(at)
            at += len(item) + 1
        mask = torch.zeros(1, max(at - 1, 1), dtype=torch.bool)
        for start, item in zip(starts, items):
            mask[0, start : start + len(item)] = item.visual
        prompt = Prompt(placeholders=[(kind, mask)], features={kind: features})
        layout = self.adapter.layout(prompt, (1, mask.shape[1]))
        ends = [start + len(item) for start, item in zip(starts, items)]
        owner = [next(i for i, end in enumerate(ends) if int(image.positions[0]) < end) for image in layout.images]
        return Row(layout, starts, owner)

    def shortened(self, kind: str, item: Item, features: Features) -> Shortened:
        """How many tokens of an item stay.

        Raises:
            ValueError: how its tokens lie is not known, or its patches can't be followed to them.
        """
        stays, whole = torch.ones(len(item), dtype=torch.bool), False
        layout = self.row(kind, [item], features).layout
        for unit in units(layout, item.selector.per):
            if not item.selector.shortens(unit):
                continue
            if not all(grid.known for grid in unit.grids):
                unit.grids[0].tokens()  # raises, and says why
            kept = item.selector.count_of(unit)
            stays[unit.positions[kept:]] = False
            whole = whole or bool((unit.positions.diff() > 1).any())
        return Shortened(stays, whole)

    def with_selector(self, selector: Selector) -> Composition:
        """The composition with the budget of a request."""
        return self.composition if selector is self.setting.selector else replace(self.composition, selector=selector)


def features_of(kind: str, values: Mapping[str, Any], sizes: list[int]) -> Features:
    """What an engine's arguments for some items tell.

    Args:
        kind: as the adapter calls it.
        values: name -> Tensor or list with one entry for each item (and pixels, whose shapes alone are read).
        sizes: visual tokens of each.
    """
    tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
    pixels = {name for name, value in tensors.items() if is_pixels(name) or value.is_floating_point()}
    arguments = {name: value.cpu() for name, value in tensors.items() if name not in pixels}
    shapes = {name: tuple(value.shape) for name, value in tensors.items() if name in pixels}
    return Features(kind, sizes=sizes, images=len(sizes), arguments=arguments, shapes=shapes)


def is_pixels(name: str) -> bool:
    """Whether an argument of the engine holds pixels, which may be whole numbers: it normalises on the device."""
    return name.startswith("pixel_values")


def served(config: Any) -> Served:
    """What a config with a spec asks for; made once for equal configs.

    Raises:
        ValueError: the spec, or the model, can't be served so.
        TypeError: the spec is no string.
    """
    return _served(_Config(config))


class _Config:
    """A config that is looked up by what it says."""

    def __init__(self, config: Any):
        self.config, self._text = config, f"{type(config).__name__} {config.to_json_string(use_diff=False)}"

    def __hash__(self) -> int:
        return hash(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Config) and self._text == other._text


@functools.lru_cache(maxsize=8)
def _served(key: _Config) -> Served:
    return Served(key.config, Setting.of(getattr(key.config, SPEC)))


def _adapter(config: Any) -> Any:
    """The suite's adapter of a model of these shapes, which is made without memory."""
    from transformers import AutoModelForImageTextToText

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # a model that is never run has nothing to say
    try:
        with torch.device("meta"):
            model = AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    finally:
        logger.setLevel(level)
    return adapter_class(model)(model)
