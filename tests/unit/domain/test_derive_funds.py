"""From a snapshot to changes: what Stripe has accepted and does later."""

from dataclasses import replace

import pytest

from payment_service.domain.ledger import expert_debt, pending_refund
from payment_service.domain.payment import State, WaitingFor, WaitingReason
from payment_service.domain.snapshot import PaymentSnapshot, Refund, Reversal, Transfer
from payment_service.domain.sync.reversals import collectible
from tests.unit.domain.builders import in_state
from tests.unit.domain.fake_service import FakeService, followed_kinds, reported
from tests.unit.domain.snapshots import bounced, paid_out


def refunding(amount: int) -> tuple[FakeService, str]:
    """A refund of ours that Stripe has not paid yet, and the id of its operation."""
    service = paid_out()
    service.start_give_back(amount)
    assert service.operation is not None
    return service, service.operation.operation_id


def with_refund(service: FakeService, refund: Refund) -> PaymentSnapshot:
    return replace(service.observe(), refunds=(refund,))


def test_a_pending_refund_is_accepted_and_divided_once() -> None:
    service, made_by = refunding(4_000)
    seen = with_refund(service, Refund("re_1", 4_000, "pending", made_by))
    to = service.follow(seen)
    assert followed_kinds(to) == ["refund_accepted"]
    assert (to.accepted, to.deferred, to.settled) == (True, False, False)
    payment = to.payment
    assert (payment.state, payment.waiting_for, payment.waiting_reason) == (
        State.REFUNDING,
        WaitingFor.PROCESSOR,
        WaitingReason.REFUND_PENDING_FUNDS,
    )
    assert (payment.refunded_after_capture, payment.pending_refund) == (4_000, 4_000)
    assert service.balance(expert_debt(payment.expert_id)) == 3_600
    assert service.balance(pending_refund(payment.payment_id)) == -4_000
    again = service.follow(seen)
    assert (again.transitions, again.accepted) == ([], True)


def test_an_accepted_refund_that_is_paid_is_not_divided_again() -> None:
    service, made_by = refunding(4_000)
    service.follow(with_refund(service, Refund("re_0", 4_000, "pending", made_by)))
    service.send()
    to = service.follow()
    assert followed_kinds(to) == ["client_refunded"]
    assert to.transitions[0].facts["from_pending"] == 4_000
    assert (to.settled, to.refusal, to.next_operation) == (True, None, None)
    payment = to.payment
    assert (payment.state, payment.pending_refund, payment.net) == (State.CAPTURED, 0, 6_000)
    assert payment.waiting_reason is WaitingReason.NOTHING
    assert service.balance(expert_debt(payment.expert_id)) == 3_600


def test_an_accepted_refund_that_is_never_paid_is_payable() -> None:
    service, made_by = refunding(4_000)
    service.follow(with_refund(service, Refund("re_1", 4_000, "pending", made_by)))
    to = service.follow(with_refund(service, Refund("re_1", 4_000, "failed", made_by)))
    assert followed_kinds(to) == ["pending_refund_failed"]
    assert reported(to) == ["refund_failed"]
    assert (service.payment.pending_refund, service.payment.client_payable) == (0, 4_000)
    assert service.operation is not None
    assert service.operation.is_repayment


def test_a_repayment_that_is_never_paid_stays_payable() -> None:
    service = bounced()
    service.resume()
    assert service.operation is not None
    [known] = service.intent.refunds
    made_by = service.operation.operation_id
    waiting = Refund("re_9", 10_000, "pending", made_by)
    to = service.follow(replace(service.observe(), refunds=(waiting, known)))
    assert (followed_kinds(to), to.accepted) == (["waiting_changed"], True)
    failed = replace(waiting, status="failed")
    to = service.follow(replace(service.observe(), refunds=(failed, known)))
    assert followed_kinds(to) == ["repayment_abandoned"]
    assert service.payment.client_payable == 10_000
    assert service.operation.operation_id != made_by


def with_reversal(service: FakeService, reversal: Reversal) -> PaymentSnapshot:
    seen = service.observe()
    charge = seen.charge
    assert charge is not None
    assert charge.transfer is not None
    transfer = replace(charge.transfer, reversals=(reversal,))
    return replace(seen, charge=replace(charge, transfer=transfer))


def test_a_reversal_that_is_not_done_takes_nothing_yet() -> None:
    service, _ = refunding(3_333)
    service.send()
    service.follow()
    assert service.operation is not None
    pending = Reversal("trr_1", 3_000, service.operation.operation_id, status="pending")
    to = service.follow(with_reversal(service, pending))
    assert (to.transitions, to.movements, to.accepted) == ([], [], True)
    assert service.balance(expert_debt(to.payment.expert_id)) == 3_000
    to = service.follow(with_reversal(service, replace(pending, status="failed")))
    assert followed_kinds(to) == ["expert_debt_recorded"]
    assert to.settled
    assert service.balance(expert_debt(to.payment.expert_id)) == 3_000


@pytest.mark.parametrize("status", ["", "succeeded"])
def test_a_reversal_that_is_done_is_booked(status: str) -> None:
    service, _ = refunding(3_333)
    service.send()
    service.follow()
    assert service.operation is not None
    done = Reversal("trr_1", 3_000, service.operation.operation_id, status=status)
    to = service.follow(with_reversal(service, done))
    assert followed_kinds(to) == ["transfer_reversed"]


def test_a_failed_reversal_can_be_made_again() -> None:
    reversals = tuple(
        Reversal(f"trr_{n}", amount, status=status)
        for n, (amount, status) in enumerate([(1_000, ""), (500, "pending"), (700, "failed")])
    )
    assert Transfer("tr_1", 9_000, "USD", reversals=reversals).left == 7_500


@pytest.mark.parametrize(
    ("owed", "available", "taken"),
    [(9_000, 20_000, 9_000), (9_000, 4_500, 4_500), (9_000, 0, 0), (9_000, -5, 0), (0, 9_000, 0)],
)
def test_what_the_account_has_is_collected(owed: int, available: int, taken: int) -> None:
    transfer = Transfer("tr_1", 9_000, "USD")
    found = collectible(owed, available, transfer, in_state(State.REFUNDED), 0)
    assert found == (taken, taken)


def test_a_converted_collection_never_takes_more_than_there_is() -> None:
    payment = replace(in_state(State.REFUNDED), currency="CAD", amount=10_007, captured=10_007)
    transfer = Transfer("tr_1", 7_311, "USD")
    for available in range(1, 200):
        for before in range(0, 40, 7):
            amount, taken = collectible(9_000, available, transfer, payment, before)
            assert 0 <= taken <= available
            assert (amount == 0) == (taken == 0)
