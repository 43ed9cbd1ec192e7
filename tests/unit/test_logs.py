"""Only fields of the list reach a log; the walk over the source finds those that are missing."""

from __future__ import annotations

import ast
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
import structlog

from console.logs import ALLOWED_FIELDS as CONSOLE_FIELDS
from gateway.logs import ALLOWED_FIELDS as GATEWAY_FIELDS
from gateway.logs import keep_allowed as keep_allowed_of_gateway
from payment_service.config.settings import Settings
from payment_service.logs import ALLOWED_FIELDS, configure_logs, keep_allowed

ROOT: Final = Path(__file__).resolve().parents[2]
_LEVELS: Final = {"debug", "info", "warning", "error", "critical", "exception", "log", "write"}
#: Fields that come by `**` from the dictionary named here, by file and name.
_SPREAD: Final = {
    ("payment_service/application/fair_queue.py", "logged"): {"job", "payment", "expert"},
    ("gateway/app.py", "facts_of(request)"): set[str](),
    ("gateway/app.py", "describe_exception(error)"): {"error", "at"},
    ("console/guard.py", "describe_exception(error)"): {"error", "at"},
    (
        "sidecar/logs.py",
        "describe_exception(error) if error is not None else {}",
    ): {"error", "at"},
}
_LOGGERS: Final = {"log", "get_logger()", "logger", "structlog.get_logger()", ""}


def fields_of(*packages: str) -> dict[str, list[str]]:
    """Returns every field that the packages write, with the places that do."""
    found: dict[str, list[str]] = {}
    for path in sorted(path for one in packages for path in (ROOT / one).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and _writes(call):
                for keyword in call.keywords:
                    spread = (name, ast.unparse(keyword.value))
                    names = {keyword.arg} if keyword.arg else _SPREAD[spread]
                    for field in names:
                        found.setdefault(field, []).append(f"{name}:{call.lineno}")
    return found


def _writes(call: ast.Call) -> bool:
    if isinstance(call.func, ast.Name):
        return call.func.id in {"note", "write"}
    return (
        isinstance(call.func, ast.Attribute)
        and call.func.attr in _LEVELS
        and ast.unparse(call.func.value) in _LOGGERS
    )


@pytest.mark.parametrize(
    ("packages", "allowed"),
    [
        (["payment_service"], ALLOWED_FIELDS),
        (["gateway", "sidecar"], GATEWAY_FIELDS),
        (["console", "sidecar"], CONSOLE_FIELDS),
    ],
)
def test_every_field_that_is_written_is_on_the_list(
    packages: list[str], allowed: frozenset[str]
) -> None:
    written = fields_of(*packages)
    assert len(written) > 5
    assert {field: at for field, at in written.items() if field not in allowed} == {}


def test_the_list_names_no_field_that_holds_what_people_write() -> None:
    private = {"email", "name", "token", "secret", "signature", "payload", "body", "url", "text"}
    private |= {"description", "notes", "evidence", "client_secret", "key", "exception", "query"}
    assert not private & (ALLOWED_FIELDS | GATEWAY_FIELDS | CONSOLE_FIELDS)


def test_what_is_not_on_the_list_is_masked() -> None:
    entry = {"event": "e", "payment": "pay_1", "email": "ada@example.com", "made_up": 7}
    shown = {"event": "e", "payment": "pay_1", "email": "***", "made_up": "***"}
    assert keep_allowed(None, "info", dict(entry)) == shown
    entry = {"event": "e", "outcome": "accepted", "token": "canary"}
    assert keep_allowed_of_gateway(None, "info", dict(entry))["token"] == "***"


@pytest.mark.parametrize(
    "value",
    [
        "sk_live_abc",
        "with rk_test_x in it",
        "whsec_abc",
        "pi_1_secret_2",
        "to ada.lovelace@example.com",
        "Bearer eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhIn0.c2ln",
        "-----BEGIN PRIVATE KEY-----",
        "postgresql://payments:canary@localhost/payments",
        ["fine", "sk_test_abc"],
        {"nested": "whsec_abc"},
    ],
)
def test_a_private_value_is_masked_in_any_field(value: object) -> None:
    assert keep_allowed(None, "info", {"event": "e", "why": value})["why"] == "***"


@pytest.mark.parametrize(
    "value",
    [
        "SK_LIVE_abc",
        "Rk_Test_x",
        "WHSEC_abc",
        "a@b.de",
        "x @@ a@b.de",
        "EYJhbGciOiJ.",
        "private key-",
        "HTTP://u:p@h",
        "://:@",
    ],
)
@pytest.mark.parametrize("before", ["", "0 ", "é/", "\n"])
@pytest.mark.parametrize("after", ["", " 0", "/é", "\n"])
def test_a_private_value_is_masked_wherever_it_stands(value: str, before: str, after: str) -> None:
    why = f"{before}{value}{after}"
    assert keep_allowed(None, "info", {"event": "e", "why": why})["why"] == "***"


@pytest.mark.parametrize(
    "value",
    [
        "sk_life_abc",
        "STRIPE_SECRET_KEY",
        "@b.de",
        "a@b",
        "a @b.de",
        "heyJhbGciOiJ.",
        "eyJshort.",
        "http://host/a@b",
        "pay_0123456789abcdef",
    ],
)
def test_what_only_looks_alike_is_shown(value: str) -> None:
    assert keep_allowed(None, "info", {"event": "e", "why": value})["why"] == value


@pytest.mark.parametrize("name", sorted(Settings.model_fields))
def test_the_name_of_a_setting_is_no_secret(name: str) -> None:
    why = f"no real card is charged; set {name.upper()} to change it"
    assert keep_allowed(None, "warning", {"event": "e", "why": why})["why"] == why


def test_an_exception_is_its_type() -> None:
    entry = {"event": "e", "error": ValueError("canary"), "exc_info": True, "stack_info": "canary"}
    assert keep_allowed(None, "error", entry) == {"event": "e", "error": "ValueError"}


@pytest.fixture
def _logging_as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    level = root.level
    yield
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("_logging_as_before")
def test_a_library_writes_no_argument_and_no_exception_text(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as asyncio, of an exception that nobody has retrieved."""
    configure_logs("INFO", "json")
    try:
        raise ValueError("canary_exception")
    except ValueError:
        logging.getLogger("asyncio").exception("Task %r failed", "canary_argument")
    written = capsys.readouterr()
    assert "canary" not in written.out + written.err
    line = json.loads(written.out)
    assert (line["event"], line["logger"], line["error"]) == ("library", "asyncio", "ValueError")
    assert line["message"] == "Task %r failed"


@pytest.mark.usefixtures("_logging_as_before")
def test_an_exception_in_place_of_a_template_is_its_type(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logs("INFO", "json")
    logging.getLogger("aiohttp").error(ValueError("canary"))
    assert json.loads(capsys.readouterr().out)["message"] == "ValueError"
