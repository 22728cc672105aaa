"""Which process of a launch this one is: `accelerate launch -m vtc.eval …` and `torchrun -m vtc.eval …` start several.

They share nothing but the run's folder, where each writes a journal of its own. So nothing waits for anything, but the
first process for the others' journals, and what one of them left undone when it ended, the first one does.
"""

import os
from dataclasses import dataclass

from vtc.eval.cli.errors import InputError


@dataclass(frozen=True)
class Process:
    """One of the processes of a launch.

    Attributes:
        rank: its number, from 0; the first writes the results.
        world: how many there are.
        local: its number on this machine.
    """

    rank: int = 0
    world: int = 1
    local: int = 0

    def device(self, name: str) -> str:
        """The device that this process uses: of several GPUs its own, where `name` is "cuda"."""
        return f"cuda:{self.local}" if name == "cuda" and self.world > 1 else name

    def does(self, batch: int) -> bool:
        """Whether a batch is this process's."""
        return batch % self.world == self.rank


def this_process() -> Process:
    """What the launcher says; a single process without one.

    Raises:
        InputError: the launcher's variables make no sense.
    """
    names = ("RANK", "WORLD_SIZE")
    if any(name not in os.environ for name in names):
        return Process()
    try:
        rank, world = (int(os.environ[name]) for name in names)
        local = int(os.environ.get("LOCAL_RANK", rank))
        if not 0 <= rank < world or local < 0:
            raise ValueError
    except ValueError:
        told = ", ".join(f"{name}={os.environ[name]!r}" for name in names)
        raise InputError(
            f"the launcher's {told} name no process of a launch; unset them, or use accelerate launch"
        ) from None
    return Process(rank, world, local)
