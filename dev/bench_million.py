"""`make bench-million`: what reads and background work cost when the store is full of history.

One real payment is copied with all its rows, by SQL. The copies are older than what reconciliation
compares. Their sums, versions, movements and places in the feed are right; their hash chains are
those of the original, which is why nobody should audit this store.
"""

import asyncio
import contextlib
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import grpc
import psycopg2

from dev.bench.calls import Marketplace
from dev.scratch import scratch
from dev.settings import StackSettings
from dev.stack import Stack
from dev.statement_log import StatementLog
from dev.story import Story
from marketplace.payments.channel import connect
from marketplace.payments.v1 import (
    disputes_pb2,
    disputes_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    experts_pb2,
    experts_pb2_grpc,
    ledger_pb2,
    ledger_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
)

_BATCH = 20_000
_TIMES = 31
_WARM = 5
_FOLD_SECONDS = 1200.0
_REST_SECONDS = 32.0
_MOST_RATIO = 1.2
#: Less than this is noise, whatever the ratio.
_LEAST_MS = 2.0

#: The tables of a payment, and of each the expressions of columns that identify something. In them
#: ``r`` is the row, ``n`` the number of the copy and ``id`` the copy's payment.
_COPIES = {
    "payments": {
        "client_id": "'client-' || n %% 50000",
        "payment_intent_id": "r.payment_intent_id || '_' || n",
        "charge_id": "r.charge_id || '_' || n",
        "transfer_id": "r.transfer_id || '_' || n",
    },
    "events": {},
    "postings": {
        "posting_id": "",
        "account": "replace(r.account, r.payment_id, id)",
        "balance_transaction_id": "CASE WHEN r.balance_transaction_id = '' THEN '' "
        "ELSE r.balance_transaction_id || '_' || n END",
    },
    "movements": {
        "movement_id": "r.movement_id || '_' || n",
        "operation_id": "r.operation_id || '_' || n",
    },
    "operations": {
        "operation_id": "r.operation_id || '_' || n",
        "claim_id": "r.claim_id || '_' || n",
    },
    "idempotency_keys": {
        "claim_id": "r.claim_id || '_' || n",
        "key": "r.key || '-' || n",
        "operation_id": "r.operation_id || '_' || n",
    },
    "feed": {
        "position": "(SELECT max(position) FROM feed) + row_number() OVER (ORDER BY n, r.position)"
    },
}
_ID = "'pay_' || lpad(to_hex(n), 32, '0')"


class Filling:
    """Copies one payment many times."""

    def __init__(self, url: str, payment_id: str, payments: int) -> None:
        self._connection = psycopg2.connect(url)
        self._connection.autocommit = True
        self._cursor = self._connection.cursor()
        # As a restore would: without triggers and foreign keys, and nobody waits for the disk.
        self._cursor.execute("SET session_replication_role = replica")
        self._cursor.execute("SET synchronous_commit = off")
        self._payment_id = payment_id
        self._payments = payments

    def fill(self, say: Callable[[str], None]) -> None:
        """Copies in batches, so that none is large."""
        began = time.monotonic()
        for first in range(1, self._payments + 1, _BATCH):
            last = min(first + _BATCH - 1, self._payments)
            for table, changed in _COPIES.items():
                self._copy(table, changed, first, last)
            if first % (5 * _BATCH) == 1:
                say(f"{last:,} payments after {time.monotonic() - began:.0f} s")
        self._cursor.execute("VACUUM ANALYZE")
        self._connection.close()

    def _copy(self, table: str, changed: dict[str, str], first: int, last: int) -> None:
        self._cursor.execute(
            "SELECT column_name, data_type FROM information_schema.columns "
            "WHERE table_schema = 'public' AND table_name = %s ORDER BY ordinal_position",
            (table,),
        )
        # From three days to four hundred days old, the youngest last.
        age = f"interval '1 day' * (400 - 397.0 * n / {self._payments})"
        columns = {}
        for name, kind in self._cursor.fetchall():
            usual = f"r.{name} - {age}" if kind.startswith("timestamp") else f"r.{name}"
            columns[name] = changed.get(name, "id" if name == "payment_id" else usual)
        columns = {name: sql for name, sql in columns.items() if sql}
        copied = (
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} "  # noqa: S608 - names of ours
            f"FROM (SELECT n, {_ID} AS id FROM generate_series(%s, %s) AS n) AS copies, {table} "
            "AS r WHERE r.payment_id = %s ORDER BY n"
        )
        self._cursor.execute(copied, (first, last, self._payment_id))


