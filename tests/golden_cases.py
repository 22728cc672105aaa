"""The cases of the golden files: inputs and outputs of the official implementations.

A case is read as it is stored: sizes come from its shapes and from what the file says of it, and a number is the same
number whether it is stored as an integer, a real, a tensor of one element or a text. What a file leaves unsaid has a
default beside the reader that needs it; a tensor that no reader knows, and a case that none applies to, is an error.
"""

import json
import math
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from vtc.method.budget import Keep

FOLDER = Path(os.environ.get("VTC_GOLDEN_DIR") or Path(__file__).parent / "golden")
SCORE, HIDDEN = {"rtol": 0, "atol": 1e-5}, {"rtol": 0, "atol": 1e-4}
#: A cut between scores closer than this (relative to the largest) may fall either way.
SAFE_GAP = 1e-4
#: Where fp32 stores a share, this many digits of it are what was meant.
DIGITS = 6

_NEEDED: Any = object()


class UnknownForm(Exception):
    """A golden file has what no reader knows."""


@dataclass
class Case:
    """One case: its tensors by name, and what the file's metadata says of it.

    Attributes:
        file: where it is stored.
        name: unique in the file.
        info: what the metadata's entry `cases` says of it.
        tensors: by what is left of their names.
        of_file: the other entries of the file's metadata, texts.
    """

    file: Path
    name: str
    info: dict[str, Any]
    tensors: dict[str, Tensor]
    of_file: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"case {self.name!r} of {self.file.name}"

    def __getitem__(self, key: str) -> Tensor:
        """A tensor of reals, in fp32 however they are stored."""
        return self.stored(key).float()

    def stored(self, key: str) -> Tensor:
        if key not in self.tensors:
            raise UnknownForm(f"{self} has no {key}")
        return self.tensors[key]

    def get(self, key: str) -> Tensor | None:
        return None if key not in self.tensors else self[key]

    def reals(self, prefix: str = "") -> dict[str, Tensor]:
        """All tensors whose names begin with `prefix`, by the rest of the name."""
        return {key[len(prefix) :]: self[key] for key in self.tensors if key.startswith(prefix)}

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def has(self, *keys: str) -> bool:
        return all(key in self.tensors for key in keys)

    def named(self, pattern: str) -> list[re.Match[str]]:
        """The tensors whose names are of `pattern`, in the order of the numbers in them."""
        found = [match for key in self.tensors if (match := re.fullmatch(pattern, key))]
        return sorted(found, key=lambda match: [int(digits) for digits in re.findall(r"\d+", match[0])])

    def mask(self, key: str) -> Tensor:
        return self.stored(key).bool()

    def index(self, key: str) -> Tensor:
        """A tensor of whole numbers, however they are stored."""
        values = self.stored(key)
        if values.is_floating_point() and not torch.equal(values, values.round()):
            raise UnknownForm(f"{self}: {key} is not of whole numbers: {values.flatten()[:8].tolist()}")
        return values.long()

    def indices(self, key: str) -> Any:
        return self.index(key).tolist()

    def said(self, *names: str) -> Any:
        """The first of these names that the case, or else the file, has a word for; None: there is none."""
        for name in names:
            for words in (self.tensors, self.info, self.of_file):
                if words.get(name) is not None:
                    return words[name]
        return None

    def number(self, *names: str, default: Any = _NEEDED) -> float:
        """One number, rounded to the digits that fp32 has; `default` where the file says none."""
        value = self.said(*names)
        if value is None:
            if default is _NEEDED:
                raise UnknownForm(f"{self} says no {' or '.join(names)}")
            return default
        return as_number(value, f"{self}: {names[0]}")

    def whole(self, *names: str, default: Any = _NEEDED) -> int:
        value = self.number(*names, default=default)
        return value if value is default else as_whole(value, f"{self}: {names[0]}")

    def wholes(self, *names: str, default: Any = _NEEDED) -> list[int]:
        """Whole numbers: a tensor, or a list in the metadata."""
        value = self.said(*names)
        if value is None:
            if default is _NEEDED:
                raise UnknownForm(f"{self} says no {' or '.join(names)}")
            return default
        values = value.flatten().tolist() if isinstance(value, Tensor) else value
        return [as_whole(as_number(one, f"{self}: {names[0]}"), f"{self}: {names[0]}") for one in values]

    def keeps(self, key: str, shares: bool) -> tuple[Keep, ...]:
        """What is left after each stage: counts where one is above 1; `shares` says what ones alone are."""
        return as_keeps(self[key].flatten().tolist(), shares)

    def text(self, *names: str, default: str = "") -> str:
        return str(self.info.get(next((name for name in names if name in self.info), ""), default))

    def flag(self, name: str) -> bool:
        """Whether the metadata says so; as truth, number or text."""
        return str(self.info.get(name, "")).lower() in ("true", "1", "1.0", "yes")

    @property
    def tie(self) -> bool | str:
        """Whether the official result depends on how ties fall; a text says in what."""
        if "tie" in self.info:
            said = self.info["tie"]
            plain = {"false": False, "0": False, "none": False, "": False, "true": True, "1": True}
            return plain.get(str(said).lower(), said)
        return "features" in self and len(set(same_rows(self["features"]))) < len(self["features"])

    @property
    def names_a_tie(self) -> bool:
        """Whether ties are what the case is about, by its name or by what the file says."""
        return self.tie is not False or bool(re.search(r"tie|constant|flat", self.name))

    def safe(self, *names: str) -> bool:
        """Whether the gap at a cut is wide enough to compare what follows from it; NaN: nothing was cut."""
        gap = self.info.get(next((name for name in names if name in self.info), ""), 1.0)
        gap = 1.0 if gap is None else float(gap)
        return math.isnan(gap) or gap >= SAFE_GAP

    def beside(self, name: str) -> "Case":
        """Another case of the same file."""
        cases = read(self.file)
        if name not in cases:
            raise UnknownForm(f"{self} needs {name!r}, which the file lacks; it has {', '.join(sorted(cases))[:200]}")
        return cases[name]

    def grid(self, tokens: int) -> tuple[int, int]:
        """Rows and columns of `tokens`: as the file says, or else of a square."""
        said = self.info.get("merged_grid") or self.info.get("grid")
        if said is not None and len(said) == 2:
            rows, columns = (as_whole(as_number(one, str(self)), str(self)) for one in said)
            if rows * columns == tokens:
                return rows, columns
        side = math.isqrt(tokens)
        if side * side != tokens:
            raise UnknownForm(f"{self}: {tokens} tokens are no square, and grid={said!r} is not of them")
        return side, side


