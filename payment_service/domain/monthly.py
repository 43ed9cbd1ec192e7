"""A month of the books: balances of accounts, and figures that are sums of postings.

A month is one of UTC. A posting belongs to it by the time at which it was posted. The accounts of
single payments and experts are together here: `escrow` is the sum of all `escrow:{payment}`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final

#: A transaction that took its time before the month ended has committed by then, or never does:
#: statements and idle transactions end after seconds.
SETTLES_WITHIN: Final = timedelta(minutes=5)

#: Closed later than that, so that the clock may even go back a little.
CLOSES_AFTER: Final = timedelta(hours=6)

_MONTH: Final = re.compile(r"([0-9]{4})-(0[1-9]|1[0-2])")


class BooksDoNotSum(RuntimeError):
    """The sums of a report contradict one another: a bug, or tampering. Nothing is reported."""


@dataclass(frozen=True, slots=True)
class Month:
    """A month of UTC, such as ``2026-11``."""

    name: str
    start: datetime
    end: datetime


def month_of(name: str) -> Month | None:
    """Returns the month, or None if the text is no month."""
    match = _MONTH.fullmatch(name)
    if match is None or not 2000 <= int(match[1]) <= 9998:
        return None
    year, number = int(match[1]), int(match[2])
    start = datetime(year, number, 1, tzinfo=UTC)
    end = datetime(year + number // 12, number % 12 + 1, 1, tzinfo=UTC)
    return Month(name, start, end)


def month_at(moment: datetime) -> Month:
    """Returns the month of UTC in which a moment is."""
    utc = moment.astimezone(UTC)
    found = month_of(f"{utc:%Y-%m}")
    assert found is not None, "the database's clock is out of this age"
    return found


@dataclass(frozen=True, slots=True)
class Sums:
    """What the postings of one kind on one account sum to, in one currency. Debit is positive."""

    account: str
    kind: str
    currency: str
    opening: int
    debits: int
    credits: int
    #: Summed by itself and not derived from the three above.
    closing: int


@dataclass(frozen=True, slots=True)
class AccountMonth:
    """An account in a month; minor units. ``credits`` have no sign."""

    account: str
    currency: str
    opening: int
    debits: int
    credits: int
    closing: int


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of a month, and what it is a sum of."""

    name: str
    minor_units: int
    meaning: str


@dataclass(frozen=True, slots=True)
class NamedDifference:
    """What Stripe's balance of the platform has more than the ledger, by one discrepancy."""

    discrepancy_id: str
    currency: str
    minor_units: int
    #: A person has resolved it, and the line differs all the same.
    is_resolved: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """The ledger's `stripe:platform` against Stripe's balance, in one currency."""

    sentence: str
    ledger: int
    #: None if Stripe's balance cannot be known.
    available: int | None = None
    pending: int | None = None
    explained: int = 0
    discrepancy_ids: Sequence[str] = ()

    @property
    def difference(self) -> int | None:
        """Returns what Stripe has more than the ledger."""
        if self.available is None or self.pending is None:
            return None
        return self.available + self.pending - self.ledger


@dataclass(frozen=True, slots=True)
class CurrencyMonth:
    """A month in one currency."""

    currency: str
    accounts: Sequence[AccountMonth]
    figures: Sequence[Figure]
    held_payments: int
    comparison: Comparison


@dataclass(frozen=True, slots=True)
class MonthReport:
    """A month of the books."""

    month: Month
    #: The end of the month, or the time of the report if the month has not ended.
    end: datetime
    #: Nothing can be posted into it any more.
    final: bool
    currencies: Sequence[CurrencyMonth]


@dataclass(frozen=True, slots=True)
class StatementLine:
    """What one event posted about an expert, in one currency. Signs as in the contract."""

    posting_id: int
    time: datetime
    payment_id: str
    kind: str
    currency: str
    gross: int
    commission: int
    funds: int
    paid_out: int
    debt: int


@dataclass(frozen=True, slots=True)
class _Rule:
    """How a figure is made of postings."""

    name: str
    meaning: str
    measure: Callable[[Sums], int]


def _movement(sums: Sums) -> int:
    return sums.debits - sums.credits


def _is_adjusted(sums: Sums) -> bool:
    return sums.kind == "adjusted"


_PAYOUTS: Final = ("paid_out", "payout_returned")
_REFUNDS: Final = ("client_refunded", "refund_accepted")
#: What was owed to the client before a refund pays it, and so is no new refund.
_OWED: Final = ("client_payable", "pending_refund")
_RESULT: Final = (
    *("commission", "processor_fee", "dispute_fee", "platform_fees", "contributions"),
    *("account_deficits", "losses", "settled_out_of_band", "fx"),
)


def _debits(account: str, *kinds: str) -> Callable[[Sums], int]:
    return lambda one: one.debits if one.account == account and one.kind in kinds else 0


def _credits(account: str, *kinds: str) -> Callable[[Sums], int]:
    return lambda one: one.credits if one.account == account and one.kind in kinds else 0