class Reads:
    """Everything that is measured: the RPCs that read, and what the service asks by itself."""

    def __init__(
        self, channel: grpc.aio.Channel, log: StatementLog, payment: payments_pb2.Payment
    ) -> None:
        self._channel, self._log, self._payment = channel, log, payment

    async def measure(self) -> dict[str, float]:
        """Returns the median of each call and of each statement of the jobs, in milliseconds."""
        calls = {name: await _median(call) for name, call in self._calls().items()}
        self._log.read()
        await asyncio.sleep(_REST_SECONDS)
        return calls | {
            f"job: {sql}": statistics.median(took)
            for sql, took in sorted(self._log.read().items())
            if len(took) > 1 and not sql.startswith(("BEGIN", "COMMIT", "SELECT ?"))
        }

    def _calls(self) -> dict[str, Callable[[], Awaitable[object]]]:
        payment, channel = self._payment, self._channel
        payments: Any = payments_pb2_grpc.PaymentServiceStub(channel)
        experts: Any = experts_pb2_grpc.ExpertServiceStub(channel)
        ledger: Any = ledger_pb2_grpc.LedgerServiceStub(channel)
        operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        events: Any = events_pb2_grpc.EventServiceStub(channel)
        disputes: Any = disputes_pb2_grpc.DisputeServiceStub(channel)
        one: dict[str, Any] = {"payment_id": payment.payment_id}
        expert: dict[str, Any] = {"expert_id": payment.expert_id}
        done = operations_pb2.OPERATION_STATE_SUCCEEDED
        applied = operations_pb2.WEBHOOK_EVENT_STATE_APPLIED
        calls = {
            "GetPayment": (payments.GetPayment, payments_pb2.GetPaymentRequest(**one)),
            "ListPayments": (
                payments.ListPayments,
                payments_pb2.ListPaymentsRequest(user_id=payment.client_id, page_size=20),
            ),
            "ListPaymentEvents": (
                events.ListPaymentEvents,
                events_pb2.ListPaymentEventsRequest(**one),
            ),
            "ListPostings": (ledger.ListPostings, ledger_pb2.ListPostingsRequest(**one)),
            "ListBalances": (
                ledger.ListBalances,
                ledger_pb2.ListBalancesRequest(page_size=20),
            ),
            "ListBalances commission": (
                ledger.ListBalances,
                ledger_pb2.ListBalancesRequest(account_prefix="commission"),
            ),
            "GetExpert": (experts.GetExpert, experts_pb2.GetExpertRequest(**expert)),
            "GetExpertBalance": (
                experts.GetExpertBalance,
                experts_pb2.GetExpertBalanceRequest(**expert),
            ),
            "ListPayouts": (experts.ListPayouts, experts_pb2.ListPayoutsRequest(**expert)),
            "ListDisputes": (disputes.ListDisputes, disputes_pb2.ListDisputesRequest()),
            "ListOperations": (
                operations.ListOperations,
                operations_pb2.ListOperationsRequest(page_size=20),
            ),
            "ListOperations succeeded": (
                operations.ListOperations,
                operations_pb2.ListOperationsRequest(state=done, page_size=20),
            ),
            "ListWebhookEvents applied": (
                operations.ListWebhookEvents,
                operations_pb2.ListWebhookEventsRequest(state=applied, page_size=20),
            ),
            "ListDiscrepancies": (
                operations.ListDiscrepancies,
                operations_pb2.ListDiscrepanciesRequest(),
            ),
            "RunReconciliation": (
                operations.RunReconciliation,
                operations_pb2.RunReconciliationRequest(),
            ),
        }
        return {name: _bound(call, request) for name, (call, request) in calls.items()}


