"""PostgreSQL behind two small pools: one for transactions, one for reads.

A phase is a plain function and one transaction: a return commits it, an exception rolls it back. It
runs on a thread of the write pool. The pool has exactly as many connections as threads, so callers
queue at a semaphore, and a full pool is reported as UNAVAILABLE after ``admission_seconds`` instead
of blocking. Reads have their own threads and connections (autocommit, one per thread): a row that
is locked for two seconds does not delay an unrelated read.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Concatenate, Final, ParamSpec, TypeVar

import structlog
from sqlalchemy import Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError, SQLAlchemyError

from payment_service.adapters.postgres import feed
from payment_service.adapters.postgres.clock import own_clock
from payment_service.adapters.postgres.limits import OPTIONS
from payment_service.adapters.postgres.places import Places
from payment_service.adapters.postgres.reader import SqlReader
from payment_service.adapters.postgres.readiness import Readiness, read_readiness
from payment_service.adapters.postgres.roles import read_role
from payment_service.adapters.postgres.statements import KnownInstallation
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.domain.database_check import RoleFacts
from payment_service.domain.errors import Busy, Unavailable, database_unavailable
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.tracing import NO_TRACER, Tracer

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger(__name__)

#: Serialization failure, deadlock, lock timeout: nothing was written, so the phase may run again.
_RETRYABLE_SQLSTATES: Final = frozenset({"40001", "40P01", "55P03"})
_PHASE_TRIES: Final = 4
_TRANSACTION_STATUS_INERROR: Final = 3
_DEFAULT_POLICY: Final = Policy()


class SwallowedError(RuntimeError):
    """A bug: a phase continued after a failed statement, so its commit would roll back."""


def normalized_url(url: str) -> str:
    """Returns the URL with our driver, psycopg 2. SQLAlchemy may choose another one by default."""
    plain = url.replace("postgres://", "postgresql://", 1) if url.startswith("postgres://") else url
    return (
        make_url(plain).set(drivername="postgresql+psycopg2").render_as_string(hide_password=False)
    )


def plain_url(url: str) -> str:
    """Returns the URL without a driver, as PostgreSQL's own library expects it."""
    return (
        make_url(normalized_url(url))
        .set(drivername="postgresql")
        .render_as_string(hide_password=False)
    )


def make_engine(url: str, size: int, *, autocommit: bool = False, limits: bool = True) -> Engine:
    """Returns an engine with ``size`` connections, one for each thread that uses it.

    ``limits=False`` does not ask for the limits of statements and locks: a migration needs none,
    and a pooler refuses to be asked.
    """
    engine = create_engine(
        normalized_url(url),
        pool_size=size,
        max_overflow=0,
        pool_timeout=2,
        pool_recycle=1800,
        pool_pre_ping=not autocommit,
        pool_use_lifo=True,
        pool_reset_on_return=None if autocommit else "rollback",
        hide_parameters=True,
        **({"isolation_level": "AUTOCOMMIT"} if autocommit else {}),
        connect_args={
            "connect_timeout": 3,
            "tcp_user_timeout": 10_000,
            "application_name": "payment_service",
            "target_session_attrs": "read-write",
            **({"options": OPTIONS} if limits else {}),
        },
    )
    if not autocommit:
        event.listen(engine, "commit", _refuse_swallowed_error)
    return engine


def _refuse_swallowed_error(connection: Connection) -> None:
    """Raises before a COMMIT that PostgreSQL would turn into a ROLLBACK without an error."""
    driver = connection.connection.driver_connection
    if driver is not None and driver.info.transaction_status == _TRANSACTION_STATUS_INERROR:
        driver.rollback()  # Otherwise the next phase would get this failed transaction.
        raise SwallowedError("a statement of this phase failed and its error was swallowed")


def sqlstate(error: BaseException) -> str:
    """Returns the five-letter code of a database error, or "". Only this part is logged."""
    return str(getattr(getattr(error, "orig", None), "pgcode", None) or "")


