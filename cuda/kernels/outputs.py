"""What every program here does about its output: it runs to its end, whoever reads.

A reader that goes away (`vtc methods | head -1`), a disk that is full, a stream that was closed before the program
began, a terminal that lacks a character (and gets a question mark): none of them stops a program on its way, so that
what it writes elsewhere is whole. What it says from then on is dropped, and its exit status tells: `READER_GONE`
after a broken pipe, 1 and a line on stderr where stdout could not be written otherwise, unless the program ended with
a status of its own. Where stderr fails nothing is told, to whom?

Only stdout and stderr are looked after, where they fail: another pipe that breaks, of a worker or a socket, is an error
as ever. Imports nothing but Python's own, and lies here since all rooms may import it.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

#: What a shell says of a program that a broken pipe ended: 128 + SIGPIPE.
READER_GONE = 141


class _Raw(io.FileIO):
    """A file descriptor that goes to the null device once it can't be written.

    Attributes:
        failure: why; None while it can.
    """

    failure: OSError | None = None

    def write(self, data: Any, /) -> int:
        """Write; or drop what can't be written."""
        try:
            return super().write(data)
        except OSError as error:
            self.failure = error
            with open(os.devnull, "wb") as null:
                os.dup2(null.fileno(), self.fileno())
            return memoryview(data).nbytes


def run(program: Callable[[], int | None], name: str) -> int:
    """Run a program to its end, whatever becomes of its output.

    Args:
        program: returns its exit status, None for 0.
        name: that it has in its messages.

    Returns:
        Its exit status.

    Raises:
        SystemExit: where the program raises it.
    """
    with _kept("stdout", 1) as stdout, _kept("stderr", 2):
        stop: SystemExit | None = None
        status: Any
        try:
            status = program()
        except SystemExit as raised:
            stop, status = raised, raised.code
        sys.stdout.flush()
        if stdout is not None and stdout.failure is not None:
            if not isinstance(stdout.failure, BrokenPipeError):
                print(f"{name}: error: stdout can't be written ({stdout.failure.strerror})", file=sys.stderr)
            status = status or (READER_GONE if isinstance(stdout.failure, BrokenPipeError) else 1)
        if stop is not None:
            raise SystemExit(status) from stop
        return status or 0


@contextlib.contextmanager
def _kept(name: str, descriptor: int) -> Iterator[_Raw | None]:
    """`sys.stdout` or `sys.stderr`, guarded; None where it is no stream of the process, but somebody's own."""
    before = getattr(sys, name)
    if before is not getattr(sys, f"__{name}__"):
        yield None
        return
    raw, made = (None, _closed(descriptor)) if before is None else _guarded(before)
    setattr(sys, name, made)
    try:
        yield raw
    finally:
        made.flush()
        setattr(sys, name, before)


def _guarded(stream: Any) -> tuple[_Raw, io.TextIOWrapper]:
    """The same stream once more, over a descriptor that takes everything, and with every character."""
    stream.flush()
    raw = _Raw(stream.fileno(), "wb", closefd=False)
    raw.name = stream.name  # type: ignore[misc]  # as Python itself does
    buffer: Any = raw if isinstance(stream.buffer, io.RawIOBase) else io.BufferedWriter(raw)
    made = io.TextIOWrapper(
        buffer,
        encoding=stream.encoding,
        errors="replace" if stream.errors == "strict" else stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )
    return raw, made


def _closed(descriptor: int) -> Any:
    """Stands for a stream that was closed before the program began, and takes its number: no file shall get it."""
    null = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115
    try:
        os.fstat(descriptor)
    except OSError:
        os.dup2(null.fileno(), descriptor)
    return null
