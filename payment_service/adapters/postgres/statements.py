"""Running plain SQL on one connection: the base of everything that reads or writes tables."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Final, TypeAlias

from psycopg2.extensions import TRANSACTION_STATUS_INERROR

from payment_service.adapters.postgres.clock import own_clock
from payment_service.adapters.postgres.connections import Connection
from payment_service.domain.ids import derived_id

#: One row, by the names of its columns.
Row: TypeAlias = Mapping[str, Any]

#: A value's name in a statement: `:name`, but not `::type`.
_NAME: Final = re.compile(r"(?<![:\w]):(\w+)(?!:)")


class NotOneRow(RuntimeError):
    """A bug: a statement that must return one row has returned none or several."""


class SwallowedError(RuntimeError):
    """A bug: a phase continued after a failed statement, so its commit would roll back."""


@lru_cache(maxsize=512)
def driver_text(sql: str) -> tuple[str, bool]:
    """Returns a statement as the driver expects it, and whether it takes values.

    Each text is converted once; there are a few dozen.
    """
    text, names = _NAME.subn(r"%(\1)s", sql.replace("%", "%%"))
    return (text, True) if names else (sql, False)


class Statements:
    """Runs statements on one connection. Rows are read by column name."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._cursor = connection.cursor()

    def _execute(self, sql: str, values: Mapping[str, Any]) -> None:
        text, takes_values = driver_text(sql)
        self._cursor.execute(text, values if takes_values else None)

    def _rows(self) -> list[Row]:
        """Returns the rows of the last statement."""
        found = self._cursor.fetchall()
        if not found:
            return []
        names = [column[0] for column in self._cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in found]

    def _do(self, sql: str, **values: Any) -> int:
        """Returns how many rows the statement wrote."""
        self._execute(sql, values)
        return self._cursor.rowcount

    def _all(self, sql: str, **values: Any) -> Sequence[Any]:
        """Returns every row."""
        self._execute(sql, values)
        return self._rows()

    def _maybe(self, sql: str, **values: Any) -> Any:
        """Returns the only row, or None. Raises if there are several."""
        self._execute(sql, values)
        found = self._rows()
        if len(found) > 1:
            raise NotOneRow
        return found[0] if found else None

    def _one(self, sql: str, **values: Any) -> Any:
        """Returns the only row. Raises if there is none or there are several."""
        row = self._maybe(sql, **values)
        if row is None:
            raise NotOneRow
        return row

    def _page(
        self,
        rows: str,
        keys: tuple[str, str],
        after: tuple[Any, Any] | None,
        limit: int,
        *,
        newest_first: bool = False,
        **values: Any,
    ) -> Sequence[Any]:
        """Returns one page of rows, ordered by two columns.

        ``rows`` is a query that ends in a condition. ``after`` has the two values of the last row
        of the page before, or is None for the first page.
        """
        first, second = keys
        beyond, order = ("<", " DESC") if newest_first else (">", "")
        keyset = f" AND ({first}, {second}) {beyond} (:after_first, :after_second)" if after else ""
        return self._all(
            f"{rows}{keyset} ORDER BY {first}{order}, {second}{order} LIMIT :limit",
            after_first=after and after[0],
            after_second=after and after[1],
            limit=limit,
            **values,
        )


@dataclass(slots=True)
class KnownInstallation:
    """The installation's id, once a transaction has read it. It never changes in a database."""

    installation_id: str = ""


class TransactionStatements(Statements):
    """Statements of one transaction, which has one time for everything that it writes.

    BEGIN travels with the first statement, in one round trip.
    """

    def __init__(
        self, connection: Connection, installation: KnownInstallation | None = None
    ) -> None:
        super().__init__(connection)
        self._installation = installation or KnownInstallation()
        #: Whether the server has answered a statement of this transaction.
        self.has_begun = False
        #: This process's own clock (seconds), read before the transaction began.
        self.clock = own_clock()

    def _execute(self, sql: str, values: Mapping[str, Any]) -> None:
        if self.has_begun:
            super()._execute(sql, values)
            return
        text, takes_values = driver_text(sql)
        self._cursor.execute(f"BEGIN;{text}", values if takes_values else None)
        self.has_begun = True

    def commit(self) -> None:
        """Commits. Raises before a COMMIT that PostgreSQL would turn into a ROLLBACK silently."""
        if self.connection.info.transaction_status == TRANSACTION_STATUS_INERROR:
            raise SwallowedError("a statement of this phase failed and its error was swallowed")
        if self.has_begun:
            self._cursor.execute("COMMIT")

    @cached_property
    def now(self) -> datetime:
        """Returns the database's time. Replicas may have different clocks; there is one database.

        It is read on first use, which is after the payment is locked, and not when the
        transaction began. So the events of a payment never go back in time.
        """
        now: datetime = self._one("SELECT clock_timestamp() AS now")["now"]
        return now

    @property
    def installation_id(self) -> str:
        """Returns the id of this database and of every restored backup of it."""
        known = self._installation
        if not known.installation_id:
            known.installation_id = str(
                self._one("SELECT installation_id FROM installation")["installation_id"]
            )
        return known.installation_id

    def derived_id(self, prefix: str, *origin: str) -> str:
        """Returns the id that this installation gives to what has this origin, always the same."""
        return derived_id(prefix, self.installation_id, *origin)

    def new_id(self, prefix: str) -> str:
        """Returns a new id that cannot be guessed: it has 122 random bits."""
        return f"{prefix}_{uuid.uuid4().hex}"
