"""From a snapshot to changes: our refunds, and refunds that fail."""

from dataclasses import replace
from fractions import Fraction

import pytest

from payment_service.domain.operation_payloads import ReversalPayload
from payment_service.domain.operations import OperationKind, OperationPurpose
from payment_service.domain.payment import State, WaitingFor
from payment_service.domain.snapshot import BalanceTransaction, Refund
from payment_service.domain.sync.changes import Movement
from tests.unit.domain.builders import in_state
from tests.unit.domain.fake_intent import Exchange
from tests.unit.domain.fake_service import followed_kinds, reported
from tests.unit.domain.snapshots import REFUND, SUCCEEDED, bounced, followed, paid_out

# ---- refunds: ours ----


def test_our_refund_is_followed_by_the_experts_reversal() -> None:
    service = paid_out()
    service.start_give_back(3_333)
    first = service.operation
    service.send()
    to = service.follow()
    assert followed_kinds(to) == ["client_refunded"]
    assert to.settled
    assert to.refusal is None
    assert to.movements == [Movement(service.intent.refunds[0].refund_id, "refund", 3_333, "op_3")]
    assert to.next_operation is not None
    assert first is not None
    coming = to.next_operation
    assert (coming.kind, coming.minor_units) == (OperationKind.REVERSE_TRANSFER, 3_000)
    assert coming.payload == ReversalPayload(transfer_id="tr_1", transfer_minor_units=3_000)
    assert coming.purpose is OperationPurpose.REQUESTED
    assert (to.payment.state, to.payment.operation_id) == (State.REFUNDING, "op_4")
    service.send()
    to = service.follow()
    assert followed_kinds(to) == ["transfer_reversed"]
    assert to.settled
    assert (to.payment.state, to.payment.net, to.payment.operation_id) == (
        State.CAPTURED,
        6_667,
        "",
    )
    service.check_reconciled()


def test_refund_that_is_all_commission_has_no_second_leg() -> None:
    """An operator captured all of it as commission, out of band."""
    payment = replace(in_state(State.REFUNDING), net_commission=10_000)
    line = BalanceTransaction("txn_r", "USD", 10_000)
    refund = Refund("re_1", 10_000, "succeeded", "op_1", line)
    to = followed(payment, replace(SUCCEEDED, refunds=(refund,)), REFUND)
    assert (to.next_operation, to.settled) == (None, True)
    assert (to.payment.state, to.payment.operation_id) == (State.REFUNDED, "")


def test_refund_that_takes_nothing_from_the_commission_is_all_the_experts() -> None:
    service = paid_out()
    service.start_give_back(4)
    service.send()
    to = service.follow()
    assert to.transitions[0].facts["commission"] == 0
    assert to.next_operation is not None
    assert to.next_operation.minor_units == 4


def test_experts_leg_is_asked_for_in_the_transfers_currency() -> None:
    service = paid_out(Exchange("EUR", Fraction(9, 10)))
    service.start_give_back(3_333)
    service.send()
    to = service.follow()
    assert to.next_operation is not None
    assert to.next_operation.minor_units == 3_000
    assert isinstance(to.next_operation.payload, ReversalPayload)
    assert to.next_operation.payload.transfer_minor_units == 2_700
    service.send()
    service.follow()
    service.check_reconciled()
    assert service.balance("expert_debt:expert_1") == 0


def test_our_refund_that_failed_at_once_leaves_everything_as_it_was() -> None:
    payment = in_state(State.REFUNDING)
    refund = Refund("re_1", 10_000, "failed", "op_1")
    to = followed(payment, replace(SUCCEEDED, refunds=(refund,)), REFUND)
    assert followed_kinds(to) == ["refund_refused"]
    assert (to.payment.state, to.payment.net) == (State.CAPTURED, 10_000)
    assert to.refusal is not None
    assert to.refusal.reason == "REFUSED_BY_PROCESSOR"
    again = followed(to.payment, replace(SUCCEEDED, refunds=(refund,)), None, "re_1", "re_1:failed")
    assert again.transitions == []


