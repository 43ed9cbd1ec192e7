"""A charge on the platform, transferred part by part: the table, the books, and whole lives."""

from dataclasses import replace

import pytest

from payment_service.domain.errors import Precondition
from payment_service.domain.ledger import CaptureSplit
from payment_service.domain.operation_payloads import CapturePayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import EscrowMode, Payment, State, WaitingFor
from payment_service.domain.snapshot import (
    BalanceTransaction,
    Decline,
    IntentStatus,
    PaymentSnapshot,
    Transfer,
)
from payment_service.domain.state_machine import EventKind
from payment_service.domain.sync.changes import ChangeSet, Movement, SyncContext
from payment_service.domain.sync.derive_changes import derive_changes
from tests.unit.domain.builders import (
    BUSY,
    CARD_HOLD,
    HOLDING,
    NOW,
    PAID_OUT,
    PLATFORM_HOLD,
    in_state,
    new_operation,
    new_payment,
    new_transfer,
    separate,
    sums,
)
from tests.unit.domain.fake_intent import FakeIntent
from tests.unit.domain.fake_service import (
    DEBT,
    FUNDS,
    FakeService,
    check_payment,
    followed_kinds,
    reported,
    serve,
)

S = State
PLATFORM, CONNECTED = "stripe:platform", "stripe:connected:expert_1"
ESCROW, OWED = "escrow:pay_1", "client_payable:pay_1"

# ---- every cell of the table ----


def shown(*, charged: int = 0, held: bool = False, canceled: str = "") -> PaymentSnapshot:
    intent = FakeIntent(10_000, "USD", has_destination=False)
    if held or charged:
        intent.authorize()
    if charged:
        intent.capture(charged)
    if canceled:
        intent.cancel(canceled)
    return intent.observe()


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
HELD, SUCCEEDED = shown(held=True), shown(charged=10_000)
CANCELED, BY_STRIPE = shown(canceled="requested_by_customer"), shown(canceled="automatic")
UNKNOWN = replace(shown(), status=IntentStatus.UNKNOWN)

CAPTURE = new_operation(
    OperationKind.CAPTURE,
    10_000,
    payload=CapturePayload(
        payment_intent_id="pi_1", notes="", transfer=new_transfer(400), transfer_amount=4_000
    ),
)
TRANSFER = new_operation(OperationKind.TRANSFER, 4_000, payload=new_transfer(400))
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


def held(mode: EscrowMode = PLATFORM_HOLD, *, debt: int = 0) -> FakeService:
    """A payment of 100.00 USD that its client confirmed."""
    service = serve(separate(mode), debt_before=debt)
    service.intent.authorize()
    service.follow()
    return service


def books(service: FakeService) -> dict[str, int]:
    service.check_reconciled()
    return {account: total for (account, _), total in sums(service.postings).items()}


# Stripe's own fee is 320 of 10000 and 204 of 6000.
FEE = {"processor_fee": 320}


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


# ---- captured elsewhere than asked ----


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


# ---- parts ----


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


# ---- given back ----


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


# ---- bounced ----


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


# ---- by a hand at Stripe's dashboard ----


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
