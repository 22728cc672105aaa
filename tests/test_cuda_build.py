"""Building the CUDA kernels: what the compiler says of them, the cache, the wheel, and having no compiler."""

import ctypes
import logging
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from covering import REST

from vtc import ops
from vtc.cuda import build
from vtc.cuda.library import Library, LibraryError
from vtc.ops import cuda as kernels
from vtc.ops import dispatch

ROOT = Path(__file__).parent.parent

#: Stands in for nvcc: says a version, or takes its time to write what -o names, and counts its calls.
_STAND_IN = """#!/bin/sh
echo "$@" >> "{log}"
while [ $# -gt 0 ]; do
    case "$1" in
        --version) echo "release 13.0"; exit 0;;
        -o) sleep 0.2; echo made > "$2"; exit 0;;
    esac
    shift
done
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A toolkit whose compiler writes nothing of use; returns the log of its calls."""
    nvcc, log = tmp_path / "toolkit" / "bin" / "nvcc", tmp_path / "calls"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text(_STAND_IN.format(log=log))
    nvcc.chmod(nvcc.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "toolkit"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return log


@pytest.fixture
def no_nvcc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build.shutil, "which", lambda name: None)


@pytest.fixture(scope="module", params=[pytest.param([80, 90, 100], marks=REST)], ids=str)
def compiled(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[build.Resources], list[int]]:
    """The real thing, for three generations of GPUs; it takes a minute and more, so CI alone makes it each time."""
    try:
        build.find_nvcc()
    except build.BuildError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))
    target = tmp_path_factory.mktemp("kernels") / "libvtc_cuda.so"
    return target, build.compile_library(target, request.param), request.param


def test_no_kernel_spills_registers(compiled: tuple[Path, list[build.Resources], list[int]]) -> None:
    found = compiled[1]
    assert {kernel.arch for kernel in found} == {f"sm_{arch}" for arch in compiled[2]}
    assert len({kernel.kernel for kernel in found}) * len(compiled[2]) == len(found)
    names = "compact", "merge", "greedy", "step", "nearest", "logits", "softmax", "denominator", "column"
    for name in (*names, "cover", "span", "apart", "density", "score", "member"):
        assert any(f"{name}_kernel" in kernel.kernel for kernel in found), name
    assert not [kernel for kernel in found if kernel.spilled]


def test_the_library_loads_and_says_when_it_can_not_run(
    compiled: tuple[Path, list[build.Resources], list[int]],
) -> None:
    library = ctypes.CDLL(str(compiled[0]))
    names = "compact", "merge", "greedy", "greedy_steps", "attention_rows", "attention_received", "probe"
    for name in (*names, "cover", "span", "peaks", "members"):
        assert getattr(library, f"vtc_{name}")
    if not torch.cuda.is_available():
        with pytest.raises(LibraryError, match="does not run on this GPU"):
            Library(compiled[0])


def test_what_ptxas_reports_is_read() -> None:
    report = """ptxas info    : Compiling entry function '_Z1av' for 'sm_90'
ptxas info    : Function properties for _Z1av
    16 bytes stack frame, 12 bytes spill stores, 8 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 64 bytes smem
ptxas info    : Compiling entry function '_Z1bv' for 'sm_90'
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 32 registers"""
    assert build.resources(report) == [
        build.Resources("_Z1av", "sm_90", 255, 20),
        build.Resources("_Z1bv", "sm_90", 32, 0),
    ]


