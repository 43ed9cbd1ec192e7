"""One line per event, on standard error: JSON, or readable on the console.

Only fields on a list reach a line, and never an exception's text: it may hold what a stranger sent
or a secret that is not ours.
"""

import logging
import os
import sys
import traceback
from collections.abc import Callable, Set

import structlog
from typing_extensions import override

KeepAllowed = Callable[[object, str, structlog.typing.EventDict], structlog.typing.EventDict]


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """Returns the process's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def masking(allowed: Set[str]) -> KeepAllowed:
    """Returns what masks every field that is not on the list."""

    def keep_allowed(
        logger: object, name: str, entry: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        return {field: value if field in allowed else "***" for field, value in entry.items()}

    return keep_allowed


def configure_logging(
    level: str,
    form: str | None,
    keep_allowed: KeepAllowed,
    malformed: tuple[type[BaseException], ...] = (),
) -> None:
    """Sets up structlog, and writes the libraries' records through it.

    Without a ``form``, a terminal gets readable lines and everything else JSON. An exception that
    is ``malformed`` input, which anybody can send, gets one short line and no trace.
    """
    is_terminal = sys.stderr.isatty()
    readable = is_terminal if form is None else form == "console"
    number = logging.getLevelNamesMapping()[level]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=is_terminal and not os.environ.get("NO_COLOR"))
        if readable
        else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            keep_allowed,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler(malformed)]
    # Libraries have nothing to say below a warning that the request's own line does not say.
    root.setLevel(max(number, logging.WARNING))


def describe_exception(error: BaseException) -> dict[str, object]:
    """Returns an exception's type and place, without its text."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return {
        "error": type(error).__name__,
        "at": [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames],
    }


class _LibraryHandler(logging.Handler):
    """Writes a library's record as a line of ours, with the template and not what filled it."""

    def __init__(self, malformed: tuple[type[BaseException], ...]) -> None:
        super().__init__()
        self._malformed = malformed

    @override
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, self._malformed):
            get_logger().info("malformed_request", error=type(error).__name__)
            return
        # Some libraries give an exception, or another object, in place of a template.
        template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        get_logger().log(
            record.levelno,
            "library",
            logger=record.name,
            message=template.partition("\n")[0][:200],
            **(describe_exception(error) if error is not None else {}),
        )
