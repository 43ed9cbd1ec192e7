"""One line per event: which fields it may have, and what is noted for a request's line.

Never a body, a signature, a token, a query or an exception's text: each of them may hold what a
stranger sent or a secret that is not ours.
"""

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from sidecar import logs

#: Every field that a line may have; any other one shows `***`, and a test names it.
ALLOWED_FIELDS = frozenset(
    "event level timestamp address allowed_origins at client_address core core_code duration_ms "
    "environment error event_id logger message method metrics_port outcome route status "
    "trace_id".split()
)

keep_allowed = logs.masking(ALLOWED_FIELDS)

_FACTS = web.RequestKey("facts", dict[str, object])


def note(request: web.Request, **facts: object) -> None:
    """Adds facts to the one line that will be written for this request."""
    if _FACTS not in request:
        request[_FACTS] = {}
    request[_FACTS].update(facts)


def facts_of(request: web.Request) -> dict[str, object]:
    """What was noted."""
    return request[_FACTS] if _FACTS in request else {}  # noqa: SIM401 - `get` is untyped


def configure_logging(level: str, form: str | None = None) -> None:
    """Sets up the log of the gateway, where anybody can send bytes that are not HTTP."""
    logs.configure_logging(level, form, keep_allowed, malformed=(HttpProcessingError,))
