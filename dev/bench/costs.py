"""Processor time of processes, and the statements that calls send to PostgreSQL."""

import asyncio
import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg2

#: A line of the log: the backend, the program, and what it did.
_LINE: Final = re.compile(r"^(\d+)\|([^|]*)\|\w+:  (?:statement|execute [^:]*): (.*)$")
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")
#: A payment has two marks: its id and its intent's.
_OF_ONE_PAYMENT: Final = 2
_ENDS: Final = ("COMMIT", "ROLLBACK")


def cpu_seconds(pid: int) -> float:
    """Returns the processor time that a process has used, its ended threads included (Linux)."""
    return time.clock_gettime((~pid << 3) | 2)


@dataclass(slots=True)
class Statements:
    """What a number of calls sent to PostgreSQL."""

    statements: int = 0
    round_trips: int = 0
    transactions: int = 0


@dataclass
class Backends:
    """The server's processes that work for one program, seen by the bench's own connection."""

    admin_url: str
    _connection: Any = field(init=False)

    def __post_init__(self) -> None:
        self._connection = psycopg2.connect(self.admin_url, application_name="bench")
        self._connection.autocommit = True

    def query(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return list(cursor.fetchall()) if cursor.description else []

    def cpu(self, program: str) -> Mapping[int, float]:
        """Returns the processor time of each backend of a program."""
        found = self.query("SELECT pid FROM pg_stat_activity WHERE application_name = %s", program)
        used = {}
        for (pid,) in found:
            try:
                used[pid] = cpu_seconds(pid)
            except OSError:  # It has ended since.
                continue
        return used

    @contextmanager
    def logged(self) -> Iterator[None]:
        """Has every statement written to the server's log."""
        self._set("log_line_prefix", "'%p|%a|'")
        self._set("log_statement", "'all'")
        try:
            yield
        finally:
            self._set("log_statement", "'none'")

    def _set(self, name: str, value: str) -> None:
        self.query(f"ALTER SYSTEM SET {name} = {value}")
        self.query("SELECT pg_reload_conf()")
        time.sleep(0.3)  # The server reads its settings soon, not at once.

    def close(self) -> None:
        self._connection.close()


def spent(before: Mapping[int, float], after: Mapping[int, float]) -> float:
    """Returns what the processes have used in between."""
    return sum(used - before.get(pid, 0.0) for pid, used in after.items())


@dataclass(frozen=True, slots=True)
class Cost:
    """Processor time for each call, in milliseconds: of the process, and of its backends."""

    process: float
    postgres: float


class Meter:
    """Measures what a program and its backends use, less what they use while nothing happens."""

    def __init__(self, program: str, pids: Callable[[], Sequence[int]], backends: Backends) -> None:
        self._program, self._pids, self._backends = program, pids, backends
        self.idle = Cost(0.0, 0.0)

    async def rest(self, seconds: float) -> None:
        """Measures what is used at rest, in milliseconds per second."""
        used = await self._used(partial(asyncio.sleep, seconds))
        self.idle = Cost(used[0] / seconds * 1000, used[1] / seconds * 1000)

    async def cost(self, work: Callable[[], Any], calls: int) -> Cost:
        began = time.perf_counter()
        process, postgres = await self._used(work)
        elapsed = time.perf_counter() - began
        return Cost(
            (process * 1000 - self.idle.process * elapsed) / calls,
            (postgres * 1000 - self.idle.postgres * elapsed) / calls,
        )

    async def _used(self, work: Callable[[], Any]) -> tuple[float, float]:
        before, process = self._backends.cpu(self._program), self._process()
        await work()
        process = self._process() - process
        return process, spent(before, self._backends.cpu(self._program))

    def _process(self) -> float:
        return sum(map(cpu_seconds, self._pids()))


def counted(log: Path, offset: int, program: str, marks: Collection[str]) -> Statements:
    """Counts the transactions of a program that name one of the marks (ids, keys).

    Background jobs that found nothing to do name none.
    """
    found = Statements()
    open_ones: dict[str, list[str]] = {}
    wanted = re.compile("|".join(re.escape(mark) for mark in marks))
    for backend, text in statements_of(log, offset, program):
        sent = [part.strip() for part in _LITERAL.sub("''", text).split(";") if part.strip()]
        transaction = open_ones.pop(backend, [])
        begins = bool(sent) and sent[0].upper().startswith("BEGIN")
        transaction.append(text)
        ends = bool(sent) and sent[-1].upper().startswith(_ENDS)
        if (begins or len(transaction) > 1) and not ends:
            open_ones[backend] = transaction
            continue
        named = set(wanted.findall("\n".join(transaction)))
        if not named:
            continue
        if len(named) > _OF_ONE_PAYMENT:  # A job's, for many payments.
            transaction = [one for one in transaction if wanted.search(one)]
        found.transactions += 1
        found.round_trips += len(transaction)
        for one in transaction:
            found.statements += len([p for p in _LITERAL.sub("''", one).split(";") if p.strip()])
    return found


def statements_of(log: Path, offset: int, program: str) -> Iterator[tuple[str, str]]:
    """Yields backend and text of each logged statement. A text may have several lines."""
    with log.open(errors="replace") as file:
        file.seek(offset)
        backend, lines = "", list[str]()
        for line in file:
            if line.startswith("\t") and lines:
                lines.append(line.strip())
                continue
            if lines:
                yield backend, "\n".join(lines)
                lines = []
            found = _LINE.match(line.rstrip("\n"))
            if found and found[2] == program:
                backend, lines = found[1], [found[3]]
        if lines:
            yield backend, "\n".join(lines)
