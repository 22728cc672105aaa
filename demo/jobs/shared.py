"""Work that is done once, for everybody who looks."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from typing import Any

#: Seconds after which one who follows looks again.
_LOOK = 0.1


class Shared:
    """Goes on to its end in a thread of its own, whoever looks.

    Args:
        run: gives what is handed on.

    Attributes:
        items: what was handed on so far.
    """

    def __init__(self, run: Callable[[], AsyncGenerator[Any, None]]):
        self.items: list[Any] = []
        self._error: Exception | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(run,), name="vtc-demo-shared", daemon=True)
        self._thread.start()

    async def follow(self) -> AsyncGenerator[Any, None]:
        """All that is handed on, from the beginning.

        Raises:
            Exception: what ended the work.
        """
        seen = 0
        while True:
            over = self._over.is_set()  # before the items: those that came in between are seen in the next round
            for item in self.items[seen:]:
                seen += 1
                yield item
            if over and self._error is not None:
                raise self._error.with_traceback(None)  # each who follows would make it longer
            if over:
                return
            await asyncio.sleep(_LOOK)

    def close(self) -> None:
        """Wait for the end; the work itself is ended by whoever runs it."""
        self._thread.join(timeout=10)

    def _work(self, run: Callable[[], AsyncGenerator[Any, None]]) -> None:
        try:
            asyncio.run(self._gather(run))
        except Exception as error:
            self._error = error
        finally:
            self._over.set()

    async def _gather(self, run: Callable[[], AsyncGenerator[Any, None]]) -> None:
        async for item in run():
            self.items.append(item)
