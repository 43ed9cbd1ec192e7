"""Running plain SQL on one connection: the base of everything that reads or writes tables."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, text

from payment_service.adapters.postgres.clock import own_clock


@lru_cache(maxsize=512)
def statement(sql: str) -> TextClause:
    """Returns the statement for a text. Each text is parsed once; there are a few dozen."""
    return text(sql)


class Statements:
    """Runs statements on one connection. Rows are read by column name."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def _do(self, sql: str, **values: Any) -> int:
        """Returns how many rows the statement wrote."""
        return self.connection.execute(statement(sql), values).rowcount

    def _all(self, sql: str, **values: Any) -> Sequence[Any]:
        """Returns every row."""
        return self.connection.execute(statement(sql), values).mappings().all()

    def _maybe(self, sql: str, **values: Any) -> Any:
        """Returns the only row, or None. Raises if there are several."""
        return self.connection.execute(statement(sql), values).mappings().one_or_none()

    def _one(self, sql: str, **values: Any) -> Any:
        """Returns the only row. Raises if there is none or there are several."""
        return self.connection.execute(statement(sql), values).mappings().one()

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


class TransactionStatements(Statements):
    """Statements of one transaction, which has one time for everything that it writes."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        #: This process's own clock (seconds), read before the transaction began.
        self.clock = own_clock()

    @cached_property
    def now(self) -> datetime:
        """Returns the database's time. Replicas may have different clocks; there is one database.

        It is read on first use, which is after the payment is locked, and not when the
        transaction began. So the events of a payment never go back in time.
        """
        now: datetime = self._one("SELECT clock_timestamp() AS now")["now"]
        return now

    def new_id(self, prefix: str) -> str:
        """Returns a new id that cannot be guessed: it has 122 random bits."""
        return f"{prefix}_{uuid.uuid4().hex}"
