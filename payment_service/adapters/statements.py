"""Running plain SQL on one connection: what readers and transactions share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from sqlalchemy import Connection, TextClause, text


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
