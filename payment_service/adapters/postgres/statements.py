"""Running plain SQL on one connection: the base of everything that reads or writes tables."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, text

from payment_service.adapters.postgres.clock import own_clock
from payment_service.domain.ports import Work


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

    def _in_turn(self, work: Work, candidates: str, limit: int, **values: Any) -> Sequence[Any]:
        """Returns the candidates that are not pausing after a turn, in the order of a queue.

        ``candidates`` is a query with a ``payment_id`` and the time since when it is ``due``. A
        payment that has had a turn is queued as if it had become due when its pause ended.
        """
        return self._all(
            f"WITH found AS ({candidates}) SELECT found.* FROM found LEFT JOIN turns "
            "ON turns.work = :work AND turns.payment_id = found.payment_id "
            "WHERE next_time IS NULL OR next_time <= now() "
            "ORDER BY greatest(due, next_time), found.payment_id LIMIT :limit",
            work=work.value,
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
