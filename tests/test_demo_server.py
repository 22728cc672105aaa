"""The server: what it answers and what not, its API, 32 users at once, and nothing left behind."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from covering import FIRST, REST
from demo_server import PATIENT, arguments, server
from PIL import Image
from video_files import ffmpeg, needs_ffmpeg

from vtc.demo.guard import Guard, _size, sweep_folder
from vtc.demo.server import Server
from vtc.demo.visitors.limits import Limits
from vtc.eval import cli
from vtc.eval.cli.errors import InputError

pytestmark = FIRST
SECRET = "nobody reads this"


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A server in a working folder that holds a secret."""
    folder = tmp_path_factory.mktemp("work")
    (folder / "secret.txt").write_text(SECRET)
    before = Path.cwd()
    os.chdir(folder)
    try:
        with server() as running:
            yield running
    finally:
        os.chdir(before)


def get(demo, path, **options):
    """As it stands: httpx would tidy a path up."""
    url = httpx.URL(demo.address.rstrip("/")).copy_with(raw_path=path.encode())
    return httpx.get(url, timeout=60, **options)


def upload(demo, name, content):
    return httpx.post(f"{demo.address}gradio_api/upload", files={"files": (name, content)}, timeout=60)


def call(demo, data, timeout=600):
    """`/compare` by plain HTTP: the event's name and what came, or the error."""
    made = httpx.post(f"{demo.address}gradio_api/call/compare", json={"data": data}, timeout=timeout)
    if made.status_code != 200:
        return made.status_code, made.json()
    events = httpx.get(f"{demo.address}gradio_api/call/compare/{made.json()['event_id']}", timeout=timeout).text
    lines = [line for line in events.splitlines() if line]
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


def file_data(path, **more):
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def files_in(folder):
    return [file for file in folder.rglob("*") if file.is_file()]


# -- what is served


def test_it_listens_on_this_machine_alone_and_forbids_the_page_to_fetch_elsewhere(demo):
    assert demo.address.startswith("http://127.0.0.1:")
    assert arguments().host == "127.0.0.1"
    page = get(demo, "/")
    assert page.status_code == 200
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy and "connect-src 'self'" in policy and "http" not in policy
    assert page.headers["x-content-type-options"] == "nosniff"


def test_a_page_from_elsewhere_can_t_ask_it_by_a_name_of_its_own(demo):
    assert get(demo, "/", headers={"host": "evil.example:80"}).status_code == 400
    assert get(demo, "/config", headers={"host": "evil.example"}).status_code == 400
    assert get(demo, "/", headers={"host": "localhost:1234"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=secret.txt",
        "/gradio_api/file={cwd}/secret.txt",
        "/gradio_api/file/secret.txt",
        "/gradio_api/file=http://127.0.0.1:1/",
        "/gradio_api/proxy=http://127.0.0.1:1/",
        "/file=/etc/passwd",
        "/assets/../../../../../../etc/passwd",
        "/assets/%2e%2e/%2e%2e/%2e%2e/%2e%2e/etc/passwd",
        "/static/..%2f..%2f..%2f..%2fetc/passwd",
        "/static//etc/passwd",
        "/gradio_api/custom_component/x/client/component/..%2f..%2findex.js",
        "/gradio_api/runs",
        "/gradio_api/run-history/records",
        "/monitoring",
        "/gradio_api/dev/reload",
        "/gradio_api/vibe-code",
        "/openapi.json",
        "/docs",
    ],
)
def test_no_file_of_the_machine_is_served(demo, path):
    answer = get(demo, path.format(cwd=Path.cwd()))
    assert answer.status_code in (400, 403, 404)
    assert SECRET not in answer.text and "root:" not in answer.text


@pytest.mark.parametrize(
    "path", ["component_server", "stream/1", "process_recording", "vibe-edit", "api/compare", "login"]
)
def test_nothing_is_posted_but_what_the_page_needs(demo, path):
    assert httpx.post(f"{demo.address}gradio_api/{path}", json={}, timeout=60).status_code == 404
    assert httpx.put(demo.address, timeout=60).status_code == 404


# -- what is sent


