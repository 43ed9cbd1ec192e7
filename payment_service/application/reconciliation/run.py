"""Reconciliation: compares payments, the ledger, and what Stripe itself shows.

If our books are behind Stripe, they follow by the ordinary transitions, with the reconciliation as
the cause. Every other difference becomes a discrepancy with its amounts and its remediation. A
discrepancy that a later run re-checks and no longer finds is closed.

First each payment is checked against its own hash chain. A payment that contradicts its chain is
reported and not synced: an operator decides what was tampered with.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.execution.executor import database_time
from payment_service.application.fair_queue import isolated
from payment_service.application.reconciliation.audit import audit_payments
from payment_service.application.reconciliation.recheck import (
    CONTRADICTION,
    Checked,
    recheck_open,
)
from payment_service.application.sync.account import sync_account
from payment_service.application.sync.payment import sync_payment
from payment_service.application.sync.payout import sync_missing_payouts
from payment_service.domain.audit_trail import AUDITED, AuditFault
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import payment_not_found
from payment_service.domain.ledger import STRIPE_PLATFORM
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Reader, Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause, JobKind, LedgerAccount
from payment_service.domain.ports.stripe import BalanceEntry
from payment_service.domain.sync.changes import Discrepancy

log = structlog.get_logger(__name__)

_PAGE: Final = 200
#: Stripe allows 25 reads a second; this leaves most of them to the callers.
_READS_AT_ONCE: Final = 3
#: Balance transactions may differ for a moment around the edges of the span.
_EDGE: Final = timedelta(hours=1)
#: For one payment: somebody may have tampered with its times too.
_EVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class Report:
    """What a run checked and found."""

    began: datetime
    checked_payments: int = 0
    corrected_payments: int = 0
    checked_lines: int = 0
    #: The balance transactions that Stripe showed, and those of them that were compared.
    shown: set[str] = field(default_factory=set)
    compared: set[str] = field(default_factory=set)
    #: The payments that contradict their own history.
    faults: Mapping[str, Sequence[AuditFault]] = field(default_factory=dict)
    violations: Mapping[DiscrepancyKind, Sequence[str]] = field(default_factory=dict)
    discrepancies: list[Discrepancy] = field(default_factory=list)

    @property
    def checked(self) -> Checked:
        """Returns what a re-check of open discrepancies can rely on."""
        return Checked(self.shown, self.compared, list(self.violations), self.faults)


async def reconcile_if_due(app: App) -> int:
    """Reconciles everything. The job runs on one replica, once an hour."""
    if app.stripe.is_unavailable:
        return 0
    if await app.database.transact(lease_reconciliation, app.policy):
        now = await app.database.transact(database_time)
        cause = Cause("payment_service", "reconciliation")
        report = await reconcile(app, now - timedelta(seconds=app.policy.reconcile_span), cause)
        log.info(
            "reconciled",
            payments=report.checked_payments,
            corrected=report.corrected_payments,
            lines=report.checked_lines,
            discrepancies=len(report.discrepancies),
        )
    return 0


def lease_reconciliation(tx: Transaction, policy: Policy) -> bool:
    return tx.lease_job("reconciliation", policy.reconcile_seconds)


async def reconcile(app: App, since: datetime, cause: Cause) -> Report:
    """Reconciles everything that changed since then.

    Raises :class:`Unavailable` if Stripe is unavailable.
    """
    report = Report(began=await app.database.transact(database_time))
    report.faults = await audit_payments(app, since)
    await _sync_payments(app, since, cause, report)
    await _compare_lines(app, since, cause, report)
    await _check_coverage(app, report)
    await _check_invariants(app, since, report)
    app.alarms.invariants(report.violations)
    gone = await recheck_open(app, report.checked, cause)
    await app.database.transact(save_report, report.discrepancies, gone, report.began)
    for discrepancy in report.discrepancies:
        app.alarms.discrepancy(discrepancy.payment_id, discrepancy.kind)
    return report


async def reconcile_payment(app: App, payment_id: str, cause: Cause) -> Report:
    """Compares one payment with Stripe's objects, and its stored rows with one another."""
    report = Report(began=await app.database.transact(database_time))
    if await app.database.read(lambda reader: reader.payment(payment_id)) is None:
        raise payment_not_found(payment_id)
    report.faults = await audit_payments(app, _EVER, payment_id)
    if not report.faults:
        applied = await sync_payment(app, payment_id, cause)
        report.checked_payments = 1
        report.corrected_payments = int(applied.changed)
        report.discrepancies += applied.discrepancies
    await _check_invariants(app, _EVER, report, payment_id)
    gone = await recheck_open(app, report.checked, cause, payment_id)
    await app.database.transact(save_report, report.discrepancies, gone, report.began)
    return report


