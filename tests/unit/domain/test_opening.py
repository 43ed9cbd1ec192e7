"""The opening balance: the same whenever it is computed, and of what was there before."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from payment_service.domain.ledger import OPENING_BALANCE, STRIPE_PLATFORM
from payment_service.domain.opening import (
    Beginning,
    leaving_lines,
    opening_amounts,
    opening_lines,
)
from payment_service.domain.payouts import AccountBalance
from payment_service.domain.ports.stripe import BalanceEntry

BOUND = datetime(2026, 11, 30, 12, 0, 0, 123_456, tzinfo=UTC)
BEGINNING = Beginning("acct_1", BOUND)

_currencies = st.sampled_from(["USD", "EUR", "JPY"])
_moves = st.lists(st.tuples(_currencies, st.integers(-(10**12), 10**12)), max_size=20)
_had = st.dictionaries(_currencies, st.integers(-(10**12), 10**12))


def _line(number: int, currency: str, net: int) -> BalanceEntry:
    return BalanceEntry(f"txn_{number}", currency, net, "charge", "", BOUND)


def _balances(had: dict[str, int], lines: list[BalanceEntry]) -> list[AccountBalance]:
    """As Stripe shows them: a part of the money is pending."""
    sums = dict(had)
    for line in lines:
        sums[line.currency] = sums.get(line.currency, 0) + line.net
    return [AccountBalance(one, 100, total - 100) for one, total in sums.items()]


@given(_had, _moves, st.integers(0, 20))
def test_it_is_the_same_whenever_it_is_computed(
    had: dict[str, int], moves: list[tuple[str, int]], seen: int
) -> None:
    lines = [_line(number, *move) for number, move in enumerate(moves)]
    wanted = {currency: amount for currency, amount in had.items() if amount}
    for shown in (lines[:seen], lines):
        assert opening_amounts(_balances(had, shown), shown, {}) == wanted


def test_the_books_begin_in_a_whole_second_before_they_were_bound() -> None:
    first = BEGINNING.first_line_time
    assert first.microsecond == 0
    assert timedelta(minutes=1) <= BOUND - first < timedelta(minutes=1, seconds=1)


def test_it_names_no_line_of_stripes_and_sums_to_zero() -> None:
    for made in (opening_lines, leaving_lines):
        for line in made(BEGINNING, {"USD": 100_000, "EUR": -7}):
            assert {posting.balance_transaction_id for posting in line.postings} == {""}
            assert {posting.account for posting in line.postings} == {
                STRIPE_PLATFORM,
                OPENING_BALANCE,
            }
            assert sum(posting.minor_units for posting in line.postings) == 0


def test_each_binding_has_lines_of_its_own() -> None:
    """The books may leave an account and come back to it."""
    again = Beginning("acct_1", BOUND + timedelta(microseconds=1))
    ids = [
        line.line_id
        for made in (opening_lines, leaving_lines)
        for beginning in (BEGINNING, again)
        for line in made(beginning, {"USD": 1, "EUR": 2})
    ]
    assert len(set(ids)) == len(ids) == 8
