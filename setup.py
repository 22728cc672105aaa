"""Everything is in pyproject.toml, but for what a package index shows, and one choice.

`VTC_BUILD_CUDA=1 pip install .` compiles the CUDA kernels.
"""

import importlib.util
import os
import re
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.build_py import build_py

WANTED = os.environ.get("VTC_BUILD_CUDA") == "1"


class BuildKernels(build_py):
    """Copies the package, and puts the compiled kernels beside their sources."""

    def run(self) -> None:
        """Build."""
        super().run()
        if WANTED:
            build = _build()
            target = build.PACKAGED if self.editable_mode else Path(self.build_lib, "vtc", "cuda", build.PACKAGED.name)
            if build.main(["--output", str(target)]):
                raise SystemExit("VTC_BUILD_CUDA=1: the kernels were not compiled; without it torch alone is used")


class WithKernels(Distribution):
    """A wheel that holds them is for one system."""

    def has_ext_modules(self) -> bool:
        """Whether there is anything compiled."""
        return WANTED


def _build():
    """`vtc.cuda.build`, which needs nothing installed."""
    file = Path(__file__).parent / "cuda" / "kernels" / "build.py"
    spec = importlib.util.spec_from_file_location("vtc_cuda_build", file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def long_description() -> str:
    """README.md for a reader outside the repository: its links into it are text there, and its pictures left out."""
    text = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    parts = re.split(r"(^```.*?^```$|`[^`\n]+`)", text, flags=re.MULTILINE | re.DOTALL)
    return "".join(part if part.startswith("`") else _without_inner_links(part) for part in parts)


def _without_inner_links(text: str) -> str:
    target = r"(?!https?://|mailto:)[^)]*"
    text = re.sub(rf"!\[[^\]]*\]\({target}\)\n*", "", text)
    text = re.sub(r"<img [^>]*src=\"(?!https?://)[^>]*>\n*", "", text)
    return re.sub(rf"\[([^\]]*)\]\({target}\)", r"\1", text)


setup(
    cmdclass={"build_py": BuildKernels},
    distclass=WithKernels,
    long_description=long_description(),
    long_description_content_type="text/markdown",
)
