"""Logs: an event and named fields, without exception texts and without secrets."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from typing import Any, Final

import structlog

#: Marks of secrets that a value may contain by mistake. Masking them is the last line of defence.
_SECRET_MARKS: Final = ("sk_live_", "sk_test_", "rk_live_", "rk_test_", "whsec_", "_secret_")


def configure_logs(level: str, form: str | None = None) -> None:
    """Configures logs: one line for each event on standard output, as JSON or readable text.

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
    """Removes the texts of exceptions, which may contain values; the type is kept."""
    entry.pop("exc_info", None)
    entry.pop("stack_info", None)
    return {
        field: type(value).__name__ if isinstance(value, BaseException) else value
        for field, value in entry.items()
    }


def _mask_secrets(
    logger: Any, name: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Replaces every value that contains the mark of a secret."""
    return {
        field: "***"
        if isinstance(value, str) and any(mark in value for mark in _SECRET_MARKS)
        else value
        for field, value in entry.items()
    }
