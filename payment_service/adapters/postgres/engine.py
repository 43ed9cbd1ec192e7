"""PostgreSQL behind two small pools: one for transactions, one for reads.

A phase is a plain function and one transaction: a return commits it, an exception rolls it back. It
runs on the event loop, which continues while a statement waits for PostgreSQL; see `waiting`.
Callers queue for a place of the write pool, and a full pool is reported as UNAVAILABLE after
``admission_seconds`` instead of blocking. Reads have their own places and connections: a row that
is locked for two seconds does not delay an unrelated read.

A connection is not tested before it is used. If the first statement of a phase finds it dead,
nothing was written, so the phase runs on a new one.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from functools import partial
from typing import Concatenate, Final, ParamSpec, TypeVar

import structlog
from psycopg2 import Error, InterfaceError, OperationalError
from psycopg2.extensions import TRANSACTION_STATUS_IDLE

from payment_service.adapters.postgres import agenda, feed
from payment_service.adapters.postgres.clock import own_clock
from payment_service.adapters.postgres.connections import Connection, Place, plain_url
from payment_service.adapters.postgres.places import Places
from payment_service.adapters.postgres.reader import SqlReader
from payment_service.adapters.postgres.readiness import Readiness, read_readiness
from payment_service.adapters.postgres.roles import read_role
from payment_service.adapters.postgres.statements import KnownInstallation
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.adapters.postgres.waiting import pause, run_on_loop
from payment_service.domain.database_check import RoleFacts
from payment_service.domain.errors import Busy, Unavailable, database_unavailable
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.tracing import NO_TRACER, Tracer

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Serialization failure, deadlock, lock timeout: nothing was written, so the phase may run again.
_RETRYABLE_SQLSTATES: Final = frozenset({"40001", "40P01", "55P03"})
#: A migration has changed a table since a statement was prepared, or the server has forgotten the
#: statement. A new connection has none, and nothing was written either.
_STALE_SQLSTATES: Final = frozenset({"0A000", "26000"})
#: A derived id that was free when the phase asked is taken: a sync has recorded the same operation,
#: or its payment, since. The next run finds it.
_TAKEN_SINCE: Final = frozenset({("23505", "operations_pkey"), ("23505", "payments_pkey")})
_DEAD: Final = (OperationalError, InterfaceError)
_PHASE_TRIES: Final = 4
_DEFAULT_POLICY: Final = Policy()
#: How often the grants of the role are read again. Nobody changes them but an administrator.
_ROLE_SECONDS: Final = 30.0


def sqlstate(error: BaseException) -> str:
    """Returns the five-letter code of a database error, or "". Only this part is logged."""
    return str(getattr(error, "pgcode", None) or "")


class SqlDatabase:
    """The database port, with a pool for transactions and a pool for reads."""

    def __init__(
        self,
        url: str,
        *,
        policy: Policy = _DEFAULT_POLICY,
        write_connections: int = 12,
        read_connections: int = 4,
        admission_seconds: float = 2.0,
        pooled: bool = False,
        direct_url: str = "",
        guarded: bool = False,
        beside: SqlDatabase | None = None,
        on_record: Callable[[SqlTransaction], None] | None = None,
        on_phase: Callable[[str, str], None] | None = None,
        on_timed: Callable[[str, float], None] | None = None,
        tracer: Tracer = NO_TRACER,
    ) -> None:
        #: Where notices are heard, or "" where they are not: a pooler has no session to hear them.
        self._listen_url = direct_url or ("" if pooled else url)
        #: Payments are scheduled by it when they are recorded.
        self._policy = policy
        self._write_places = Places(write_connections, url, limits=not pooled)
        self._read_places = Places(read_connections, url, limits=not pooled)
        self._admission_seconds = admission_seconds
        #: The database whose readiness counts for this one, too, and which closes this one.
        self._beside = beside
        self._others: list[SqlDatabase] = []
        if beside is not None:
            beside._others.append(self)
        self._readiness: Readiness | None = None
        #: Until then the role is known to be right, while all else is.
        self._role_until = 0.0
        #: Whether a role that could rewrite the books is refused.
        self._guarded = guarded
        self._installation = KnownInstallation()
        self._on_record = on_record
        #: Called with a phase's name and moment (before, uncommitted, after). For tests.
        self._on_phase = on_phase or (lambda name, moment: None)
        #: Called with a phase's name and its seconds.
        self._on_timed = on_timed or (lambda name, seconds: None)
        self._tracer = tracer

    async def transact(
        self, phase: Callable[Concatenate[SqlTransaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs the phase in one transaction and returns its result after the commit.

        Runs it again after a serialization failure, a deadlock or a lock timeout: nothing was
        written then. Raises :class:`Busy` if that happens too often, and :class:`Unavailable` if
        the pool is full or the database is unavailable. After a lost COMMIT the outcome is
        unknown; only a repeated request with the same key finds out.
        """
        return await self._written(lambda tx: phase(tx, *args, **kwargs), phase.__name__)

    async def write(
        self, phase: Callable[Concatenate[SqlTransaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs a phase that is one round trip, without BEGIN and COMMIT.

        It must be harmless to run it twice: it is run again on a new connection if the first one
        was dead, and PostgreSQL may have done it before the connection died.
        """
        return await self._written(
            lambda tx: phase(tx, *args, **kwargs), phase.__name__, is_one_round_trip=True
        )

    async def read(
        self, query: Callable[Concatenate[SqlReader, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs reads on a connection of the read pool. Raises :class:`Unavailable`."""
        work = partial(self._run_query, lambda reader: query(reader, *args, **kwargs))
        return await self._admitted(self._read_places, work)

    async def read_at_once(
        self, query: Callable[Concatenate[SqlReader, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs reads in one transaction that sees one moment and can write nothing."""
        work = partial(
            self._run_query, lambda reader: reader.at_once(partial(query, reader, *args, **kwargs))
        )
        return await self._admitted(self._read_places, work)

    async def _written(
        self, phase: Callable[[SqlTransaction], T], name: str, *, is_one_round_trip: bool = False
    ) -> T:
        if self.is_superseded:
            raise database_unavailable()
        work = partial(self._run_phase, phase, name, is_one_round_trip=is_one_round_trip)
        return await self._admitted(self._write_places, work)

    async def _admitted(self, places: Places, work: Callable[[Place], T]) -> T:
        try:
            place = await places.take(self._admission_seconds)
        except TimeoutError:
            raise database_unavailable() from None

        def run() -> T:
            # The place is left at the end of the work, even if the caller was cancelled before.
            try:
                return work(place)
            finally:
                place.rest()
                places.leave(place)

        return await run_on_loop(run)

    def _run_phase(
        self,
        phase: Callable[[SqlTransaction], T],
        name: str,
        place: Place,
        *,
        is_one_round_trip: bool,
    ) -> T:
        for tried in range(1, _PHASE_TRIES + 1):
            try:
                return self._run_once(phase, name, place, is_one_round_trip=is_one_round_trip)
            except Error as error:
                state = sqlstate(error)
                if state in _STALE_SQLSTATES and tried < _PHASE_TRIES:
                    place.drop()
                    continue
                is_taken = (state, _constraint(error)) in _TAKEN_SINCE
                if (is_taken or state in _RETRYABLE_SQLSTATES) and tried < _PHASE_TRIES:
                    log.info("phase_retried", phase=name, sqlstate=state, tried=tried)
                    pause(random.uniform(0, 0.02 * 2**tried))  # noqa: S311 - jitter
                    continue
                if state in _RETRYABLE_SQLSTATES:
                    raise _too_contended() from None
                if isinstance(error, OperationalError | InterfaceError):
                    # This may be a COMMIT with an unknown result, so it is not repeated here. A
                    # retry with the same key, or the recovery job, reads what is stored.
                    log.warning("database_unavailable", phase=name, sqlstate=state)
                    raise database_unavailable() from None
                log.error("phase_failed", phase=name, sqlstate=state, constraint=_constraint(error))
                raise
        raise AssertionError("the loop returns or raises")

    def _run_once(
        self,
        phase: Callable[[SqlTransaction], T],
        name: str,
        place: Place,
        *,
        is_one_round_trip: bool,
    ) -> T:
        self._on_phase(name, "before")
        begun = time.perf_counter()
        with self._tracer.step(f"transaction {name}", {"db.system.name": "postgresql"}):
            body = partial(self._run_body, phase, place, is_one_round_trip=is_one_round_trip)
            try:
                tx, result = body()
            except _DeadConnection:
                tx, result = body()
            try:
                if not is_one_round_trip:
                    self._on_phase(name, "uncommitted")
                    tx.commit()
                tx.connection.prepare()
            except BaseException:
                self._give_back(place, tx.connection)
                raise
        self._on_timed(name, time.perf_counter() - begun)
        self._on_phase(name, "after")
        if self._on_record is not None and tx.recorded:
            self._on_record(tx)
        return result

    def _run_body(
        self, phase: Callable[[SqlTransaction], T], place: Place, *, is_one_round_trip: bool
    ) -> tuple[SqlTransaction, T]:
        """Runs the phase up to its COMMIT.

        Raises :class:`_DeadConnection` if the connection had died before the phase came to it: the
        server has seen nothing of the phase then, or has rolled it back, or may do it twice.
        """
        was_open = place.is_open
        connection = place.connection()
        tx = SqlTransaction(
            connection, self._policy, self._installation, is_one_round_trip=is_one_round_trip
        )
        try:
            result = phase(tx)
            if is_one_round_trip:
                tx.commit()
            return tx, result
        except (OperationalError, InterfaceError) as error:
            self._give_back(place, connection)
            if was_open and connection.closed and not tx.has_begun:
                raise _DeadConnection from error
            raise
        except BaseException:
            self._give_back(place, connection)
            raise

    def _give_back(self, place: Place, connection: Connection) -> None:
        """Ends the transaction of a phase that failed, so that the next one finds none."""
        place.rest()
        try:
            if connection.info.transaction_status != TRANSACTION_STATUS_IDLE:
                with connection.cursor() as cursor:
                    cursor.execute("ROLLBACK")
        except Error:
            connection.close()
        if connection.closed:
            place.drop()

    def _run_query(self, query: Callable[[SqlReader], T], place: Place) -> T:
        for tried in (1, 2):
            try:
                connection = place.connection()
                found = query(SqlReader(connection))
                connection.prepare()
                return found
            except Error as error:
                if not isinstance(error, _DEAD) and sqlstate(error) not in _STALE_SQLSTATES:
                    raise
                # The first call after a restart of the database fails. Reads may be repeated.
                place.drop()
                if tried == 2 or sqlstate(error) == "57014":
                    log.warning("database_unavailable", phase="read", sqlstate=sqlstate(error))
                    raise database_unavailable() from None
        raise AssertionError("the loop returns or raises")

    async def ping(self) -> bool:
        """Returns whether the database accepts writes, has the schema, and keeps the limits.

        A newer schema is accepted: replicas of the former release run until they are replaced.
        """
        try:
            known = self._readiness
            migrated = known is not None and known.is_ready
            role_is_known = migrated and own_clock() < self._role_until
            now = await self.read(
                read_readiness, migrated=migrated, guarded=self._guarded and not role_is_known
            )
            if not role_is_known:
                self._role_until = own_clock() + _ROLE_SECONDS
        except Unavailable:
            return False
        if now != self._readiness:
            now.report()
        self._readiness = now
        return now.is_ready

    @property
    def is_superseded(self) -> bool:
        """Returns whether a newer release has taken over: this one may not write any more."""
        if self._beside is not None:
            return self._beside.is_superseded
        return self._readiness is not None and not self._readiness.may_write

    async def role(self) -> RoleFacts:
        """Returns what the service's role is, and may do. Raises :class:`Unavailable`."""
        return await self.read(lambda reader: read_role(reader.connection))

    async def installation_id(self) -> str:
        """Returns the id of this database. It is read once: it never changes."""
        if not self._installation.installation_id:
            self._installation.installation_id = await self.read(_installation_id)
        return self._installation.installation_id

    async def listen(self, hear: Callable[[int], None], rest: Callable[[], None]) -> None:
        """Calls ``hear`` with every announced position of the feed, until it is cancelled.

        Calls ``rest`` when a replica has read the agenda. Without a direct connection nothing is
        announced: each replica reads the agenda, which shows the feed's position, for itself.
        """
        if not self._listen_url:
            await asyncio.Event().wait()
        channels = {
            feed.CHANNEL: feed.position_heard(hear),
            agenda.CHANNEL: lambda _: rest(),
        }
        await feed.listen(plain_url(self._listen_url), channels)

    def places(self) -> dict[tuple[str, str], int]:
        """Returns how many places there are, by pool and state, for metrics."""
        pools = {"write": self._write_places, "read": self._read_places}
        return {(p, state): n for p, one in pools.items() for state, n in one.counts().items()}

    def clock(self) -> float:
        """Returns seconds by the process's own clock; see `clock.own_clock`."""
        return own_clock()

    async def close(self) -> None:
        """Waits for running phases and reads, then closes every connection."""
        for other in self._others:
            await other.close()
        await self._write_places.close()
        await self._read_places.close()


class _DeadConnection(Exception):
    """The connection was dead before the phase's first statement: nothing was written."""


def _installation_id(reader: SqlReader) -> str:
    with reader.connection.cursor() as cursor:
        cursor.execute("SELECT installation_id FROM installation")
        ((found,),) = cursor.fetchall()
        return str(found)


def _too_contended() -> Busy:
    return Busy(
        "CONCURRENT_CHANGE",
        "too many calls are changing the same thing at once; ask again with the same key",
    )


def _constraint(error: Error) -> str:
    diagnostics = getattr(error, "diag", None)
    return str(getattr(diagnostics, "constraint_name", None) or "")
