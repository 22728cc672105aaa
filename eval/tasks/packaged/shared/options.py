"""Multiple choice: options under capital letters."""

from collections.abc import Sequence
from string import ascii_uppercase


def letter(index: int) -> str:
    """The capital letter of option number `index`, from 0: A."""
    return ascii_uppercase[index]


def lettered(options: Sequence[str], between: str = "\n") -> str:
    """`A. first`, `B. second`, ..., joined."""
    return between.join(f"{letter(index)}. {option}" for index, option in enumerate(options))
