"""`make bench-postgres`: what one PostgreSQL carries, by pgbench with the service's own statements.

A payment is made by the service, initiated, confirmed and captured, while PostgreSQL logs every
statement. They are replayed in their transactions, with ids of their own for each payment; every
guard, trigger and foreign key of the schema works as it does for the service. Positions in the feed
are given by one more client, as the job does. The replay waits for neither Stripe nor the service.
"""

import asyncio
import contextlib
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import psycopg2

from dev.bench.calls import Marketplace
from dev.bench.costs import Backends, cpu_seconds, statements_of
from dev.processes import family_of
from dev.programs import program
from dev.scratch import scratch
from dev.settings import StackSettings
from dev.stack import Stack
from dev.story import Story
from marketplace.payments.channel import connect

_SERVICE: Final = "payment_service"
_EXPERT: Final = "expert-bench"
_EXPERTS: Final = 200
_CLIENTS: Final = (1, 4, 16, 32)
#: As many payments before that every statement is prepared on its connection.
_WARM_UP: Final = 40
_PREPARED: Final = re.compile(r"\bs_[0-9a-f]{24}\b")
_ACCOUNT: Final = re.compile(r"\bacct_\w+")
#: Ids and keys of one payment: each replayed payment has its own.
#: What follows an operation's id is the number of the attempt.
_IDS: Final = re.compile(
    r"\b(op_[0-9a-f]{20,}|(?:pay|clm|evt|ch|py|tr|txn|pi|fee|po|re|initiate|capture)[_-]"
    r"(?!intent\b|payment\b)[A-Za-z0-9_-]*[0-9][A-Za-z0-9_-]{6,})"
)
_LITERAL: Final = re.compile(r"'(?:[^']|'')*'")


@dataclass(frozen=True, slots=True)
class Recorded:
    """The transactions of one payment, the one of the feed, and what was prepared for them."""

    transactions: Sequence[Sequence[str]]
    feed: Sequence[str]
    prepared: dict[str, str]

    def script(self, transactions: Sequence[Sequence[str]], *settings: str) -> str:
        """Returns a script for pgbench. A session prepares when it runs it for the first time."""
        sent = [text for transaction in transactions for text in transaction]
        names = {name for text in sent for name in _PREPARED.findall(text)}
        prepare = [f"{' '.join(self.prepared[name].split())};" for name in sorted(names)]
        lines = ["\\if :first", *prepare, "\\set first 0", "\\endif", *settings]
        return "\n".join([*lines, *(f"{' '.join(text.split()).rstrip(';')};" for text in sent), ""])


async def record(stack: Stack) -> Recorded:
    """Has the service make payments, and returns what it sends for the last one."""
    assert stack.postgres is not None
    backends, log = Backends(stack.postgres.admin_url()), stack.postgres.log
    async with aiohttp.ClientSession() as web, connect(*stack.settings.grpc_addresses) as channel:
        market = Marketplace(channel, web, stack.simulator_url)
        with backends.logged():
            await market.prepare()
            await market.live(_WARM_UP)
            for _ in range(_WARM_UP):
                await market.live()
            await market.rest(backends)
            offset = log.stat().st_size
            payment = (await market.live())[0]
            await market.rest(backends)
            await asyncio.sleep(2)  # What a job still does for it.
    backends.close()
    texts = (text for _, text in statements_of(log, 0, _SERVICE) if text.startswith("PREPARE"))
    prepared = {_PREPARED.findall(text)[0]: text for text in texts}
    marks = re.compile(f"{payment.payment_id}|{payment.payment_intent_id}")
    found, feed = [], [""]
    for transaction in _transactions(log, offset):
        if any(
            "DELETE FROM feed_pending" in prepared.get(name, "")
            for text in transaction
            for name in _PREPARED.findall(text)
        ):
            feed = transaction
        elif marks.search("\n".join(transaction)):
            found.append([_own(text) for text in transaction])
    return Recorded(found, feed, prepared)


def _own(text: str) -> str:
    """Returns a statement with pgbench's variables in place of one payment and one expert."""
    text = _IDS.sub(r"\1x:payment", text).replace(_EXPERT, f"{_EXPERT}:expert")
    return _ACCOUNT.sub(lambda found: f"{found[0]}:expert", text)


def _transactions(log: Path, offset: int) -> Iterator[list[str]]:
    open_ones: dict[str, list[str]] = {}
    for backend, text in statements_of(log, offset, _SERVICE):
        if text.startswith("PREPARE"):
            continue
        transaction = [*open_ones.pop(backend, []), text]
        words = [part.strip().upper() for part in _LITERAL.sub("''", text).split(";")]
        ends = words[-1].startswith(("COMMIT", "ROLLBACK"))
        if (words[0].startswith("BEGIN") or len(transaction) > 1) and not ends:
            open_ones[backend] = transaction
        else:
            yield transaction


