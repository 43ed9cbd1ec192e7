"""A charge on the platform: its partial captures, refunds and debts."""

from dataclasses import replace

import pytest

from payment_service.domain.payment import EscrowMode, Payment, State
from payment_service.domain.snapshot import BalanceTransaction, Transfer
from payment_service.domain.state_machine import EventKind
from payment_service.domain.sync.changes import Movement
from tests.unit.domain.builders import CARD_HOLD, PLATFORM_HOLD, in_state, new_payment, separate
from tests.unit.domain.fake_service import DEBT, FUNDS, FakeService, followed_kinds, reported, serve
from tests.unit.domain.separate_charges import (
    CONNECTED,
    ESCROW,
    FEE,
    OWED,
    PLATFORM,
    SUCCEEDED,
    TRANSFER,
    books,
    held,
)
from tests.unit.domain.snapshots import followed

# ---- partial captures ----


@pytest.mark.parametrize("mode", [CARD_HOLD, PLATFORM_HOLD])
@pytest.mark.parametrize(
    ("amount", "currency", "basis_points", "parts", "commissions"),
    [
        (9_999, "USD", 1_000, (3_333, 3_333, 3_333), (333, 334, 333)),
        (1_001, "JPY", 1_000, (333, 333, 335), (33, 34, 33)),
        (9_990, "KWD", 1_250, (3_330, 3_330, 3_330), (420, 410, 420)),
    ],
)
def test_milestones_are_transferred_one_by_one_and_sum_up(
    mode: EscrowMode,
    amount: int,
    currency: str,
    basis_points: int,
    parts: tuple[int, ...],
    commissions: tuple[int, ...],
) -> None:
    service = serve(separate(mode, amount, currency, basis_points))
    service.intent.authorize()
    service.follow()
    left = amount
    for part, commission in zip(parts, commissions, strict=True):
        before = service.balance("commission"), service.balance(CONNECTED)
        service.capture(part, final=False)
        left -= part
        assert service.payment.held == -service.balance(ESCROW) == left
        assert service.payment.state is (State.IN_ESCROW if left else State.CAPTURED)
        assert before[0] - service.balance("commission") == commission
        assert service.balance(CONNECTED) - before[1] == part - commission
    assert service.payment.net_commission == service.payment.commission == sum(commissions)
    assert service.payment.net_expert == service.payment.expert_amount
    assert service.balance(FUNDS) == -service.payment.expert_amount


@pytest.mark.parametrize("final", [True, False])
def test_the_last_cent_is_all_commission_and_is_not_transferred(final: bool) -> None:
    service = serve(separate(PLATFORM_HOLD, 10_015))
    service.intent.authorize()
    service.follow()
    for part in (3_338, 3_338, 3_338, 1):
        service.capture(part, final=final and part == 1)
        service.check_reconciled()
    payment = service.payment
    assert (payment.state, payment.held, payment.operation_id) == (State.CAPTURED, 0, "")
    assert payment.net_commission == payment.commission == 1_002
    assert len(service.intent.observe().separate_transfers) == 3


def test_first_part_of_a_card_hold_charges_all_of_it() -> None:
    service = held(CARD_HOLD)
    service.capture(4_000, final=False)
    assert service.kinds[1:] == [
        EventKind.CAPTURE_STARTED,
        EventKind.CHARGED,
        EventKind.PROCESSOR_FEE,
        EventKind.CAPTURED,
    ]
    assert books(service) == {
        PLATFORM: 6_400 - 320,
        ESCROW: -6_000,
        CONNECTED: 3_600,
        FUNDS: -3_600,
        "commission": -400,
        **FEE,
    }


def test_refused_transfer_after_the_charge_leaves_all_of_it_held() -> None:
    service = held(CARD_HOLD)
    service.start_capture(4_000, final=False)
    service.send()
    service.follow()
    service.send(refused=True)
    assert service.kinds[-1] is EventKind.CAPTURE_REFUSED
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 10_000)
    assert service.payment.escrow_mode is PLATFORM_HOLD


def test_final_part_of_what_the_platform_holds_refunds_the_rest() -> None:
    service = held()
    service.capture(6_000, final=True)
    assert service.kinds[2:] == [
        EventKind.CAPTURE_STARTED,
        EventKind.CAPTURED,
        EventKind.CLIENT_REFUNDED,
    ]
    payment = service.payment
    assert (payment.state, payment.captured, payment.refunded_from_escrow) == (
        State.CAPTURED,
        6_000,
        4_000,
    )
    assert [refund.minor_units for refund in service.intent.refunds] == [4_000]
    assert books(service) == {
        PLATFORM: 600 - 320,
        CONNECTED: 5_400,
        FUNDS: -5_400,
        "commission": -600,
        **FEE,
    }


