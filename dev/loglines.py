"""Turns the JSON log lines of the processes into lines for people.

    14:03:27  service    INFO   payment captured  100.00 USD  CAPTURED  pay_3f…

The processes always write JSON here, so one place decides how a line looks and which lines a
person does not need. Lines that are not JSON are shown as they are.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.text import Text

from dev.story import amount

_TIME, _LEVEL_KEYS = "timestamp", ("event", "level", "timestamp")
_LEVEL_STYLES = {"debug": "bright_black", "info": "", "warning": "yellow", "error": "bold red"}
_SHORT_LEVELS = {"warning": "WARN", "critical": "ERROR"}

#: Events whose names are not a sentence yet; all others are shown with spaces between the words.
_WORDS = {
    "serving": "ready for calls",
    "draining": "finishing the calls in progress",
    "stripe_is_simulated": "Stripe is simulated",
}
#: Shown first and without their names, because their values explain themselves.
_PLAIN_FACTS = ("amount", "state", "payment", "payment_id", "expert", "operation", "event_id")

#: Said by the banner of `make run` already.
_SAID_BY_THE_BANNER = {"serving", "listening", "stripe_is_simulated"}
#: Steps inside a call, and a failed attempt, which has a warning of its own.
_MINOR_KINDS = {
    "payment.intent_created",
    "payment.processor_fee_recorded",
    "payment.attempt_failed",
}
_FIRST_ERROR_STATUS = 400


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of a process, in parts."""

    time: datetime
    level: str
    words: str
    facts: tuple[str, ...] = ()
    #: Whether a person needs it only on request (VERBOSE=1).
    minor: bool = False

    @property
    def important(self) -> bool:
        """Whether nothing of it may be cut off."""
        return self.level not in ("debug", "info")

    def text(self, process: str, colour: str, name_width: int) -> Text:
        """Returns the line as one piece of coloured text."""
        style = _LEVEL_STYLES.get(self.level, "bold red")
        level = _SHORT_LEVELS.get(self.level, self.level.upper())
        return Text.assemble(
            (f"{self.time:%H:%M:%S}  ", "bright_black"),
            (f"{process:<{name_width}} ", colour),
            (f"{level:<5}  ", style or "bright_black"),
            (self.words, style),
            *(part for fact in self.facts for part in ("  ", (fact, "bright_black"))),
        )


def parse(line: str) -> LogLine:
    """Returns the parts of a line, of a structured one or of any other."""
    try:
        entry = json.loads(line) if line.startswith("{") else None
    except (ValueError, RecursionError):
        entry = None
    if not isinstance(entry, dict) or "event" not in entry:
        plain = Text.from_ansi(line).plain
        return LogLine(now(), "info", plain, minor=" listening on http" in plain)
    event = str(entry["event"])
    return LogLine(
        _time(entry.get(_TIME)),
        str(entry.get("level", "info")).lower(),
        _words(event, entry),
        tuple(_facts(event, entry)),
        minor=_is_minor(event, entry),
    )


def _words(event: str, entry: Mapping[str, Any]) -> str:
    if event == "payment_changed":
        return str(entry.get("kind", "payment.changed")).replace(".", " ").replace("_", " ")
    if event == "request":
        return f"{entry.get('method')} {entry.get('route')} → {entry.get('status') or 'cancelled'}"
    if event == "health":
        return "ready for calls" if entry.get("serving") else "not ready for calls"
    return _WORDS.get(event, event.replace("_", " "))


def _facts(event: str, entry: Mapping[str, Any]) -> list[str]:
    shown = {name: value for name, value in entry.items() if name not in _LEVEL_KEYS}
    hidden = {
        "payment_changed": {"kind", "currency"},
        "request": {"method", "route", "status"},
        "health": {"serving"},
        "draining": {"operations"},
        "payment_attempt_failed": {"kind"},
    }.get(event, set())
    if isinstance(shown.get("amount"), int) and "currency" in shown:
        shown["amount"] = amount(shown["amount"], str(shown.pop("currency")))
    useful = {
        name: value
        for name, value in shown.items()
        if name not in hidden and value not in ("", None, [], {})
    }
    plain = [str(useful.pop(name)) for name in _PLAIN_FACTS if name in useful]
    return [*plain, *(f"{name}={value}" for name, value in useful.items())]


def _is_minor(event: str, entry: Mapping[str, Any]) -> bool:
    if event == "request":  # above all Stripe's webhooks, several for each payment
        return (entry.get("status") or _FIRST_ERROR_STATUS) < _FIRST_ERROR_STATUS
    if event == "payment_changed":
        return entry.get("kind") in _MINOR_KINDS
    return event in _SAID_BY_THE_BANNER


def _time(stamp: object) -> datetime:
    try:
        return datetime.fromisoformat(str(stamp)).astimezone()
    except ValueError:
        return now()


def now() -> datetime:
    """Returns the local time."""
    return datetime.now().astimezone()
