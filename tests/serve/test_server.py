"""The OpenAI-compatible server under load, with bad requests among the good ones: nobody gets another one's answer."""

import base64
import http.client
import io
import json
import os
import random
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from engines import NEW, Ask, folder, picture, right
from PIL import Image

from vtc.serve.bench.server import Server

ENVIRONMENT = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1", "VLLM_CPU_KVCACHE_SPACE": "1"}
ENGINE = (
    "--dtype",
    "float32",
    "--enforce-eager",
    "--max-model-len",
    "256",
    "--max-num-seqs",
    "8",
    "--block-size",
    "32",
)
KEEPS = (None, 0.25, 9, 0.5)
PICTURES = 10


def serve(name: str, folder_of_logs: Path, *more: str) -> Server:
    command = [sys.executable, "-m", "vtc.eval.cli", "serve", str(folder(name)), "--compress", "divprune:keep=0.5"]
    options = (*ENGINE, "--served-model-name", "m", "--mm-processor-cache-gb", "0.05", *more)
    return Server(name, [*command, *options], folder_of_logs / f"{name}.log", ENVIRONMENT)


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """One whose requests may ask for a budget, and one that does not trust them."""
    logs = tmp_path_factory.mktemp("logs")
    with serve("llava", logs, "--trust-request-keep") as trusting, serve("qwen2_5_vl", logs) as strict:
        for server in (trusting, strict):
            server.wait()
        yield trusting, strict


def data_url(seed: int) -> str:
    file = io.BytesIO()
    picture(seed).value.save(file, "PNG")
    return url_of(file.getvalue())


def url_of(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def body(url: str, keep=None, pictures: int = 1, **more) -> dict:
    shown = [{"type": "image_url", "image_url": {"url": url}}] * pictures
    content = [{"type": "text", "text": "question "}, *shown, {"type": "text", "text": " what?"}]
    asked = {
        "model": "m", "messages": [{"role": "user", "content": content}], "max_tokens": NEW, "min_tokens": NEW,
        "temperature": 0, "ignore_eos": True, "return_token_ids": True, **more,
    }  # fmt: skip
    return asked if keep is None else {**asked, "mm_processor_kwargs": {"vtc_keep": keep}}


def post(server: Server, asked: dict, hang_up: bool = False) -> tuple[int, dict]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        stream = {"stream": True, "max_tokens": 100} if hang_up else {}
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps({**asked, **stream}), headers)
        answer = connection.getresponse()
        if hang_up:
            answer.readline()
            return answer.status, {}
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def ask_of(number: int) -> Ask:
    return Ask(("question ", picture(number), " what?"))


def expected(name: str, number: int, keep) -> tuple[int, ...]:
    return right(name, ask_of(number), f"divprune:keep={keep or 0.5}")


def memory(server: Server) -> int:
    """Resident bytes of a server's processes."""
    session, total = os.getsid(server._process.pid), 0
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.getsid(int(process.name)) == session:
                total += int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        except (ProcessLookupError, FileNotFoundError, PermissionError):
            continue
    return total


def test_prompt_tokens_fall(servers):
    for server, name, whole in zip(servers, ("llava", "qwen2_5_vl"), (64, 16)):
        status, answer = post(server, body(data_url(0)))
        assert status == 200
        assert tuple(answer["choices"][0]["token_ids"]) == expected(name, 0, None)
        full = len(right_prompt(name))
        assert answer["usage"]["prompt_tokens"] == full - whole + round(whole * 0.5)


def right_prompt(name: str) -> list[int]:
    from engines import encoded

    return encoded(name, ask_of(0))["input_ids"][0].tolist()


def test_a_budget_is_refused_where_requests_are_not_trusted(servers):
    status, answer = post(servers[1], body(data_url(0), keep=0.25))
    assert status == 400
    assert "trust-request-mm-kwargs" in json.dumps(answer)
    assert post(servers[1], body(data_url(0)))[0] == 200


def bomb() -> str:
    """A small file that unfolds to a picture which no one should unfold."""
    file = io.BytesIO()
    Image.new("1", (30000, 30000)).save(file, "PNG")
    return url_of(file.getvalue())


BAD = {
    "keep out of range": lambda: (body(data_url(0), keep=-1), "vtc_keep=-1"),
    "keep of another type": lambda: (body(data_url(0), keep="much"), "vtc_keep='much'"),
    "more than the engine's": lambda: (body(data_url(0), keep=0.75), "more than this engine was started with"),
    "another method": lambda: (
        {**body(data_url(0)), "mm_processor_kwargs": {"vtc": "divprne:keep=0.1"}}, "the method is the engine's"
    ),
    "broken picture": lambda: (body(url_of(b"\x89PNG\r\n\x1a\nno picture")), ""),
    "more pictures than fit": lambda: (body(data_url(0), pictures=9), "maximum"),
    "too long": lambda: (body(data_url(0), max_tokens=5000), "max_tokens"),
}  # fmt: skip


def test_five_hundred_requests(servers):
    server, dice = servers[0], random.Random(0)
    urls = {number: data_url(number) for number in range(PICTURES)}
    bad = {name: make() for name, make in BAD.items()}
    plan: list[tuple] = [("bad", name) for name in bad for _ in range(6)] + [("hang up", n) for n in range(20)]
    plan += [("oversize",)] * 2
    oversize = body(bomb())
    while len(plan) < 500:
        plan.append(("good", dice.randrange(PICTURES), dice.choice(KEEPS)))
    dice.shuffle(plan)
    answers = {(n, keep): expected("llava", n, keep) for n in range(PICTURES) for keep in KEEPS}

    def one(what: tuple) -> str | None:
        if what[0] == "bad":
            asked, message = bad[what[1]]
            status, answer = post(server, asked)
            return None if status == 400 and message in json.dumps(answer) else f"{what}: {status} {answer}"
        if what[0] == "oversize":  # vLLM's own answer to a picture that Pillow refuses, with pruning or without
            status, answer = post(server, oversize)
            return None if status == 500 and "exceeds limit" in json.dumps(answer) else f"{what}: {status} {answer}"
        if what[0] == "hang up":
            status, _ = post(server, body(urls[what[1] % PICTURES]), hang_up=True)
            return None if status == 200 else f"{what}: {status}"
        status, answer = post(server, body(urls[what[1]], what[2]))
        if status != 200 or tuple(answer["choices"][0]["token_ids"]) != answers[what[1:]]:
            return f"{what}: {status} {answer}"
        return None

    with ThreadPoolExecutor(16) as clients:
        wrong = list(clients.map(one, plan[:250]))
        half = memory(server)
        wrong += clients.map(one, plan[250:])
    assert not [each for each in wrong if each is not None]
    assert len(wrong) == 500
    assert memory(server) < half + 48 * 2**20
    assert post(server, body(urls[0]))[0] == 200


def test_it_ends_when_told(servers):
    os.killpg(servers[1]._process.pid, signal.SIGTERM)
    assert servers[1]._process.wait(30) is not None
