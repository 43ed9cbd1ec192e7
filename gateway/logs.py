"""One line per event, on standard error: JSON, or readable on the console.

Only fields that are named in the code reach a line: never a body, a signature, a token, a query
or an exception's text: each of them may hold what a stranger sent or a secret that is not ours.
"""

import logging
import os
import sys
import traceback

import structlog
from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from typing_extensions import override

#: Every field that a line may have; any other one shows `***`, and a test names it.
ALLOWED_FIELDS = frozenset(
    "event level timestamp address allowed_origins at client_address core core_code duration_ms "
    "environment error event_id logger message method metrics_port outcome route status "
    "trace_id".split()
)

_FACTS = web.RequestKey("facts", dict[str, object])


def get_logger() -> structlog.typing.FilteringBoundLogger:
    """The gateway's logger."""
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger()
    return logger


def note(request: web.Request, **facts: object) -> None:
    """Adds facts to the one line that will be written for this request."""
    if _FACTS not in request:
        request[_FACTS] = {}
    request[_FACTS].update(facts)


def facts_of(request: web.Request) -> dict[str, object]:
    """What was noted."""
    return request[_FACTS] if _FACTS in request else {}  # noqa: SIM401 - `get` is untyped


def configure_logging(level: str, form: str | None = None) -> None:
    """Sets up structlog, and writes the libraries' records through it.

    Without a ``form``, a terminal gets readable lines and everything else JSON.
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
    root.handlers[:] = [_LibraryHandler()]
    # Libraries have nothing to say below a warning that the request's own line does not say.
    root.setLevel(max(number, logging.WARNING))


def keep_allowed(
    logger: object, name: str, entry: structlog.typing.EventDict
) -> structlog.typing.EventDict:
    """Masks every field that is not on the list."""
    return {field: value if field in ALLOWED_FIELDS else "***" for field, value in entry.items()}


def describe_exception(error: BaseException) -> dict[str, object]:
    """An exception's type and place, without its text."""
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
        if isinstance(error, HttpProcessingError):
            # Bytes that are not HTTP. Anyone can send them: one short line, no trace.
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
