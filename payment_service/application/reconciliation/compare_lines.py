"""Compares the ledger's ``stripe:*`` accounts with Stripe's balance transactions, one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.fair_queue import isolated
from payment_service.application.reconciliation.report import Report
from payment_service.application.sync.account import sync_account
from payment_service.application.sync.payment import sync_payment
from payment_service.application.sync.payout import sync_missing_payouts
from payment_service.domain import platform_lines
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Refusal
from payment_service.domain.ledger import STRIPE_PLATFORM
from payment_service.domain.opening import Beginning
from payment_service.domain.platform_lines import PlatformLine
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause, JobKind, LedgerAccount
from payment_service.domain.ports.stripe import BalanceEntry
from payment_service.domain.sync.changes import Discrepancy

log = structlog.get_logger(__name__)

#: Balance transactions may differ for a moment around the edges of the span.
_EDGE: Final = timedelta(hours=1)
_EVER: Final = datetime.min.replace(tzinfo=UTC)


async def compare_lines(
    app: App, since: datetime, beginning: Beginning, cause: Cause, report: Report
) -> None:
    """Compares every account of the ledger at Stripe. One that cannot be read stops no other.

    The platform's lines of before the beginning are in its opening balance. Raises
    :class:`Unavailable` if the platform's own account cannot be read.
    """
    # Postings of before the binding are of the account that the books were of before.
    platform = LedgerAccount(STRIPE_PLATFORM, ("",), unread_time=beginning.bind_time)
    first = beginning.first_line_time
    await _compare_account(app, platform, max(since, first), cause, report, first)
    for account in await app.database.read(lambda reader: reader.accounts_to_compare(since)):
        begin = min(since, account.compared_until or since)
        try:
            await _compare_account(app, account, begin, cause, report)
        except Exception as error:  # noqa: BLE001 - one account must hide nothing of the others
            reason = error.reason if isinstance(error, Refusal) else type(error).__name__
            log.warning("account_unread", account=account.account, reason=reason)
            report.unread.append(account.account)
            report.discrepancies.append(_unread(account.account))
            await app.database.transact(keep_span, account.account, begin)
        else:
            if account.compared_until is not None:
                await app.database.transact(close_span, account.account)


def keep_span(tx: Transaction, account: str, since: datetime) -> None:
    """Stores that an account is compared up to ``since`` only."""
    tx.keep_comparison(account, since)


def close_span(tx: Transaction, account: str) -> None:
    """Stores that an account is compared as far as all others."""
    tx.close_comparison(account)


def _unread(account: str) -> Discrepancy:
    return Discrepancy(
        "",
        DiscrepancyKind.ACCOUNT_UNREAD,
        f"{account} could not be read at Stripe",
        remediation="the next run begins where this one began; if this stays, ask Stripe",
    )


async def _compare_account(
    app: App,
    account: LedgerAccount,
    since: datetime,
    cause: Cause,
    report: Report,
    first: datetime = _EVER,
) -> None:
    entries = await _entries_of(app, account, max(since - _EDGE, first), cause)
    if entries is None:
        return
    if account.account == STRIPE_PLATFORM:
        await _book_platform_lines(app, entries)
    report.checked_lines += len(entries)
    found = await _differences(app, account, entries, since, report, first)
    behind = {discrepancy.payment_id for discrepancy in found if discrepancy.payment_id}
    behind -= report.faults.keys()

    async def sync(payment_id: str) -> None:
        applied = await sync_payment(app, payment_id, cause)
        report.corrected_payments += int(applied.changed)

    for payment_id in behind:
        await isolated(JobKind.RECONCILE, payment_id, sync)
    if behind:  # A payment that was only behind agrees after its sync.
        found = await _differences(app, account, entries, since, report, first)
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


async def _book_platform_lines(app: App, entries: Sequence[BalanceEntry]) -> None:
    """Books what Stripe moved on the platform's account by itself, as far as its type explains."""
    ids = [entry.balance_transaction_id for entry in entries]
    ours = await app.database.read(lambda reader: reader.ledger_lines(ids))
    known = {line_id for line_id, _ in ours}
    for entry in entries:
        account = platform_lines.account_of(
            entry.type, entry.category, entry.description, entry.source_id
        )
        if not account or not entry.net or entry.balance_transaction_id in known:
            continue
        line = PlatformLine(
            line_id=entry.balance_transaction_id,
            type=entry.type,
            description=entry.description,
            account=account,
            net=entry.net,
            currency=entry.currency,
            create_time=entry.create_time,
        )
        await app.database.transact(book_platform_line, line)


def book_platform_line(tx: Transaction, line: PlatformLine) -> bool:
    """Books a line once, however many runs find it."""
    return tx.book_platform_line(line)


async def _differences(
    app: App,
    account: LedgerAccount,
    entries: Sequence[BalanceEntry],
    since: datetime,
    report: Report,
    first: datetime,
) -> list[Discrepancy]:
    """Compares one ledger account with ``entries``, which are from all accounts that we can read.

    Postings of an account that we cannot read any more are left out. A line that moves nothing
    needs no posting.
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
        if (line or 0) != entry.net:
            found.append(await _line_discrepancy(app, name, entry, line))
    shown_since = max(since, account.unread_time or since)
    named = await app.database.read(
        lambda reader: reader.ledger_line_ids(name, shown_since, report.began)
    )
    there = {entry.balance_transaction_id for entry in entries}
    older = await _older_lines(app, account, named.keys() - there)
    there |= older.keys()
    report.shown |= there
    before = [entry for entry in older.values() if entry.create_time < first]
    found += await _booked_twice(app, name, before, named)
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


async def _older_lines(
    app: App, account: LedgerAccount, line_ids: set[str]
) -> dict[str, BalanceEntry]:
    """Returns those of the lines that Stripe has, though it does not list them since that time.

    After an outage a posting may be days younger than its line at Stripe.
    """
    return {
        line_id: entry
        for line_id in line_ids
        for stripe_account_id in account.stripe_account_ids
        if (entry := await app.stripe.balance_entry(stripe_account_id, line_id)) is not None
    }


async def _booked_twice(
    app: App, account: str, before: Sequence[BalanceEntry], named: Mapping[str, str]
) -> list[Discrepancy]:
    """Describes lines of before the books began that are booked all the same."""
    ids = [entry.balance_transaction_id for entry in before]
    ours = await app.database.read(lambda reader: reader.ledger_lines(ids)) if ids else {}
    return [
        Discrepancy(
            named[line_id],
            DiscrepancyKind.LINE_DIFFERS,
            f"{line_id} (of before the books began) on {account}",
            expected=booked,
            found=0,
            currency=currency,
            remediation="the opening balance has it too: the month differs by its amount",
            line_id=line_id,
        )
        for (line_id, currency), booked in ours.items()
    ]


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
        remediation="reconcile the payment; if it stays, say with ResolveDiscrepancy what it was",
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
