"""The page behind its guard, on a port."""

import contextlib
import os
import queue
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Any

from starlette.middleware import Middleware

from vtc.demo.guard import LOCAL, Guard, Janitor
from vtc.demo.visitors.limits import Limits
from vtc.eval.cli.errors import InputError
from vtc.eval.cli.importing import importing


class Server:
    """Serves in a `with` block. What it writes is in one temporary folder, which goes with it.

    Args:
        args: of `vtc demo`.
        limits: what visitors may ask.

    Attributes:
        address: of the page.
        folder: where uploads land.
    """

    def __init__(self, args: Any, limits: Limits | None = None):
        self._args, self._limits = args, limits or Limits()
        self._over: queue.SimpleQueue[None] = queue.SimpleQueue()  # an Event's `set` may lock up in a signal's handler

    def __enter__(self) -> "Server":
        """Load the model and open the port.

        Raises:
            InputError: the model can't be loaded, or the port is taken.
        """
        args, limits = self._args, self._limits
        port = _free_port(args.host, args.port)
        with contextlib.ExitStack() as stack:
            self.folder = Path(tempfile.mkdtemp(prefix="vtc-demo-"))
            stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            for name, value in (
                ("GRADIO_TEMP_DIR", str(self.folder)),
                ("GRADIO_ANALYTICS_ENABLED", "False"),
                ("HF_HUB_DISABLE_TELEMETRY", "1"),
            ):
                stack.callback(_put_back, name, os.environ.get(name))
                os.environ[name] = value
            with importing():
                from vtc.demo.service import Service
                from vtc.demo.view.events import OPENING
                from vtc.demo.view.page import Page, css, head, theme

            service = Service(args, limits)
            stack.callback(service.close)
            service.models.of("image")
            blocks = Page(service).blocks
            blocks.queue(max_size=2 * limits.jobs, default_concurrency_limit=8, api_open=False)
            local = args.host in LOCAL
            guard = Middleware(Guard, limits=limits, folder=self.folder, local=local)  # type: ignore[arg-type]
            _, self.address, _ = blocks.launch(
                server_name=args.host,
                server_port=port,
                share=False,
                inbrowser=False,
                quiet=True,
                prevent_thread_lock=True,
                max_threads=80,
                max_file_size=limits.file_bytes,
                state_session_capacity=limits.sessions,
                allowed_paths=[],
                app_kwargs={"middleware": [guard], "docs_url": None, "redoc_url": None, "openapi_url": None},
                ssr_mode=False,
                pwa=False,
                mcp_server=False,
                enable_monitoring=False,
                run_history=False,
                show_error=True,
                footer_links=["gradio"],
                theme=theme(),
                css=css(),
                head=head(),
            )
            stack.callback(blocks.close, verbose=False)
            service.begin(OPENING["example"], [OPENING["a"], OPENING["b"]])  # beside the page, which says so meanwhile
            janitor = Janitor(self.folder, limits.upload_age_s)
            janitor.start()
            stack.callback(janitor.close)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait(self) -> None:
        """Until Ctrl-C, or `stop`."""
        self._over.get()

    def stop(self) -> None:
        """End `wait`, now or when it comes to it. May be called by a signal's handler."""
        self._over.put(None)


def _free_port(host: str, port: int) -> int:
    """The port, or a free one for 0.

    Raises:
        InputError: it can't be had.
    """
    try:
        with socket.create_server((host, port)) as taken:
            return taken.getsockname()[1]
    except (OSError, OverflowError) as error:
        raise InputError(f"argument --port: {port} on {host} can't be had ({error}); give another, or 0") from None


def _put_back(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
