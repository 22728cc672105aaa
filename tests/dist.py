"""Builds sdist and wheel, checks them, and tries the wheel in empty environments: `make dist`.

    python tests/dist.py [--into FOLDER] [PYTHON ...]

The wheel is built from the sdist. Each Python gets an environment with the wheel and what it asks for, without access
to the checkout; one that is not on this machine is said. Without a Python nothing is installed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

#: What has to work with nothing but what the wheel asks for, from a folder that is not the checkout.
BASE = (
    ["python", "-c", "import vtc; print(vtc.__version__, vtc.__file__)"],
    ["vtc", "--version"],
    ["vtc", "methods"],
    ["vtc", "doctor"],
)
#: What has to work with `vtc[eval]`.
EVAL = (["vtc", "ask", "--example", "images/5"],)


def tracked() -> list[str]:
    """Paths of what git tracks in the checkout."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return [file for file in listed.splitlines() if (ROOT / file).is_file()]


def packaged() -> dict[str, str]:
    """What the wheel has to hold: path in the wheel -> path in the checkout."""
    folders = PROJECT["tool"]["setuptools"]["package-dir"]
    found = {}
    for package, folder in folders.items():
        for file in tracked():
            if file.startswith(f"{folder}/"):
                found[package.replace(".", "/") + file.removeprefix(folder)] = file
    return found


def faults_of_wheel(wheel: Path) -> list[str]:
    """What is missing in a wheel, and what should not be there."""
    with zipfile.ZipFile(wheel) as archive:
        there = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    about = f"vtc-{PROJECT['project']['version']}.dist-info/"
    wanted = packaged()
    known = {about + name for name in ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "top_level.txt")}
    known.add(f"{about}licenses/LICENSE")
    faults = [f"{name} is missing" for name in sorted({*wanted, *known} - {*there})]
    faults += [f"{name} does not belong there" for name in sorted({*there} - {*wanted, *known})]
    faults += [
        f"{name} is not what {wanted[name]} is"
        for name in sorted({*wanted} & {*there})
        if (ROOT / wanted[name]).read_bytes() != there[name]
    ]
    return faults


def faults_of_sdist(sdist: Path) -> list[str]:
    """What is missing in an sdist, and what should not be there."""
    with tarfile.open(sdist) as archive:
        there = {name.partition("/")[2] for name in archive.getnames() if archive.getmember(name).isfile()}
    wanted = {*packaged().values(), "pyproject.toml", "setup.py", "README.md", "LICENSE", "MANIFEST.in", "PKG-INFO"}
    wanted |= {"CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "examples/README.md"}
    faults = [f"{name} is missing" for name in sorted(wanted - there)]
    rest = {
        name for name in there - wanted if not name.startswith(("examples/", "vtc.egg-info/")) and name != "setup.cfg"
    }
    return faults + [f"{name} does not belong there" for name in sorted(rest)]


def copy(into: Path) -> Path:
    """What git tracks, as it is in the checkout now: nothing that lies around gets into what is built of it."""
    for file in tracked():
        (into / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, into / file)
    return into


def build(source: Path, into: Path, *options: str) -> tuple[Path, Path]:
    """Build both, the wheel from the sdist; what lies in the folder `into` goes."""
    shutil.rmtree(into, ignore_errors=True)
    command = [sys.executable, "-m", "build", "--outdir", into, *options, source]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"python -m build ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    (sdist,), (wheel,) = into.glob("*.tar.gz"), into.glob("*.whl")
    return sdist, wheel


def answers(python: str) -> bool:
    """Whether an interpreter of that name is on this machine and runs."""
    try:
        return subprocess.run([python, "--version"], capture_output=True).returncode == 0
    except OSError:
        return False


def try_wheel(wheel: Path, python: str) -> None:
    """Install a wheel in an empty environment and run what has to work there."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home, "environment")
        outside = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}

        def run(*command: str | Path) -> None:
            done = subprocess.run(command, cwd=home, env=outside, capture_output=True, text=True)
            told(done, " ".join(map(str, command)).replace(f"{folder}/bin/", "").replace(f"{ROOT}/", ""))

        run(python, "-m", "venv", folder)
        for wanted, commands in ((str(wheel), BASE), (f"{wheel}[eval]", EVAL)):
            pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            # most of what is installed is never imported here, so nothing is compiled ahead
            run(*pip, "--no-compile", "--constraint", ROOT / "constraints.txt", wanted)
            for command in commands:
                run(folder / "bin" / command[0], *command[1:])
    print(f"{python}: tried in {time.monotonic() - began:.0f} s", flush=True)


def told(done: subprocess.CompletedProcess, command: str) -> None:
    """Print the last line of what a command said; end where it failed."""
    said = done.stdout.strip().splitlines()
    print(f"  {command}{': ' + said[-1] if said else ''}", flush=True)
    if done.returncode:
        raise SystemExit(f"it ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")


def main() -> int:
    """Build, check, try."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pythons", nargs="*", metavar="PYTHON", help="interpreters that the wheel is installed for")
    parser.add_argument("--into", type=Path, default=ROOT / "dist", help="where sdist and wheel go; emptied first")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as home:
        sdist, wheel = build(copy(Path(home)), args.into)
    subprocess.run([sys.executable, "-m", "twine", "check", "--strict", sdist, wheel], check=True)
    faults = [f"{sdist.name}: {fault}" for fault in faults_of_sdist(sdist)]
    faults += [f"{wheel.name}: {fault}" for fault in faults_of_wheel(wheel)]
    for file in (sdist, wheel):
        print(f"{file.name}: {file.stat().st_size / 1e6:.1f} MB", flush=True)
    if faults:
        print(*faults, sep="\n")
        return 1
    for python in args.pythons:
        if answers(python):
            try_wheel(wheel.resolve(), python)
        else:
            print(f"{python} is not on this machine: the wheel was not tried there", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
