"""Logs: an event and named fields, without exception texts and without secrets."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

#: What an exception or a library may hold and a log must not; the last line of defence.
_SECRET_MARKS: Final = ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "whsec_", "_secret_")


def configure_logs(level: str, form: str | None = None) -> None:
    """Writes a line per event to standard output: JSON, or readable on the console.

    Without a ``form``, a terminal gets readable lines and everything else JSON.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
    is_terminal = sys.stdout.isatty()
    readable = is_terminal if form is None else form == "console"
    number = logging.getLevelNamesMapping()[level]
    render: Any = (
        structlog.dev.ConsoleRenderer(colors=is_terminal and not os.environ.get("NO_COLOR"))
        if readable
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _drop_exception_texts,
            _mask_secrets,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=max(number, logging.WARNING), stream=sys.stderr, force=True)
    logging.getLogger("stripe").setLevel(logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)


def _drop_exception_texts(
    logger: Any, name: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """An exception's text may carry values: its type is enough, the code says the rest."""
    entry.pop("exc_info", None)
    entry.pop("stack_info", None)
    return {
        field: type(value).__name__ if isinstance(value, BaseException) else value
        for field, value in entry.items()
    }


def _mask_secrets(
    logger: Any, name: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return {
        field: "***"
        if isinstance(value, str) and any(mark in value for mark in _SECRET_MARKS)
        else value
        for field, value in entry.items()
    }
