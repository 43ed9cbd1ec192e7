"""From a snapshot to changes: every cell of the table, the intent, declines and captures."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import NamedTuple

import pytest

from payment_service.domain.errors import Precondition
from payment_service.domain.operation_payloads import CapturePayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import State
from payment_service.domain.snapshot import Charge, Decline, IntentStatus, PaymentSnapshot
from payment_service.domain.state_machine import EventKind
from tests.unit.domain.builders import (
    BUSY,
    NOW,
    OF_A_DESTINATION,
    PAID_OUT,
    in_state,
    new_operation,
    new_payment,
)
from tests.unit.domain.fake_intent import FakeIntent
from tests.unit.domain.fake_service import check_payment, followed_kinds, reported
from tests.unit.domain.snapshots import REFUND, SUCCEEDED, captured, followed, intent

DECLINE = Decline("card_declined", "insufficient_funds")
CAPTURE = new_operation(OperationKind.CAPTURE, 10_000)
CANCEL = new_operation(OperationKind.CANCEL, 10_000)
DEADLINE = new_operation(OperationKind.CANCEL, 10_000, purpose=OperationPurpose.DEADLINE)


def plain(status: IntentStatus, decline: Decline | None = None) -> PaymentSnapshot:
    return replace(intent(), status=status, decline=decline)


# ---- every cell of the table ----

HELD = intent(FakeIntent.authorize)
CANCELED = intent(FakeIntent.cancel)
CANCELED_BY_STRIPE = intent(lambda shown: shown.cancel("automatic"))
EXPIRED_AT_STRIPE = intent(lambda shown: shown.cancel("expired"))
UNPAID = [
    plain(status)
    for status in (
        IntentStatus.REQUIRES_PAYMENT_METHOD,
        IntentStatus.REQUIRES_CONFIRMATION,
        IntentStatus.REQUIRES_ACTION,
        IntentStatus.PROCESSING,
    )
]
DECLINED = [replace(seen, decline=DECLINE) for seen in UNPAID]
CONFLICT = "state_mismatch"
ELSEWHERE = "captured_out_of_band"


class Cell(NamedTuple):
    """From a state, with the open operation, what an observation must come to."""

    before: State
    operation: Operation | None
    seen: list[PaymentSnapshot]
    after: State
    reports: str = ""
    #: The answer of the operation's caller; None while it is open, "" if it was done.
    refusal: str | None = None


S = State
TABLE = [
    # The client at the checkout.
    Cell(S.PENDING, None, UNPAID, S.PENDING),
    Cell(S.PENDING, None, DECLINED, S.FAILED),
    Cell(S.FAILED, None, UNPAID, S.PENDING),
    Cell(S.FAILED, None, DECLINED, S.FAILED),
    Cell(S.IN_ESCROW, None, UNPAID + DECLINED, S.IN_ESCROW, CONFLICT),
    Cell(S.CAPTURING, CAPTURE, UNPAID + DECLINED, S.CAPTURING, CONFLICT),
    Cell(S.CANCELING, CANCEL, UNPAID + DECLINED, S.CANCELING),
    *(
        Cell(state, REFUND if state in BUSY else None, UNPAID + DECLINED, state, CONFLICT)
        for state in (S.CANCELED, S.EXPIRED, *PAID_OUT)
    ),
    # The card is authorized.
    Cell(S.PENDING, None, [HELD], S.IN_ESCROW),
    Cell(S.FAILED, None, [HELD], S.IN_ESCROW),
    Cell(S.IN_ESCROW, None, [HELD], S.IN_ESCROW),
    Cell(S.CAPTURING, CAPTURE, [HELD], S.CAPTURING),
    Cell(S.CANCELING, CANCEL, [HELD], S.CANCELING),
    *(
        Cell(state, REFUND if state in BUSY else None, [HELD], state, CONFLICT)
        for state in (S.CANCELED, S.EXPIRED, *PAID_OUT)
    ),
    # Captured, by us or out of band.
    Cell(S.PENDING, None, [SUCCEEDED], S.CAPTURED, ELSEWHERE),
    Cell(S.FAILED, None, [SUCCEEDED], S.CAPTURED, ELSEWHERE),
    Cell(S.IN_ESCROW, None, [SUCCEEDED], S.CAPTURED, ELSEWHERE),
    Cell(S.CAPTURING, CAPTURE, [SUCCEEDED], S.CAPTURED, refusal=""),
    Cell(S.CANCELING, CANCEL, [SUCCEEDED], S.CAPTURED, ELSEWHERE, "WRONG_STATE"),
    Cell(S.CANCELED, None, [SUCCEEDED], S.CAPTURED, ELSEWHERE),
    Cell(S.EXPIRED, None, [SUCCEEDED], S.CAPTURED, ELSEWHERE),
    *(
        Cell(state, REFUND if state in BUSY else None, [SUCCEEDED], state)
        for state in (S.CAPTURED, S.REFUNDING, S.REFUNDED)
    ),
    # Cancelled, by us, out of band or by time.
    *(
        Cell(before, None, [seen], after)
        for before in (S.PENDING, S.FAILED, S.IN_ESCROW)
        for seen, after in (
            (CANCELED, S.CANCELED),
            (CANCELED_BY_STRIPE, S.EXPIRED),
            (EXPIRED_AT_STRIPE, S.EXPIRED),
        )
    ),
    Cell(S.CAPTURING, CAPTURE, [CANCELED], S.CANCELED, refusal="WRONG_STATE"),
    Cell(S.CAPTURING, CAPTURE, [CANCELED_BY_STRIPE], S.EXPIRED, refusal="WRONG_STATE"),
    Cell(S.CANCELING, CANCEL, [CANCELED], S.CANCELED, refusal=""),
    Cell(S.CANCELING, CANCEL, [CANCELED_BY_STRIPE], S.EXPIRED, refusal=""),
    Cell(S.CANCELING, DEADLINE, [CANCELED], S.EXPIRED, refusal=""),
    *(
        Cell(state, None, [CANCELED, CANCELED_BY_STRIPE], state)
        for state in (S.CANCELED, S.EXPIRED)
    ),
    *(
        Cell(state, REFUND if state in BUSY else None, [CANCELED], state, CONFLICT)
        for state in PAID_OUT
    ),
    # A status that Stripe may invent.
    *(
        Cell(
            state,
            new_operation(OperationKind.REFUND) if state in BUSY else None,
            [plain(IntentStatus.UNKNOWN)],
            state,
            CONFLICT,
        )
        for state in OF_A_DESTINATION
    ),
]


@pytest.mark.parametrize(
    "cell", TABLE, ids=lambda cell: f"{cell.before}-{cell.seen[0].status}-{cell.after}"
)
def test_a_snapshot_moves_the_payment_as_the_table_says(cell: Cell) -> None:
    before = in_state(cell.before)
    for seen in cell.seen:
        to = followed(before, seen, cell.operation)
        assert to.payment.state is cell.after
        assert reported(to) == ([cell.reports] if cell.reports else [])
        assert to.settled is (cell.refusal is not None)
        assert (to.refusal.reason if to.refusal else "") == (cell.refusal or "")
        assert to.next_operation is None
        if cell.after in (State.PENDING, State.FAILED, State.CANCELED, State.EXPIRED):
            assert to.payment.held == 0
        if to.payment.state is not cell.before:
            assert bool(to.payment.operation_id) is (cell.after in BUSY)
        check_payment(to.payment)


def test_the_table_has_every_state_against_every_status() -> None:
    covered = {(cell.before, seen.status) for cell in TABLE for seen in cell.seen}
    assert covered == {(state, status) for state in OF_A_DESTINATION for status in IntentStatus}


@pytest.mark.parametrize("cell", TABLE, ids=lambda cell: f"{cell.before}-{cell.seen[0].status}")
def test_the_same_snapshot_again_changes_nothing(cell: Cell) -> None:
    for seen in cell.seen:
        first = followed(in_state(cell.before), seen, cell.operation)
        known = [movement.movement_id for movement in first.movements]
        operation = None if first.settled else cell.operation
        again = followed(first.payment, seen, operation, *known)
        assert (again.transitions, again.movements, again.settled) == ([], [], False)
        # What nothing can be done about is said again in the same words, so that it is kept once.
        assert set(again.discrepancies) <= set(first.discrepancies)


# ---- the intent itself ----


def test_first_snapshot_of_the_intent_records_its_creation() -> None:
    payment = new_payment(intent="")
    create = new_operation(OperationKind.CREATE_INTENT, 10_000, "op_create")
    to = followed(payment, intent(), create)
    assert followed_kinds(to) == ["intent_created"]
    assert (to.payment.payment_intent_id, to.payment.operation_id) == ("pi_1", "")
    assert to.settled
    assert to.refusal is None


def test_intent_paid_before_its_creation_was_recorded_is_synced_completely() -> None:
    create = new_operation(OperationKind.CREATE_INTENT, 10_000, "op_create")
    to = followed(new_payment(intent=""), HELD, create)
    assert followed_kinds(to) == ["intent_created", "authorized"]
    assert (to.payment.state, to.payment.held) == (State.IN_ESCROW, 10_000)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize(
    ("changes", "report"),
    [
        ({"minor_units": 9_999}, "amount_mismatch"),
        ({"currency": "EUR"}, "amount_mismatch"),
        ({"payment_intent_id": "pi_2"}, "intent_mismatch"),
    ],
)
def test_intent_that_is_not_the_payments_changes_nothing(
    state: State, changes: dict[str, object], report: str
) -> None:
    other = replace(SUCCEEDED, **changes)  # type: ignore[arg-type]
    to = followed(in_state(state), other, CAPTURE)
    assert (to.transitions, to.settled, reported(to)) == ([], False, [report])


def test_escrow_ends_when_stripe_says_the_authorization_does() -> None:
    payment = followed(new_payment(), HELD).payment
    assert payment.escrow_expire_time == NOW + timedelta(days=7)
    assert (payment.escrow_time, payment.charge_id, payment.failure) == (NOW, "ch_1", None)


def test_success_without_a_charge_is_reported_and_moves_nothing() -> None:
    to = followed(in_state(State.IN_ESCROW), replace(SUCCEEDED, charge=None))
    assert (to.transitions, reported(to)) == ([], ["charge_missing"])


# ---- declines ----


@pytest.mark.parametrize(
    ("code", "decline_code", "shown", "sentence"),
    [
        ("card_declined", "insufficient_funds", "insufficient_funds", "insufficient funds"),
        ("card_declined", "generic_decline", "generic_decline", "the card was declined"),
        ("card_declined", "lost_card", "generic_decline", "the card was declined"),
        ("card_declined", "stolen_card", "generic_decline", "the card was declined"),
        ("card_declined", "fraudulent", "generic_decline", "the card was declined"),
        ("card_declined", "pickup_card", "generic_decline", "the card was declined"),
        ("expired_card", "", "", "the card has expired"),
        ("incorrect_cvc", "", "", "security code is wrong"),
        ("processing_error", "", "", "may be tried again"),
        ("payment_intent_authentication_failure", "", "", "authentication failed"),
        ("something_new", "", "", "Stripe says something_new"),
    ],
)
def test_decline_is_reported_without_naming_lost_or_stolen_cards(
    code: str, decline_code: str, shown: str, sentence: str
) -> None:
    seen = intent(lambda stripe: stripe.decline(code, decline_code))
    failure = followed(new_payment(), seen).payment.failure
    assert failure is not None
    assert (failure.code, failure.decline_code) == (code, shown)
    assert sentence in failure.message
    for hidden in ("lost", "stolen", "fraud", "pickup"):
        assert hidden not in f"{failure}"


def test_another_decline_is_another_failure_the_same_is_not() -> None:
    first = intent(lambda stripe: stripe.decline("card_declined", "lost_card"))
    other = intent(lambda stripe: stripe.decline("expired_card", ""))
    failed = followed(new_payment(), first).payment
    assert followed(failed, first).transitions == []
    assert followed_kinds(followed(failed, other)) == ["attempt_failed"]


# ---- capture ----


def test_capture_of_another_amount_is_posted_as_it_is_and_refused_to_the_caller() -> None:
    to = followed(in_state(State.CAPTURING), intent(captured(6_000, 600)), CAPTURE)
    assert (to.payment.captured, to.payment.net_commission) == (6_000, 600)
    assert reported(to) == ["amount_mismatch"]
    assert to.settled
    assert isinstance(to.refusal, Precondition)
    assert to.refusal.reason == "DISCREPANCY"


@pytest.mark.parametrize("collected", [0, 999, 1_001, 10_000])
def test_other_commission_than_due_is_posted_as_collected_and_reported(collected: int) -> None:
    to = followed(in_state(State.CAPTURING), intent(captured(10_000, collected)), CAPTURE)
    assert to.payment.net_commission == collected
    assert reported(to) == ["commission_mismatch"]
    assert to.settled
    assert to.refusal is None
    check_payment(to.payment)


@pytest.mark.parametrize(
    ("collected", "commission", "netted", "kinds"),
    [
        (3_500, 1_000, 2_500, []),
        (1_800, 1_000, 800, []),
        (1_000, 1_000, 0, []),
        (600, 600, 0, ["commission_mismatch"]),
        (4_000, 1_500, 2_500, ["commission_mismatch"]),
        (0, 0, 0, ["commission_mismatch"]),
    ],
)
def test_debt_is_kept_back_only_as_far_as_stripe_collected_it_beside_the_commission(
    collected: int, commission: int, netted: int, kinds: list[str]
) -> None:
    """A hand at the dashboard captures with the fee that the intent was made with."""
    payload = CapturePayload(payment_intent_id="pi_1", notes="", debt_offset=2_500)
    operation = new_operation(OperationKind.CAPTURE, 10_000, payload=payload)
    to = followed(in_state(State.CAPTURING), intent(captured(10_000, collected)), operation)
    assert (to.payment.net_commission, to.transitions[0].facts["debt_offset"]) == (
        commission,
        netted,
    )
    assert (reported(to), to.settled, to.refusal) == (kinds, True, None)
    check_payment(to.payment)


def test_commission_due_is_that_of_the_captured_amount_not_of_the_whole() -> None:
    operation = new_operation(OperationKind.CAPTURE, 3_333)
    to = followed(in_state(State.CAPTURING), intent(captured(3_333, 333)), operation)
    assert reported(to) == []
    assert to.transitions[0].facts["released"] == 6_667
    assert (to.payment.commission, to.payment.net_commission) == (1_000, 333)


def test_processor_fee_is_recorded_once() -> None:
    to = followed(in_state(State.CAPTURING), SUCCEEDED, CAPTURE)
    assert followed_kinds(to) == ["captured", "processor_fee_recorded"]
    assert to.payment.processor_fee == 320
    assert followed(to.payment, SUCCEEDED).transitions == []


def _charge() -> Charge:
    assert SUCCEEDED.charge is not None
    return SUCCEEDED.charge


def _without_transfer_line() -> Charge:
    transfer = _charge().transfer
    assert transfer is not None
    return replace(_charge(), transfer=replace(transfer, line=None))


@pytest.mark.parametrize(
    "charge",
    [
        replace(_charge(), line=None),
        replace(_charge(), transfer=None),
        _without_transfer_line(),
        replace(_charge(), application_fee=None, application_fee_amount=1_000),
    ],
)
def test_capture_waits_until_stripe_shows_its_lines(charge: Charge) -> None:
    """Postings are never edited, so nothing is posted before its amounts and ids are known."""
    to = followed(in_state(State.CAPTURING), replace(SUCCEEDED, charge=charge), CAPTURE)
    assert (to.transitions, to.settled, to.deferred) == ([], False, True)
    assert to.operation_deferred
    later = followed(to.payment, SUCCEEDED, CAPTURE)
    assert (later.payment.state, later.settled) == (State.CAPTURED, True)


def test_capture_without_a_fee_at_stripe_is_posted_as_it_is_and_reported() -> None:
    charge = replace(_charge(), application_fee=None, application_fee_amount=0)
    to = followed(in_state(State.CAPTURING), replace(SUCCEEDED, charge=charge), CAPTURE)
    assert (to.payment.captured, to.payment.net_commission) == (10_000, 0)
    assert reported(to) == ["commission_mismatch"]


@pytest.mark.parametrize("state", [State.PENDING, State.CANCELED, State.EXPIRED])
def test_out_of_band_capture_of_a_payment_without_a_hold_releases_nothing(state: State) -> None:
    to = followed(in_state(state), SUCCEEDED)
    assert to.transitions[0].kind is EventKind.CAPTURED_OUT_OF_BAND
    assert not [line for line in to.transitions[0].postings if line.account == "hold"]


# ---- when an authorization expires ----


def _authorized(capture_before: datetime | None) -> PaymentSnapshot:
    charge = Charge("ch_1", False, 0, capture_before=capture_before, create_time=NOW)
    return replace(HELD, charge=charge)


def test_an_authorization_without_an_end_gets_the_shortest_one_until_stripe_shows_it() -> None:
    assumed, shown = NOW + timedelta(days=4, hours=18), NOW + timedelta(days=7)
    held = followed(new_payment(), _authorized(None), None).payment
    assert held.escrow_expire_time == assumed
    assert followed(held, _authorized(None), None).transitions == []
    known = followed(held, _authorized(shown), None)
    assert followed_kinds(known) == ["expire_time_known"]
    assert known.payment.escrow_expire_time == shown
    # What Stripe showed once is not replaced.
    later = _authorized(NOW + timedelta(days=9))
    assert followed(known.payment, later, None).transitions == []
