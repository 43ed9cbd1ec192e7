"""`make bench-idle`: what replicas cost while nobody calls, at rest and after a small load.

Not a test: the processor's time depends on the machine. The number of statements does not. Every
statement is counted that a replica sends, BEGIN and COMMIT included: PostgreSQL logs them.
"""

import asyncio
import contextlib
import os
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import psycopg2

from dev.bench.calls import Marketplace
from dev.scratch import scratch
from dev.settings import StackSettings
from dev.stack import Stack
from dev.statement_log import StatementLog
from dev.story import Story
from marketplace.payments.channel import connect

_SETTLE_SECONDS = 12.0
_WINDOW_SECONDS = 20.0
_AFTER_SECONDS = (0.0, 30.0, 60.0)
_APPLY_SECONDS = 60.0
#: The goals for one replica that nobody calls: statements and milliseconds of CPU, each a second.
_MOST_STATEMENTS = 5.0
_MOST_CPU_MS = 20.0


@dataclass(frozen=True)
class Window:
    """What all replicas cost in one span of time."""

    name: str
    seconds: float
    statements: Counter[str]
    replica_cpu: float
    database_cpu: float
    stripe_calls: int


class IdleBench:
    """Measures the replicas of a stack from outside."""

    def __init__(self, stack: Stack, web: aiohttp.ClientSession) -> None:
        assert stack.postgres is not None
        self._stack, self._web, self._postgres = stack, web, stack.postgres
        self._log = StatementLog(stack.postgres)

    async def window(self, name: str, seconds: float = _WINDOW_SECONDS) -> Window:
        """Measures for so long."""
        before, calls = self._cpu(), await self._stripe_calls()
        self._log.read()
        began = time.monotonic()
        await asyncio.sleep(seconds)
        replicas, database = self._cpu()
        sent = self._log.read()
        return Window(
            name,
            time.monotonic() - began,
            Counter({sql: len(durations) for sql, durations in sent.items()}),
            replicas - before[0],
            database - before[1],
            await self._stripe_calls() - calls,
        )

    def _cpu(self) -> tuple[float, float]:
        """Returns the seconds of CPU that the replicas and PostgreSQL have used so far."""
        assert self._postgres.pid is not None
        spent = _spent()
        replicas = sum(spent[child.pid][1] for child in self._stack.services)
        backends = (used for parent, used in spent.values() if parent == self._postgres.pid)
        return replicas, spent[self._postgres.pid][1] + sum(backends)

    async def _stripe_calls(self) -> int:
        url = f"{self._stack.simulator_url}/_simulator/requests"
        async with self._web.get(url, params={"limit": "0"}) as answer:
            counts: dict[str, int] = (await answer.json())["counts"]
            return sum(counts.values())

    async def applied(self) -> float:
        """Waits until every webhook event is applied, and returns how long that took."""
        began = time.monotonic()
        with contextlib.closing(psycopg2.connect(self._postgres.admin_url())) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                while time.monotonic() - began < _APPLY_SECONDS:
                    cursor.execute("SELECT count(*) FROM webhook_events WHERE state = 'WAITING'")
                    if cursor.fetchone() == (0,):
                        break
                    await asyncio.sleep(0.2)
        return time.monotonic() - began


def _spent() -> dict[int, tuple[int, float]]:
    """Returns each process's parent and its seconds of CPU so far; Linux shows them as files."""
    found = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # It has just ended.
            pid, _, rest = stat.read_text().partition(" ")
            values = rest.rpartition(") ")[2].split()
            ticks = int(values[11]) + int(values[12])
            found[int(pid)] = int(values[1]), ticks / os.sysconf("SC_CLK_TCK")
    return found


async def measure(stack: Stack, story: Story, payments: int) -> list[Window]:
    """At rest, during a small load, and in the minutes after it."""
    windows = []
    async with aiohttp.ClientSession() as web, connect(*stack.settings.grpc_addresses) as channel:
        idle, market = IdleBench(stack, web), Marketplace(channel, web, stack.simulator_url)
        await market.prepare()
        await asyncio.sleep(_SETTLE_SECONDS)
        windows.append(await idle.window("at rest"))
        story.note(f"{payments} payments: initiated, confirmed, captured ...")
        await market.live(payments)
        story.note(f"every event is applied {await idle.applied():.1f} s after the load")
        ended = time.monotonic()
        for after in _AFTER_SECONDS:
            await asyncio.sleep(max(0.0, ended + after - time.monotonic()))
            windows.append(await idle.window(f"{after:.0f} s after a load"))
    return windows


def bench_idle(*, replicas: int = 1, payments: int = 100, each: bool = False) -> None:
    """Starts a stack, measures it, and prints a table; ``each`` names the statements."""
    story = Story()
    story.introduce(
        f"{replicas} replica(s) that nobody calls",
        "Statements are counted by PostgreSQL, CPU by the operating system; both a second. "
        f"The load is {payments} payments, each initiated, confirmed and captured.",
    )
    with (
        scratch("payments-bench-idle-") as data,
        Stack(StackSettings.on_free_ports(data, replicas=replicas)) as stack,
    ):
        windows = asyncio.run(measure(stack, story, payments))
    told(story, windows, replicas)
    if each:
        for sql, count in windows[0].statements.most_common(40):
            story.note(f"{count / windows[0].seconds:6.2f}  {sql}")


def told(story: Story, windows: list[Window], replicas: int) -> None:
    """Prints the table, and whether the goals are met at rest."""
    rows = [
        [
            window.name,
            f"{window.statements.total() / window.seconds:.1f}",
            f"{window.replica_cpu / window.seconds / replicas * 1000:.0f}",
            f"{window.database_cpu / window.seconds * 1000:.0f}",
            f"{window.stripe_calls / window.seconds:.2f}",
        ]
        for window in windows
    ]
    columns = ["when", "statements>", "CPU ms of a replica>", "of PostgreSQL>", "Stripe calls>"]
    story.table("a second", columns, rows)
    rest = windows[0]
    statements = rest.statements.total() / rest.seconds / replicas
    cpu = rest.replica_cpu / rest.seconds / replicas * 1000
    story.verdict(
        f"At rest a replica sends {statements:.1f} statements a second (at most "
        f"{_MOST_STATEMENTS:.0f}) and takes {cpu:.0f} ms of CPU (at most {_MOST_CPU_MS:.0f}).",
        good=statements <= _MOST_STATEMENTS and cpu <= _MOST_CPU_MS,
    )
