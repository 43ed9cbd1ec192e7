"""From a snapshot to changes: what somebody did at Stripe's dashboard."""

from dataclasses import replace
from fractions import Fraction

from payment_service.domain.payment import State
from payment_service.domain.snapshot import BalanceTransaction, Refund
from tests.unit.domain.builders import in_state
from tests.unit.domain.fake_intent import Exchange
from tests.unit.domain.fake_service import FakeService, followed_kinds, reported
from tests.unit.domain.snapshots import SUCCEEDED, bounced, followed, paid_out

# ---- out of band ----


def test_out_of_band_refund_is_booked_and_reported_and_returns_commission() -> None:
    service = paid_out()
    service.intent.refund(3_333)
    to = service.follow()
    assert followed_kinds(to) == ["refunded_out_of_band"]
    assert reported(to) == ["out_of_band_refund"]
    assert (to.payment.net, to.payment.net_commission) == (6_667, 667)
    assert to.next_operation is None
    service.intent.refund(6_667)
    assert service.follow().payment.state is State.REFUNDED


def test_out_of_band_refund_during_our_refund_is_not_mistaken_for_ours() -> None:
    service = paid_out()
    service.start_give_back(5_000)
    service.intent.refund(2_000)
    service.follow()
    assert service.payment.state is State.REFUNDING
    service.send()
    to = service.follow()
    # What is to follow from it is an operator's to resume.
    assert followed_kinds(to) == ["client_refunded", "waiting_changed"]
    service.resume()
    service.send()
    service.follow()
    assert (service.payment.net, service.payment.net_commission) == (3_000, 300)
    assert service.balance("losses") == 1_800
    service.check_reconciled()


def test_our_refund_refused_after_a_full_out_of_band_refund_ends_refunded() -> None:
    service = paid_out()
    service.start_give_back(5_000)
    service.intent.refund(10_000)
    service.follow()
    service.send()
    assert service.payment.state is State.REFUNDED
    service.check_reconciled()


def test_an_operation_waits_for_the_line_of_its_own_refund_and_of_no_other() -> None:
    """An out-of-band refund may be pending for days: until then only its own booking waits."""
    service = paid_out()
    service.start_give_back(4_000)
    assert service.operation is not None
    for made_by, waits in ((service.operation.operation_id, True), ("", False), ("op_0", False)):
        pending = Refund("re_1", 4_000, "succeeded", made_by)
        to = service.follow(replace(service.intent.observe(), refunds=(pending,)))
        assert (to.transitions, to.deferred, to.operation_deferred) == ([], True, waits)


def test_a_repayment_is_not_sent_beside_a_pending_refund_of_the_same_amount() -> None:
    service = bounced()
    [known] = service.intent.refunds
    pending = Refund("re_9", 5_000, "pending")
    to = service.follow(replace(service.intent.observe(), refunds=(pending, known)))
    assert (to.transitions, to.deferred, to.operation_deferred) == ([], True, False)
    assert "refund re_9 of 5000" in to.blocked_by


def test_a_repayment_in_progress_is_not_ended_by_an_out_of_band_refund() -> None:
    """It may arrive beside it: then both are booked, and nothing is client payable."""
    service = paid_out()
    service.give_back(5_000)
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    service.resume()
    service.intent.refund(3_000)
    to = service.follow()
    assert (to.settled, service.payment.client_payable) == (False, 2_000)
    assert "refund re_" in to.blocked_by
    service.send()
    to = service.follow()
    assert followed_kinds(to) == ["repayment_abandoned", "refunded_out_of_band"]
    assert (service.payment.client_payable, service.operation) == (0, None)
    assert service.payment.refunded_after_capture == 8_000
    service.check_reconciled()


def test_an_operation_does_not_wait_for_the_line_of_a_failed_refund() -> None:
    service = paid_out()
    service.give_back(4_000)
    [refund] = service.intent.refunds
    service.start_give_back(1_000)
    to = service.follow(
        replace(service.intent.observe(), refunds=(replace(refund, status="failed"),))
    )
    assert (to.transitions, to.deferred, to.operation_deferred) == ([], True, False)


def lines_of(service: FakeService) -> list[tuple[str, int]]:
    """What the last event posted on the platform's balance, by Stripe's id."""
    return [
        (posting.balance_transaction_id, posting.minor_units)
        for posting in service.postings[-2:]
        if posting.account == "stripe:platform"
    ]


