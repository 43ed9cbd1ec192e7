"""Running plain SQL on one connection: the base of everything that reads or writes tables."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, lru_cache
from typing import Any, Final

from sqlalchemy import Connection, TextClause, text

from payment_service.adapters.postgres.clock import own_clock
from payment_service.domain.ids import derived_id

#: The payments that a user is a party to; '' stands for everybody's.
PARTY: Final = "(:of_user = '' OR client_id = :of_user OR expert_id = :of_user)"


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


@dataclass(slots=True)
class KnownInstallation:
    """The installation's id, once a transaction has read it. It never changes in a database."""

    installation_id: str = ""


class TransactionStatements(Statements):
    """Statements of one transaction, which has one time for everything that it writes."""

    def __init__(
        self, connection: Connection, installation: KnownInstallation | None = None
    ) -> None:
        super().__init__(connection)
        self._installation = installation or KnownInstallation()
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