def test_stripes_answer_counts_even_if_its_list_is_behind() -> None:
    refund = Refund("re_1", 10_000, "succeeded", "op_1")
    seen = SUCCEEDED.with_answer(refund)
    assert seen.refunds == (refund,)
    assert seen.with_answer(refund) is seen


# ---- refunds: failed ----


def test_failed_refund_is_client_payable_and_parked_for_an_operator() -> None:
    service = bounced()
    assert service.discrepancies == ["refund_failed"]
    assert service.payment.client_payable == 10_000
    assert service.payment.waiting_for is WaitingFor.OPERATOR
    assert service.operation is not None
    assert service.operation.kind is OperationKind.REFUND
    assert service.operation.is_repayment
    assert service.follow().transitions == []


def test_failed_refund_is_payable_at_once_and_repaid_after_the_current_operation() -> None:
    service = paid_out()
    service.start_give_back(5_000)
    service.send()
    service.follow()
    service.intent.bounce(service.intent.refunds[0].refund_id)
    under_way = service.operation
    to = service.follow()
    assert followed_kinds(to) == ["refund_failed"]
    assert (service.payment.client_payable, service.operation) == (5_000, under_way)
    service.send()
    assert followed_kinds(service.follow()) == ["transfer_reversed"]
    assert service.operation is not None
    assert service.operation.is_repayment
    assert service.payment.waiting_for is WaitingFor.OPERATOR


@pytest.mark.parametrize(
    ("out_of_band", "left", "kinds"),
    [
        (3_000, 2_000, ["refunded_out_of_band", "repayment_abandoned"]),
        (5_000, 0, ["refunded_out_of_band", "repayment_abandoned"]),
        (7_000, 0, ["refunded_out_of_band", "repayment_abandoned"]),
    ],
)
def test_an_out_of_band_refund_reduces_the_client_payable_first(
    out_of_band: int, left: int, kinds: list[str]
) -> None:
    service = paid_out()
    service.give_back(5_000)
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    first = service.operation
    service.intent.refund(out_of_band)
    to = service.follow()
    assert (followed_kinds(to), to.settled) == (kinds, True)
    assert service.payment.client_payable == left
    assert service.payment.refunded_after_capture == 5_000 + max(out_of_band - 5_000, 0)
    if left:
        assert first is not None
        assert service.operation is not None
        assert service.operation.minor_units == left
        assert service.operation.operation_id != first.operation_id
    else:
        assert service.operation is None


def test_refund_that_fails_twice_is_still_client_payable() -> None:
    service = bounced()
    service.send()
    service.follow()
    assert service.payment.state is State.REFUNDED
    service.intent.bounce(service.intent.refunds[1].refund_id)
    service.follow()
    assert (service.payment.client_payable, service.payment.state) == (10_000, State.REFUNDING)
    service.check_reconciled()


def test_repayment_that_failed_before_the_snapshot_can_be_tried_again() -> None:
    service = bounced()
    service.send()
    service.intent.bounce(service.intent.refunds[1].refund_id)
    first = service.operation
    to = service.follow()
    assert followed_kinds(to) == ["client_repaid", "refund_failed"]
    assert to.refusal is not None
    assert service.payment.client_payable == 10_000
    assert service.operation is not None
    assert first is not None
    assert service.operation.operation_id != first.operation_id
    service.send()
    service.follow()
    assert (service.payment.state, service.payment.client_payable) == (State.REFUNDED, 0)
    service.check_reconciled()


def test_client_payable_paid_out_of_band_is_not_paid_again() -> None:
    service = bounced()
    service.intent.refund(10_000)
    to = service.follow()
    assert followed_kinds(to) == ["refunded_out_of_band", "repayment_abandoned"]
    assert reported(to) == ["out_of_band_refund"]
    assert to.settled
    assert (service.payment.state, service.payment.client_payable) == (State.REFUNDED, 0)
    service.check_reconciled()