def test_out_of_band_refund_that_failed_before_the_snapshot_is_booked_by_both_lines() -> None:
    service = paid_out()
    service.intent.refund(4_000)
    service.intent.bounce(service.intent.refunds[0].refund_id)
    [refund] = service.intent.refunds
    assert refund.line is not None
    assert refund.failure_line is not None
    half = replace(service.intent.observe(), refunds=(replace(refund, failure_line=None),))
    early = service.follow(half)
    assert (early.transitions, early.movements, early.deferred) == ([], [], True)
    to = service.follow()
    assert (followed_kinds(to), reported(to)) == (
        ["refund_failed_unbooked"],
        ["out_of_band_refund"],
    )
    assert lines_of(service) == [
        (refund.line.balance_transaction_id, -4_000),
        (refund.failure_line.balance_transaction_id, 4_000),
    ]
    assert (to.payment.net, to.payment.client_payable) == (10_000, 0)
    assert service.follow().movements == []


def test_out_of_band_refund_canceled_before_it_moved_money_posts_nothing() -> None:
    service = paid_out()
    refund = Refund("re_9", 4_000, "canceled")
    to = service.follow(replace(service.intent.observe(), refunds=(refund,)))
    assert (to.transitions, reported(to)) == ([], ["out_of_band_refund"])
    assert [movement.kind for movement in to.movements] == ["refund", "refund_failure"]


def test_our_refund_that_failed_before_the_snapshot_is_booked_by_both_lines() -> None:
    service = paid_out()
    service.start_give_back(4_000)
    service.send()
    service.intent.bounce(service.intent.refunds[0].refund_id)
    [refund] = service.intent.refunds
    half = replace(service.intent.observe(), refunds=(replace(refund, failure_line=None),))
    early = service.follow(half)
    assert (early.transitions, early.operation_deferred) == ([], True)
    to = service.follow()
    assert followed_kinds(to) == ["refund_failed_unbooked", "refund_refused"]
    assert [units for _, units in lines_of(service)] == [-4_000, 4_000]
    assert (service.payment.state, service.payment.client_payable) == (State.CAPTURED, 0)


def test_a_refund_in_another_currency_that_failed_before_the_snapshot_balances() -> None:
    service = paid_out(Exchange("EUR", Fraction(9, 10)))
    service.intent.refund(4_000)
    service.intent.bounce(service.intent.refunds[0].refund_id)
    assert followed_kinds(service.follow()) == ["refund_failed_unbooked"]
    service.check_reconciled()


def test_refund_beyond_the_remainder_is_reported_and_not_posted() -> None:
    refund = Refund("re_9", 10_001, "succeeded", line=BalanceTransaction("txn_r", "USD", 10_001))
    to = followed(in_state(State.CAPTURED), replace(SUCCEEDED, refunds=(refund,)))
    assert (to.transitions, to.movements, reported(to)) == ([], [], ["refund_exceeds_net"])


def test_out_of_band_reversal_is_booked_and_reported() -> None:
    service = paid_out()
    service.intent.reverse(1_000)
    to = service.follow()
    assert followed_kinds(to) == ["reversed_out_of_band"]
    assert reported(to) == ["out_of_band_reversal"]
    assert (to.payment.state, to.payment.net) == (State.CAPTURED, 10_000)
    service.check_reconciled()


def test_tiny_out_of_band_reversal_in_another_currency_makes_no_empty_lines() -> None:
    service = paid_out(Exchange("JPY", Fraction(3, 2)))
    service.intent.reverse(1)
    service.follow()  # The service around it checks that no line is of zero.
    service.check_reconciled()


def test_out_of_band_fee_refund_is_booked_and_reported() -> None:
    service = paid_out()
    service.intent.refund_fee(100)
    to = service.follow()
    assert followed_kinds(to) == ["fee_refunded_out_of_band"]
    assert reported(to) == ["out_of_band_fee_refund"]
    service.check_reconciled()


def test_all_out_of_band_changes_at_once_are_booked_in_one_sync() -> None:
    service = paid_out()
    service.intent.refund(2_000)
    service.intent.refund(3_000)
    service.intent.reverse(4_500)
    service.intent.refund_fee(500)
    assert sorted(followed_kinds(service.follow())) == [
        "fee_refunded_out_of_band",
        "refunded_out_of_band",
        "refunded_out_of_band",
        "reversed_out_of_band",
    ]
    assert service.follow().transitions == []
    assert service.balance("losses") == 0
    service.check_reconciled()
