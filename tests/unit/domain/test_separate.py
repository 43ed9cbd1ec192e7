"""A charge on the platform: every cell of the table, and how the charge gets there."""

from dataclasses import replace

import pytest

from payment_service.domain.errors import Precondition
from payment_service.domain.operation_payloads import CapturePayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Payment, State
from payment_service.domain.snapshot import (
    BalanceTransaction,
    Decline,
    IntentStatus,
    PaymentSnapshot,
)
from payment_service.domain.state_machine import EventKind
from tests.unit.domain.builders import (
    BUSY,
    CARD_HOLD,
    HOLDING,
    NOW,
    PAID_OUT,
    PLATFORM_HOLD,
    in_state,
    new_operation,
    new_transfer,
    separate,
)
from tests.unit.domain.fake_service import check_payment, reported, serve
from tests.unit.domain.separate_charges import (
    ESCROW,
    FEE,
    HELD,
    PLATFORM,
    SUCCEEDED,
    TRANSFER,
    books,
    held,
    shown,
)
from tests.unit.domain.snapshots import followed

S = State

# ---- every cell of the table ----


UNPAID = [
    replace(shown(), status=status, decline=decline)
    for status in (
        IntentStatus.REQUIRES_PAYMENT_METHOD,
        IntentStatus.REQUIRES_CONFIRMATION,
        IntentStatus.REQUIRES_ACTION,
        IntentStatus.PROCESSING,
    )
    for decline in (None, Decline("card_declined", "insufficient_funds"))
]
CANCELED, BY_STRIPE = shown(canceled="requested_by_customer"), shown(canceled="automatic")
UNKNOWN = replace(shown(), status=IntentStatus.UNKNOWN)

CAPTURE = new_operation(
    OperationKind.CAPTURE,
    10_000,
    payload=CapturePayload(
        payment_intent_id="pi_1", notes="", transfer=new_transfer(400), transfer_amount=4_000
    ),
)
PROMOTE = new_operation(OperationKind.PROMOTE, 10_000)
CANCEL = new_operation(OperationKind.CANCEL, 10_000)
DEADLINE = new_operation(OperationKind.CANCEL, 10_000, purpose=OperationPurpose.DEADLINE)
REFUND = new_operation(OperationKind.REFUND, 10_000)

CONFLICT, ELSEWHERE = "state_mismatch", "captured_out_of_band"
BY_CARD, BY_US = separate(CARD_HOLD), separate()
#: state, how it is held, operation, snapshot, state after, discrepancies, the caller's answer.
Cell = tuple[State, Payment, Operation | None, list[PaymentSnapshot], State, str, str | None]


