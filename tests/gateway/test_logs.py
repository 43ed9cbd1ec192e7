"""What libraries log: their template and the kind of error, never what filled them."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from gateway.logs import configure_logging


@pytest.fixture(autouse=True)
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    yield
    root.setLevel(level)
    structlog.reset_defaults()


def test_library_lines_carry_no_arguments_and_no_exception_texts(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("INFO", "json")
    try:
        raise ValueError("canary_exception")
    except ValueError:
        logging.getLogger("aiohttp.server").exception("Error from %s", "canary_argument")
    text = capsys.readouterr().err
    assert "canary" not in text
    line = json.loads(text)
    assert (line["event"], line["logger"], line["level"]) == ("library", "aiohttp.server", "error")
    assert (line["message"], line["error"]) == ("Error from %s", "ValueError")
    assert line["at"][0].startswith("test_logs.py:")
