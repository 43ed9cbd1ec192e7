"""Report a month of the books, and what one expert earned in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from payment_service.application.app import App
from payment_service.domain.errors import Refusal, expert_not_found, invalid_field
from payment_service.domain.ledger import STRIPE_PLATFORM
from payment_service.domain.monthly import (
    SETTLES_WITHIN,
    AccountMonth,
    Comparison,
    Month,
    MonthReport,
    NamedDifference,
    StatementLine,
    Sums,
    accounts_of,
    currency_month,
)
from payment_service.domain.payouts import AccountBalance
from payment_service.domain.ports.reader import Reader


@dataclass(frozen=True, slots=True)
class Statement:
    """A page of an expert's month, and the expert's accounts in it."""

    lines: Sequence[StatementLine]
    accounts: Sequence[AccountMonth]


@dataclass(frozen=True, slots=True)
class _Read:
    """What one moment of the database shows of a month."""

    now: datetime
    sums: Sequence[Sums]
    held: Mapping[str, int]
    differences: Sequence[NamedDifference]
    compared_until: datetime | None
    #: Whether what was at Stripe before the books began is on them.
    is_opened: bool


async def report_month(app: App, month: Month, currency: str = "") -> MonthReport:
    """Returns the month. Stripe is asked only if the month is the present one."""
    aside = app.aside().database
    now = await aside.read(lambda reader: reader.moment())
    _refuse_future(month, now)
    is_present = now < month.end
    # Stripe is read first: what it moves meanwhile is then missing on its side, and comes to the
    # ledger by a webhook a moment later.
    balances = await _at_stripe(app) if is_present else None
    read = await aside.read_at_once(_read, month, currency)
    codes = sorted({one.currency for one in read.sums})
    at_stripe = None if balances is None else {one.currency: one for one in balances}
    if at_stripe and not currency:
        codes = sorted({*codes, *(code for code, one in at_stripe.items() if _is_there(one))})
    return MonthReport(
        month=month,
        end=min(month.end, read.now),
        final=read.now >= month.end + SETTLES_WITHIN,
        currencies=[
            currency_month(
                code,
                read.sums,
                read.held.get(code, 0),
                _comparison(month, code, read, at_stripe),
            )
            for code in codes
        ],
    )


async def state_month(app: App, expert_id: str, month: Month, after: int, limit: int) -> Statement:
    """Returns a page of what an expert earned, gave back, owed and was paid in a month."""
    return await app.aside().database.read_at_once(_statement, expert_id, month, after, limit)


def _read(reader: Reader, month: Month, currency: str) -> _Read:
    now, beginning = reader.moment(), reader.beginning()
    return _Read(
        now,
        reader.month_sums(month.start, min(month.end, now), currency),
        reader.held_payments(),
        reader.platform_differences(),
        reader.compared_until(),
        is_opened=beginning is not None and beginning.opening_time is not None,
    )


def _statement(reader: Reader, expert_id: str, month: Month, after: int, limit: int) -> Statement:
    if reader.expert(expert_id) is None:
        raise expert_not_found(expert_id)
    now = reader.moment()
    _refuse_future(month, now)
    end = min(month.end, now)
    lines = reader.statement(expert_id, month.start, end, after, limit)
    return Statement(lines, accounts_of(reader.expert_sums(expert_id, month.start, end)))


def _refuse_future(month: Month, now: datetime) -> None:
    if now < month.start:
        raise invalid_field("month", f"has not begun: it is {now:%Y-%m} (UTC)")


async def _at_stripe(app: App) -> Sequence[AccountBalance] | None:
    """Returns the platform's balance, or None: the books can be reported without Stripe."""
    try:
        return await app.stripe.account_balance("")
    except Refusal:
        return None


def _is_there(balance: AccountBalance) -> bool:
    return bool(balance.available or balance.pending)


def _comparison(
    month: Month, currency: str, read: _Read, balances: Mapping[str, AccountBalance] | None
) -> Comparison:
    """Compares the ledger's `stripe:platform` at the end with Stripe's balance of now."""
    own = [one for one in read.sums if one.currency == currency and one.account == STRIPE_PLATFORM]
    ledger = sum(one.closing for one in own)
    if balances is None and read.now < month.end:
        said = "Stripe did not answer, so its balance cannot be compared. Ask again."
        return Comparison(said, ledger)
    if balances is None:
        until = f"{read.compared_until:%Y-%m-%d %H:%M} UTC" if read.compared_until else "no time"
        return Comparison(
            f"Stripe shows its balance of now and none of the end of {month.name}, so that cannot "
            f"be compared. Reconciliation has compared each line of the ledger until {until}.",
            ledger,
        )
    named = [one for one in read.differences if one.currency == currency]
    resolved = sum(one.is_resolved for one in named)
    explained = sum(one.minor_units for one in named)
    balance = balances.get(currency) or AccountBalance(currency, 0, 0)
    difference = balance.available + balance.pending - ledger
    if difference == 0:
        said = "The ledger and Stripe's balance of now agree."
    elif difference == explained:
        said = "The ledger and Stripe's balance of now differ by what discrepancies name: "
        said += f"{len(named) - resolved} open, {resolved} resolved."
    elif not read.is_opened:
        said = (
            "The ledger and Stripe's balance of now differ. What was there before the books began "
            "is not on the books yet: the next reconciliation books it."
        )
    else:
        said = (
            "The ledger and Stripe's balance of now differ by more than discrepancies name: "
            "what moves at this moment, or what the next reconciliation finds."
        )
    return Comparison(
        said,
        ledger,
        balance.available,
        balance.pending,
        explained,
        [one.discrepancy_id for one in named],
    )
