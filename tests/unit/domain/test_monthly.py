"""Months, and the sums of their reports."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from payment_service.domain.monthly import (
    BooksDoNotSum,
    Comparison,
    Sums,
    accounts_of,
    currency_month,
    figures_of,
    month_of,
)

SAID = Comparison("nothing to compare", 0)


def sums(account: str, moved: int, kind: str = "captured", opening: int = 0) -> Sums:
    debits, credits_ = max(moved, 0), max(-moved, 0)
    return Sums(account, kind, "USD", opening, debits, credits_, opening + moved)


@pytest.mark.parametrize(
    ("name", "start", "end"),
    [
        ("2026-11", datetime(2026, 11, 1, tzinfo=UTC), datetime(2026, 12, 1, tzinfo=UTC)),
        ("2026-12", datetime(2026, 12, 1, tzinfo=UTC), datetime(2027, 1, 1, tzinfo=UTC)),
        ("2028-02", datetime(2028, 2, 1, tzinfo=UTC), datetime(2028, 3, 1, tzinfo=UTC)),
    ],
)
def test_a_month_is_of_utc(name: str, start: datetime, end: datetime) -> None:
    month = month_of(name)
    assert month is not None
    assert (month.start, month.end) == (start, end)


@pytest.mark.parametrize(
    "name",
    ["", "2026", "2026-00", "2026-13", "2026-1", "1999-12", "9999-12", "2026-11 ", "\u0662026-11"],
)
def test_what_is_no_month(name: str) -> None:
    assert month_of(name) is None


def test_kinds_of_one_account_are_one_account() -> None:
    [account] = accounts_of([sums("escrow", -100, "charged", -30), sums("escrow", 60)])
    assert (account.opening, account.debits) == (-30, 60)
    assert (account.credits, account.closing) == (100, -70)


def test_a_report_whose_sums_contradict_one_another_is_not_given() -> None:
    broken = Sums("escrow", "charged", "USD", 0, 0, 100, -99)
    with pytest.raises(BooksDoNotSum, match="escrow does not close in USD"):
        accounts_of([broken])
    with pytest.raises(BooksDoNotSum, match="do not sum to zero in USD"):
        currency_month("USD", [sums("escrow", -100)], 0, SAID)
    with pytest.raises(BooksDoNotSum, match="the opening balances"):
        one_sided = [sums("escrow", 0, opening=-5), sums("hold", 0)]
        currency_month("USD", one_sided, 0, SAID)
    whole = currency_month("USD", [sums("escrow", -100), sums("stripe:platform", 100)], 1, SAID)
    assert whole.held_payments == 1


def test_figures_leave_adjustments_and_what_was_owed_before_apart() -> None:
    found = {
        figure.name: figure.minor_units
        for figure in figures_of(
            [
                sums("commission", -1_000),
                sums("commission", 300, "client_refunded"),
                sums("commission", 50, "adjusted"),
                sums("losses", -50, "adjusted"),
                sums("expert_debt", 2_700, "client_refunded"),
                sums("client_payable", 500, "client_refunded"),
                sums("stripe:platform", -3_500, "client_refunded"),
                sums("expert_funds", 9_000, "paid_out"),
                sums("expert_funds", -2_000, "payout_returned"),
            ]
        )
    }
    assert (found["commission_earned"], found["commission_given_back"]) == (1_000, 300)
    assert found["refunded"] == 3_000
    assert found["losses"] == 0
    assert found["adjusted"] == 50
    assert found["experts_paid_out"] == 7_000
    assert found["result"] == 700


def test_a_difference_needs_both_sides() -> None:
    assert SAID.difference is None
    assert Comparison("x", 100, 60, 50).difference == 10