def as_number(value: Any, what: str) -> float:
    """A number from a tensor of one element, a number or a text such as "1" or "1.0"."""
    if isinstance(value, Tensor):
        if value.numel() != 1:
            raise UnknownForm(f"{what} has shape {tuple(value.shape)} where one number is read")
        value = value.item()
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise UnknownForm(f"{what}={value!r} is no number") from None
    return round(number, DIGITS) if abs(number) >= 1 else float(f"{number:.{DIGITS}g}")


def as_whole(value: float, what: str) -> int:
    if value != round(value):
        raise UnknownForm(f"{what}={value!r} is no whole number")
    return round(value)


def as_keep(value: Any, share: bool = True) -> Keep:
    """A share or a count, for a method's `keep`; `share` says which 1 is."""
    return as_keeps([value], share)[0]


def as_keeps(values: Iterable[Any], shares: bool) -> tuple[Keep, ...]:
    """Shares or counts: counts where any is above 1, shares where any is no whole number, else as `shares` says."""
    numbers = [as_number(value, "keep") for value in values]
    if any(number > 1 for number in numbers) or not (shares or any(number % 1 for number in numbers)):
        return tuple(as_whole(number, "a count to keep") for number in numbers)
    return tuple(numbers)


@cache
def read(file: Path) -> dict[str, Case]:
    """The cases of a file, weights among them."""
    with safe_open(file, "pt") as opened:
        metadata = dict(opened.metadata() or {})
        infos = json.loads(metadata.pop("cases", "{}"))
        cases: dict[str, Case] = {}
        for key in opened.keys():  # noqa: SIM118 (no dict)
            known = [name for name in infos if key.startswith((name + "/", name + "."))]
            name = max(known, key=len) if known else _case_in(key)
            case = cases.setdefault(name, Case(file, name, infos.get(name, {}), {}, metadata))
            case.tensors[key[len(name) + 1 :]] = opened.get_tensor(key)
    for name in infos:  # a case of which the file tells and has nothing is no reader's, and fails by itself
        if name not in cases and not name.startswith("_"):
            cases[name] = Case(file, name, infos[name], {}, metadata)
    return cases


def discovered(folder: Path = FOLDER) -> list[Any]:
    """Every case of every file in the folder, as parameters of a test."""
    return [
        pytest.param(case, id=f"{file.stem}-{name}")
        for file in sorted(folder.glob("*.safetensors"))
        for name, case in read(file).items()
        if not supports(case)
    ]


def supports(case: Case) -> bool:
    """Weights, and inputs that several cases share, are read with the cases that use them."""
    if case.name.startswith("weights") or case.name.endswith("/w"):
        return True
    users = any(other.startswith(case.name + "/") for other in read(case.file))
    return users and all(key.startswith("in.") for key in case.tensors)


def _case_in(key: str) -> str:
    """The case of a tensor that the file does not list: what stands before in, out …, before /w/, or the last /."""
    found = re.match(r"(.+?)/(?=(?:in|out|official(?:_\w+)?|reference(?:_\w+)?)(?:\.|$))|(.+?/w)/", key)
    if found:
        return found[1] or found[2]
    return key.rsplit("/", 1)[0] if "/" in key else key.split(".", 1)[0]


def same_rows(features: Tensor) -> list[int]:
    """A number for each row; equal rows have equal numbers."""
    return features.unique(dim=0, return_inverse=True)[1].tolist()


def joined_tiles(side: tuple[int, int], columns: int, rows: int) -> Tensor:
    """LongTensor, crop · patches + patch of a thumbnail and then of tiles that are joined, in raster order."""
    tall, wide = side
    place = torch.arange(columns * rows * tall * wide).view(rows, columns, tall, wide).transpose(1, 2).flatten()
    return torch.cat([torch.arange(tall * wide), tall * wide + place])


@dataclass(frozen=True)
class Form:
    """A form of case that a reader knows.

    Attributes:
        applies: says whether a case is of this form.
        check: compares it with the method.
        knows: pattern of the names that such a case may have, those among them that nothing of ours is compared with.
    """

    applies: Callable[[Case], bool]
    check: Callable[[Case], None]
    knows: str

    def strangers(self, case: Case) -> list[str]:
        return sorted(key for key in case.tensors if not re.fullmatch(self.knows, key))


#: Which check is for which tensors: the first that applies.
Checks = list[Form]
