"""What visitors look at, kept on the server for a while: uploads and answers, under keys that cannot be guessed."""

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any


@dataclass
class _Entry:
    value: Any
    size: int
    used: float


class Store:
    """Forgets what was not used for long, and, where it is full, what was not used for longest.

    Args:
        most_bytes: of all that is kept; the latest stays even where it is larger.
        age_s: seconds since the last use.
    """

    def __init__(self, most_bytes: int, age_s: float):
        self._most, self._age_s = most_bytes, age_s
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._lock = threading.Lock()

    def put(self, value: Any, size: int) -> str:
        """Keep a value of so many bytes; returns its key."""
        key = secrets.token_urlsafe(16)
        with self._lock:
            self._entries[key] = _Entry(value, size, time.monotonic())
            self._forget()
        return key

    def get(self, key: str) -> Any:
        """The value under a key; None where there is none (any more)."""
        with self._lock:
            self._forget()
            entry = self._entries.get(str(key))
            if entry is None:
                return None
            entry.used = time.monotonic()
            self._entries.move_to_end(key)
            return entry.value

    def _forget(self) -> None:
        held = sum(entry.size for entry in self._entries.values())
        oldest = time.monotonic() - self._age_s
        for key, entry in list(self._entries.items()):
            if entry.used >= oldest and (held <= self._most or len(self._entries) == 1):
                return
            held -= entry.size
            del self._entries[key]


class OnceEach:
    """Does a thing once for each name, also where several ask for it at once, and remembers the latest outcomes.

    Args:
        most: outcomes that are remembered.
    """

    def __init__(self, most: int):
        self._most = most
        self._begun: OrderedDict[str, Future[Any]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` returned, or raised, for the first who asked."""
        with self._lock:
            future = self._begun.get(name)
            mine = future is None
            if future is None:
                future = self._begun[name] = Future()
                while len(self._begun) > self._most:
                    self._begun.popitem(last=False)
        if mine:
            try:
                future.set_result(make())
            except BaseException as error:
                with self._lock:
                    self._begun.pop(name, None)  # another try may do better
                future.set_exception(error)
        return future.result()
