"""Running plain SQL on one connection: what readers and transactions share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, text

from payment_service.domain.ports import Work


@lru_cache(maxsize=512)
def statement(sql: str) -> TextClause:
    """The statement for a text, made once: there are some dozens of them."""
    return text(sql)


class Statements:
    """Runs statements on one connection; rows are given by column name."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def _do(self, sql: str, **values: Any) -> int:
        """How many rows it touched."""
        return self.connection.execute(statement(sql), values).rowcount

    def _all(self, sql: str, **values: Any) -> Sequence[Any]:
        return self.connection.execute(statement(sql), values).mappings().all()

    def _maybe(self, sql: str, **values: Any) -> Any:
        return self.connection.execute(statement(sql), values).mappings().one_or_none()

    def _one(self, sql: str, **values: Any) -> Any:
        return self.connection.execute(statement(sql), values).mappings().one()

    def _in_turn(self, work: Work, candidates: str, limit: int, **values: Any) -> Sequence[Any]:
        """Those of the candidates that do not rest after a turn, in the order of a queue.

        The candidates have a ``payment_id`` and the time since when they are ``due``. Who has had
        a turn stands where it would if it had come due when its rest was over.
        """
        return self._all(
            f"WITH found AS ({candidates}) SELECT found.* FROM found LEFT JOIN turns "  # noqa: S608
            "ON turns.work = :work AND turns.payment_id = found.payment_id "
            "WHERE next_time IS NULL OR next_time <= now() "
            "ORDER BY greatest(due, next_time), found.payment_id LIMIT :limit",
            work=work.value,
            limit=limit,
            **values,
        )
