"""A real browser without a window, for the tests of pages."""

from __future__ import annotations

import shutil
from typing import Any, Final

import pytest

_PROGRAM: Final = shutil.which("chromium")
_DRIVER: Final = shutil.which("chromedriver")
_MISSING: Final = _PROGRAM is None or _DRIVER is None
_REASON: Final = "no browser: apt-get install chromium chromium-driver"

needs_chromium = pytest.mark.skipif(_MISSING, reason=_REASON)


def open_chromium(*arguments: str) -> Any:
    """Opens a Chromium, which the caller quits. Skips the test where there is none."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    if _MISSING:
        pytest.skip(_REASON)
    options = webdriver.ChromeOptions()
    options.binary_location = str(_PROGRAM)
    for argument in (
        *("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"),
        *arguments,
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(executable_path=str(_DRIVER))
    return webdriver.Chrome(options=options, service=service)
