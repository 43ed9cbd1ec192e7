"""One line per request, on standard error: JSON, or readable where a terminal reads it.

Only fields that are named in the code reach a line: never a token, a cookie, a query, a form or an
exception's text.
"""

import logging
import os
import sys
import traceback

import structlog
from typing_extensions import override

#: Every field that a line may have; any other one shows `***`.
ALLOWED_FIELDS = frozenset(
    "event level timestamp address at core duration_ms environment error logger message method "
    "route rpc code reason status".split()
)


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """Returns the console's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def configure_logging(level: str, form: str | None = None) -> None:
    """Sets up structlog, and writes the libraries' records through it."""
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
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(max(number, logging.WARNING))


def keep_allowed(
    logger: object, name: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Masks every field that is not on the list."""
    return {field: value if field in ALLOWED_FIELDS else "***" for field, value in entry.items()}


def describe_exception(error: BaseException) -> dict[str, object]:
    """Returns an exception's type and place, without its text."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    return {
        "error": type(error).__name__,
        "at": [f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in frames],
    }


class _LibraryHandler(logging.Handler):
    """Writes a library's record as a line of ours, with the template and not what filled it."""

    @override
    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # Some libraries give an exception, or another object, in place of a template.
        template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        get_logger().log(
            record.levelno,
            "library",
            logger=record.name,
            message=template.partition("\n")[0][:200],
            **(describe_exception(error) if error is not None else {}),
        )
