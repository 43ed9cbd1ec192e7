"""A charge on the platform: out-of-band changes, and captures in progress."""

import pytest

from payment_service.domain.errors import Precondition
from payment_service.domain.ledger import CaptureSplit
from payment_service.domain.payment import EscrowMode, State, WaitingFor
from payment_service.domain.state_machine import EventKind
from tests.unit.domain.builders import CARD_HOLD, PLATFORM_HOLD, new_payment
from tests.unit.domain.fake_service import DEBT, FUNDS, followed_kinds, reported, serve
from tests.unit.domain.separate_charges import CONNECTED, ESCROW, FEE, PLATFORM, books, held

# ---- out of band ----


def test_out_of_band_refund_takes_the_held_amount_first_and_then_is_a_loss() -> None:
    service = held()
    service.capture(6_000, final=False)
    service.intent.refund(5_000)
    service.follow()
    assert service.discrepancies == ["out_of_band_refund"]
    assert (service.payment.state, service.payment.refunded_from_escrow) == (State.CAPTURED, 4_000)
    assert books(service) == {
        PLATFORM: 10_000 - 5_400 - 5_000 - 320,
        "losses": 900,
        CONNECTED: 5_400,
        FUNDS: -5_400,
        "commission": -500,
        **FEE,
    }


def test_out_of_band_refund_of_the_whole_held_amount_ends_the_escrow() -> None:
    service = held()
    service.intent.refund(10_000)
    service.follow()
    assert (service.payment.state, service.payment.refunded_from_escrow) == (State.REFUNDED, 10_000)
    assert service.balance("losses") == 0


def test_out_of_band_transfer_is_a_loss_and_leaves_the_escrow_unchanged() -> None:
    service = held()
    service.intent.transfer(2_500)
    to = service.follow()
    assert (followed_kinds(to), reported(to)) == (
        ["transferred_out_of_band"],
        ["out_of_band_transfer"],
    )
    assert books(service) == {
        PLATFORM: 7_500 - 320,
        ESCROW: -10_000,
        "losses": 2_500,
        CONNECTED: 2_500,
        FUNDS: -2_500,
        **FEE,
    }
    service.intent.reverse(2_500)
    service.follow()
    assert books(service) == {PLATFORM: 10_000 - 320, ESCROW: -10_000, **FEE}


def test_out_of_band_reversal_is_reported_and_leaves_the_payment_unchanged() -> None:
    service = held()
    service.capture(6_000, final=False)
    service.intent.reverse(1_000)
    to = service.follow()
    assert reported(to) == ["out_of_band_reversal"]
    assert (to.payment.state, to.payment.net, service.balance("losses")) == (
        State.IN_ESCROW,
        6_000,
        -1_000,
    )


# ---- while a capture is under way ----


def test_out_of_band_refund_does_not_touch_a_transfer_in_progress() -> None:
    service = held()
    service.start_capture(6_000, final=False)
    service.intent.refund(3_000)
    service.follow()
    assert (service.payment.state, service.payment.held) == (State.CAPTURING, 7_000)
    service.finish()
    assert (service.payment.captured, service.payment.held) == (6_000, 1_000)
    assert service.balance("losses") == 0


def test_out_of_band_refund_of_an_amount_in_transfer_waits_for_the_transfer() -> None:
    service = held()
    service.start_capture(6_000, final=True)
    service.intent.refund(5_000)
    assert service.follow().deferred
    assert not service.discrepancies
    assert (service.payment.state, service.payment.held) == (State.CAPTURING, 10_000)
    service.finish()
    # The remainder that our own refund was to return was returned that way already.
    assert (service.payment.refunded_from_escrow, service.payment.refunded_after_capture) == (
        4_000,
        1_000,
    )


@pytest.mark.parametrize("seen_before", [True, False])
def test_remainder_refunded_out_of_band_is_not_refunded_again(*, seen_before: bool) -> None:
    """Whether the refund is seen before our transfer or together with it."""
    service = held()
    service.start_capture(6_000, final=True)
    service.intent.refund(4_000)
    if seen_before:
        service.follow()
    service.finish()
    assert (service.payment.state, service.payment.captured) == (State.CAPTURED, 6_000)
    assert (service.payment.refunded_from_escrow, service.payment.refunded_after_capture) == (
        4_000,
        0,
    )
    assert service.balance(CONNECTED) == 5_400


def test_out_of_band_refund_in_the_snapshot_of_our_charge_reduces_the_held_amount() -> None:
    """Seen together after a crash: 4000 are on their way, so 3000 of the other 6000 are free."""
    service = held(CARD_HOLD)
    service.start_capture(4_000, final=False)
    service.send()
    service.intent.refund(3_000)
    service.follow()
    assert service.discrepancies == ["out_of_band_refund"]
    assert (service.payment.state, service.payment.held) == (State.CAPTURING, 7_000)
    service.finish()
    assert (service.payment.held, service.payment.captured) == (3_000, 4_000)


# ---- waiting for the expert ----


@pytest.mark.parametrize("mode", [CARD_HOLD, PLATFORM_HOLD])
def test_capture_that_waits_for_the_expert_can_be_abandoned_for_a_refund(
    mode: EscrowMode,
) -> None:
    service = held(mode, debt=700)
    service.start_capture(4_000, final=False)
    if mode is CARD_HOLD:
        service.send()
        service.follow()
    service.wait_for_expert()
    assert service.payment.debt_offset == 700
    service.start_give_back()
    assert EventKind.CAPTURE_ABANDONED in service.kinds
    assert (service.payment.debt_offset, service.payment.waiting_for) == (0, WaitingFor.NOTHING)
    service.finish()
    assert (service.payment.state, service.payment.refunded_from_escrow) == (State.REFUNDED, 10_000)
    assert service.balance(DEBT) == 700


def test_destination_capture_abandoned_for_a_refund_cancels_the_hold() -> None:
    service = serve(new_payment())
    service.intent.authorize()
    service.follow()
    service.start_capture()
    service.wait_for_expert()
    service.give_back()
    assert service.payment.state is State.CANCELED


def test_refused_refund_abandons_nothing() -> None:
    service = held()
    service.start_capture(4_000, final=False)
    service.wait_for_expert()
    before = service.payment
    with pytest.raises(Precondition, match="more than"):
        service.start_give_back(10_001)
    assert service.payment == before


def test_capture_continues_when_the_expert_is_ready_again() -> None:
    service = held(debt=700)
    service.start_capture(4_000, final=False)
    service.wait_for_expert()
    service.finish()
    assert (service.payment.captured, service.payment.waiting_for) == (
        4_000,
        WaitingFor.NOTHING,
    )
    assert service.balance(DEBT) == 0


def test_capture_split_names_what_each_side_receives() -> None:
    share = CaptureSplit(10_000, 1_000, 700)
    assert (share.expert_amount, share.sent) == (9_000, 8_300)
