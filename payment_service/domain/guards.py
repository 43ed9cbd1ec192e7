"""Guards: checks that raise a :class:`Refusal` and change nothing."""

from __future__ import annotations

from payment_service.domain import money
from payment_service.domain.errors import Busy, Precondition, invalid_field, operation_in_progress
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.payment import Freeze, Payment, State, WaitingFor, WaitingReason
from payment_service.domain.state_machine import BUSY


def check_promotion(payment: Payment) -> None:
    """Raises unless the authorization can be charged onto the platform's balance.

    A frozen one is never charged by itself: the hold lapses, unless the freeze ends before.
    """
    refuse_unless(payment, State.IN_ESCROW)
    check_capture_freeze(payment)
    if payment.charged or not payment.is_separate:
        raise Precondition(
            "WRONG_STATE",
            "only an authorized card without a destination can be promoted",
            {"payment_id": payment.payment_id, "state": payment.state, "allowed_states": ""},
        )


def check_capture_freeze(payment: Payment) -> None:
    """Raises while the payment is frozen. Our rule: what the bank may take is not paid out."""
    if payment.frozen is not Freeze.NONE:
        raise payment_disputed(payment, "captured")


def check_refund_freeze(payment: Payment) -> None:
    """Raises during a chargeback: Stripe refunds nothing that the client's bank holds."""
    if payment.frozen is Freeze.CHARGEBACK:
        raise payment_disputed(payment, "refunded")


def check_destination(payment: Payment, expert: Expert) -> None:
    """Raises if the charge can pay only an account that the expert has no more.

    Stripe's rule: a DESTINATION charge keeps the account that it was authorized with. A transfer
    from the platform may go to any account.
    """
    if is_destination_replaced(payment, expert):
        raise Precondition(
            "DESTINATION_ACCOUNT_REPLACED",
            "the expert has another account by now, and this charge can only pay the former one; "
            "refund it and initiate a new one",
            {
                "payment_id": payment.payment_id,
                "expert_id": expert.expert_id,
                "destination_account_id": payment.destination_account_id,
                "stripe_account_id": expert.account.stripe_account_id,
            },
        )


def is_destination_replaced(payment: Payment, expert: Expert) -> bool:
    """Returns whether the charge can only be split with an account that the expert had before."""
    present = expert.account.stripe_account_id
    return not payment.is_separate and payment.destination_account_id != present


def reason_to_wait(payment: Payment, expert: Expert) -> WaitingReason:
    """Returns why a capture waits after Stripe refused it because of the expert's account."""
    if is_destination_replaced(payment, expert):
        return WaitingReason.DESTINATION_ACCOUNT_REPLACED
    if expert.status is ExpertStatus.READY:
        return WaitingReason.EXPERT_REFUSED
    return WaitingReason(f"EXPERT_{expert.status}")


def payment_disputed(payment: Payment, word: str, **facts: str) -> Precondition:
    """The refusal of a frozen payment, or of one that Stripe reports as disputed."""
    # Stripe may report a dispute that is not on record yet.
    known = f" ({payment.frozen})" if payment.frozen is not Freeze.NONE else ""
    return Precondition(
        "PAYMENT_DISPUTED",
        f"the payment is frozen by a dispute, a warning or a review{known} and cannot "
        f"be {word} until that is over",
        {
            "payment_id": payment.payment_id,
            "dispute_id": payment.frozen_by,
            "stage": payment.frozen.value,
            **facts,
        },
    )


def waits_for_expert(payment: Payment) -> bool:
    """Whether its capture waits for the expert's account. A refund may abandon such a capture."""
    return payment.state is State.CAPTURING and payment.waiting_for is WaitingFor.EXPERT


class VersionMismatch(Busy):
    """The payment has changed since the caller read it. ``payment`` is its present version."""

    def __init__(self, payment: Payment, expected: int) -> None:
        super().__init__(
            "VERSION_MISMATCH",
            f"the payment has changed to version {payment.version}; read it and decide again",
            {
                "payment_id": payment.payment_id,
                "expected_version": expected,
                "version": payment.version,
                "state": payment.state.value,
            },
        )
        self.payment = payment


def check_version(payment: Payment, expected: int) -> None:
    """Raises VersionMismatch unless the payment has the version ``expected``; 0 means any."""
    if expected and payment.version != expected:
        raise VersionMismatch(payment, expected)


def refuse_unless(payment: Payment, *states: State) -> None:
    """Raises Busy while an operation is open, and Precondition in any other state."""
    if payment.state in BUSY or (payment.operation_id and payment.state in states):
        raise operation_in_progress(payment.payment_id, payment.state)
    if payment.state not in states:
        raise Precondition(
            "WRONG_STATE",
            f"the payment is {payment.state}; this needs {' or '.join(states)}",
            {
                "payment_id": payment.payment_id,
                "state": payment.state.value,
                "allowed_states": ",".join(states),
            },
        )


def check_requested_amount(payment: Payment, amount: int, available: int) -> None:
    """Raises InvalidArgument or Precondition unless ``amount`` can be taken from ``available``."""
    try:
        money.check_part(payment.money(amount))
    except money.InvalidMoney as fault:
        raise invalid_field("amount.minor_units", str(fault)) from None
    if amount > available:
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"{payment.money(amount)} is more than the {payment.money(available)} that there is",
            {
                "payment_id": payment.payment_id,
                "requested": amount,
                "available": available,
                "currency": payment.currency,
            },
        )
