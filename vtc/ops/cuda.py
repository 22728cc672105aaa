"""Finds the CUDA kernels for the operations of `vtc.ops`; where they can't be had, the torch references run.

A library that was compiled at install time (`VTC_BUILD_CUDA=1 pip install .`) is taken first, else one is compiled on
first use with nvcc and kept in the user's cache. `VTC_KERNELS=0` leaves the kernels out.
"""

import functools
import logging
import os
from collections.abc import Callable
from typing import Any

import torch

from vtc.cuda import build
from vtc.cuda.library import Library, LibraryError

_log = logging.getLogger("vtc")


def load(device: torch.device | int | None = None) -> Library | None:
    """The kernels for a GPU (None: the current one), or None where they can't be had; one log line says why."""
    index = torch.device("cuda", device).index if isinstance(device, int) else getattr(device, "index", None)
    if not torch.cuda.is_available():
        return None
    found = _load(torch.cuda.current_device() if index is None else index)
    return None if isinstance(found, str) else found


def why_none() -> str | None:
    """Why the current GPU has no kernels; None where it has. They are compiled for it if they are not there yet."""
    if not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device"
    found = _load(torch.cuda.current_device())
    return found if isinstance(found, str) else None


@functools.cache
def _load(index: int) -> Library | str:
    """The kernels for a GPU, or why there are none."""
    if os.environ.get("VTC_KERNELS") == "0":
        return "VTC_KERNELS=0 leaves them out"
    major, minor = torch.cuda.get_device_capability(index)
    arch = 10 * major + minor
    try:
        if torch.version.cuda is None:
            raise LibraryError("this torch was not built for CUDA")
        if arch < build.OLDEST:
            raise LibraryError(f"they need compute capability {build.OLDEST / 10}, this GPU has {arch / 10}")
        with torch.cuda.device(index):
            if build.PACKAGED.exists():
                try:
                    return Library(build.PACKAGED)
                except LibraryError as error:
                    _log.warning("vtc: %s; compiling anew", error)
            return Library(build.cached_library(arch, lambda what: _log.warning("vtc: %s", what)))
    except (build.BuildError, LibraryError, OSError) as error:
        _log.warning("vtc: without CUDA kernels on cuda:%d, slower torch operations run instead: %s", index, error)
        return str(error)


def kernel_for(name: str, *args: Any) -> Callable[..., Any] | None:
    """The kernel for an operation of `vtc.ops` with these arguments, or None where the torch reference has to run."""
    first = args[0][0] if isinstance(args[0], list | tuple) else args[0]
    library = load(first.device)
    return getattr(library, name) if library is not None and library.takes(name, *args) else None
