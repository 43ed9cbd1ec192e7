"""Payouts: connected account to bank. Stripe makes them; here they are read, never requested.

What is posted follows from Stripe's balance transactions alone, what is shown from its status: so
any order of events, and any number, ends the same, and a status that Stripe invents tomorrow moves
no money in the books.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from payment_service.domain.ledger import Posting, paid_out, without_zeros


class PayoutState(StrEnum):
    """The state of a payout, in Stripe's words."""

    PENDING = "PENDING"  # Left by Stripe, which sends it to the bank.
    IN_TRANSIT = "IN_TRANSIT"  # Left by the bank.
    PAID = "PAID"  # Most stay so; a bank may refuse for some days more.
    FAILED = "FAILED"
    CANCELED = "CANCELED"
    UNKNOWN = "UNKNOWN"  # A word of Stripe's that this code does not know.

    @property
    def gives_back(self) -> bool:
        """The money did not stay with the bank, so Stripe returns it to the account."""
        return self in (PayoutState.FAILED, PayoutState.CANCELED)


@dataclass(frozen=True, slots=True)
class PayoutTransaction:
    """One of the connected account's balance transactions: minor units, signed, net of fees."""

    balance_transaction_id: str
    currency: str
    net: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PayoutSnapshot:
    """What Stripe shows of a payout, read now. Minor units; times UTC."""

    payout_id: str
    minor_units: int
    currency: str
    state: PayoutState
    automatic: bool
    #: When the bank should have it; Stripe may change it.
    arrival_time: datetime
    create_time: datetime
    failure_code: str = ""
    #: What took the money out of the account, and what brought it back.
    line: PayoutTransaction | None = None
    failure_line: PayoutTransaction | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Payout:
    """A payout as recorded. Minor units; times UTC. ``create_time`` is Stripe's."""

    payout_id: str
    expert_id: str
    stripe_account_id: str
    minor_units: int
    currency: str
    state: PayoutState
    automatic: bool
    arrival_time: datetime
    failure_code: str
    #: The balance transactions that are booked; empty until they are.
    balance_transaction_id: str
    failure_balance_transaction_id: str
    version: int
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True)
class PayoutChange:
    """What a snapshot of a payout changed. The postings sum to zero."""

    before: Payout | None
    after: Payout
    postings: tuple[Posting, ...] = ()

    @property
    def kind(self) -> str:
        """The event's kind in the expert's audit trail."""
        return f"expert.payout_{self.after.state.lower()}"

    @property
    def moved_on(self) -> bool:
        """Whether the state changed, and not only a balance transaction or a time."""
        return self.before is None or self.before.state is not self.after.state


@dataclass(frozen=True, slots=True)
class PayoutChangeSet:
    """``change`` None: nothing new. ``deferred``: a balance transaction is missing, sync again."""

    change: PayoutChange | None
    deferred: bool = False


@dataclass(frozen=True, slots=True)
class AccountBalance:
    """What a connected account holds at Stripe in one currency, in minor units; may be negative."""

    currency: str
    available: int
    pending: int


def apply_payout_snapshot(
    known: Payout | None,
    seen: PayoutSnapshot,
    *,
    expert_id: str,
    stripe_account_id: str,
    now: datetime,
) -> PayoutChangeSet:
    """Returns what a snapshot changes in a recorded payout."""
    posted = known.balance_transaction_id if known else ""
    returned = known.failure_balance_transaction_id if known else ""
    postings: list[Posting] = []
    if seen.line is not None and not posted:
        posted = seen.line.balance_transaction_id
        postings += _lines(expert_id, "paid_out", seen.line)
    if seen.failure_line is not None and not returned:
        returned = seen.failure_line.balance_transaction_id
        postings += _lines(expert_id, "payout_returned", seen.failure_line)
    after = Payout(
        payout_id=seen.payout_id,
        expert_id=known.expert_id if known else expert_id,
        stripe_account_id=known.stripe_account_id if known else stripe_account_id,
        minor_units=known.minor_units if known else seen.minor_units,
        currency=known.currency if known else seen.currency,
        state=seen.state,
        automatic=known.automatic if known else seen.automatic,
        arrival_time=seen.arrival_time,
        failure_code=seen.failure_code,
        balance_transaction_id=posted,
        failure_balance_transaction_id=returned,
        version=known.version + 1 if known else 1,
        create_time=known.create_time if known else seen.create_time,
        update_time=now,
    )
    # A payout that failed before any money left has neither line, and never will.
    owed = bool(posted) != bool(returned) if seen.state.gives_back else not posted
    if known is not None and _shown(known) == _shown(after):
        return PayoutChangeSet(None, owed)
    return PayoutChangeSet(PayoutChange(known, after, tuple(postings)), owed)


def _lines(expert_id: str, kind: str, line: PayoutTransaction) -> list[Posting]:
    return without_zeros(
        paid_out(expert_id, kind, line.net, line.currency, line.balance_transaction_id)
    )


def _shown(payout: Payout) -> tuple[object, ...]:
    """Returns the fields of a payout that may change."""
    return (
        payout.state,
        payout.arrival_time,
        payout.failure_code,
        payout.balance_transaction_id,
        payout.failure_balance_transaction_id,
    )