def save_report(
    tx: Transaction, discrepancies: Sequence[Discrepancy], gone: Sequence[str], began: datetime
) -> None:
    """Stores what was found, and closes those by the ids ``gone`` that were not found again."""
    for discrepancy in discrepancies:
        tx.report(discrepancy)
    tx.resolve_discrepancies(gone, began)


async def _sync_payments(app: App, since: datetime, cause: Cause, report: Report) -> None:
    """Syncs every payment that changed, a few at a time."""
    places = asyncio.Semaphore(_READS_AT_ONCE)

    async def sync(payment_id: str) -> None:
        applied = await sync_payment(app, payment_id, cause)
        report.checked_payments += 1
        report.corrected_payments += int(applied.changed)

    async def one(payment_id: str) -> None:
        async with places:
            await isolated(JobKind.RECONCILE, payment_id, sync)

    after: tuple[datetime, str] | None = None
    while True:
        page = await app.database.read(_payments_changed, since, after)
        # A payment that this run has changed is found again at the end; one sync is enough.
        fresh = [payment for payment in page if payment.update_time < report.began]
        ids = [payment.payment_id for payment in fresh if payment.payment_id not in report.faults]
        await asyncio.gather(*(one(payment_id) for payment_id in ids))
        if len(page) < _PAGE or len(fresh) < len(page):
            return
        after = (page[-1].update_time, page[-1].payment_id)


async def _check_coverage(app: App, report: Report) -> None:
    """Compares what the platform holds for others with its balance, available and pending."""
    shown = await app.stripe.account_balance("") or ()
    held = {balance.currency: balance.available + balance.pending for balance in shown}
    for currency, owed in await app.database.read(lambda reader: reader.obligations()):
        settled = currency in app.policy.settlement_currencies
        if settled and held.get(currency, 0) < owed:
            report.discrepancies.append(
                Discrepancy(
                    "",
                    DiscrepancyKind.ESCROW_UNDERFUNDED,
                    f"the platform's balance in {currency} is less than what it holds for others",
                    expected=owed,
                    found=held.get(currency, 0),
                    currency=currency,
                    remediation="add funds to the platform's balance, and keep its payouts manual",
                )
            )


async def _compare_lines(app: App, since: datetime, cause: Cause, report: Report) -> None:
    """Compares the ledger's ``stripe:*`` accounts with Stripe's balance transactions."""
    accounts = [
        LedgerAccount(STRIPE_PLATFORM, ("",)),
        *await app.database.read(lambda reader: reader.accounts_with_postings(since)),
    ]
    for account in accounts:
        entries = await _entries_of(app, account, since - _EDGE, cause)
        if entries is None:
            continue
        report.checked_lines += len(entries)
        found = await _compare_account(app, account, entries, since, report)
        behind = {discrepancy.payment_id for discrepancy in found if discrepancy.payment_id}
        behind -= report.faults.keys()

        async def sync(payment_id: str) -> None:
            applied = await sync_payment(app, payment_id, cause)
            report.corrected_payments += int(applied.changed)

        for payment_id in behind:
            await isolated(JobKind.RECONCILE, payment_id, sync)
        if behind:  # A payment that was only behind agrees after its sync.
            found = await _compare_account(app, account, entries, since, report)
        report.discrepancies += found


