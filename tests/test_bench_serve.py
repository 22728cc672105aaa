"""`vtc bench serve` without an engine: its clients, its rounds and its processes, on servers that only pretend."""

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from vtc.eval.cli.errors import InputError
from vtc.serve.bench import load as loads
from vtc.serve.bench import rounds
from vtc.serve.bench.command import _counts
from vtc.serve.bench.load import burst, request, send
from vtc.serve.bench.rounds import Load, measure
from vtc.serve.bench.server import Server
from vtc.serve.bench.table import table


class Pretended:
    """A server that streams an answer after some seconds."""

    def __init__(self, name, prompt_tokens, seconds, fault=None):
        self.name, self.log, self.seen, self.busy, self.most = name, f"{name}.log", [], 0, 0
        lock, pretended = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    pretended.seen.append(body)
                    pretended.busy += 1
                    pretended.most = max(pretended.most, pretended.busy)
                self.send_response(400 if fault == "status" else 200)
                self.end_headers()
                time.sleep(seconds)
                events = [{"choices": [{"delta": {}}]}] * body["max_tokens"]
                for event in [{"error": "no room"}] if fault == "event" else events:
                    self.wfile.write(f"data: {json.dumps(event)}\n\n".encode())
                    time.sleep(0.01)
                usage = {"prompt_tokens": prompt_tokens, "completion_tokens": body["max_tokens"]}
                self.wfile.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
                with lock:
                    pretended.busy -= 1

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def check(self):
        pass


def test_times_are_those_of_the_stream():
    answer = send(Pretended("none", 600, 0.2).port, request("m", [1], 28, 5))
    assert answer.first_token_ms >= 200
    assert answer.token_ms == pytest.approx(1000 * (answer.last - answer.first) / 4) and answer.last > answer.first
    assert (answer.prompt_tokens, answer.output_tokens) == (600, 5) and answer.end >= answer.last


def test_both_servers_see_the_same_pictures_and_none_twice():
    servers = [Pretended("none", 600, 0.1), Pretended("divprune", 150, 0.02)]
    results = measure(servers, Load("m", 28, rounds=3, requests=2, output_tokens=3), clients=2)
    seen = [[json.dumps(body) for body in server.seen] for server in servers]
    assert sorted(seen[0]) == sorted(seen[1]) and len(set(seen[0])) == len(seen[0]) == 2 + 3 * 2 * 2
    assert all(server.most == 2 for server in servers)
    stock, pruned = results
    assert stock["requests_speedup"] is None and pruned["requests_speedup"]["median"] > 1.5
    assert pruned["first_token_speedup"]["median"] > 2 and stock["requests"] == 12
    assert [line.split("|")[3].strip() for line in table(results)][2:] == ["600", "150"]


def test_one_token_has_none_behind_it():
    servers = [Pretended("none", 600, 0.01), Pretended("divprune", 150, 0.01)]
    results = measure(servers, Load("m", 28, rounds=1, requests=1, output_tokens=1), clients=1)
    assert all(each["token_ms"] is None and each["token_speedup"] is None for each in results)


def test_no_figures_where_nothing_was_pruned():
    servers = [Pretended("none", 600, 0), Pretended("divprune:keep=1.0", 600, 0)]
    with pytest.raises(InputError, match=r"--compress: 'divprune:keep=1.0' left 600 tokens of a prompt of 600"):
        measure(servers, Load("m", 28, rounds=1, requests=1, output_tokens=2), clients=1)


@pytest.mark.parametrize(("fault", "said"), [("status", "status 400"), ("event", "no room")])
def test_a_fault_of_a_server_is_told_and_ends_the_burst(fault, said):
    server = Pretended("none", 600, 0.02, fault)
    with pytest.raises(loads.ServerError, match=said):
        burst(server.port, [[request("m", [client, turn], 28, 2) for turn in range(50)] for client in range(2)])
    assert len(server.seen) < 10
    with pytest.raises(InputError, match=r"none\.log"):
        rounds._burst(server, [[request("m", [1], 28, 2)]])


def test_a_server_that_ends_is_told_with_its_log(tmp_path):
    words = [sys.executable, "-c", "import sys; print('ValueError: no such thing'); sys.exit(3)"]
    with Server("none", words, tmp_path / "0.log", {}) as server, pytest.raises(InputError) as told:
        server.wait()
    assert "status 3" in str(told.value) and "0.log" in str(told.value) and "no such thing" in str(told.value)


def alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"  # ended, and nobody asked how
    except OSError:
        return False


def test_a_server_is_stopped_with_its_children(tmp_path):
    child, log = "import os, time; print(os.getpid(), flush=True); time.sleep(600)", tmp_path / "0.log"
    words = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"]
    with pytest.raises(KeyboardInterrupt), Server("none", words, log, {}) as server:
        while not log.read_text().endswith("\n"):
            time.sleep(0.05)
        raise KeyboardInterrupt
    assert server._process.poll() is not None
    end = time.monotonic() + 10
    while alive(int(log.read_text())):
        assert time.monotonic() < end
        time.sleep(0.05)


def test_clients_are_whole_numbers():
    assert _counts("1, 4,16") == [1, 4, 16]
