"""From what Stripe shows to what changes here: every cell of the table, and what hangs on it."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from fractions import Fraction
from typing import NamedTuple

import pytest

from payment_service.domain.errors import Precondition
from payment_service.domain.operation_payloads import CapturePayload, ReversalPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Payment, State, WaitingFor
from payment_service.domain.snapshot import (
    BalanceTransaction,
    Charge,
    Decline,
    IntentStatus,
    PaymentSnapshot,
    Refund,
)
from payment_service.domain.state_machine import EventKind
from payment_service.domain.sync.changes import ChangeSet, Movement, SyncContext
from payment_service.domain.sync.derive_changes import derive_changes
from tests.unit.domain.builders import (
    BUSY,
    HOLDING,
    NOW,
    OF_A_DESTINATION,
    PAID_OUT,
    in_state,
    new_operation,
    new_payment,
)
from tests.unit.domain.fake_intent import SAME_CURRENCY, Exchange, FakeIntent
from tests.unit.domain.fake_service import (
    FakeService,
    check_payment,
    followed_kinds,
    reported,
    serve,
)

DECLINE = Decline("card_declined", "insufficient_funds")
CAPTURE = new_operation(OperationKind.CAPTURE, 10_000)
CANCEL = new_operation(OperationKind.CANCEL, 10_000)
DEADLINE = new_operation(OperationKind.CANCEL, 10_000, purpose=OperationPurpose.DEADLINE)
REFUND = new_operation(OperationKind.REFUND, 10_000)


def followed(
    payment: Payment, seen: PaymentSnapshot, operation: Operation | None = None, *known: str
) -> ChangeSet:
    context = SyncContext(
        snapshot=seen,
        operation=operation,
        booked_ids=frozenset(known),
        next_operation_id="op_next",
        holding_limit=HOLDING,
        now=NOW,
    )
    return derive_changes(payment, context)


def intent(*steps: Callable[[FakeIntent], object]) -> PaymentSnapshot:
    """What Stripe shows of an intent of 100.00 USD after some steps."""
    shown = FakeIntent(10_000, "USD")
    for step in steps:
        step(shown)
    return shown.observe()


def captured(part: int = 10_000, fee: int = 1_000) -> Callable[[FakeIntent], None]:
    def step(shown: FakeIntent) -> None:
        shown.authorize()
        shown.capture(part, fee)

    return step


def plain(status: IntentStatus, decline: Decline | None = None) -> PaymentSnapshot:
    return replace(intent(), status=status, decline=decline)


# ---- every cell of the table ----

HELD = intent(FakeIntent.authorize)
SUCCEEDED = intent(captured())
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
    # Captured, by us or by a hand.
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
    # Cancelled, by us, by a hand or by time.
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


# ---- refunds: ours ----


def paid_out(exchange: Exchange = SAME_CURRENCY) -> FakeService:
    """A payment of 10000 that was captured, with its books."""
    service = serve(new_payment(), exchange)
    service.intent.authorize()
    service.follow()
    service.capture()
    return service


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


# ---- refunds: bounced ----


def bounced() -> FakeService:
    service = paid_out()
    service.give_back()
    service.intent.bounce(service.intent.refunds[0].refund_id)
    service.follow()
    return service


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


# ---- by a hand at Stripe's dashboard ----


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
        pending = Refund("re_1", 4_000, "pending", made_by)
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