def _bound(call: Any, argument: Any) -> Callable[[], Awaitable[object]]:
    async def do() -> object:
        return await call(argument)

    return do


async def _median(call: Callable[[], Awaitable[object]]) -> float:
    took = []
    for _ in range(_WARM):
        await call()
    for _ in range(_TIMES):
        began = time.perf_counter()
        await call()
        took.append(time.perf_counter() - began)
    return statistics.median(took) * 1000


async def measure(stack: Stack, story: Story, payments: int) -> dict[str, tuple[float, float]]:
    """Returns what each read takes before and after the store is filled, in milliseconds."""
    assert stack.postgres is not None
    async with aiohttp.ClientSession() as web, connect(*stack.settings.grpc_addresses) as channel:
        market = Marketplace(channel, web, stack.simulator_url)
        await market.prepare()
        (payment,) = await market.live()
        reads = Reads(channel, StatementLog(stack.postgres), payment)
        await asyncio.sleep(5)
        await _folded(stack.postgres.admin_url())
        empty = await reads.measure()
        filling = Filling(stack.postgres.admin_url(), payment.payment_id, payments)
        await asyncio.to_thread(filling.fill, story.note)
        began = time.monotonic()
        await _folded(stack.postgres.admin_url())
        story.note(f"every posting is folded {time.monotonic() - began:.0f} s later")
        story.note(f"the database has {_size(stack.postgres.admin_url())}")
        # The first one sums up for the second time what was folded.
        operations: Any = operations_pb2_grpc.OperationsServiceStub(channel)
        await operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
        full = await reads.measure()
    return {name: (empty[name], full[name]) for name in empty if name in full}


async def _folded(url: str) -> None:
    """Waits until the service has folded every posting into the balances."""
    deadline = time.monotonic() + _FOLD_SECONDS
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            while time.monotonic() < deadline:
                cursor.execute("UPDATE ledger_span SET next_time = least(next_time, now())")
                cursor.execute(
                    "SELECT folded_until = (SELECT max(posting_id) FROM postings) FROM ledger_span"
                )
                if cursor.fetchone() == (True,):
                    return
                await asyncio.sleep(1)


def _size(url: str) -> str:
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        cursor.execute(
            "SELECT pg_size_pretty(pg_database_size(current_database())), "
            "(SELECT count(*) FROM payments), (SELECT count(*) FROM postings)"
        )
        found = cursor.fetchone()
    assert found is not None
    return f"{found[0]}: {found[1]:,} payments and {found[2]:,} postings"


def bench_million(*, payments: int = 1_000_000) -> None:
    """Starts a stack, fills it, and prints what each read takes before and after."""
    story = Story()
    story.introduce(
        f"{payments:,} payments of history",
        "Each read is measured in a store with two payments, and again when it is full; "
        f"the median of {_TIMES} calls.",
    )
    with (
        scratch("payments-bench-million-") as data,
        Stack(StackSettings.on_free_ports(data)) as stack,
    ):
        found = asyncio.run(measure(stack, story, payments))
    slow = {name for name, (empty, full) in found.items() if _grows(empty, full)}
    story.table(
        "median, in milliseconds",
        ["read", "two payments>", f"{payments:,}>", "ratio>", ""],
        [
            [name, f"{empty:.1f}", f"{full:.1f}", f"{full / empty:.2f}", name not in slow]
            for name, (empty, full) in found.items()
        ],
    )
    story.verdict(
        f"No read takes more than {_MOST_RATIO} times as long"
        + (f", except {', '.join(sorted(slow))}." if slow else "."),
        good=not slow,
    )


def _grows(empty: float, full: float) -> bool:
    return full > empty * _MOST_RATIO and full - empty > _LEAST_MS
