"""Compiles the kernels with nvcc: just in time into a cache, or ahead of time into the package.

The library has a plain C interface and links CUDA's runtime statically. It knows nothing of torch, so one build serves
every release of torch, and nothing but nvcc and its host compiler is needed. This file imports the standard library
alone: `setup.py` runs it before anything is installed.

`python -m vtc.cuda.build --archs 80,90,100 --report` compiles and prints what each kernel takes of the hardware.
"""

import argparse
import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
SOURCES = ("attention.cu", "compact.cu", "cover.cu", "library.cu", "max_min.cu", "merge.cu", "peaks.cu", "span.cu")
HEADERS = ("primitives.cuh",)
#: Where a build ahead of time lies.
PACKAGED = FOLDER / "libvtc_cuda.so"
#: What a build ahead of time is for unless VTC_CUDA_ARCHS says otherwise; the last one's PTX serves what comes after.
ARCHS = (80, 86, 89, 90, 100)
#: The kernels use asynchronous copies, bfloat16 matrix instructions and warp reductions, all of which came with it.
OLDEST = 80
_FLAGS = ("-std=c++17", "-O3", "-Xcompiler=-fPIC,-fvisibility=hidden", "-Xptxas=-v", "--threads=0")


class BuildError(RuntimeError):
    """The kernels can't be compiled; the message says why."""


@dataclass(frozen=True)
class Resources:
    """What the compiler says that a kernel takes.

    Attributes:
        kernel: its name, as the linker sees it.
        arch: "sm_90".
        registers: of each thread.
        spilled: bytes of registers that go to memory.
    """

    kernel: str
    arch: str
    registers: int
    spilled: int


def find_nvcc() -> str:
    """The compiler: that of CUDA_HOME or CUDA_PATH, of PATH, or of the usual folder.

    Raises:
        BuildError: there is none.
    """
    homes = [os.environ.get(name) for name in ("CUDA_HOME", "CUDA_PATH")]
    candidates = [os.path.join(home, "bin", "nvcc") for home in homes if home]
    for candidate in (*candidates, "nvcc", "/usr/local/cuda/bin/nvcc"):
        if found := shutil.which(candidate):
            return found
    raise BuildError("no nvcc: set CUDA_HOME to the folder of a CUDA toolkit, or put its nvcc on PATH")


def compile_library(target: Path, archs: Sequence[int]) -> list[Resources]:
    """Compile the kernels for `archs` (80 for sm_80) into the shared library `target`.

    `target` appears whole or not at all.

    Raises:
        BuildError: there is no compiler, or it fails.
    """
    nvcc = find_nvcc()
    codes = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in archs]
    codes.append(f"-gencode=arch=compute_{archs[-1]},code=compute_{archs[-1]}")
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        objects = [Path(folder, source).with_suffix(".o") for source in SOURCES]
        commands = [
            [nvcc, *_FLAGS, *codes, "-c", str(FOLDER / source), "-o", str(made)]
            for source, made in zip(SOURCES, objects, strict=True)
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            reports = list(pool.map(_run, commands))
        made = Path(folder, target.name)
        _run([nvcc, "-shared", "-o", str(made), *map(str, objects)])
        os.replace(made, target)
    return [kernel for report in reports for kernel in resources(report)]


def resources(report: str) -> list[Resources]:
    """What ptxas reports (-v) of each kernel."""
    found: list[Resources] = []
    name, arch, spilled = "", "", 0
    for line in report.splitlines():
        if entry := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            name, arch = entry.groups()
        elif spill := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            spilled = sum(map(int, spill.groups()))
        elif used := re.search(r"Used (\d+) registers", line):
            found.append(Resources(name, arch, int(used[1]), spilled))
    return found


def cached_library(arch: int, say: Callable[[str], None]) -> Path:
    """The library for a GPU of `arch`, compiled if it is not in the cache yet; processes that come together wait.

    Args:
        arch: 90 for sm_90.
        say: told when something is compiled.

    Raises:
        BuildError: it can't be compiled.
    """
    nvcc = find_nvcc()
    digest = hashlib.sha256(_run([nvcc, "--version"]).encode())
    for name in (*SOURCES, *HEADERS, Path(__file__).name):
        digest.update((FOLDER / name).read_bytes())
    folder = _cache()
    library = folder / f"libvtc_cuda_sm{arch}_{digest.hexdigest()[:16]}.so"
    if library.exists():
        return library
    with _lock(library.with_suffix(".lock")):
        if not library.exists():
            say(f"compiling its CUDA kernels for sm_{arch} with {nvcc}, once, into {folder}")
            compile_library(library, [arch])
    return library


def _cache() -> Path:
    """The folder for builds just in time, made if it is not there.

    Raises:
        BuildError: it can't be written.
    """
    home = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = Path(home, "vtc")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        raise BuildError(f"cache folder {folder} can't be written ({error.strerror}); set XDG_CACHE_HOME") from error


@contextlib.contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Held by one process at a time; the system lets go of it where a process dies."""
    import fcntl

    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _run(command: list[str]) -> str:
    """What a command printed.

    Raises:
        BuildError: it failed; with its last lines.
    """
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n" + "\n".join(done.stdout.splitlines()[-20:]))
    return done.stdout


def archs_of(text: str) -> tuple[int, ...]:
    """Compute capabilities from "80,90" or "8.0;9.0", ascending.

    Raises:
        BuildError: that is not what the text says, or one is too old.
    """
    numbers = [part.replace(".", "").removeprefix("sm_") for part in re.split(r"[,;\s]+", text.strip())]
    if not all(number.isdigit() and int(number) >= OLDEST for number in numbers):
        raise BuildError(f"architectures {text!r} are not a list such as 80,90,100; {OLDEST} is the oldest")
    return tuple(sorted(set(map(int, numbers))))


def main(argv: Sequence[str] | None = None) -> int:
    """Compile ahead of time; 1 where that fails, or where a kernel spills registers and --report is given."""
    parser = argparse.ArgumentParser(prog="python -m vtc.cuda.build", description=__doc__.splitlines()[0])
    default = os.environ.get("VTC_CUDA_ARCHS") or ",".join(map(str, ARCHS))
    parser.add_argument("--archs", default=default, help=f"GPUs to compile for (default: {default})")
    parser.add_argument("--output", type=Path, default=PACKAGED, help="the library (default: beside this file)")
    parser.add_argument("--report", action="store_true", help="print registers and spills; fail where there are any")
    args = parser.parse_args(argv)
    try:
        kernels = compile_library(args.output.resolve(), archs_of(args.archs))
    except BuildError as error:
        print(f"vtc.cuda.build: error: {error}", file=sys.stderr)
        return 1
    print(f"compiled {args.output}: {len(kernels)} kernels, {args.output.stat().st_size / 2**20:.1f} MiB")
    if args.report:
        for kernel in kernels:
            print(f"{kernel.arch}\t{kernel.registers} registers\t{kernel.spilled} bytes spilled\t{kernel.kernel}")
        return int(not kernels or any(kernel.spilled for kernel in kernels))
    return 0


if __name__ == "__main__":
    from vtc.cuda import outputs  # not above: an installation builds with this file alone

    sys.exit(outputs.run(main, "python -m vtc.cuda.build"))
