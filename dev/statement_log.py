"""What the service asks of PostgreSQL, and how long that takes: read from the server's own log."""

import contextlib
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import psycopg2

from dev.postgres import EmbeddedPostgres

_LOGGED = re.compile(
    rb"^<payment_service[^>]*>LOG:  duration: ([0-9.]+) ms  "
    rb"(?:statement|execute [^:]*): (.*(?:\n(?!<).*)*)$",
    re.MULTILINE,
)
#: Values stand in the statements; without them, a statement is the same each time.
_VALUE = re.compile(r"'[^']*'(?:::\w+(?:\[\])?)?|\b\d+(?:\.\d+)?\b")
_SHOWN = 90


class StatementLog:
    """Has every statement logged with its duration, BEGIN and COMMIT included."""

    def __init__(self, postgres: EmbeddedPostgres) -> None:
        self._log = postgres.log
        with contextlib.closing(psycopg2.connect(postgres.admin_url())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute("ALTER SYSTEM SET log_min_duration_statement = 0")
                cursor.execute("ALTER SYSTEM SET log_line_prefix = '<%a>'")
                cursor.execute("SELECT pg_reload_conf()")
        self._at = 0
        self.read()

    def read(self) -> Mapping[str, Sequence[float]]:
        """Returns the milliseconds of each statement of the service since the last time."""
        with self._log.open("rb") as log:
            log.seek(self._at)
            read = log.read()
            self._at = log.tell()
        found: dict[str, list[float]] = defaultdict(list)
        for took, sql in _LOGGED.findall(read):
            found[_named(sql.decode(errors="replace"))].append(float(took))
        return found


def _named(sql: str) -> str:
    return _VALUE.sub("?", " ".join(sql.split()))[:_SHOWN]
