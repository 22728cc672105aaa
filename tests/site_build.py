"""The documentation's site, for tests: built once in a run of them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"


def mkdocs(config: Path, output: Path) -> subprocess.CompletedProcess[str]:
    """Build a site, as `make docs` does."""
    command = [sys.executable, "-m", "mkdocs", "build", "--config-file", config, "--site-dir", output]
    quiet = {"NO_MKDOCS_2_WARNING": "1"}
    return subprocess.run(command, env=os.environ | quiet, capture_output=True, text=True, cwd=ROOT)


def build(folder: Path) -> None:
    """The whole site."""
    built = mkdocs(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