@pytest.mark.parametrize("path", ["/etc/passwd", "secret.txt", "../../etc/passwd"])
def test_the_api_takes_no_file_that_was_not_sent(demo, path):
    kind, answer = call(demo, [file_data(path), "", "What?", "none", "none"])
    assert kind == "error" and SECRET not in json.dumps(answer) and "root:" not in json.dumps(answer)
    assert (Path.cwd() / "secret.txt").read_text() == SECRET


@pytest.mark.parametrize(
    "sent",
    [
        file_data("http://127.0.0.1:1/a.png"),
        file_data("x", url="//127.0.0.1/a.png"),
        {"deep": [file_data("ftp://x/a.png")]},
    ],
)
def test_the_api_fetches_nothing(demo, sent):
    status, answer = call(demo, [sent, "", "What?", "none", "none"])
    if status != "error":  # an address of its own is not followed, whatever stands there
        assert status == 400 and "files are uploaded, not fetched" in answer["detail"]


def test_too_large_a_body_is_cut_off(demo):
    status, answer = call(demo, [None, "", "a" * PATIENT.body_bytes, "none", "none"])
    assert status == 413 and answer["detail"].endswith("send less")
    answer = upload(demo, "a.png", b"\0" * (PATIENT.file_bytes + 2**17))
    assert answer.status_code == 413
    assert not files_in(demo.folder)


def test_an_upload_is_gone_once_it_was_read(demo, tmp_path):
    picture = tmp_path / "a.png"
    Image.new("RGB", (50, 40), "red").save(picture)
    (path,) = upload(demo, "../../evil name.png", picture.read_bytes()).json()
    assert Path(path).resolve().is_relative_to(demo.folder.resolve()) and Path(path).exists()
    kind, answer = call(demo, [file_data(path), "", "What colour?", "none", "divprune:keep=0.25"])
    assert kind == "complete" and answer[0]["b"]["kept_tokens"] == 64
    assert not files_in(demo.folder)


@needs_ffmpeg
def test_a_video_is_sent_and_asked_about(demo, tmp_path):
    clip = tmp_path / "clip.mp4"
    ffmpeg("-f", "lavfi", "-i", "testsrc=duration=3:size=160x120:rate=8", "-pix_fmt", "yuv420p", clip)
    (path,) = upload(demo, clip.name, clip.read_bytes()).json()
    kind, answer = call(demo, [file_data(path), "", "What moves?", "evs:keep=0.25", "none"])
    assert kind == "complete" and answer[0]["b"]["visual_tokens"] == 513
    assert answer[0]["a"]["kept_tokens"] < 150 and not files_in(demo.folder)


def test_two_visitors_may_send_the_same_file(demo, tmp_path):
    """Gradio puts equal files in one place; whoever comes second must not find it empty."""
    picture = tmp_path / "same.png"
    Image.new("RGB", (50, 40), "blue").save(picture)
    paths = [upload(demo, "same.png", picture.read_bytes()).json()[0] for _ in range(2)]
    assert paths[0] == paths[1]
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda path: call(demo, [file_data(path), "", "What?", "none", "none"]), paths))
    assert [kind for kind, _ in answers] == ["complete"] * 2
    (path,) = upload(demo, "same.png", picture.read_bytes()).json()
    assert call(demo, [file_data(path), "", "What?", "none", "none"])[0] == "complete"
    assert not files_in(demo.folder)


def test_the_upload_folder_itself_is_no_upload(demo):
    for path in (demo.folder, demo.folder / "missing" / "a.png", demo.folder / "a.png"):
        kind, answer = call(demo, [file_data(str(path)), "", "What?", "none", "none"])
        assert kind == "error" and "Traceback" not in json.dumps(answer)
    assert demo.folder.is_dir() and demo.folder.stat().st_mode & 0o077 == 0


def test_several_files_in_one_upload_and_json_too_deep_are_refused(demo):
    files = [("files", (f"{number}.png", b"\x89PNG")) for number in range(3)]
    answer = httpx.post(f"{demo.address}gradio_api/upload", files=files, timeout=60)
    assert answer.status_code == 400 and "send one" in answer.text
    deep = b'{"data": ' + b"[" * 50_000 + b"]" * 50_000 + b"}"
    answer = httpx.post(f"{demo.address}gradio_api/call/compare", content=deep, timeout=60)
    assert answer.status_code in (400, 422) and not files_in(demo.folder)


