"""Logs: an event and named fields, without exception texts and without secrets.

Only fields of a list reach a line. A list of what is allowed fails safely: a field that nobody has
thought about shows ``***``, and a test names it.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import MutableMapping
from functools import partial
from typing import Any, Final

import structlog

#: Every field that a line may have. None of them holds what a person wrote, or a secret. ``said``
#: is a sentence of Stripe's, in which addresses, keys and numbers are masked.
ALLOWED_FIELDS: Final = frozenset(
    "event level timestamp "
    # What it is about.
    "account acts_for_user call_class caller constraint currency deadline delivery dispute "
    "endpoint event_id expert job kind livemode logger method operation payment payout phase "
    "reference request_id roles rpc scope source sqlstate stripe_account subject target "
    "trace_id where "
    # What happened.
    "code decline_code error fault freeze message missing outcome reason said serving state step "
    "tried verdict was_paid why "
    # How much.
    "amount corrected count discrepancies due failures future lines operations payments texts "
    "unfinished unread "
    # What the heads of the audit trail are.
    "events events_root heads_signature heads_time installation_id key_id position records "
    "records_root "
    # How this process is set up, and what to do.
    "api_base auth expected grpc grpc_host meaning metrics minimum remedy revision tls variable "
    "process worker workers ending writer".split()
)
_MASK: Final = "***"
#: Marks of what a value may contain by mistake: secrets of Stripe's, tokens, private keys, the
#: password of an address, and addresses of people. Masking them is the last line of defence.
#: A client secret is `pi_…_secret_…`, always in small letters; STRIPE_SECRET_KEY is only a name.
_PRIVATE: Final = re.compile(
    # First the characters with which each begins: most places of a value are none of them.
    r"(?=[rsw_@ep:])(?:[rs]k_(?:live|test)_|whsec_|(?-i:_secret_)|(?<=[^\s@])@[^\s@]+\.[a-z]{2}"
    r"|\beyJ[\w-]{8,}\.|PRIVATE KEY-|://[^\s/@]*:[^\s/@]*@)",
    re.IGNORECASE,
)


def configure_logs(level: str, form: str | None = None, worker: int | None = None) -> None:
    """Configures logs: one line for each event on standard output, as JSON or readable text.

    Without a ``form``, a terminal gets readable lines and everything else JSON. The lines of a
    ``worker`` say which one wrote them.
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
            # What names the call in progress: request_id, trace_id, payment, caller.
            structlog.contextvars.merge_contextvars,
            *([partial(_by_worker, worker)] if worker is not None else []),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            keep_allowed,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        # One write for each line: several workers share the output.
        logger_factory=structlog.WriteLoggerFactory(sys.stdout),
        cache_logger_on_first_use=True,
    )
    root = logging.getLogger()
    root.handlers[:] = [_LibraryHandler()]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("stripe").setLevel(logging.ERROR)


def _by_worker(
    worker: int, logger: Any, name: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    return {**entry, "worker": worker}


def keep_allowed(
    logger: Any, name: str, entry: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Masks every field that is not on the list, and every value that holds something private.

    The texts of exceptions may contain values, so the type is kept in their place.
    """
    entry.pop("exc_info", None)
    entry.pop("stack_info", None)
    return {
        field: _shown(value) if field in ALLOWED_FIELDS else _MASK for field, value in entry.items()
    }


def _shown(value: Any) -> Any:
    if isinstance(value, BaseException):
        return type(value).__name__
    if value is None or isinstance(value, bool | int | float):
        return value
    return _MASK if _PRIVATE.search(str(value)) else value


class _LibraryHandler(logging.Handler):
    """Writes a library's record with its template, and without what filled it."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        # Some libraries give an exception, or another object, in place of a template.
        template = record.msg if isinstance(record.msg, str) else type(record.msg).__name__
        structlog.get_logger().log(
            record.levelno,
            "library",
            logger=record.name,
            message=template.partition("\n")[0][:200],
            error=type(error).__name__ if error is not None else "",
        )