async def _entries_of(
    app: App, account: LedgerAccount, since: datetime, cause: Cause
) -> list[BalanceEntry] | None:
    """Returns Stripe's balance transactions of one ledger account.

    Returns None if the expert has just revoked our access to an account of it. That is recorded, so
    the next run knows which balance transactions it cannot read.
    """
    entries: list[BalanceEntry] = []
    for stripe_account_id in account.stripe_account_ids:
        shown = await app.stripe.balance_entries(stripe_account_id, since)
        if shown is None:
            await sync_account(app, stripe_account_id, cause)
            return None
        await sync_missing_payouts(app, stripe_account_id, shown, cause)
        entries += shown
    return entries


async def _compare_account(
    app: App,
    account: LedgerAccount,
    entries: Sequence[BalanceEntry],
    since: datetime,
    report: Report,
) -> list[Discrepancy]:
    """Compares one ledger account with ``entries``, which are from all accounts that we can read.

    Postings of an account that we cannot read any more are left out.
    """
    name = account.account
    ours = await app.database.read(
        lambda reader: reader.ledger_lines([entry.balance_transaction_id for entry in entries])
    )
    found = []
    for entry in entries:
        if entry.create_time < since:
            continue
        report.compared.add(entry.balance_transaction_id)
        line = ours.get((entry.balance_transaction_id, entry.currency))
        if line == entry.net:
            continue
        found.append(await _line_discrepancy(app, name, entry, line))
    shown_since = max(since, account.unread_time or since)
    named = await app.database.read(
        lambda reader: reader.ledger_line_ids(name, shown_since, report.began)
    )
    there = {entry.balance_transaction_id for entry in entries}
    report.shown |= there
    found += [
        Discrepancy(
            payment_id,
            DiscrepancyKind.MISSING_AT_STRIPE,
            f"{name} has {line_id}, Stripe does not",
            remediation="compare the payment's postings with Stripe's dashboard",
            line_id=line_id,
        )
        for line_id, payment_id in named.items()
        if line_id not in there
    ]
    return found


async def _line_discrepancy(
    app: App, account: str, entry: BalanceEntry, line: int | None
) -> Discrepancy:
    """Describes a balance transaction that the ledger has with another amount, or not at all."""
    reference = entry.payment_ref
    payment_id = (
        await app.database.read(lambda reader: reader.payment_of(reference)) if reference else None
    )
    amounts = Discrepancy(
        payment_id or "",
        DiscrepancyKind.LINE_DIFFERS,
        f"{entry.balance_transaction_id} ({entry.type}) on {account}",
        expected=line or 0,
        found=entry.net,
        currency=entry.currency,
        remediation="reconcile the payment; if it stays, an operator posts the difference",
        line_id=entry.balance_transaction_id,
    )
    if line is not None:
        return amounts
    if payment_id is not None or account != STRIPE_PLATFORM:
        return replace(amounts, kind=DiscrepancyKind.MISSING_IN_LEDGER)
    return replace(
        amounts,
        kind=DiscrepancyKind.UNKNOWN_BALANCE_TRANSACTION,
        remediation="Stripe moved this by itself, or it was made out of band: decide what it was",
    )


def _payments_changed(
    reader: Reader, since: datetime, after: tuple[datetime, str] | None
) -> Sequence[Payment]:
    return reader.payments_changed(since, after, _PAGE)


async def _check_invariants(
    app: App, since: datetime, report: Report, payment_id: str = ""
) -> None:
    """Checks the invariants by query, and adds the faults that the audit found."""
    violations: dict[DiscrepancyKind, Sequence[str]] = {
        **await app.database.read(lambda reader: reader.violations(since, payment_id)),
        **{kind: [] for kind in AUDITED},
    }
    details: dict[tuple[DiscrepancyKind, str], str] = {}
    for faulty, faults in report.faults.items():
        for fault in faults:
            violations[fault.kind] = [*violations[fault.kind], faulty]
            details[fault.kind, faulty] = str(fault)
    report.violations = violations
    report.discrepancies += [
        Discrepancy(
            payment_id,
            kind,
            details.get((kind, payment_id), CONTRADICTION),
            remediation="stop changing this payment and read its events: a bug, or tampering",
        )
        for kind, payment_ids in violations.items()
        for payment_id in payment_ids
    ]
