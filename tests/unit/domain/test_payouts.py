"""What follows from a payout as Stripe shows it, whatever came before."""

from __future__ import annotations

import itertools
from datetime import UTC, datetime, timedelta

import pytest

from payment_service.application.get_expert_balance import ExpertBalance, merge_balances
from payment_service.domain.ledger import Posting, imbalance
from payment_service.domain.payouts import (
    AccountBalance,
    Payout,
    PayoutChangeSet,
    PayoutSnapshot,
    PayoutState,
    PayoutTransaction,
    apply_payout_snapshot,
)
from payment_service.domain.webhook_event import PAYOUT_EVENTS, envelope_of
from tests.unit.domain.builders import sums

NOW = datetime(2026, 10, 1, 12, tzinfo=UTC)
OUT = PayoutTransaction("txn_out", "USD", -9_000)
BACK = PayoutTransaction("txn_back", "USD", 9_000)


def seen(
    state: PayoutState,
    line: PayoutTransaction | None = OUT,
    failure_line: PayoutTransaction | None = None,
) -> PayoutSnapshot:
    return PayoutSnapshot(
        payout_id="po_1",
        minor_units=9_000,
        currency="USD",
        state=state,
        automatic=True,
        arrival_time=NOW + timedelta(days=1),
        create_time=NOW,
        failure_code="account_closed" if state is PayoutState.FAILED else "",
        line=line,
        failure_line=failure_line,
    )


LIFE = (
    seen(PayoutState.PENDING),
    seen(PayoutState.IN_TRANSIT),
    seen(PayoutState.PAID),
    seen(PayoutState.FAILED, OUT, BACK),
)


def follow(known: Payout | None, shown: PayoutSnapshot) -> PayoutChangeSet:
    return apply_payout_snapshot(known, shown, expert_id="ann", stripe_account_id="acct_1", now=NOW)


@pytest.mark.parametrize(
    "looks", [looks for n in (1, 2, 3, 4) for looks in itertools.combinations(LIFE, n)]
)
def test_repeated_syncs_end_in_the_same_state(
    looks: tuple[PayoutSnapshot, ...],
) -> None:
    """Some syncs see every state, some only the last: the books are those of the last."""
    known: Payout | None = None
    posted: list[Posting] = []
    for shown in (*looks, looks[-1]):
        followed = follow(known, shown)
        assert not followed.deferred
        if followed.change is None:
            continue
        assert imbalance(followed.change.postings) == {}
        assert followed.change.after.version == (known.version + 1 if known else 1)
        known = followed.change.after
        posted += followed.change.postings
    assert known is not None
    assert known.state is looks[-1].state
    left = {account: total for (account, _), total in sums(posted).items() if total}
    if known.state is PayoutState.FAILED:
        assert left == {}
        assert len(posted) == 4
    else:
        assert left == {"expert_funds:ann": 9_000, "stripe:connected:ann": -9_000}
        assert len(posted) == 2


def test_the_connected_accounts_lines_carry_stripes_ids() -> None:
    followed = follow(None, LIFE[-1])
    assert followed.change is not None
    ids = {line.balance_transaction_id: line.account for line in followed.change.postings}
    assert ids == {
        "txn_out": "stripe:connected:ann",
        "txn_back": "stripe:connected:ann",
        "": "expert_funds:ann",
    }


@pytest.mark.parametrize(
    ("shown", "deferred"),
    [
        (seen(PayoutState.PENDING, None), True),
        (seen(PayoutState.FAILED, OUT, None), True),
        (seen(PayoutState.CANCELED, OUT, None), True),
        (seen(PayoutState.FAILED, None, None), False),
        (seen(PayoutState.UNKNOWN), False),
    ],
)
def test_a_missing_balance_transaction_is_awaited(shown: PayoutSnapshot, deferred: bool) -> None:
    followed = follow(None, shown)
    assert followed.deferred is deferred
    assert followed.change is not None
    again = follow(followed.change.after, shown)
    assert again == PayoutChangeSet(None, deferred)


def test_fees_and_other_currencies_are_what_the_line_says() -> None:
    """An instant payout costs the expert a fee; what the balance lost is what is booked."""
    followed = follow(None, seen(PayoutState.PAID, PayoutTransaction("txn_1", "EUR", -9_090)))
    assert followed.change is not None
    assert {(p.account, p.currency): p.minor_units for p in followed.change.postings} == {
        ("expert_funds:ann", "EUR"): 9_090,
        ("stripe:connected:ann", "EUR"): -9_090,
    }
    assert followed.change.after.minor_units == 9_000


def test_balances_of_both_sides_meet_by_currency() -> None:
    merged = merge_balances(
        [AccountBalance("USD", 5, 7), AccountBalance("EUR", -1, 0)],
        [("JPY", 3, 0), ("USD", 12, 4)],
    )
    assert merged == [
        ExpertBalance("EUR", -1, 0, 0, 0),
        ExpertBalance("JPY", 0, 0, 3, 0),
        ExpertBalance("USD", 5, 7, 12, 4),
    ]


@pytest.mark.parametrize("kind", sorted(PAYOUT_EVENTS))
@pytest.mark.parametrize(("account", "state"), [("acct_1", "WAITING"), ("", "IGNORED")])
def test_only_connected_accounts_payouts_are_acted_upon(
    kind: str, account: str, state: str
) -> None:
    event = {
        "id": "evt_1",
        "type": kind,
        "created": 1,
        "data": {"object": {"object": "payout", "id": "po_1"}},
        **({"account": account} if account else {}),
    }
    envelope = envelope_of("connect", event)
    assert (envelope.state, envelope.account_id, envelope.object_id) == (state, account, "po_1")
