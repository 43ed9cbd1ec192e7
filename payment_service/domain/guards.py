"""The guards: why a call is refused, as checks that raise a Refusal and change nothing."""

from __future__ import annotations

from payment_service.domain import money
from payment_service.domain.errors import Busy, Precondition, invalid_field, operation_in_progress
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.payment import Freeze, Payment, State, WaitingFor, WaitingReason
from payment_service.domain.state_machine import BUSY


def check_promotion(payment: Payment) -> None:
    """Raise unless the hold is one that can be charged onto the platform."""
    refuse_unless(payment, State.IN_ESCROW)
    if payment.charged or not payment.is_separate:
        raise Precondition(
            "WRONG_STATE",
            "only an authorized card without a destination can be promoted",
            {"payment_id": payment.payment_id, "state": payment.state, "allowed_states": ""},
        )


def check_capture_freeze(payment: Payment) -> None:
    """Raise while the payment is contested: what may have to go back is not paid out."""
    if payment.frozen is not Freeze.NONE:
        raise payment_disputed(payment, "captured")


def check_refund_freeze(payment: Payment) -> None:
    """Raise while the money is at the client's bank, which may give it to the client itself."""
    if payment.frozen is Freeze.CHARGEBACK:
        raise payment_disputed(payment, "refunded")


def check_destination(payment: Payment, expert: Expert) -> None:
    """Raise if the charge can only be split with an account that the expert has no more.

    A charge is given its destination when it is authorized and at no other time (Stripe's rule);
    who transfers on from the platform may choose the account.
    """
    if is_destination_replaced(payment, expert):
        raise Precondition(
            "DESTINATION_ACCOUNT_REPLACED",
            "the expert has another account by now, and this charge can only pay the former one; "
            "refund it and initiate it anew",
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
    """Returns why a capture that Stripe refused because of the account cannot continue now."""
    if is_destination_replaced(payment, expert):
        return WaitingReason.DESTINATION_ACCOUNT_REPLACED
    if expert.status is ExpertStatus.READY:
        return WaitingReason.EXPERT_REFUSED
    return WaitingReason(f"EXPERT_{expert.status}")


def payment_disputed(payment: Payment, word: str, **facts: str) -> Precondition:
    """Contested: by our own freeze, or because Stripe says so. ``stage`` is the freeze."""
    return Precondition(
        "PAYMENT_DISPUTED",
        f"the payment is contested ({payment.frozen}) and cannot be {word} until that is decided",
        {
            "payment_id": payment.payment_id,
            "dispute_id": payment.frozen_by,
            "stage": payment.frozen.value,
            **facts,
        },
    )


def waits_for_expert(payment: Payment) -> bool:
    """Its capture rests until the expert's account is well; it may be given up for a refund."""
    return payment.state is State.CAPTURING and payment.waiting_for is WaitingFor.EXPERT


class VersionMismatch(Busy):
    """The payment is not what the caller has seen; ``payment`` is what it is now."""

    def __init__(self, payment: Payment, expected: int) -> None:
        super().__init__(
            "VERSION_MISMATCH",
            f"the payment has moved on to version {payment.version}; look at it and decide anew",
            {
                "payment_id": payment.payment_id,
                "expected_version": expected,
                "version": payment.version,
                "state": payment.state.value,
            },
        )
        self.payment = payment


def check_version(payment: Payment, expected: int) -> None:
    """Raise unless the payment is as the caller has seen it; 0 means that it does not matter."""
    if expected and payment.version != expected:
        raise VersionMismatch(payment, expected)


def refuse_unless(payment: Payment, *states: State) -> None:
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


def check_requested_amount(payment: Payment, part: int, available: int) -> None:
    try:
        money.check_part(payment.money(part))
    except money.InvalidMoney as fault:
        raise invalid_field("amount.minor_units", str(fault)) from None
    if part > available:
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"{payment.money(part)} is more than the {payment.money(available)} that there is",
            {
                "payment_id": payment.payment_id,
                "requested": part,
                "available": available,
                "currency": payment.currency,
            },
        )