def _net(account: str) -> Callable[[Sums], int]:
    """Measures an account of costs: debits less credits, without adjustments."""
    return lambda one: _movement(one) if one.account == account and not _is_adjusted(one) else 0


def _closing(account: str, sign: int) -> Callable[[Sums], int]:
    return lambda one: sign * one.closing if one.account == account else 0


_RULES: Final = (
    _Rule("charged", "charged to clients' cards", _credits("escrow", "charged")),
    _Rule("captured", "captured for experts and the platform", _debits("escrow", "captured")),
    _Rule("commission_earned", "commission of captures", _credits("commission", "captured")),
    _Rule(
        "commission_given_back",
        "commission that refunds and lost disputes gave back",
        lambda one: one.debits if one.account == "commission" and not _is_adjusted(one) else 0,
    ),
    _Rule(
        "refunded",
        "refunds to clients, counted when Stripe accepted them",
        lambda one: (
            one.debits
            if one.kind in _REFUNDS
            and one.account not in _OWED
            and not one.account.startswith(("stripe:", "fx"))
            else 0
        ),
    ),
    _Rule(
        "refunds_failed",
        "refunds that came back or were never paid: owed to clients again",
        _credits("client_payable", "refund_failed", "pending_refund_failed"),
    ),
    _Rule(
        "disputes_withdrawn",
        "what Stripe took for disputes",
        _debits("dispute_hold", "dispute_withdrawn"),
    ),
    _Rule(
        "disputes_reinstated",
        "what Stripe gave back for disputes",
        _credits("dispute_hold", "dispute_reinstated"),
    ),
    _Rule("disputes_lost", "what banks kept", _credits("dispute_hold", "dispute_lost")),
    _Rule("processor_fees", "Stripe's fees for charges", _net("processor_fee")),
    _Rule("dispute_fees", "Stripe's fees for disputes", _net("dispute_fee")),
    _Rule("platform_fees", "what Stripe bills the platform besides", _net("platform_fees")),
    _Rule("losses", "what the platform bears, less what came back", _net("losses")),
    _Rule(
        "adjusted",
        "corrections by two people: the sum of their debits",
        lambda one: one.debits if _is_adjusted(one) else 0,
    ),
    _Rule(
        "debts_written_off",
        "debts of experts that were written off",
        _credits("expert_debt", "debt_written_off"),
    ),
    _Rule(
        "experts_paid_out",
        "paid to experts' banks, less what came back",
        lambda one: _movement(one) if one.account == "expert_funds" and one.kind in _PAYOUTS else 0,
    ),
    _Rule("held_in_escrow", "held by the platform at the end", _closing("escrow", -1)),
    _Rule("reserved_on_cards", "authorized on cards at the end", _closing("hold", 1)),
    _Rule("owed_to_clients", "failed refunds at the end", _closing("client_payable", -1)),
    _Rule("refunds_pending", "refunds that wait for funds", _closing("pending_refund", -1)),
    _Rule("experts_debt", "what experts owe at the end", _closing("expert_debt", 1)),
    _Rule("owed_to_experts", "earned and not paid out at the end", _closing("expert_funds", -1)),
    _Rule(
        "opening_balance",
        "what the account at Stripe had before the books began",
        _closing("opening_balance", -1),
    ),
    _Rule(
        "result",
        "the platform's result: all result accounts together",
        lambda one: -_movement(one) if one.account in _RESULT else 0,
    ),
)


def accounts_of(sums: Iterable[Sums]) -> list[AccountMonth]:
    """Returns the accounts of all currencies. Raises :class:`BooksDoNotSum`."""
    found: dict[tuple[str, str], list[int]] = {}
    for one in sums:
        values = found.setdefault((one.account, one.currency), [0, 0, 0, 0])
        for place, value in enumerate((one.opening, one.debits, one.credits, one.closing)):
            values[place] += value
    accounts = [AccountMonth(*key, *values) for key, values in sorted(found.items())]
    for account in accounts:
        if account.opening + account.debits - account.credits != account.closing:
            raise BooksDoNotSum(f"{account.account} does not close in {account.currency}")
    return accounts


def figures_of(sums: Sequence[Sums]) -> list[Figure]:
    """Returns the figures of one currency."""
    return [
        Figure(rule.name, sum(rule.measure(one) for one in sums), rule.meaning) for rule in _RULES
    ]


def currency_month(
    currency: str, sums: Sequence[Sums], held_payments: int, comparison: Comparison
) -> CurrencyMonth:
    """Returns a month in one currency. Raises :class:`BooksDoNotSum`."""
    own = [one for one in sums if one.currency == currency]
    accounts = accounts_of(own)
    for name in ("opening", "closing"):
        if sum(getattr(account, name) for account in accounts):
            raise BooksDoNotSum(f"the {name} balances do not sum to zero in {currency}")
    if sum(account.debits for account in accounts) != sum(one.credits for one in accounts):
        raise BooksDoNotSum(f"debits and credits differ in {currency}")
    return CurrencyMonth(currency, accounts, figures_of(own), held_payments, comparison)
