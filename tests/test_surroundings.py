"""Tests are the same however they are started: what `surroundings.settle` makes of what a run inherits."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

from surroundings import OTHER, OTHERS, SET

CHILD = """
import json, os, signal, sys
mask = os.umask(0)
ignored = [s.name for s in signal.Signals if signal.getsignal(s) is signal.SIG_IGN]
blocked = [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())]
print(json.dumps({"ignored": ignored, "blocked": blocked, "umask": mask, "environment": dict(os.environ)}))
"""
PARENT = f"""
import subprocess, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from surroundings import settle
settle()
done = subprocess.run([sys.executable, "-c", {CHILD!r}])
sys.exit(done.returncode or 7 * (sys.stdin is None))
"""
#: As a careless script leaves them.
STRANGE = {
    **{name: "strange" for name in OTHER if not name.startswith("PYTHON")},
    **{name + "STRANGE": "strange" for name in OTHERS},
    **{"COLUMNS": "3", "TERM": "xterm-256color", "NO_PROXY": "", "PYTHONWARNINGS": "default"},
}


def careless():
    """What a shell does to a job in the background, nohup, and a careless parent."""
    for name in ("SIGINT", "SIGQUIT", "SIGHUP", "SIGTERM", "SIGCHLD"):
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGUSR1))
    os.umask(0o777)
    os.close(0)


def test_children_of_a_careless_parent_are_as_any():
    done = subprocess.run(
        [sys.executable, "-c", PARENT],
        env={**os.environ, **STRANGE},
        preexec_fn=careless,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    child = json.loads(done.stdout)
    assert set(child["ignored"]) <= {"SIGPIPE", "SIGXFSZ"}  # which Python itself ignores
    assert child["blocked"] == [] and child["umask"] == 0o022
    assert "strange" not in child["environment"].values()
    assert {name: child["environment"][name] for name in SET} == SET


def test_this_run_is_settled():
    assert signal.getsignal(signal.SIGINT) is not signal.SIG_IGN
    assert {name: os.environ.get(name) for name in SET} == SET
