"""One line per request: which fields it may have.

Never a token, a cookie, a query, a form or an exception's text.
"""

from sidecar import logs

#: Every field that a line may have; any other one shows `***`.
ALLOWED_FIELDS = frozenset(
    "event level timestamp address at core duration_ms environment error logger message method "
    "route rpc code reason status".split()
)

keep_allowed = logs.masking(ALLOWED_FIELDS)


def configure_logging(level: str, form: str | None = None) -> None:
    """Sets up the log of the console."""
    logs.configure_logging(level, form, keep_allowed)
