"""Reconciliation: compares payments, the ledger, and what Stripe itself shows.

If our books are behind Stripe, they follow by the ordinary transitions, with the reconciliation as
the cause. Every other difference becomes a discrepancy with its amounts and its remediation. A
discrepancy that a later run re-checks and no longer finds is closed.

First each payment is checked against its own hash chain. A payment that contradicts its chain is
reported and not synced: an operator decides what was tampered with.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.clock import database_time
from payment_service.application.fair_queue import isolated
from payment_service.application.reconciliation.audit import audit_payments
from payment_service.application.reconciliation.compare_lines import compare_lines
from payment_service.application.reconciliation.opening import book_opening
from payment_service.application.reconciliation.recheck import CONTRADICTION, recheck_open
from payment_service.application.reconciliation.report import Report
from payment_service.application.side_by_side import at_most
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.audit_trail import AUDITED
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import payment_not_found, processor_unavailable
from payment_service.domain.opening import Beginning
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Cause, JobKind
from payment_service.domain.processor_errors import misconfigured
from payment_service.domain.sync.changes import Discrepancy

log = structlog.get_logger(__name__)

_PAGE: Final = 200
_POSTINGS: Final = 20_000
#: Stripe allows 25 reads a second; this leaves most of them to the callers.
_READS_AT_ONCE: Final = 3
#: Stripe's clock has whole seconds, and is not ours.
_MARGIN: Final = timedelta(minutes=1)
#: For one payment: somebody may have tampered with its times too.
_EVER: Final = datetime.min.replace(tzinfo=UTC)


async def reconcile_if_due(app: App) -> int:
    """Reconciles everything. The job runs on one replica, once an hour."""
    if app.stripe.is_unavailable or await app.database.read(_beginning) is None:
        return 0
    if await app.database.transact(lease_reconciliation, app.policy):
        report = await reconcile(app, None, Cause("payment_service", "reconciliation"))
        log.info(
            "reconciled",
            payments=report.checked_payments,
            corrected=report.corrected_payments,
            lines=report.checked_lines,
            discrepancies=len(report.discrepancies),
            unread=len(report.unread),
        )
    return 0


def lease_reconciliation(tx: Transaction, policy: Policy) -> bool:
    return tx.lease_job("reconciliation", policy.reconcile_seconds)


async def reconcile(app: App, since: datetime | None, cause: Cause) -> Report:
    """Reconciles everything that changed since then; None means since the last complete run.

    A caller that asks for the run in progress gets its report. A run has connections of its own, so
    that it delays no call.

    A connected account that cannot be read is reported, and the next run begins for it where this
    one began. Raises :class:`Unavailable` if the platform's own balance cannot be read.
    """
    return await app.flights.join("complete", since, lambda: _reconcile(app.aside(), since, cause))


async def _reconcile(app: App, since: datetime | None, cause: Cause) -> Report:
    beginning = await app.database.read(_beginning)
    if beginning is None:  # Stripe has not answered since the first start.
        raise processor_unavailable()
    await _check_own_account(app, beginning)
    report = Report(began=await app.database.transact(database_time))
    await book_opening(app, beginning)
    if since is None:
        since = await _last_complete_run(app, report.began, beginning)
    report.faults = await audit_payments(app.database, since)
    await _sync_payments(app, since, cause, report)
    await compare_lines(app, since, beginning, cause, report)
    await _check_coverage(app, report)
    while await app.database.transact(check_balances):
        pass
    await _check_invariants(app, since, report)
    app.alarms.invariants(report.violations)
    gone = await recheck_open(app, report.checked, cause)
    await app.database.transact(save_report, report.discrepancies, gone, report.began)
    await app.database.transact(save_span, since, report.began)
    for discrepancy in report.discrepancies:
        app.alarms.discrepancy(discrepancy.payment_id, discrepancy.kind)
    return report


async def _check_own_account(app: App, beginning: Beginning) -> None:
    """Raises :class:`Unavailable` if our key is of another account than the books.

    So it is for a replica that has not ended since the books were bound to another one. It would
    book the former account's lines.
    """
    own = await app.stripe.own_account_id()
    if own != beginning.stripe_account_id:
        why = f"STRIPE_SECRET_KEY is of {own}, and the books are of {beginning.stripe_account_id}"
        log.error("stripe_account_differs", why=why)
        raise misconfigured("stripe_account_differs")


async def _last_complete_run(app: App, began: datetime, beginning: Beginning) -> datetime:
    """Returns from when on to compare: at least the span, and without a gap after an outage.

    The first run begins with the books, however late it is.
    """
    start = began - timedelta(seconds=app.policy.reconcile_span)
    until = await app.database.read(lambda reader: reader.compared_until())
    return min(start, beginning.first_line_time if until is None else until - _MARGIN)


def _beginning(reader: Reader) -> Beginning | None:
    return reader.beginning()


def check_balances(tx: Transaction) -> bool:
    """Sums up again some of what was folded since the last run. Returns whether there is more."""
    return tx.check_balances(_POSTINGS)


def save_span(tx: Transaction, since: datetime, began: datetime) -> None:
    """Stores that everything from ``since`` to ``began`` is compared."""
    tx.extend_comparison(since, began)


async def reconcile_payment(app: App, payment_id: str, cause: Cause) -> Report:
    """Compares one payment with Stripe's objects, and its stored rows with one another."""
    return await app.flights.join(
        "payment", payment_id, lambda: _reconcile_payment(app.aside(), payment_id, cause)
    )


async def _reconcile_payment(app: App, payment_id: str, cause: Cause) -> Report:
    report = Report(began=await app.database.transact(database_time))
    if await app.database.read(lambda reader: reader.payment(payment_id)) is None:
        raise payment_not_found(payment_id)
    report.faults = await audit_payments(app.database, _EVER, payment_id)
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

    async def sync(payment_id: str) -> None:
        applied = await sync_payment(app, payment_id, cause)
        report.checked_payments += 1
        report.corrected_payments += int(applied.changed)

    async def one(payment_id: str) -> None:
        await isolated(JobKind.RECONCILE, payment_id, sync)

    after: tuple[datetime, str] | None = None
    while True:
        page = await app.database.read(_payments_changed, since, after)
        # A payment that this run has changed is found again at the end; one sync is enough.
        fresh = [place for place in page if place[0] < report.began]
        ids = [payment_id for _, payment_id in fresh if payment_id not in report.faults]
        await at_most(_READS_AT_ONCE, one, ids)
        if len(page) < _PAGE or len(fresh) < len(page):
            return
        after = page[-1]


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


def _payments_changed(
    reader: Reader, since: datetime, after: tuple[datetime, str] | None
) -> Sequence[tuple[datetime, str]]:
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
