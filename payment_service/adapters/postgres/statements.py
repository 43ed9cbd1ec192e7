"""Running plain SQL on one connection: the base of everything that reads or writes tables."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeAlias

from psycopg2.extensions import TRANSACTION_STATUS_INERROR

from payment_service.adapters.postgres.clock import own_clock
from payment_service.adapters.postgres.connections import Connection
from payment_service.domain.ids import derived_id
from payment_service.domain.operations import OPEN_STATES, Operation

#: The payments that a user is a party to; '' stands for everybody's.
PARTY: Final = "(:of_user = '' OR client_id = :of_user OR expert_id = :of_user)"

#: The states of an open operation, written out: PostgreSQL plans a prepared statement without its
#: values, and would not find these operations in the indexes of open ones.
OPEN: Final = "({})".format(", ".join(f"'{state}'" for state in sorted(OPEN_STATES)))
#: One row, by the names of its columns.
Row: TypeAlias = Mapping[str, Any]


class NotOneRow(RuntimeError):
    """A bug: a statement that must return one row has returned none or several."""


class SwallowedError(RuntimeError):
    """A bug: a phase continued after a failed statement, so its commit would roll back."""


class NotOneRoundTrip(RuntimeError):
    """A bug: a phase that must be one round trip has asked again. What it sent is committed."""


def locked(table: str, which: str) -> str:
    """Returns a statement that locks rows, and tells the time at which they were locked.

    The rows come from a step of their own, so that the time is read after any waiting for a lock.
    """
    return (
        f"WITH locked AS MATERIALIZED (SELECT * FROM {table} WHERE {which} FOR UPDATE) "
        "SELECT *, clock_timestamp() AS now FROM locked"
    )


def array_of(values: Iterable[object]) -> str:
    """Returns an array in PostgreSQL's own form, which is read as one value. For a CAST."""
    quoted = (str(value).replace("\\", "\\\\").replace('"', '\\"') for value in values)
    return "{{{}}}".format(",".join(f'"{value}"' for value in quoted))


class Statements:
    """Runs statements on one connection. Rows are read by column name."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self._cursor = connection.cursor()

    def _execute(self, sql: str, values: Mapping[str, Any]) -> None:
        text, takes_values = self.connection.text_of(sql, values)
        self._cursor.execute(text, values if takes_values else None)

    def _rows(self) -> list[Row]:
        """Returns the rows of the last statement."""
        found = self._cursor.fetchall()
        if not found:
            return []
        names = [column.name for column in self._cursor.description or ()]
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

    BEGIN travels with the first statement, and COMMIT with the last writes. With
    ``is_one_round_trip`` the first statement that asks for something is also the last: PostgreSQL
    takes what is sent together for one transaction, so it needs neither.
    """

    def __init__(
        self,
        connection: Connection,
        installation: KnownInstallation | None = None,
        *,
        is_one_round_trip: bool = False,
    ) -> None:
        super().__init__(connection)
        self._installation = installation or KnownInstallation()
        self._is_one_round_trip = is_one_round_trip
        #: Whether the server has answered a statement of this transaction.
        self.has_begun = False
        #: What is sent with the next statement: writes that return nothing.
        self._waiting: list[bytes] = []
        #: Ids of operations that this transaction has found to be free.
        self._free_ids: set[str] = set()
        #: Whether the books catch up with Stripe, once it was asked for.
        self._catches_up: bool | None = None
        #: The RPC of each claim that this transaction has taken or read.
        self._claim_rpcs: dict[str, str] = {}
        #: The claims that have no answer, and that nobody else can answer before this transaction
        #: ends: new ones, and those of operations whose payment is locked.
        self._unanswered: set[str] = set()
        #: The operations that this transaction has locked, until it writes one.
        self._operations: dict[str, Operation] = {}
        #: Since when movements beside an operation count, of each that this transaction has read.
        self._open_since: dict[str, datetime] = {}
        #: The movements of each payment, once they were read under its lock.
        self._movements: dict[str, Sequence[Row]] = {}
        #: The payments and the experts that this transaction has locked.
        self._locked_payments: set[str] = set()
        self._locked_experts: set[str] = set()
        #: The database's time at the newest statement that returned it.
        self._database_time: datetime | None = None
        #: This process's own clock (seconds), read before the transaction began.
        self.clock = own_clock()

    def _execute(self, sql: str, values: Mapping[str, Any]) -> None:
        if self.has_begun and not self._waiting and not self._is_one_round_trip:
            super()._execute(sql, values)
            return
        self._send([*self._waiting, self._whole(sql, values)])

    def _later(self, sql: str, **values: Any) -> None:
        """Sends a write with the next statement, or before COMMIT: it saves a round trip.

        If it fails, that statement raises, as this one would have.
        """
        self._waiting.append(self._whole(sql, values))

    def _send(self, statements: Sequence[bytes]) -> None:
        if self._is_one_round_trip and self.has_begun:
            raise NotOneRoundTrip
        self._waiting = []
        begins = not (self.has_begun or self._is_one_round_trip)
        self._cursor.execute(b";".join((*([b"BEGIN"] if begins else []), *statements)))
        self.has_begun = True

    def _whole(self, sql: str, values: Mapping[str, Any]) -> bytes:
        """Returns the statement with its values in it, as the driver sends it."""
        text, takes_values = self.connection.text_of(sql, values)
        return self._cursor.mogrify(text, values if takes_values else None)

    def commit(self) -> None:
        """Commits, in one round trip with the writes that still wait.

        Raises before a COMMIT that PostgreSQL would turn into a ROLLBACK silently. If one of the
        writes fails, PostgreSQL does not come to the COMMIT.
        """
        if self.connection.info.transaction_status == TRANSACTION_STATUS_INERROR:
            raise SwallowedError("a statement of this phase failed and its error was swallowed")
        if self._is_one_round_trip:
            if self._waiting:
                self._send(self._waiting)
        elif self.has_begun:
            self._cursor.execute(b";".join((*self._waiting, b"COMMIT")))
        elif self._waiting:
            # Sent together, they are one transaction.
            self._cursor.execute(b";".join(self._waiting))
        self._waiting = []

    @property
    def now(self) -> datetime:
        """Returns the database's time. Replicas may have different clocks; there is one database.

        It is of the newest lock, and not of when the transaction began or first asked. So the
        events of a payment never go back in time. The statements that lock tell it.
        """
        if self._database_time is None:
            self._database_time = self._one("SELECT clock_timestamp() AS now")["now"]
        return self._database_time

    def _tell_time(self, now: datetime) -> None:
        """Sets the time to that of a statement that may have waited for other transactions."""
        self._database_time = now

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
