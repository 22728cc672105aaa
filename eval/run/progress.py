"""How far a run is: a bar where someone watches, a line now and then where a log is written."""

import sys
import time

from vtc.eval.cli.arguments import say

EVERY_SECONDS = 30.0


class Progress:
    """Counts batches.

    Args:
        total: batches in all.
        done: those done before.
    """

    def __init__(self, total: int, done: int):
        self._total, self._start, self._done = total, done, done
        self._began = self._said = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            from tqdm import tqdm

            self._bar = tqdm(total=total, initial=done, unit="batch", desc="vtc eval", dynamic_ncols=True)

    def step(self, note: str) -> None:
        """One batch more is done."""
        self._done += 1
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()
            return
        now, last = time.monotonic(), self._done == self._total
        if self._done == self._start + 1 or last or now - self._said >= EVERY_SECONDS:
            passed = now - self._began
            left = passed / (self._done - self._start) * (self._total - self._done)
            say(
                f"vtc eval: batch {self._done} of {self._total}, {note}, "
                f"{_clock(passed)} passed, about {_clock(left)} left"
            )
            self._said = now

    def close(self) -> None:
        """Leave the terminal tidy."""
        if self._bar is not None:
            self._bar.close()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