def test_a_request_that_never_ends_is_answered():
    async def story():
        said = []

        async def receive():
            await asyncio.sleep(60)

        async def send(message):
            said.append(message)

        guard = Guard(None, Limits(body_s=0.1), Path("/nonexistent"), local=False)
        await guard({"type": "http", "method": "POST", "path": "/gradio_api/upload", "headers": []}, receive, send)
        return said[0]["status"], guard._arriving

    assert asyncio.run(story()) == (408, 0)


def test_the_folder_may_change_while_it_is_swept(tmp_path):
    """Uploads come and go meanwhile; neither what weighs the folder nor what sweeps it minds."""
    over = threading.Event()

    def churn(name):
        while not over.is_set():
            folder = tmp_path / name
            folder.mkdir(exist_ok=True)
            (folder / "a").write_bytes(b"x")
            (folder / "a").unlink()
            folder.rmdir()

    with ThreadPoolExecutor(3) as pool:
        for name in "abc":
            pool.submit(churn, name)
        try:
            for _ in range(300):
                sweep_folder(tmp_path, 3600)
                assert _size(tmp_path) in range(4)
        finally:
            over.set()


def test_a_bad_upload_is_refused_and_gone(demo):
    (path,) = upload(demo, "a.png", b"<svg/>").json()
    kind, answer = call(demo, [file_data(path), "", "What?", "none", "none"])
    assert kind == "error" and "no picture or video that is read here" in json.dumps(answer)
    assert not files_in(demo.folder)


def test_what_nobody_reads_is_swept_away(demo):
    (path,) = upload(demo, "a.png", b"\x89PNG").json()
    sweep_folder(demo.folder, 3600)
    assert Path(path).exists()
    old = time.time() - 7200
    os.utime(path, (old, old))
    os.utime(Path(path).parent, (old, old))
    sweep_folder(demo.folder, 3600)
    assert not Path(path).exists()
    os.utime(Path(path).parent, (old, old))
    sweep_folder(demo.folder, 3600)
    assert not Path(path).parent.exists()


# -- the API


def test_the_comparison_by_gradio_client_in_three_lines(demo):
    from gradio_client import Client

    client = Client(demo.address, verbose=False)
    answer = client.predict(example="images/5", question="", a="divprune:keep=0.25", b="none", api_name="/compare")
    assert answer["a"]["answer"] == answer["b"]["answer"] == "9"
    assert (answer["a"]["equivalent_tokens"], answer["b"]["equivalent_tokens"]) == (64, 256)
    assert answer["a_to_b"]["equivalent_tokens"] == 0.25
    assert answer["a"]["tokens_per_layer"] == [64] * 8
    assert list(client.view_api(return_format="dict")["named_endpoints"]) == ["/compare"]


@pytest.mark.parametrize(
    "data, message",
    [
        ([None, "images/5", "", "divprun", "none"], "A: unknown method 'divprun'"),
        ([None, "images/five", "", "none", "none"], "example 'images/five' does not exist"),
        ([None, "images/5", "a" * 501, "none", "none"], "question has 501 characters"),
        ([None, "images/5", "", "atp:weights=secret.txt", "none"], "names a file or a model"),
    ],
)
def test_what_the_api_can_t_do_it_says(demo, data, message):
    kind, answer = call(demo, data)
    assert kind == "error" and message in json.dumps(answer)


def test_a_method_that_is_refused_is_told_beside_the_other_s_answer(demo):
    kind, answer = call(demo, [None, "images/5", "", "fastv:layer=99", "none"])
    assert kind == "complete" and "99" in answer[0]["a"]["refused"] and answer[0]["b"]["answer"] == "9"


# -- many at once


