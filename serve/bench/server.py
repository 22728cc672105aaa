"""An engine's server as a process of its own: started, waited for, and stopped whatever happens."""

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vtc.eval.cli.errors import InputError

#: Seconds that a server has to become healthy, which a large model that has to be fetched and compiled may need.
_PATIENCE = 1800
#: Seconds that it has to end.
_GRACE = 20
#: Lines of a log that an error shows.
_SHOWN = 6


class Server:
    """A server on a free port of this machine.

    Args:
        name: what errors call it.
        command: its command line; the port is added.
        log: where its output goes.
        environment: of the process, beside this one's.
    """

    def __init__(self, name: str, command: Sequence[str], log: Path, environment: dict[str, str]):
        self.name, self.log = name, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [*command, "--host", "127.0.0.1", "--port", str(self.port)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,  # Ctrl-C is ours, and its processes can be ended together
            )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *exception: Any) -> None:
        """End it and all of its processes."""
        try:
            self._tell(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_GRACE)
        finally:
            self._tell(signal.SIGKILL)
            self._process.wait()

    def _tell(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # all have ended
            os.killpg(self._process.pid, number)

    def wait(self) -> None:
        """Wait until it answers.

        Raises:
            InputError: it ended, or does not answer in time.
        """
        end = time.monotonic() + _PATIENCE
        while time.monotonic() < end:
            self.check()
            if self._healthy():
                return
            time.sleep(0.5)
        raise InputError(f"the server {self.name} does not answer after {_PATIENCE} s; {self._told()}")

    def check(self) -> None:
        """Refuse to go on with a server that has ended.

        Raises:
            InputError: it has.
        """
        if (status := self._process.poll()) is not None:
            raise InputError(f"the server {self.name} ended with status {status}; {self._told()}")

    def _healthy(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def _told(self) -> str:
        """Where its log is, and the errors in it, or its end."""
        lines = [line.rstrip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        faults = [line for line in lines if "Error" in line or "error:" in line] or lines
        return "\n".join([f"its log is {self.log}, with:", *faults[-_SHOWN:]])