class Replay:
    """Replays payments into the database that they were recorded in."""

    def __init__(self, stack: Stack, recorded: Recorded, directory: Path) -> None:
        assert stack.postgres is not None
        self._postgres, self._url = stack.postgres, stack.database_url
        self._payment, self._feed = directory / "payment.sql", directory / "feed.sql"
        chosen = [
            "\\set payment random(1, 1000000000000000)",
            f"\\set expert random(1, {_EXPERTS})",
        ]
        self._payment.write_text(recorded.script(recorded.transactions, *chosen))
        self._feed.write_text(recorded.script([recorded.feed]) + "\\sleep 20 ms\n")
        self._admin = psycopg2.connect(self._postgres.admin_url())
        self._admin.autocommit = True

    def _query(self, sql: str) -> Any:
        with self._admin.cursor() as cursor:
            cursor.execute(sql)
            return cursor.fetchone() if cursor.description else None

    def copy_experts(self) -> None:
        """Makes copies of the expert, so that payments do not all wait for the row of one."""
        with self._admin.cursor() as cursor:
            cursor.execute("SELECT * FROM experts LIMIT 0")
            columns = [column.name for column in cursor.description or ()]
        own = {"expert_id", "stripe_account_id"}
        values = ", ".join(f"{name} || number" if name in own else name for name in columns)
        self._query("SET session_replication_role = replica")
        self._query(
            f"INSERT INTO experts ({', '.join(columns)}) SELECT {values} "  # noqa: S608 - names of ours
            f"FROM experts, generate_series(1, {_EXPERTS}) number WHERE expert_id = '{_EXPERT}'"
        )
        self._query("ANALYZE")

    def run(self, clients: int, seconds: int) -> list[str]:
        """Returns a row: payments a second, processor time and log of each, what was waited for."""
        waits: Counter[str] = Counter()
        count, log = (
            "SELECT count(*) FROM payments WHERE state = 'CAPTURED'",
            "SELECT wal_bytes FROM pg_stat_wal",
        )
        (payments,), (written,), cpu = self._query(count), self._query(log), self._cpu()
        feed = self._pgbench(self._feed, 1, seconds + 2)
        began, load = time.monotonic(), self._pgbench(self._payment, clients, seconds)
        while load.poll() is None:
            time.sleep(0.2)
            with self._admin.cursor() as cursor:
                cursor.execute(
                    "SELECT wait_event FROM pg_stat_activity WHERE application_name = 'pgbench' "
                    "AND state = 'active' AND wait_event IS NOT NULL"
                )
                waits.update(name for (name,) in cursor.fetchall())
        elapsed = time.monotonic() - began
        if load.returncode:
            raise RuntimeError(f"pgbench failed: {load.stderr.read() if load.stderr else ''}")
        feed.wait()
        made = self._query(count)[0] - payments
        each = (self._cpu() - cpu) * 1000 / made, float(self._query(log)[0] - written) / made / 1024
        most = ", ".join(f"{name} {number}" for name, number in waits.most_common(3))
        figures = (f"{made / elapsed:.1f}", *(f"{figure:.1f}" for figure in each))
        return [str(clients), *figures, most]

    def _pgbench(self, script: Path, clients: int, seconds: int) -> "subprocess.Popen[str]":
        given = ["-n", "-D", "first=1", "-f", script, "-c", clients, "-T", seconds, self._url]
        return subprocess.Popen(
            [program("pgbench"), *map(str, given)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    def _cpu(self) -> float:
        """Returns what the server has used, its ended backends included."""
        pid = self._postgres.pid
        assert pid is not None
        used = 0.0
        for one in family_of(pid):
            with contextlib.suppress(OSError):  # It has just ended.
                used += cpu_seconds(one)
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
        return used + (int(fields[13]) + int(fields[14])) / 100


def bench_postgres(*, seconds: int) -> None:
    """Records a payment, replays it with each number of clients, and prints a table."""
    story = Story()
    story.introduce(
        "What one PostgreSQL carries",
        "pgbench with the service's statements for a payment that is initiated, confirmed and "
        "captured. The server flushes to the disk, and has its own default settings.",
    )
    with scratch("payments-bench-postgres-") as data:
        settings = replace(StackSettings.on_free_ports(data), durable=True)
        with Stack(settings) as stack:
            recorded = asyncio.run(record(stack))
            sent = sum(map(len, recorded.transactions))
            story.note(f"{sent} round trips in {len(recorded.transactions)} transactions")
            for service in stack.services:
                service.ask_to_stop()
                service.wait(60)
            replay = Replay(stack, recorded, data)
            replay.copy_experts()
            rows = [replay.run(number, seconds) for number in _CLIENTS]
    columns = ["clients>", "payments a second>", "CPU ms each>", "WAL KiB each>", "waited for"]
    story.table("Replayed payments", columns, rows)