@pytest.mark.parametrize("users", [4, pytest.param(32, marks=REST)])
def test_users_at_once_get_their_own_answers(demo, users):
    """Each asks something else; some ask what is refused. Everybody is served, and nobody gets another's answer."""
    alone = {}
    examples = ["images/0", "images/1", "images/5", "images/6"][: users // 2]
    for name in examples:
        _, answer = call(demo, [None, name, "", "divprune:keep=0.25", "none"])
        alone[name] = answer[0]
    jobs = [
        (user, examples[user % len(examples)], "divprun" if user % 8 == 3 else "divprune:keep=0.25")
        for user in range(users)
    ]

    def ask(job):
        _, name, text = job
        return call(demo, [None, name, "", text, "none"])

    with ThreadPoolExecutor(users) as pool:
        answers = list(pool.map(ask, jobs))
    for (_, name, text), (kind, answer) in zip(jobs, answers):
        if text == "divprun":
            assert kind == "error" and "did you mean" in json.dumps(answer)
            continue
        assert kind == "complete"
        for side in "ab":
            for key in ("spec", "answer", "tokens_per_layer", "kv_bytes", "flops"):
                assert answer[0][side][key] == alone[name][side][key]


# -- beginning and end


def test_nothing_is_sent_anywhere():
    """Neither while it starts, nor while it answers: every connection of this process stays on this machine."""
    reached, watching = [], [True]

    def watch(event, args):
        if watching and event in ("socket.connect", "socket.getaddrinfo"):
            address = args[1] if event == "socket.connect" else args[:2]
            reached.append(str(address[0]) if isinstance(address, tuple) else str(address))

    sys.addaudithook(watch)
    with server() as running:
        kind, _ = call(running, [None, "images/5", "", "divprune:keep=0.25", "none"])
        assert kind == "complete"
    watching.clear()
    assert reached and set(reached) <= {"127.0.0.1", "localhost"}


def test_everything_is_as_it_was_when_it_ends():
    before = {name: os.environ.get(name) for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED")}
    with server() as running:
        folder, address = running.folder, running.address
        upload(running, "a.png", b"\x89PNG")
        assert files_in(folder) and os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert not folder.exists()
    assert {name: os.environ.get(name) for name in before} == before
    with pytest.raises(httpx.ConnectError):
        httpx.get(address, timeout=10)


@pytest.mark.parametrize(
    "number", [pytest.param(signal.SIGTERM, id="SIGTERM"), pytest.param(signal.SIGINT, id="SIGINT", marks=REST)]
)
def test_the_command_ends_when_it_is_told_to_and_leaves_nothing(number, tmp_path):
    command = [sys.executable, "-m", "vtc.eval.cli", "demo", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    running = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
    said = running.stdout.readline()
    assert said.startswith("vtc demo: http://127.0.0.1:") and list(tmp_path.glob("vtc-demo-*"))
    running.send_signal(number)
    _, errors = running.communicate(timeout=60)
    assert running.returncode == (0 if number == signal.SIGTERM else 130) and "Traceback" not in errors
    assert not list(tmp_path.glob("vtc-demo-*"))


def wait_in_thread(server, stop_at=None):
    """A thread in `server.wait()`, and its instructions so far; at one of them `stop` is called, as a handler would."""
    seen = []

    def trace(frame, event, _):
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen.append(frame.f_code.co_name)
            if len(seen) == stop_at:
                server.stop()
        return trace

    def wait():
        sys.settrace(trace)
        server.wait()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread, seen


def test_it_can_be_stopped_at_any_instruction_of_its_wait():
    """A signal's handler runs between any two instructions of the main thread, which may hold a lock just then."""
    server = Server(arguments(), Limits())
    thread, seen = wait_in_thread(server)
    thread.join(1)
    assert thread.is_alive() and seen
    before = list(seen)  # what it had come to
    server.stop()
    thread.join(60)
    assert not thread.is_alive()
    for place, where in enumerate(before, 1):
        thread, _ = wait_in_thread(Server(arguments(), Limits()), place)
        thread.join(20)
        assert not thread.is_alive(), f"stopped at instruction {place}, of {where}, it waits for ever"


def test_a_port_that_is_taken_and_a_model_that_is_missing_are_told(demo, capsys, tmp_path):
    port = demo.address.rstrip("/").rpartition(":")[2]
    with (
        pytest.raises(InputError, match=f"argument --port: {port} on 127.0.0.1 can't be had"),
        Server(arguments("--port", port), Limits()),
    ):
        pass
    assert cli.main(["demo", "--port", "0", "--model", str(tmp_path / "missing")]) == 2
    assert "argument --model: " in capsys.readouterr().err
    assert cli.main(["demo", "--port", "99999"]) == 2
    assert "argument --port: 99999" in capsys.readouterr().err
