"""The load: clients that each send one picture after another to an OpenAI-compatible server, and read its stream."""

import base64
import http.client
import io
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import Barrier, Event

import numpy as np
from PIL import Image

#: Seconds that a server may be silent within an answer.
_PATIENCE = 1200
_QUESTION = "What is to be seen?"
_BLOCK = 14


@dataclass(frozen=True)
class Answer:
    """One request.

    Attributes:
        begin, first, last, end: seconds of one clock: sent, first and last token, all read.
        prompt_tokens, output_tokens: as the server counted them.
    """

    begin: float
    first: float
    last: float
    end: float
    prompt_tokens: int
    output_tokens: int

    @property
    def first_token_ms(self) -> float:
        """Milliseconds until the first token."""
        return 1e3 * (self.first - self.begin)

    @property
    def token_ms(self) -> float | None:
        """Milliseconds for each token after it; None where there is none."""
        steps = self.output_tokens - 1
        return 1e3 * (self.last - self.first) / steps if steps > 0 else None


class ServerError(RuntimeError):
    """A server answered otherwise than asked."""


def request(model: str, seed: Sequence[int], pixels: int, output_tokens: int) -> bytes:
    """The body of a request about a picture that no other seed gives.

    Args:
        model: as the server calls it.
        seed: of the picture's colours.
        pixels: side of the picture.
        output_tokens: length of the answer, whatever it says.
    """
    blocks = np.random.default_rng(list(seed)).integers(
        0, 256, (-(-pixels // _BLOCK), -(-pixels // _BLOCK), 3), np.uint8
    )
    picture = Image.fromarray(blocks).resize((pixels, pixels), Image.Resampling.NEAREST)
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    shown = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": _QUESTION}]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": shown}],
        "max_tokens": output_tokens,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(body).encode()


def send(port: int, body: bytes) -> Answer:
    """Send one request, and read its answer to the end.

    The first event of the stream comes with the first token, also where that is no whole character yet.

    Raises:
        ServerError: it answers otherwise.
        OSError: it does not answer.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_PATIENCE)
    times, usage = list[float](), None
    begin = time.perf_counter()
    try:
        connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != 200:
            raise ServerError(f"status {response.status}: {response.read(2000).decode(errors='replace')}")
        for line in response:
            name, _, data = line.strip().partition(b": ")
            if name != b"data" or data == b"[DONE]":
                continue
            event = json.loads(data)
            if "error" in event:
                raise ServerError(str(event["error"]))
            if event.get("choices"):
                times.append(time.perf_counter())
            usage = event.get("usage") or usage
        end = time.perf_counter()
    finally:
        connection.close()
    if not times or usage is None:
        raise ServerError("no tokens and their number in its stream")
    return Answer(begin, times[0], times[-1], end, usage["prompt_tokens"], usage["completion_tokens"])


def burst(port: int, bodies: Sequence[Sequence[bytes]]) -> list[Answer]:
    """Send requests, those of each client one after another, all clients at once.

    Args:
        port: of the server.
        bodies: for each client, its requests.

    Raises:
        ServerError: the server answers one of them otherwise.
        OSError: it does not answer.
    """
    together, stopped = Barrier(len(bodies)), Event()

    def client(own: Sequence[bytes]) -> list[Answer]:
        together.wait()
        return [send(port, body) for body in own if not stopped.is_set()]

    with ThreadPoolExecutor(len(bodies)) as clients:
        try:
            waiting = [clients.submit(client, own) for own in bodies]
            return [answer for done in as_completed(waiting) for answer in done.result()]
        except BaseException:
            stopped.set()  # the others end with the request that they are at
            raise


def rate(answers: Sequence[Answer]) -> float:
    """Requests per second of a burst."""
    return len(answers) / (max(each.end for each in answers) - min(each.begin for each in answers))
