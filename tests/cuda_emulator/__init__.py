"""The kernels of `vtc.cuda`, compiled for the CPU: their own source over an emulator of CUDA's blocks and warps."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from filelock import FileLock

from vtc.cuda import build
from vtc.cuda.library import Library

_HERE = Path(__file__).parent


def compiler() -> str | None:
    """The C++ compiler, or None."""
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def library(*flags: str) -> Library:
    """The emulated kernels; takes tensors of the CPU. Compiled once for all processes of a machine's user."""
    command = compiler()
    assert command is not None
    sources = [build.FOLDER / name for name in build.SOURCES]
    parts = [*sources, *(build.FOLDER / name for name in build.HEADERS), *sorted(_HERE.glob("*.h"))]
    digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts) + " ".join(flags).encode()).hexdigest()
    made = Path(tempfile.gettempdir(), f"vtc-emulated-{os.getuid()}-{digest[:16]}.so")
    with FileLock(made.with_suffix(".lock")):
        if not made.exists():
            own = made.with_suffix(f".{os.getpid()}")
            options = ["-std=c++17", "-O2", "-fPIC", "-shared", "-DVTC_EMULATED", f"-I{_HERE}", *flags, "-x", "c++"]
            subprocess.run([command, *options, *map(str, sources), "-o", str(own)], check=True)
            os.replace(own, made)
    return Library(made)