class SqlDatabase:
    """The database port, with a pool for transactions and a pool for reads."""

    def __init__(
        self,
        url: str,
        *,
        policy: Policy = _DEFAULT_POLICY,
        write_threads: int = 12,
        read_threads: int = 4,
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
        self._write_engine = make_engine(url, write_threads, limits=not pooled)
        self._read_engine = make_engine(url, read_threads, autocommit=True, limits=not pooled)
        self._writers = ThreadPoolExecutor(write_threads, thread_name_prefix="write")
        self._readers = ThreadPoolExecutor(read_threads, thread_name_prefix="read")
        # One place for each thread; callers wait for a place, not for a connection.
        self._write_places = Places(write_threads)
        self._read_places = Places(read_threads)
        self._admission_seconds = admission_seconds
        #: The database whose readiness counts for this one, too, and which closes this one.
        self._beside = beside
        self._others: list[SqlDatabase] = []
        if beside is not None:
            beside._others.append(self)
        self._readiness: Readiness | None = None
        #: Whether a role that could rewrite the books is refused.
        self._guarded = guarded
        self._installation = KnownInstallation()
        self._held = threading.local()
        #: Every connection that a reading thread holds. `close` must close them, because a pool
        #: that is disposed of does not close connections that are in use.
        self._all_held: set[Connection] = set()
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
        if self.is_superseded:
            raise database_unavailable()
        work = partial(self._run_phase, lambda tx: phase(tx, *args, **kwargs), phase.__name__)
        return await self._admitted(self._write_places, self._writers, work)

    async def read(
        self, query: Callable[Concatenate[SqlReader, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Runs reads on a connection of the read pool. Raises :class:`Unavailable`."""
        work = partial(self._run_query, lambda reader: query(reader, *args, **kwargs))
        return await self._admitted(self._read_places, self._readers, work)

    async def _admitted(self, places: Places, pool: ThreadPoolExecutor, work: Callable[[], T]) -> T:
        try:
            await places.take(self._admission_seconds)
        except TimeoutError:
            raise database_unavailable() from None
        # The thread's spans and lines of the log belong to the call.
        future = asyncio.get_running_loop().run_in_executor(pool, copy_context().run, work)
        # The place is free when the thread is, even if the caller was cancelled before.
        future.add_done_callback(lambda _: places.leave())
        return await future

    def _run_phase(self, phase: Callable[[SqlTransaction], T], name: str) -> T:
        for tried in range(1, _PHASE_TRIES + 1):
            try:
                return self._run_once(phase, name)
            except DBAPIError as error:
                state = sqlstate(error)
                if state in _RETRYABLE_SQLSTATES and tried < _PHASE_TRIES:
                    log.info("phase_retried", phase=name, sqlstate=state, tried=tried)
                    time.sleep(random.uniform(0, 0.02 * 2**tried))  # noqa: S311 - jitter
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

    def _run_once(self, phase: Callable[[SqlTransaction], T], name: str) -> T:
        self._on_phase(name, "before")
        begun = time.perf_counter()
        with (
            self._tracer.step(f"transaction {name}", {"db.system.name": "postgresql"}),
            self._write_engine.connect() as connection,
        ):
            tx = SqlTransaction(connection, self._policy, self._installation)
            result = phase(tx)
            self._on_phase(name, "uncommitted")
            connection.commit()
        self._on_timed(name, time.perf_counter() - begun)
        self._on_phase(name, "after")
        if self._on_record is not None and tx.recorded:
            self._on_record(tx)
        return result

    def _run_query(self, query: Callable[[SqlReader], T]) -> T:
        for tried in (1, 2):
            try:
                return query(SqlReader(self._held_connection()))
            except (OperationalError, InterfaceError) as error:
                # The first call after a restart of the database fails. Reads may be repeated.
                self._drop_held_connection()
                if tried == 2 or sqlstate(error) == "57014":
                    log.warning("database_unavailable", phase="read", sqlstate=sqlstate(error))
                    raise database_unavailable() from None
            except SQLAlchemyError:
                self._drop_held_connection()
                raise
        raise AssertionError("the loop returns or raises")

    def _held_connection(self) -> Connection:
        connection: Connection | None = getattr(self._held, "connection", None)
        if connection is None or connection.closed:
            connection = self._held.connection = self._read_engine.connect()
            self._all_held.add(connection)
        return connection

    def _drop_held_connection(self) -> None:
        connection: Connection | None = getattr(self._held, "connection", None)
        self._held.connection = None
        if connection is not None:
            self._all_held.discard(connection)
            connection.invalidate()
            connection.close()

    async def ping(self) -> bool:
        """Returns whether the database accepts writes, has the schema, and keeps the limits.

        A newer schema is accepted: replicas of the former release run until they are replaced.
        """
        try:
            now = await self.read(read_readiness, guarded=self._guarded)
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

    async def listen(self, hear: Callable[[int], None]) -> None:
        """Calls ``hear`` with every announced position of the feed, until it is cancelled.

        Without a direct connection nothing is announced, and the feed is polled.
        """
        if not self._listen_url:
            await asyncio.Event().wait()
        await feed.listen(plain_url(self._listen_url), hear)

    def places(self) -> dict[tuple[str, str], int]:
        """Returns how many places there are, by pool and state, for metrics."""
        pools = {"write": self._write_places, "read": self._read_places}
        return {(p, state): n for p, one in pools.items() for state, n in one.counts().items()}

    def clock(self) -> float:
        """Returns seconds by the process's own clock; see `clock.own_clock`."""
        return own_clock()

    def close(self) -> None:
        """Waits for running phases and reads, then closes every connection."""
        for other in self._others:
            other.close()
        self._writers.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        for connection in self._all_held:
            connection.close()
        self._write_engine.dispose()
        self._read_engine.dispose()


def _installation_id(reader: SqlReader) -> str:
    sql = "SELECT installation_id FROM installation"
    return str(reader.connection.execute(text(sql)).scalar_one())


def _too_contended() -> Busy:
    return Busy(
        "CONCURRENT_CHANGE",
        "too many calls are changing the same thing at once; ask again with the same key",
    )


def _constraint(error: DBAPIError) -> str:
    diagnostics = getattr(error.orig, "diag", None)
    return str(getattr(diagnostics, "constraint_name", None) or "")
