"""The log of `make run`: readable lines, what they leave out, JSON on request."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from dev import loglines
from dev.console import Lines, is_verbose, wants_json

CAPTURED = json.dumps(
    {
        "event": "payment_changed",
        "kind": "payment.captured",
        "payment": "pay_1",
        "state": "CAPTURED",
        "amount": 10_000,
        "currency": "USD",
        "level": "info",
        "timestamp": "2026-11-29T11:33:32Z",
    }
)
WEBHOOK = json.dumps(
    {
        "event": "request",
        "method": "POST",
        "route": "/api/v1/webhooks/stripe",
        "status": 200,
        "level": "info",
    }
)


def shown(*lines: str, verbose: bool = False, as_json: bool = False, width: int = 0) -> list[str]:
    """What is printed for these lines of the service; a width makes it a terminal."""
    printer = Lines(verbose=verbose, as_json=as_json)
    out = io.StringIO()
    printer.console = Console(
        file=out,
        highlight=False,
        soft_wrap=True,
        width=width or 200,
        force_terminal=width > 0,
        color_system=None,
    )
    for line in lines:
        printer.child("service", line)
    return out.getvalue().splitlines()


def test_a_change_of_a_payment_is_one_line_in_words() -> None:
    [line] = shown(CAPTURED)
    assert line[8:] == "  service    INFO   payment captured  100.00 USD  CAPTURED  pay_1"


def test_webhooks_are_shown_on_request_and_when_they_fail() -> None:
    assert shown(WEBHOOK) == []
    assert "POST /api/v1/webhooks/stripe → 200" in shown(WEBHOOK, verbose=True)[0]
    assert "→ 503" in shown(WEBHOOK.replace("200", "503"))[0]


def test_a_line_that_is_not_json_is_shown_as_it_is() -> None:
    assert shown("Traceback (most recent call last):")[0].endswith("call last):")
    assert shown("{not json")[0].endswith("{not json")
    assert shown("[1, 2]")[0].endswith("[1, 2]")


def test_a_terminal_cuts_usual_lines_and_wraps_important_ones() -> None:
    [line] = shown(CAPTURED, width=50)
    assert len(line) == 50
    assert line.endswith("…")
    lines = shown(CAPTURED.replace('"info"', '"error"'), width=50)
    assert len(lines) > 1
    assert "pay_1" in lines[-1]
    assert all(len(line.rstrip()) <= 50 for line in lines)


def test_json_keeps_every_line_and_adds_the_process() -> None:
    first, second = (json.loads(line) for line in shown(WEBHOOK, "a text", as_json=True))
    assert first["process"] == second["process"] == "service"
    assert (first["event"], second["event"]) == ("request", "a text")


def test_every_line_is_kept_in_a_file(tmp_path: Path) -> None:
    for text in ("first run", "second run"):
        lines = Lines(log_file=tmp_path / "logs" / "run.log")
        lines.child("gateway", text)
        lines.close()
    assert (tmp_path / "logs" / "run.log").read_text() == "gateway    second run\n"
    assert "first run" in (tmp_path / "logs" / "run.previous.log").read_text()


@pytest.mark.parametrize(
    ("environment", "as_json"),
    [
        ({}, False),
        ({"ENVIRONMENT": "production"}, True),
        ({"ENVIRONMENT": "production", "LOG_FORMAT": "console"}, False),
        ({"LOG_FORMAT": "JSON"}, True),
    ],
)
def test_the_format_follows_the_environment(environment: dict[str, str], *, as_json: bool) -> None:
    assert wants_json(environment) is as_json


def test_verbose_by_either_setting() -> None:
    assert is_verbose({"VERBOSE": "1"})
    assert is_verbose({"LOG_LEVEL": "debug"})
    assert not is_verbose({"VERBOSE": "0", "LOG_LEVEL": "INFO"})


def test_the_highest_level_is_important() -> None:
    line = loglines.parse('{"event": "x", "level": "critical"}')
    assert line.important
    assert "ERROR" in line.text("service", "cyan", 10).plain
