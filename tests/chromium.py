"""The browser that pages are looked at in: Debian's Chromium, driven by Playwright."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

CHROMIUM = next(
    (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
)
#: In CI a missing browser is a failure, not a reason to skip.
NEEDED = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ, reason="needs a browser: apt-get install chromium"
)


@contextmanager
def started() -> Iterator[Any]:
    """A running browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
