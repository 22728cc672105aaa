"""One thread has the model, and users take turns at it."""

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import AsyncGenerator, Callable, Generator
from dataclasses import dataclass
from typing import Any

from vtc.eval.cli.errors import InputError

#: Seconds after which one who waits is told again how many are in front.
_NEWS = 0.5


class BusyError(InputError):
    """Too much is asked at once, or it takes too long; the message says which, and what to do."""


class Stopped(Exception):  # nothing went wrong
    """Nobody waits for the work any more, or its user stopped it."""


@dataclass(frozen=True)
class Waiting:
    """Work has not begun.

    Attributes:
        ahead: pieces of work that will have a turn before.
    """

    ahead: int


class Ticket:
    """One piece of work.

    Attributes:
        user: whose it is.
        kind: by which the user can stop it.
    """

    def __init__(self, user: str, kind: str, work: "Work", work_s: float, send: Callable[[Any], None]):
        self.user, self.kind = user, kind
        self.stopped = threading.Event()
        self.begun = False
        self._send, self._left = send, work_s
        self._since: float | None = None
        self._steps = work(self)

    def send(self, item: Any) -> None:
        """Hand something on at once, before the turn ends."""
        self._send(item)

    def check(self) -> None:
        """To be called often during a turn.

        Raises:
            Stopped: nobody waits any more.
            BusyError: the time for this work is up.
        """
        if self.stopped.is_set():
            raise Stopped
        if self._since is not None and time.monotonic() - self._since > self._left:
            raise BusyError("this took longer than a request may; ask for less at once")

    def turn(self) -> bool:
        """Take one turn; returns whether there is more to do."""
        self.begun, self._since = True, time.monotonic()
        try:
            self.check()
            self._send(next(self._steps))
            return True
        except StopIteration:
            self._send(_DONE)
        except Exception as error:
            self._send(error)
        except BaseException as error:  # such as SystemExit: it must end neither this thread nor the server
            self._send(RuntimeError(f"{type(error).__name__}: {error}"))
        finally:
            self._left -= time.monotonic() - self._since
            self._since = None
        return False

    def close(self) -> None:
        """Let go of the work where it stands."""
        self._steps.close()
        self._send(Stopped())


#: A generator: what it yields is handed on, and each yield ends a turn. The model must be as it was by then.
Work = Callable[[Ticket], Generator[Any, None, None]]

_DONE = object()


class Turns:
    """Runs the work of all users on one thread, a turn at a time, each user after the other.

    Args:
        jobs: pieces of work that wait; more are refused, and of one user more than half as many.
        wait_s: seconds that one may wait for its first turn.
        work_s: seconds of turns that one may take altogether.
    """

    def __init__(self, jobs: int = 64, wait_s: float = 120.0, work_s: float = 300.0):
        self._jobs, self._wait_s, self._work_s = jobs, wait_s, work_s
        self._lines: OrderedDict[str, deque[Ticket]] = OrderedDict()
        self._now: Ticket | None = None
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._serve, name="vtc-demo-model", daemon=True)
        self._thread.start()

    async def run(self, user: str, work: Work, kind: str = "") -> AsyncGenerator[Any, None]:
        """What the work hands on, and `Waiting` until it begins. Closing this iterator stops the work.

        Raises:
            BusyError: too many wait already, it waited too long, or the work took too long.
            Stopped: by `stop`.
            Exception: what the work raises.
        """
        loop, items = asyncio.get_running_loop(), asyncio.Queue[Any]()

        def send(item: Any) -> None:
            try:
                loop.call_soon_threadsafe(items.put_nowait, item)
            except RuntimeError:  # the loop is closed: the server goes down
                ticket.stopped.set()

        ticket = Ticket(user, kind, work, self._work_s, send)
        self._enter(ticket)  # nothing is sent before
        latest = time.monotonic() + self._wait_s
        try:
            while True:
                try:
                    item = await asyncio.wait_for(items.get(), None if ticket.begun else _NEWS)
                except TimeoutError:
                    if not ticket.begun and time.monotonic() > latest:
                        raise BusyError(
                            f"no turn came up in {self._wait_s:.0f} s, so many others ask; try again"
                        ) from None
                    if not ticket.begun:
                        yield Waiting(self._ahead(ticket))
                    continue
                if item is _DONE:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            ticket.stopped.set()
            self._leave(ticket)

    def stop(self, user: str, kind: str | None = None) -> None:
        """End what a user has begun, all or one kind; each iterator raises `Stopped` after what it has handed on."""
        with self._changed:
            begun = [*self._lines.get(user, ()), *([self._now] if self._now else [])]
            for ticket in begun:
                if ticket.user == user and kind in (None, ticket.kind):
                    ticket.stopped.set()
                    self._leave(ticket)

    def close(self) -> None:
        """End the thread after the present turn, and whatever waits for one."""
        with self._changed:
            self._closed = True
            if self._now is not None:
                self._now.stopped.set()
            self._changed.notify()
        self._thread.join(timeout=10)
        with self._changed:
            for line in self._lines.values():
                for ticket in line:
                    ticket.close()
            self._lines.clear()

    def _enter(self, ticket: Ticket) -> None:
        with self._changed:
            if self._closed:
                raise BusyError("the server is going down; start it again")
            if sum(map(len, self._lines.values())) >= self._jobs:
                raise BusyError(f"{self._jobs} requests wait already; try again in a moment")
            if len(self._lines.get(ticket.user, ())) >= max(self._jobs // 2, 1):
                raise BusyError(f"{self._jobs // 2} requests of yours wait already; let them end first")
            self._lines.setdefault(ticket.user, deque()).append(ticket)
            self._changed.notify()

    def _leave(self, ticket: Ticket) -> None:
        with self._changed:
            line = self._lines.get(ticket.user, deque())
            if ticket in line:
                line.remove(ticket)
                if not line:
                    del self._lines[ticket.user]
                ticket.close()

    def _ahead(self, ticket: Ticket) -> int:
        """Turns before the ticket's first: one of each other user for each place that it has in its own line."""
        with self._changed:
            if ticket not in self._lines.get(ticket.user, ()):
                return 0
            place = self._lines[ticket.user].index(ticket) + 1
            users = list(self._lines)
            mine = users.index(ticket.user)
            ahead = sum(
                min(len(line), place if number < mine else place - 1)
                for number, line in enumerate(self._lines.values())
                if number != mine
            )
            return ahead + place - 1 + (self._now is not None)

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._lines or self._closed)
                if self._closed:
                    return
                user, line = self._lines.popitem(last=False)
                self._now = ticket = line.popleft()
                if line:
                    self._lines[user] = line
            more = ticket.turn()
            with self._changed:
                self._now = None
                if more and not ticket.stopped.is_set():
                    # Its next turn comes before what the same user asked later, and after every other user's.
                    self._lines.setdefault(user, deque()).appendleft(ticket)
                    self._lines.move_to_end(user)
                elif more:
                    ticket.close()
