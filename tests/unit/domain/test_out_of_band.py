"""One rule: what was moved out of band parks the open operation; an operator ends it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest

from payment_service.domain.errors import Precondition
from payment_service.domain.operations import OperationKind, OperationState
from payment_service.domain.payment import State, WaitingFor
from payment_service.domain.snapshot import Refund
from tests.unit.domain.builders import PLATFORM_HOLD, new_payment, separate
from tests.unit.domain.fake_intent import RefusedByStripe
from tests.unit.domain.fake_service import (
    FakeService,
    followed_kinds,
    reported,
    serve,
)


def on_the_platform(*, paid_out: int = 0) -> FakeService:
    service = serve(separate(PLATFORM_HOLD))
    service.intent.authorize()
    service.follow()
    if paid_out:
        service.capture(paid_out, final=False)
    return service


def with_a_destination() -> FakeService:
    service = serve(new_payment())
    service.intent.authorize()
    service.follow()
    service.capture()
    return service


# ---- each kind of operation, before it is sent ----


def transfer(service: FakeService) -> None:
    service.start_capture(4_000, final=False)


def final_transfer(service: FakeService) -> None:
    service.start_capture(4_000, final=True)


def refund(service: FakeService) -> None:
    service.start_give_back(3_000)


def rest(service: FakeService) -> None:
    service.start_capture(4_000, final=True)
    service.send()
    service.follow()


def reversal(service: FakeService) -> None:
    service.start_give_back(service.payment.held + 1_000)
    service.send()
    service.follow()


def repayment(service: FakeService) -> None:
    service.give_back(2_000)
    service.intent.bounce(service.intent.refunds[-1].refund_id)
    service.follow()


@dataclass(frozen=True)
class Case:
    begin: Callable[[FakeService], None]
    kind: OperationKind
    setup: Callable[[], FakeService]


def _paid_in_parts() -> FakeService:
    return on_the_platform(paid_out=2_000)


CASES = {
    "transfer": Case(transfer, OperationKind.TRANSFER, _paid_in_parts),
    "final transfer": Case(final_transfer, OperationKind.TRANSFER, _paid_in_parts),
    "refund": Case(refund, OperationKind.REFUND, _paid_in_parts),
    "rest of a capture": Case(rest, OperationKind.REFUND, _paid_in_parts),
    "reversal": Case(reversal, OperationKind.REVERSE_TRANSFER, _paid_in_parts),
    "repayment": Case(repayment, OperationKind.REFUND, _paid_in_parts),
    "refund, destination": Case(refund, OperationKind.REFUND, with_a_destination),
    "reversal, destination": Case(reversal, OperationKind.REVERSE_TRANSFER, with_a_destination),
    "repayment, destination": Case(repayment, OperationKind.REFUND, with_a_destination),
}
#: What somebody does at Stripe's dashboard, and how it is reported.
MOVES: dict[str, tuple[Callable[[FakeService], object], str]] = {
    "refund": (lambda s: s.intent.refund(500), "out_of_band_refund"),
    "transfer": (lambda s: s.intent.transfer(500), "out_of_band_transfer"),
    "reversal": (lambda s: s.intent.reverse(500), "out_of_band_reversal"),
    "fee_refund": (lambda s: s.intent.refund_fee(100), "out_of_band_fee_refund"),
}
#: A charge with a destination has no other transfers, and only that has a fee.
PAIRS = [
    pytest.param(CASES[case], move, id=f"{case}, {move}")
    for case in CASES
    for move in MOVES
    if move != ("transfer" if "destination" in case else "fee_refund")
]


def begun(case: Case) -> FakeService:
    service = case.setup()
    case.begin(service)
    assert service.operation is not None
    assert service.operation.kind is case.kind
    return service


@pytest.mark.parametrize(("case", "move"), PAIRS)
@pytest.mark.parametrize("parked", [False, True], ids=["in flight", "parked"])
def test_it_is_not_sent_and_the_reason_names_the_movement(
    case: Case, move: str, parked: bool
) -> None:
    service = begun(case)
    before = service.operation
    is_repayment = before is not None and before.is_repayment
    if parked and not is_repayment:
        service.wait_for_expert()
    if is_repayment and not parked:
        service.resume()
    act, kind = MOVES[move]
    act(service)
    to = service.follow()
    assert reported(to) == [kind]
    if is_repayment and parked and move == "refund":
        # Less is payable than it would pay: it has ended, and what is left is parked anew.
        assert (to.settled, service.payment.client_payable) == (True, 1_500)
        return
    assert not to.settled
    assert to.blocked_by.startswith(f"moved out of band meanwhile: {move} ")
    assert "waiting_changed" in followed_kinds(to) or not parked or is_repayment
    if parked:
        assert service.payment.waiting_for is WaitingFor.OPERATOR
    # Every sync says so, until an operator resumes it all the same.
    assert service.follow().blocked_by == to.blocked_by
    assert service.operation is not None
    assert before is not None
    assert service.operation.operation_id == before.operation_id


@pytest.mark.parametrize(("case", "move"), PAIRS)
def test_a_finished_operation_succeeds_and_its_successor_is_parked(case: Case, move: str) -> None:
    """The movement is seen together with the effect of the operation that was in flight."""
    service = begun(case)
    if service.operation is not None and service.operation.is_repayment:
        service.resume()
    operation = service.operation
    assert operation is not None
    service._effect(operation)
    act, kind = MOVES[move]
    try:
        act(service)
    except RefusedByStripe:  # Ours has taken all that there was.
        return
    to = service.follow()
    assert kind in reported(to)
    assert to.settled
    assert not to.blocked_by
    if to.next_operation is not None:
        assert to.next_operation.parked.startswith(f"moved out of band meanwhile: {move} ")
        assert service.payment.waiting_for is WaitingFor.OPERATOR
    service.check_reconciled()


@pytest.mark.parametrize(("case", "move"), PAIRS)
@pytest.mark.parametrize("ends", ["resumed", "refused", "abandoned"])
def test_an_operator_ends_it_and_the_books_are_those_of_stripe(
    case: Case, move: str, ends: str
) -> None:
    service = begun(case)
    operation = service.operation
    assert operation is not None
    is_repayment = operation.is_repayment
    if is_repayment and ends != "resumed":
        return  # Stripe's no leaves it parked, and SettleClientPayable is what ends it.
    if not is_repayment:
        service.park()
    MOVES[move][0](service)
    service.follow()
    if ends == "abandoned":
        service.abandon()
    else:
        try:
            service.resume()
        except Precondition:  # A part of what it would move has gone.
            service.abandon()
        else:
            assert not service.follow().blocked_by
            service.send(refused=ends == "refused")
            service.follow()
    while service.operation is not None and not service.operation.is_repayment:
        if service.is_parked:
            service.resume()
        service.send()
        service.follow()
    service.follow()
    service.check_reconciled()
    assert service.payment.state in (State.IN_ESCROW, State.CAPTURED, State.REFUNDED)


# ---- no more than there is ----


@pytest.mark.parametrize(("out_of_band", "left"), [(6_001, 3_999), (10_000, 0)])
def test_an_operation_that_is_not_covered_can_only_be_abandoned(
    out_of_band: int, left: int
) -> None:
    service = on_the_platform()
    service.start_capture(4_000, final=False)
    service.wait_for_expert()
    service.intent.refund(out_of_band)
    service.follow()
    assert (service.payment.state, service.payment.held) == (State.CAPTURING, left)
    assert service.payment.waiting_for is WaitingFor.OPERATOR
    with pytest.raises(Precondition, match="AbandonOperation") as refused:
        service.resume()
    assert refused.value.reason == "AMOUNT_TOO_LARGE"
    service.abandon()
    assert service.payment.state is (State.IN_ESCROW if left else State.REFUNDED)
    assert (service.payment.held, service.balance("losses")) == (left, 0)


def test_an_operation_that_is_still_covered_is_resumed_unchanged() -> None:
    service = on_the_platform()
    service.start_capture(4_000, final=False)
    service.wait_for_expert()
    service.intent.refund(6_000)
    service.follow()
    service.finish()
    assert (service.payment.captured, service.payment.refunded_from_escrow) == (4_000, 6_000)


def test_a_pending_refund_keeps_it_parked_until_its_line_is_there() -> None:
    service = on_the_platform()
    service.start_capture(4_000, final=False)
    service.wait_for_expert()
    pending = Refund("re_9", 8_000, "pending")
    seen = replace(service.intent.observe(), refunds=(pending,))
    to = service.follow(seen)
    assert (followed_kinds(to), to.deferred) == (["waiting_changed"], True)
    assert to.blocked_by
    service.resume()
    assert service.follow(seen).blocked_by


def test_a_refund_waits_while_its_amount_may_be_in_transfer() -> None:
    """Nothing is lost: it is booked when the transfer is done, or certainly is not."""
    service = on_the_platform()
    service.start_capture(6_000, final=False)
    service.intent.refund(5_000)
    to = service.follow()
    assert (followed_kinds(to), to.deferred, bool(to.blocked_by)) == ([], True, True)
    assert service.operation is not None
    service.operation = replace(service.operation, state=OperationState.PARKED)
    assert followed_kinds(service.follow()) == ["refunded_out_of_band", "waiting_changed"]
    assert service.payment.held == 5_000


def test_a_transfer_that_arrives_after_its_money_was_refunded_is_the_platforms_loss() -> None:
    service = on_the_platform()
    service.start_capture(6_000, final=False)
    service.park()
    service.intent.refund(10_000)
    service.follow()
    operation = service.operation
    assert operation is not None
    service.intent.transfer(5_400, operation.operation_id)
    to = service.follow()
    assert followed_kinds(to) == ["capture_abandoned", "transferred_out_of_band"]
    assert to.settled
    assert (service.payment.state, service.balance("losses")) == (State.REFUNDED, 5_400)
    service.check_reconciled()


def test_an_out_of_band_reversal_is_the_platforms_until_it_is_settled_with_the_expert() -> None:
    service = on_the_platform()
    service.capture()
    service.intent.reverse(4_000)
    service.follow()
    assert service.balance("losses") == -4_000
    service.give_back()
    # Stripe takes back what is left of the transfer; an operator writes the debt off.
    assert (service.balance("expert_debt:expert_1"), service.balance("losses")) == (4_000, -4_000)
    assert service.payment.state is State.REFUNDED
