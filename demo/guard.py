"""What stands in front of the web server: a list of what may be asked of it, and bounds on what may be sent."""

import asyncio
import contextlib
import json
import os
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from vtc.demo.visitors.limits import Limits

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Asgi = Callable[[Scope, Receive, Send], Awaitable[None]]

_API = "/gradio_api"
#: The page and its parts. Files of visitors, proxies, run histories and component servers are not among them.
_GET = re.compile(
    r"/|/(assets|static|svelte)/[\w./@-]*|/(theme\.css|config|info|favicon\.ico|manifest\.json|robots\.txt|pwa_icon)"
    rf"|{_API}/(info|config|app_id|startup-events|heartbeat/\w+|queue/data|upload_progress|call(/v2)?/\w+/\w+)"
)
_POST = re.compile(rf"{_API}/(queue/join|cancel|reset|call(/v2)?/\w+|run/\w+|upload)")
_UPLOAD = f"{_API}/upload"
#: This machine's names.
LOCAL = ("127.0.0.1", "localhost")

#: The page takes nothing from elsewhere and sends nothing elsewhere. Gradio's scripts are inline, and compile.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
    "form-action 'self'; frame-ancestors 'self'; worker-src 'self' blob:"
)
_HEADERS = (
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Guard:
    """ASGI middleware.

    Args:
        app: what it stands in front of.
        limits: what is allowed.
        folder: where uploads land.
        local: whether only this machine is let in; a page from elsewhere that has its name point here is not then.
    """

    def __init__(self, app: Asgi, limits: Limits, folder: Path, local: bool):
        self._app, self._limits, self._folder, self._local = app, limits, folder, local
        self._arriving = 0  # bytes that requests under way may come to

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        if self._local and _host(scope) not in LOCAL:
            await _answer(send, 400, f"this server answers to {' and '.join(LOCAL)} alone; start it with --host")
            return
        path, method = scope["path"].rstrip("/") or "/", scope["method"]
        allowed = _GET if method in ("GET", "HEAD") else _POST if method == "POST" else None
        if allowed is None or not allowed.fullmatch(path) or ".." in path:
            await _answer(send, 404, "there is nothing here")
            return
        if method == "POST":
            given = await self._checked(path, scope, receive, send)
            if given is None:
                return
            receive = given
        await self._app(scope, receive, _with_headers(send))

    async def _checked(self, path: str, scope: Scope, receive: Receive, send: Send) -> Receive | None:
        """The request's body, if it may pass; else it is answered and None returned."""
        upload = path == _UPLOAD
        if upload and self._arriving + _size(self._folder) > self._limits.folder_bytes:
            await _answer(send, 503, "too many uploads wait; try again in a moment")
            return None
        # an upload's body has the form's borders and names beside the file
        most = self._limits.file_bytes + 64 * 2**10 if upload else self._limits.body_bytes
        self._arriving += most
        try:
            async with asyncio.timeout(self._limits.body_s):
                body = await _read(receive, most)
        except TimeoutError:
            await _answer(send, 408, f"not all was sent within {self._limits.body_s:.0f} s; try again")
            return None
        finally:
            self._arriving -= most
        if body is None:
            return None
        if len(body) > most:
            await _answer(send, 413, f"more than {most / 2**20:.2f} MiB were sent; send less")
            return None
        if not upload and _points_elsewhere(body):
            await _answer(send, 400, "files are uploaded, not fetched; send the file itself")
            return None
        if upload and _parts(scope, body) > 1:
            await _answer(send, 400, "several files were sent; send one")
            return None
        return _replay(body, receive)


def _host(scope: Scope) -> str:
    """What the request calls this server, without the port."""
    given = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"host"), "")
    return re.sub(r":\d+$", "", given)


def _points_elsewhere(body: bytes) -> bool:
    """Whether JSON names a file by an address, which the server would fetch."""
    try:
        found = json.loads(body or b"null")
    except ValueError:
        return False
    except RecursionError:  # nothing of ours is as deep
        return True
    return any("://" in text or text.startswith("//") for text in _places(found))


def _places(value: Any) -> Iterator[str]:
    """What stands under "path" anywhere in a JSON value: by it Gradio knows a file."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for each in value.values():
            yield from _places(each)
    elif isinstance(value, list):
        for each in value:
            yield from _places(each)


async def _read(receive: Receive, most: int) -> bytes | None:
    """A request's body, or a little more than `most` of it; None where the sender went away."""
    body = bytearray()
    while len(body) <= most:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    return bytes(body)


def _parts(scope: Scope, body: bytes) -> int:
    """How many parts a form has."""
    kind = next((value for name, value in scope["headers"] if name == b"content-type"), b"")
    border = re.search(rb'boundary="?([^";]+)', kind)
    return body.count(b"--" + border[1]) - 1 if border else 1


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body that was read, then what comes after it."""
    told = False

    async def given() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return given


def _with_headers(send: Send) -> Send:
    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_HEADERS]}
        await send(message)

    return sent


async def _answer(send: Send, status: int, text: str) -> None:
    body = json.dumps({"detail": text}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode()), *_HEADERS]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _size(folder: Path) -> int:
    total = 0
    for place, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):  # somebody read it in between
                total += os.stat(os.path.join(place, name)).st_size
    return total


def sweep_folder(folder: Path, age_s: float) -> None:
    """Remove files that are older than `age_s`, and folders as old that are empty."""
    latest = time.time() - age_s
    for place, folders, files in os.walk(folder, topdown=False):
        for name in (*files, *folders):
            path = os.path.join(place, name)
            with contextlib.suppress(OSError):  # gone, or not empty
                if os.lstat(path).st_mtime < latest:
                    (os.rmdir if name in folders else os.unlink)(path)


class Janitor(threading.Thread):
    """Calls `sweep_folder` now and then, until it is closed."""

    def __init__(self, folder: Path, age_s: float):
        super().__init__(name="vtc-demo-janitor", daemon=True)
        self._folder, self._age_s, self._over = folder, age_s, threading.Event()

    def run(self) -> None:
        """Sweep four times an age."""
        while not self._over.wait(self._age_s / 4):
            with contextlib.suppress(OSError):
                sweep_folder(self._folder, self._age_s)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
