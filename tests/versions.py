"""Runs a chosen part of the tests on other releases of transformers and torch than those that are pinned.

    python tests/versions.py [NAME ...]

Each gets an environment of its own, a thin one over the project's, in which only these two packages are others. The
newest releases are those that the index has on the day.
"""

import os
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".venv-versions"

#: Environment -> what is installed in it; a package without a version is the newest.
RELEASES = {
    "oldest": ("transformers==5.17.0", "torch==2.11.0"),
    "between": ("transformers==5.20.2",),
    "newest": ("transformers", "torch"),
}

#: What runs on each: contract, decode, turns, videos, training; on the oldest and the newest what hangs on them most;
#: and on the newest what is around the library.
TESTS = (
    *("contract", "generate", "prune_decode", "prune_turns", "refusals", "video_families", "families", "smolvlm"),
    *("checkpointing", "generation_modes", "recorded_outputs", "compiled_steps"),
)
EDGES = (
    *("prompt_end", "packed", "turns", "neighbours", "text_first", "quantized_cache", "shared_keys"),
    *("features_made_elsewhere", "measured_patches", "wrappers", "told", "past_elsewhere"),
)
AROUND = ("eval", "eval_models", "ask", "demo_comparing", "recipe", "doctor", "warnings", "trace")
MORE = {"oldest": EDGES, "between": (), "newest": (*EDGES, *AROUND)}


def python(name: str) -> Path:
    """The interpreter of an environment."""
    return HOME / name / "bin" / "python"


def make(name: str) -> None:
    """An environment over the one that runs this, with the releases of `RELEASES`."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", HOME / name], check=True)
    here = HOME / name / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    (here / "below.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    pip = [sys.executable, "-m", "pip", "--python", python(name), "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--upgrade", *RELEASES[name]], check=True)
    subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", ROOT], check=True)


def run(name: str) -> int:
    """The chosen tests in an environment; their exit status."""
    tests = [f"tests/test_{part}.py" for part in (*TESTS, *MORE[name])]
    started = time.monotonic()
    status = subprocess.run(
        [python(name), "-m", "pytest", "-n", "auto", "--dist", "worksteal", "--least", *tests],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    ).returncode
    print(f"{name}: {versions(name)}: exit status {status}, {time.monotonic() - started:.0f} s", flush=True)
    return status


def versions(name: str) -> str:
    """The releases that an environment has."""
    code = "import torch, transformers; print('transformers', transformers.__version__, 'torch', torch.__version__)"
    return subprocess.run([python(name), "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def main(names: list[str]) -> int:
    """Make and run each environment; 1 if a test failed in any."""
    failed = []
    for name in names or RELEASES:
        make(name)
        failed += [name] if run(name) else []
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
