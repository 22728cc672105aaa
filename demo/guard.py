"""What stands in front of the web server: a list of what may be asked of it, and bounds on what may be sent."""

import json
import re
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from pathlib import Path
from typing import Any

from vtc.demo.limits import Limits

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
LOCAL = ("127.0.0.1", "localhost", "[::1]")

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
            given = await self._checked(path, receive, send)
            if given is None:
                return
            receive = given
        await self._app(scope, receive, _with_headers(send))

    async def _checked(self, path: str, receive: Receive, send: Send) -> Receive | None:
        """The request's body, if it may pass; else it is answered and None returned."""
        upload = path == _UPLOAD
        if upload and _size(self._folder) > self._limits.folder_bytes:
            await _answer(send, 503, "too many uploads wait; try again in a moment")
            return None
        # an upload's body has the form's borders and names beside the file
        most = self._limits.file_bytes + 64 * 2**10 if upload else self._limits.body_bytes
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            body += message.get("body", b"")
            if len(body) > most:
                await _answer(send, 413, f"more than {most / 2**20:.2f} MiB were sent; send less")
                return None
            if not message.get("more_body"):
                break
        if not upload and _points_elsewhere(bytes(body)):
            await _answer(send, 400, "files are uploaded, not fetched; send the file itself")
            return None
        return _replay(bytes(body), receive)


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
    return any("://" in text or text.startswith("//") for text in _places(found))


def _places(value: Any) -> Iterator[str]:
    """What stands under "path" or "url" of anything in a JSON value that looks like a file."""
    if isinstance(value, dict):
        if isinstance(value.get("path"), str):
            yield value["path"]
        for each in value.values():
            yield from _places(each)
    elif isinstance(value, list):
        for each in value:
            yield from _places(each)


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
    return sum(file.stat().st_size for file in _files(folder))


def _files(folder: Path) -> Iterator[Path]:
    for file in folder.rglob("*"):
        if file.is_file():
            yield file


def sweep_folder(folder: Path, age_s: float) -> None:
    """Remove files that are older than `age_s`, and folders that are empty."""
    latest = time.time() - age_s
    for file in [*_files(folder)]:
        try:
            if file.stat().st_mtime < latest:
                file.unlink()
        except FileNotFoundError:  # somebody read it in between
            continue
    for place in sorted(folder.rglob("*"), reverse=True):
        try:
            place.rmdir()
        except OSError:  # no folder, or not empty
            continue


class Janitor(threading.Thread):
    """Calls `sweep_folder` now and then, until it is closed."""

    def __init__(self, folder: Path, age_s: float):
        super().__init__(name="vtc-demo-janitor", daemon=True)
        self._folder, self._age_s, self._over = folder, age_s, threading.Event()

    def run(self) -> None:
        """Sweep four times an age."""
        while not self._over.wait(self._age_s / 4):
            sweep_folder(self._folder, self._age_s)

    def close(self) -> None:
        """End the thread."""
        self._over.set()