@pytest.mark.parametrize("payment", [separate(CARD_HOLD), new_payment()])
def test_final_part_of_a_card_hold_charges_no_more_than_that(payment: Payment) -> None:
    service = serve(payment)
    service.intent.authorize()
    service.follow()
    service.capture(6_000, final=True)
    after = service.payment
    assert (after.state, after.charged, after.refunded_from_escrow) == (State.CAPTURED, 6_000, 0)
    assert not service.intent.refunds
    assert books(service) == {
        PLATFORM: 600 - 204,
        CONNECTED: 5_400,
        FUNDS: -5_400,
        "commission": -600,
        "processor_fee": 204,
    }


def test_remainder_that_stripe_will_not_refund_stays_in_escrow() -> None:
    service = held()
    service.start_capture(6_000, final=True)
    service.send()
    service.follow()
    assert service.payment.state is State.REFUNDING
    service.send(refused=True)
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 4_000)


def test_transfer_of_another_amount_is_reported_and_posted_as_it_is() -> None:
    service = held()
    service.start_capture(4_000, final=False)
    assert service.operation is not None
    service.intent.transfer(3_500, service.operation.operation_id)
    followed_ = followed(service.payment, service.intent.observe(), service.operation)
    assert reported(followed_) == ["amount_mismatch"]


def test_transfer_is_posted_when_both_of_its_lines_are_shown() -> None:
    line = BalanceTransaction("txn_8", "USD", 3_600)
    whole = Transfer("tr_9", 3_600, "USD", "op_1", line, replace(line, balance_transaction_id="t"))
    payment = in_state(State.CAPTURING, separate())
    for early in (replace(whole, line=None), replace(whole, connected_line=None)):
        to = followed(payment, replace(SUCCEEDED, separate_transfers=(early,)), TRANSFER)
        assert (to.deferred, to.operation_deferred, to.settled) == (True, True, False)
        out_of_band = replace(early, operation_id="")
        to = followed(payment, replace(SUCCEEDED, separate_transfers=(out_of_band,)), TRANSFER)
        assert (to.deferred, to.operation_deferred) == (True, False)
    to = followed(payment, SUCCEEDED.with_answer(whole), TRANSFER)
    assert to.settled
    assert to.movements == [Movement("tr_9", "transfer", 3_600, "op_1")]
    assert to.payment.transfer_id == "tr_9"
    shown_twice = SUCCEEDED.with_answer(whole)
    assert shown_twice.with_answer(whole) is shown_twice


# ---- refunds ----


def test_refund_out_of_escrow_costs_the_expert_nothing() -> None:
    service = held()
    service.give_back(3_000)
    assert (service.payment.state, service.payment.refunded_from_escrow) == (State.IN_ESCROW, 3_000)
    assert books(service) == {PLATFORM: 7_000 - 320, ESCROW: -7_000, **FEE}
    service.give_back()
    assert (service.payment.state, service.payment.held) == (State.REFUNDED, 0)
    assert books(service) == {PLATFORM: -320, **FEE}


def test_refund_beyond_escrow_takes_what_is_held_first() -> None:
    service = held()
    service.capture(6_000, final=False)
    service.give_back(5_000)
    payment = service.payment
    assert (payment.refunded_from_escrow, payment.refunded_after_capture, payment.held) == (
        4_000,
        1_000,
        0,
    )
    assert (payment.state, payment.net_commission) == (State.CAPTURED, 500)
    assert books(service) == {
        PLATFORM: 500 - 320,
        CONNECTED: 4_500,
        FUNDS: -4_500,
        "commission": -500,
        **FEE,
    }


def in_three_parts(*, debt: int = 0) -> FakeService:
    service = held(debt=debt)
    for part in (3_000, 3_000, None):
        service.capture(part, final=False)
    return service


def test_reversals_go_from_the_newest_transfer_to_the_oldest() -> None:
    service = in_three_parts()
    service.give_back(8_000)
    assert service.kinds[-4:] == [EventKind.CLIENT_REFUNDED, *[EventKind.TRANSFER_REVERSED] * 3]
    back = [
        [reversal.minor_units for reversal in transfer.reversals]
        for transfer in service.intent.transfers
    ]
    assert back == [[900], [2_700], [3_600]]
    assert service.balance(DEBT) == 0
    assert service.balance(CONNECTED) == 1_800
    assert service.payment.state is State.CAPTURED


