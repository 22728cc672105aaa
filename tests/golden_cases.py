"""The cases of the golden files: inputs and outputs of the official implementations."""

import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor

FOLDER = Path(os.environ.get("VTC_GOLDEN_DIR") or Path(__file__).parent / "golden")
SCORE, HIDDEN = {"rtol": 0, "atol": 1e-5}, {"rtol": 0, "atol": 1e-4}
#: A cut between scores closer than this (relative to the largest) may fall either way.
SAFE_GAP = 1e-4


@dataclass
class Case:
    """One case: its tensors by name, and what the file's metadata says of it."""

    file: Path
    name: str
    info: dict[str, Any]
    tensors: dict[str, Tensor]

    def __getitem__(self, key: str) -> Tensor:
        return self.tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.tensors

    def has(self, *keys: str) -> bool:
        return all(key in self.tensors for key in keys)

    @property
    def tie(self) -> bool | str:
        """Whether the official result depends on how ties fall; a text says in what."""
        if "tie" in self.info or "features" not in self:
            return self.info.get("tie", False)
        return len(set(same_rows(self["features"]))) < len(self["features"])


@cache
def read(file: Path) -> dict[str, Case]:
    """The cases of a file, weights among them."""
    with safe_open(file, "pt") as opened:
        infos = json.loads((opened.metadata() or {}).get("cases", "{}"))
        cases: dict[str, Case] = {}
        for key in opened.keys():  # noqa: SIM118 (no dict)
            known = [name for name in infos if key.startswith((name + "/", name + "."))]
            name = max(known, key=len) if known else _case_in(key)
            case = cases.setdefault(name, Case(file, name, infos.get(name, {}), {}))
            case.tensors[key[len(name) + 1 :]] = opened.get_tensor(key)
    return cases


def discovered() -> list[Any]:
    return [
        pytest.param(case, id=f"{file.stem}-{name}")
        for file in sorted(FOLDER.glob("*.safetensors"))
        for name, case in read(file).items()
        if not name.startswith("weights") and not name.endswith("/w")
    ]


def _case_in(key: str) -> str:
    """The case that a tensor belongs to, in files that don't list theirs: what stands before in/out, or /w/."""
    found = re.match(r"(.+?)/(?=(in|out|official|reference)\w*\b)|(.+?/w)/", key)
    if found:
        return found[1] or found[3]
    return key.split("/" if "/" in key else ".", 1)[0]


def same_rows(features: Tensor) -> list[int]:
    """A number for each row; equal rows have equal numbers."""
    return features.unique(dim=0, return_inverse=True)[1].tolist()


def named(case: Case, pattern: str) -> bool:
    return any(re.fullmatch(pattern, key) for key in case.tensors)


#: Which check is for which tensors: the first that applies.
Checks = list[tuple[Callable[[Case], bool], Callable[[Case], None]]]