def cells() -> list[Cell]:
    open_unpaid: list[Cell] = []
    for base in (BY_CARD, BY_US):
        elsewhere = ELSEWHERE if base is BY_CARD else ""
        for state in (S.PENDING, S.FAILED):
            open_unpaid += [
                (state, base, None, UNPAID[::2], S.PENDING, "", None),
                (state, base, None, UNPAID[1::2], S.FAILED, "", None),
                (state, base, None, [SUCCEEDED], S.IN_ESCROW, elsewhere, None),
                (state, base, None, [CANCELED], S.CANCELED, "", None),
                (state, base, None, [BY_STRIPE], S.EXPIRED, "", None),
            ]
        open_unpaid += [
            (S.CANCELING, base, CANCEL, UNPAID, S.CANCELING, "", None),
            (S.CANCELING, base, CANCEL, [SUCCEEDED], S.IN_ESCROW, elsewhere, "WRONG_STATE"),
            (S.CANCELING, base, CANCEL, [CANCELED], S.CANCELED, "", ""),
            (S.CANCELING, base, CANCEL, [BY_STRIPE], S.EXPIRED, "", ""),
            (S.CANCELING, base, DEADLINE, [CANCELED], S.EXPIRED, "", ""),
        ]
        for state in (S.CANCELED, S.EXPIRED):
            open_unpaid += [
                (state, base, None, [*UNPAID, HELD], state, CONFLICT, None),
                (state, base, None, [SUCCEEDED], S.IN_ESCROW, ELSEWHERE, None),
                (state, base, None, [CANCELED, BY_STRIPE], state, "", None),
            ]
    of_the_card: list[Cell] = [
        (S.PENDING, BY_CARD, None, [HELD], S.IN_ESCROW, "", None),
        (S.FAILED, BY_CARD, None, [HELD], S.IN_ESCROW, "", None),
        (S.CANCELING, BY_CARD, CANCEL, [HELD], S.CANCELING, "", None),
        (S.IN_ESCROW, BY_CARD, None, UNPAID, S.IN_ESCROW, CONFLICT, None),
        (S.IN_ESCROW, BY_CARD, None, [HELD], S.IN_ESCROW, "", None),
        (S.IN_ESCROW, BY_CARD, None, [SUCCEEDED], S.IN_ESCROW, ELSEWHERE, None),
        (S.IN_ESCROW, BY_CARD, None, [CANCELED], S.CANCELED, "", None),
        (S.IN_ESCROW, BY_CARD, None, [BY_STRIPE], S.EXPIRED, "", None),
        (S.CAPTURING, BY_CARD, CAPTURE, UNPAID, S.CAPTURING, CONFLICT, None),
        (S.CAPTURING, BY_CARD, CAPTURE, [HELD], S.CAPTURING, "", None),
        (S.CAPTURING, BY_CARD, CAPTURE, [SUCCEEDED], S.CAPTURING, "", ""),
        (S.CAPTURING, BY_CARD, CAPTURE, [CANCELED], S.CANCELED, "", "WRONG_STATE"),
        (S.CAPTURING, BY_CARD, CAPTURE, [BY_STRIPE], S.EXPIRED, "", "WRONG_STATE"),
        (S.PROMOTING, BY_CARD, PROMOTE, UNPAID, S.PROMOTING, CONFLICT, None),
        (S.PROMOTING, BY_CARD, PROMOTE, [HELD], S.PROMOTING, "", None),
        (S.PROMOTING, BY_CARD, PROMOTE, [SUCCEEDED], S.IN_ESCROW, "", ""),
        (S.PROMOTING, BY_CARD, PROMOTE, [CANCELED], S.CANCELED, "", "WRONG_STATE"),
        (S.PROMOTING, BY_CARD, PROMOTE, [BY_STRIPE], S.EXPIRED, "", "WRONG_STATE"),
    ]
    charged: list[Cell] = []
    for state in (S.IN_ESCROW, S.CAPTURING, *PAID_OUT):
        operation = {S.CAPTURING: TRANSFER, S.REFUNDING: REFUND}.get(state)
        charged += [
            (state, BY_US, operation, [*UNPAID, HELD, CANCELED], state, CONFLICT, None),
            (state, BY_US, operation, [SUCCEEDED], state, "", None),
        ]
    unknown: list[Cell] = [
        (state, base, REFUND if state in BUSY else None, [UNKNOWN], state, CONFLICT, None)
        for state in State
        for base in (BY_CARD, BY_US)
        if (state, base) != (S.PROMOTING, BY_US)
    ]
    return [*open_unpaid, *of_the_card, *charged, *unknown]


TABLE = cells()


def name_of(cell: Cell) -> str:
    return f"{cell[0]}-{cell[1].escrow_mode}-{cell[3][0].status}-{cell[4]}"


@pytest.mark.parametrize("cell", TABLE, ids=name_of)
def test_a_snapshot_moves_the_payment_as_the_table_says(cell: Cell) -> None:
    before, base, operation, observations, after, report, refusal = cell
    for seen in observations:
        to = followed(in_state(before, base), seen, operation)
        assert to.payment.state is after
        assert reported(to) == ([report] if report else [])
        assert to.settled is (refusal is not None)
        assert (to.refusal.reason if to.refusal else "") == (refusal or "")
        if seen is SUCCEEDED and before not in PAID_OUT:
            assert (to.payment.escrow_mode, to.payment.charged) == (PLATFORM_HOLD, 10_000)
            assert to.payment.held == 10_000
        if to.payment.state is not before:
            assert bool(to.payment.operation_id) is (after in BUSY)
        check_payment(to.payment)
        again = followed(to.payment, seen, None if to.settled else operation)
        assert (again.transitions, again.movements, again.settled) == ([], [], False)
        assert set(again.discrepancies) <= set(to.discrepancies)


def test_the_table_has_every_state_against_every_status() -> None:
    covered = {(cell[0], seen.status) for cell in TABLE for seen in cell[3]}
    assert covered == {(state, status) for state in State for status in IntentStatus}


# ---- charged onto the platform ----