def test_an_amount_that_no_transfer_covers_is_debt_after_the_last_reversal() -> None:
    """A part of the first transfer was kept back for an older debt, so it cannot be reversed."""
    service = in_three_parts(debt=700)
    assert service.balance(DEBT) == 0
    service.give_back()
    assert service.kinds[-2:] == [EventKind.TRANSFER_REVERSED, EventKind.EXPERT_DEBT_RECORDED]
    assert service.balance(DEBT) == 700
    assert service.payment.state is State.REFUNDED
    assert service.balance(CONNECTED) == 0


def test_refused_reversal_leaves_the_later_reversals_as_debt_too() -> None:
    service = in_three_parts(debt=700)
    service.give_back(reversal_refused=True)
    assert service.kinds[-2:] == [EventKind.CLIENT_REFUNDED, EventKind.EXPERT_DEBT_RECORDED]
    assert service.balance(DEBT) == 9_000
    assert service.balance(CONNECTED) == 9_000 - 700


def test_refused_second_reversal_leaves_only_the_remainder_as_debt() -> None:
    service = in_three_parts()
    service.start_give_back()
    service.send()
    service.follow()
    service.send()
    service.follow()
    service.send(refused=True)
    assert service.balance(DEBT) == 5_400
    assert (service.payment.state, service.operation) == (State.REFUNDED, None)


def test_experts_share_without_a_reversible_transfer_becomes_debt_at_once() -> None:
    service = in_three_parts()
    for transfer in list(service.intent.transfers):
        service.intent.reverse(transfer.left, transfer_id=transfer.transfer_id)
    service.follow()
    taken = -service.balance("losses")
    service.give_back(1_000)
    assert service.kinds[-2:] == [EventKind.CLIENT_REFUNDED, EventKind.EXPERT_DEBT_RECORDED]
    # What was taken out of band before is for an operator to settle with the expert.
    assert (service.balance(DEBT), service.balance("losses")) == (900, -taken)


# ---- debt ----


@pytest.mark.parametrize(
    "payment", [new_payment(), separate(CARD_HOLD), separate()], ids=["destination", "card", "us"]
)
@pytest.mark.parametrize(("debt", "netted"), [(700, 700), (20_000, 8_999)])
def test_debt_is_offset_at_the_next_capture(payment: Payment, debt: int, netted: int) -> None:
    service = serve(payment, debt_before=debt)
    service.intent.authorize()
    service.follow()
    service.start_capture()
    assert service.payment.debt_offset == netted
    service.finish()
    after = service.payment
    assert (after.debt_offset, after.net_commission, after.net_expert) == (0, 1_000, 9_000)
    assert not service.discrepancies
    expected = {
        PLATFORM: 1_000 + netted - debt - 320,
        CONNECTED: 9_000 - netted,
        FUNDS: netted - 9_000,
        "commission": -1_000,
        DEBT: debt - netted,
        **FEE,
    }
    assert books(service) == {account: units for account, units in expected.items() if units}


@pytest.mark.parametrize("payment", [new_payment(), separate(CARD_HOLD), separate()])
def test_refused_capture_keeps_nothing_back(payment: Payment) -> None:
    service = serve(payment, debt_before=700)
    service.intent.authorize()
    service.follow()
    service.start_capture()
    service.send(refused=True)
    assert (service.payment.debt_offset, service.balance(DEBT)) == (0, 700)


def test_debt_is_spread_over_the_parts_until_it_is_paid() -> None:
    service = held(debt=4_000)
    debts = []
    for _ in range(3):
        service.capture(2_000, final=False)
        debts.append(service.balance(DEBT))
    assert debts == [4_000 - 1_799, 4_000 - 2 * 1_799, 0]


# ---- failed refunds ----


def test_failed_refund_out_of_escrow_is_client_payable_and_the_held_amount_stays() -> None:
    service = held()
    service.give_back(3_000)
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    assert (service.payment.state, service.payment.client_payable) == (State.REFUNDING, 3_000)
    assert books(service) == {PLATFORM: 10_000 - 320, ESCROW: -7_000, OWED: -3_000, **FEE}
    service.send()
    service.follow()
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 7_000)
    assert service.payment.client_payable == 0
    service.capture()
    assert service.payment.captured == 7_000


def test_refund_out_of_escrow_that_failed_at_once_stays_held() -> None:
    service = held()
    service.start_give_back(3_000)
    service.send()
    service.intent.bounce(service.intent.refunds[0].refund_id)
    to = service.follow()
    assert followed_kinds(to) == ["refund_failed_unbooked", "refund_refused"]
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 10_000)
