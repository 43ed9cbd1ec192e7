"""What is known at the end of a run: our tables, Stripe's objects and log of effects, the calls.

It is read from the tables and from the simulator, and not through the service, so that the checks
do not depend on the code that they check.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import psycopg2
import psycopg2.extras

from chaos.history import History
from chaos.simulator import Simulator

Row = dict[str, Any]

_TABLES = {
    "payments": "SELECT * FROM payments ORDER BY create_time",
    "events": "SELECT * FROM events ORDER BY payment_id, sequence",
    "feed": "SELECT * FROM feed ORDER BY position",
    "postings": "SELECT * FROM postings ORDER BY posting_id",
    "movements": "SELECT * FROM movements ORDER BY time",
    "operations": "SELECT * FROM operations ORDER BY create_time",
    "idempotency_keys": "SELECT * FROM idempotency_keys ORDER BY create_time",
    "webhook_events": "SELECT * FROM webhook_events ORDER BY receive_time",
    "experts": "SELECT * FROM experts",
    "former_accounts": "SELECT * FROM former_accounts ORDER BY replace_time",
    "disputes": "SELECT * FROM disputes ORDER BY create_time",
    "discrepancies": "SELECT * FROM discrepancies",
}
#: Every text that the service stores about its work. None may contain a secret.
_TEXTS = {
    "events": "body",
    "operations": "payload::text || last_error",
    "expert_events": "body",
    "payments": "coalesce(failure::text, '')",
    "webhook_events": "object_id || verdict || last_error",
    "discrepancies": "detail",
}


@dataclass(slots=True, kw_only=True)
class Evidence:
    """Rows of our tables under their names; the simulator's under Stripe's."""

    payments: list[Row] = field(default_factory=list)
    events: list[Row] = field(default_factory=list)
    feed: list[Row] = field(default_factory=list)
    postings: list[Row] = field(default_factory=list)
    movements: list[Row] = field(default_factory=list)
    operations: list[Row] = field(default_factory=list)
    idempotency_keys: list[Row] = field(default_factory=list)
    webhook_events: list[Row] = field(default_factory=list)
    experts: list[Row] = field(default_factory=list)
    former_accounts: list[Row] = field(default_factory=list)
    disputes: list[Row] = field(default_factory=list)
    discrepancies: list[Row] = field(default_factory=list)
    #: Of the simulator.
    effects: list[Row] = field(default_factory=list)
    intents: list[Row] = field(default_factory=list)
    deliveries: list[Row] = field(default_factory=list)
    refunds: list[Row] = field(default_factory=list)
    transfers: list[Row] = field(default_factory=list)
    stripe_disputes: list[Row] = field(default_factory=list)
    fraud_warnings: list[Row] = field(default_factory=list)
    #: What is available in each account, by its id and the currency; the platform's id is empty.
    available: dict[tuple[str, str], int] = field(default_factory=dict)
    #: Stripe's balance transactions, by the name that our ledger has for their account.
    lines: list[tuple[str, Row]] = field(default_factory=list)
    history: History = field(default_factory=History)
    #: Accounts that Stripe has rejected for good.
    lost_accounts: set[str] = field(default_factory=set)
    #: Disputes to which Stripe has added a further line.
    adjusted: set[str] = field(default_factory=set)
    #: What waited for the platform's balance before money came: a refund at Stripe, its payment.
    waiting: list[tuple[Row | None, Row | None]] = field(default_factory=list)
    #: Sentences about faults that were noticed during the run.
    wrong: list[str] = field(default_factory=list)
    #: Lines of logs and texts of tables that contain a secret.
    leaks: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    #: Keys that no caller ever got a definite answer for.
    unanswered: list[str] = field(default_factory=list)
    converged: bool = True
    armed: list[str] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    #: How often each armed kind must have struck.
    least: int = 1

    def payment_of_intent(self) -> dict[str, Row]:
        return {row["payment_intent_id"]: row for row in self.payments if row["payment_intent_id"]}


def rows(database_url: str, sql: str) -> list[Row]:
    """Returns the rows of a query as dictionaries."""
    with (
        contextlib.closing(psycopg2.connect(database_url, connect_timeout=5)) as connection,
        connection.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor,
    ):
        cursor.execute(sql)
        return [dict(row) for row in cursor.fetchall()]


def read_tables(evidence: Evidence, database_url: str, secrets: Iterable[str]) -> None:
    for name, sql in _TABLES.items():
        setattr(evidence, name, rows(database_url, sql))
    for table, column in _TEXTS.items():
        for secret in secrets:
            literal = secret.replace("'", "''").replace("%", "%%")
            sql = f"SELECT count(*) FROM {table} WHERE position('{literal}' IN {column}) > 0"  # noqa: S608 - our own names and secrets
            if rows(database_url, sql)[0]["count"]:
                evidence.leaks.append(f"table {table} holds a secret")


async def read_stripe(evidence: Evidence, simulator: Simulator) -> None:
    evidence.effects = (await simulator.control("GET", "/effects"))["effects"]
    evidence.intents = await simulator.list("/payment_intents")
    evidence.refunds = await simulator.list("/refunds")
    evidence.transfers = await simulator.list("/transfers")
    evidence.stripe_disputes = await simulator.list("/disputes")
    evidence.fraud_warnings = await simulator.list("/radar/early_fraud_warnings")
    shown = await simulator.control("GET", "/webhooks?limit=1000000")
    evidence.deliveries = shown["deliveries"]
    accounts = [
        (f"stripe:connected:{row['expert_id']}", row["stripe_account_id"])
        for row in (*evidence.experts, *evidence.former_accounts)
        if row["stripe_account_id"]
    ]
    for name, account in [("stripe:platform", ""), *accounts]:
        for line in await simulator.list("/balance_transactions", account):
            evidence.lines.append((name, line))
    evidence.available = await available(simulator, [account for _, account in accounts])


async def available(simulator: Simulator, accounts: Iterable[str]) -> dict[tuple[str, str], int]:
    """Returns what is available in the platform's balance and in these accounts' balances."""
    found: dict[tuple[str, str], int] = {}
    for account in ("", *accounts):
        shown = await simulator.read("/balance", account)
        for part in shown["available"]:
            found[account, part["currency"]] = part["amount"]
    return found