def test_processes_that_come_together_compile_once(stand_in: Path) -> None:
    line = "from vtc.cuda import build; print(build.cached_library(90, print))"
    started = [subprocess.Popen([sys.executable, "-c", line], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = [process.communicate(timeout=120)[0] for process in started]
    (library,) = {out.splitlines()[-1] for out in printed}
    assert Path(library).read_text() == "made\n" and "sm90" in library
    assert sum("compiling its CUDA kernels for sm_90" in out for out in printed) == 1
    calls = stand_in.read_text().splitlines()
    assert sum("-shared" in call for call in calls) == 1
    assert sum(" -c " in call for call in calls) == len(build.SOURCES)


def test_a_changed_source_is_compiled_anew(stand_in: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(build.FOLDER, copy)
    monkeypatch.setattr(build, "FOLDER", copy)
    first = build.cached_library(90, print)
    assert build.cached_library(90, print) == first != build.cached_library(80, print)
    with (copy / build.HEADERS[0]).open("a") as file:
        file.write("// changed\n")
    assert build.cached_library(90, print) != first


def test_a_failed_compilation_leaves_nothing(stand_in: Path, tmp_path: Path) -> None:
    nvcc = tmp_path / "toolkit" / "bin" / "nvcc"
    nvcc.write_text(nvcc.read_text().replace("-o) sleep 0.2;", "-o) echo 'error: no'; exit 2;"))
    with pytest.raises(build.BuildError, match="error: no"):
        build.cached_library(90, print)
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_cache_that_can_not_be_written_is_said(stand_in: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(build.BuildError, match=r"can't be written.*XDG_CACHE_HOME"):
        build.cached_library(90, print)


@pytest.mark.parametrize(
    ("text", "archs"), [("80,90", (80, 90)), ("9.0;8.0", (80, 90)), ("sm_100 90", (90, 100)), ("90,90", (90,))]
)
def test_architectures_are_read(text: str, archs: tuple[int, ...]) -> None:
    assert build.archs_of(text) == archs


@pytest.mark.parametrize("text", ["", "75", "ninety", "80,-90"])
def test_architectures_that_can_not_be_are_refused(text: str) -> None:
    with pytest.raises(build.BuildError, match=r"80,90,100; 80 is the oldest"):
        build.archs_of(text)


def test_the_command_says_why_it_failed(no_nvcc: None, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert build.main(["--output", str(tmp_path / "a.so")]) == 1
    assert "no nvcc: set CUDA_HOME" in capsys.readouterr().err


def _pretend(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int] = (9, 0)) -> None:
    """A GPU that isn't there."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capability)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    kernels._load.cache_clear()


@pytest.mark.skipif(torch.cuda.is_available(), reason="pretends to have a GPU")
@pytest.mark.parametrize(("capability", "why"), [((9, 0), "no nvcc"), ((7, 5), "need compute capability 8.0")])
def test_without_kernels_one_line_says_why(
    monkeypatch: pytest.MonkeyPatch, no_nvcc: None, caplog: pytest.LogCaptureFixture, capability: Any, why: str
) -> None:
    _pretend(monkeypatch, capability)
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.autograd.profiler.record_function("nothing"))
    try:
        with caplog.at_level(logging.INFO, logger="vtc"):
            assert kernels.load() is None and kernels.load(torch.device("cuda", 0)) is None
            assert kernels.kernel_for("max_min", torch.ones(1, 2, 3), 1, None, "max-min", None) is None
    finally:
        kernels._load.cache_clear()
    (record,) = caplog.records
    assert why in record.getMessage() and "slower torch operations run instead" in record.getMessage()


def test_kernels_can_be_left_out(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    _pretend(monkeypatch)
    monkeypatch.setenv("VTC_KERNELS", "0")
    try:
        assert kernels.load() is None and not caplog.records
    finally:
        kernels._load.cache_clear()
    with ops.kernels(False):
        assert not dispatch._kernels.get()
    assert dispatch._kernels.get()


def test_a_wheel_holds_the_compiled_kernels(stand_in: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build")]
    environment = {**os.environ, "VTC_BUILD_CUDA": "1", "VTC_CUDA_ARCHS": "90"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=300)
    (library,) = (tmp_path / "build").rglob("libvtc_cuda.so")
    assert library.read_text() == "made\n" and (library.parent / "library.py").exists()
    assert "compute_90,code=sm_90" in stand_in.read_text() and "sm_80" not in stand_in.read_text()


def test_a_wheel_without_a_compiler_fails_and_says_so(stand_in: Path, tmp_path: Path) -> None:
    pytest.importorskip("setuptools")
    (tmp_path / "toolkit" / "bin" / "nvcc").write_text("#!/bin/sh\necho broken; exit 1\n")
    command = [sys.executable, "setup.py", "-q", "build", "--build-base", str(tmp_path / "build")]
    environment = {**os.environ, "VTC_BUILD_CUDA": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode and "the kernels were not compiled" in done.stderr and "broken" in done.stderr