def test_confirmation_of_a_platform_hold_charges_it_into_escrow() -> None:
    service = held()
    assert service.kinds == [EventKind.CHARGED, EventKind.PROCESSOR_FEE]
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 10_000)
    assert service.payment.escrow_expire_time == NOW + HOLDING
    assert books(service) == {PLATFORM: 10_000 - 320, ESCROW: -10_000, **FEE}


def test_promotion_charges_the_hold_and_leaves_it_in_escrow() -> None:
    service = held(CARD_HOLD)
    assert books(service) == {"hold": 10_000, "client": -10_000}
    service.promote()
    assert service.kinds[1:] == [
        EventKind.PROMOTE_STARTED,
        EventKind.CHARGED,
        EventKind.PROCESSOR_FEE,
    ]
    assert service.payment.escrow_mode is PLATFORM_HOLD
    assert service.payment.escrow_expire_time == NOW + HOLDING
    assert books(service) == {PLATFORM: 10_000 - 320, ESCROW: -10_000, **FEE}
    assert not service.discrepancies


def test_refused_promotion_leaves_the_hold_as_it_was() -> None:
    service = held(CARD_HOLD)
    before = service.payment
    service.start_promotion()
    service.send(refused=True)
    assert service.kinds[-1] is EventKind.PROMOTE_REFUSED
    after = service.payment
    assert (after.state, after.escrow_mode, after.held) == (State.IN_ESCROW, CARD_HOLD, 10_000)
    assert after.escrow_expire_time == before.escrow_expire_time


def test_charge_waits_until_stripe_shows_its_line() -> None:
    assert SUCCEEDED.charge is not None
    early = replace(SUCCEEDED, charge=replace(SUCCEEDED.charge, line=None))
    to = followed(BY_US, early)
    assert (to.transitions, to.deferred) == ([], True)
    missing = followed(BY_US, replace(SUCCEEDED, charge=None))
    assert (missing.transitions, reported(missing)) == ([], ["charge_missing"])


def test_charge_that_was_settled_in_another_currency_is_reported() -> None:
    """Its transfers will be refused, so an operator must know."""
    assert SUCCEEDED.charge is not None
    line = BalanceTransaction("txn_1", "EUR", 9_000, 300)
    seen = replace(SUCCEEDED, charge=replace(SUCCEEDED.charge, line=line))
    to = followed(BY_US, seen)
    assert (to.payment.held, reported(to)) == (10_000, ["settled_in_other_currency"])


# ---- captured out of band ----


def test_amount_captured_out_of_band_is_what_the_platform_holds() -> None:
    service = held(CARD_HOLD)
    service.intent.capture(6_000)
    service.follow()
    assert service.discrepancies == ["captured_out_of_band"]
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 6_000)
    assert books(service) == {PLATFORM: 6_000 - 204, ESCROW: -6_000, "processor_fee": 204}
    service.capture()
    assert (service.payment.captured, service.payment.state) == (6_000, State.CAPTURED)


def test_other_amount_than_our_capture_asked_for_is_held_and_nothing_is_transferred() -> None:
    service = held(CARD_HOLD)
    service.start_capture(4_000, final=False)
    service.intent.capture(6_000)
    to = service.follow()
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 6_000)
    assert service.discrepancies == ["amount_mismatch"]
    assert to.next_operation is None
    assert isinstance(to.refusal, Precondition)
    assert to.refusal.reason == "DISCREPANCY"


def test_same_amount_captured_out_of_band_continues_with_our_transfer() -> None:
    service = held(CARD_HOLD)
    service.start_capture(4_000, final=False)
    service.intent.capture(10_000)
    service.follow()
    service.finish()
    assert (service.payment.state, service.payment.captured) == (State.IN_ESCROW, 4_000)
    assert not service.discrepancies


def test_other_amount_than_a_promotion_asked_for_is_reported() -> None:
    """The remainder of the hold was released out of band: only this report says so."""
    service = held(CARD_HOLD)
    service.start_promotion()
    service.intent.capture(6_000)
    service.follow()
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 6_000)
    assert service.discrepancies == ["amount_mismatch"]


def test_client_who_confirms_while_we_cancel_has_paid() -> None:
    service = serve(separate())
    service.start_give_back()
    service.intent.authorize()
    to = service.follow()
    assert (service.payment.state, service.payment.held) == (State.IN_ESCROW, 10_000)
    assert to.refusal is not None
    assert to.refusal.reason == "WRONG_STATE"
    assert service.operation is None
