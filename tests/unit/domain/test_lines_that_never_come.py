"""A balance transaction that Stripe never shows: awaited, then booked as nothing and reported."""

from dataclasses import replace

import pytest

from payment_service.domain.ledger import Book, StripeAmount, imbalance
from payment_service.domain.operations import OperationKind
from payment_service.domain.payment import Payment, State
from payment_service.domain.snapshot import Charge, PaymentSnapshot
from payment_service.domain.sync.changes import ChangeSet, SyncContext
from payment_service.domain.sync.derive_changes import derive_changes
from tests.unit.domain.builders import HOLDING, NOW, in_state, new_operation
from tests.unit.domain.snapshots import SUCCEEDED

BOOK = Book("pay_1", "expert_1", "USD")
NOTHING = StripeAmount(0, "USD")
MOVED = StripeAmount(900, "USD", "txn_1")


def charge_of(shown: PaymentSnapshot) -> Charge:
    assert shown.charge is not None
    return shown.charge


def without(name: str) -> PaymentSnapshot:
    """A captured charge of which Stripe does not show this."""
    charge = charge_of(SUCCEEDED)
    assert charge.transfer is not None
    missing = {
        "charge": {"line": None},
        "transfer": {"transfer": replace(charge.transfer, line=None)},
        "destination": {"transfer": replace(charge.transfer, connected_line=None)},
        "fee": {"application_fee": None, "application_fee_amount": 1_000},
    }[name]
    return replace(SUCCEEDED, charge=replace(charge, **missing))  # type: ignore[arg-type]


def derived(payment: Payment, shown: PaymentSnapshot, *overdue: str) -> ChangeSet:
    context = SyncContext(
        snapshot=shown,
        operation=new_operation(OperationKind.CAPTURE, 10_000),
        booked_ids=frozenset(),
        next_operation_id="op_next",
        holding_limit=HOLDING,
        overdue=frozenset(overdue),
        now=NOW,
    )
    return derive_changes(payment, context)


@pytest.mark.parametrize("name", ["charge", "transfer", "destination", "fee"])
def test_a_capture_waits_for_its_lines_and_then_ends_without_them(name: str) -> None:
    payment = in_state(State.CAPTURING)
    shown = without(name)
    waits = derived(payment, shown)
    awaited = f"{charge_of(shown).charge_id}:capture"
    assert (waits.operation_deferred, waits.settled, waits.awaiting) == (True, False, {awaited})
    assert waits.transitions == []
    ends = derived(payment, shown, awaited)
    assert (ends.operation_deferred, ends.settled, ends.refusal) == (False, True, None)
    assert ends.payment.state is State.CAPTURED
    assert [found.kind for found in ends.discrepancies] == ["line_never_came"]
    # A fee that Stripe never shows was taken all the same: a refund must not ask the expert for it.
    assert (ends.payment.captured, ends.payment.net_commission) == (10_000, 1_000)
    for transition in ends.transitions:
        assert imbalance(transition.postings) == {}
        assert all(posting.minor_units for posting in transition.postings)
        named = [line for line in transition.postings if line.account.startswith("stripe:")]
        assert all(line.balance_transaction_id for line in named)


def test_what_never_came_stands_in_fx() -> None:
    def amounts(postings: list[object]) -> dict[str, int]:
        return {line.account: line.minor_units for line in postings}  # type: ignore[attr-defined]

    assert amounts([*BOOK.into_stripe("k", "stripe:platform", -1, 37, NOTHING)]) == {"fx": -37}
    sent = BOOK.between("k", "stripe:connected:expert_1", NOTHING, "stripe:platform", MOVED)
    assert amounts([*sent]) == {"stripe:platform": -900, "fx": 900}
    came = BOOK.between("k", "stripe:connected:expert_1", MOVED, "stripe:platform", NOTHING)
    assert amounts([*came]) == {"stripe:connected:expert_1": 900, "fx": -900}
    assert BOOK.between("k", "a", NOTHING, "b", NOTHING) == []
    # A line that came and moved another amount is not hidden in `fx`.
    assert imbalance([*BOOK.into_stripe("k", "stripe:platform", 1, 901, MOVED)]) == {"USD": 900}
