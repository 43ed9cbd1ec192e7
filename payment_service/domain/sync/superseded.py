"""Out-of-band movements, and the operation that was open when they were seen.

One rule: what somebody else moved at Stripe since the open operation was recorded keeps that
operation from being sent. It is parked with a reason that names the movement, and an operator
resumes or abandons it. If Stripe shows the operation itself as done, that ends it as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from payment_service.domain import transitions
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.operation_payloads import ReversalPayload
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.payment import Failure, Payment, State, WaitingFor
from payment_service.domain.snapshot import PaymentSnapshot, Refund
from payment_service.domain.sync.changes import ChangeSet, Discrepancy


def out_of_band_movements(
    snapshot: PaymentSnapshot, operation: Operation | None, booked_ids: frozenset[str]
) -> tuple[str, ...]:
    """Describes the movements that are not booked yet and that the operation did not make."""
    mine = operation.operation_id if operation else ""
    fee = snapshot.charge.application_fee if snapshot.charge else None
    found = [
        *(("refund", one.refund_id, one.minor_units, one.operation_id) for one in snapshot.refunds),
        *(
            ("transfer", one.transfer_id, one.minor_units, one.operation_id)
            for one in snapshot.separate_transfers
        ),
        *(
            ("reversal", one.reversal_id, one.minor_units, one.operation_id)
            for transfer in snapshot.transfers
            for one in transfer.reversals
        ),
        *(
            ("fee_refund", one.fee_refund_id, one.minor_units, "")
            for one in (fee.refunds if fee else ())
        ),
    ]
    return tuple(
        described(kind, name, minor_units)
        for kind, name, minor_units, made_by in found
        if name not in booked_ids and (not made_by or made_by != mine)
    )


def described(kind: str, movement_id: str, minor_units: int) -> str:
    """Names a movement in the reason for which an operation is parked."""
    return f"{kind} {movement_id} of {minor_units}"


def check_superseded(
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
    operation: Operation | None,
    moved: Sequence[str],
    now: datetime,
) -> None:
    """Keeps the open operation from being sent if anything ``moved`` out of band meanwhile.

    If a request of it may be on its way, only its holder may park it, by ``Followed.blocked_by``:
    nobody else knows what was sent. What follows from an operation that is done is recorded parked.
    """
    if operation is None or not moved:
        return
    why = f"moved out of band meanwhile: {', '.join(moved)}"
    if changes.settled:
        if changes.next_operation is not None:
            changes.next_operation = replace(changes.next_operation, parked=why)
            changes.take(
                transitions.waiting_changed(changes.payment, WaitingFor.OPERATOR, why, now)
            )
        return
    if changes.operation_deferred or is_at_stripe(operation, snapshot):
        return
    changes.blocked_by = why
    is_parked = operation.state is OperationState.PARKED
    if is_parked and changes.payment.waiting_for is not WaitingFor.OPERATOR:
        changes.take(transitions.waiting_changed(changes.payment, WaitingFor.OPERATOR, why, now))


def end_repayment(
    changes: ChangeSet, snapshot: PaymentSnapshot, operation: Operation | None, now: datetime
) -> None:
    """Ends a parked repayment once less is payable to the client than it would pay.

    Its amount is never edited, since Stripe may know its key. What is still payable is parked anew.
    """
    if operation is None or not operation.is_repayment or changes.settled:
        return
    if changes.payment.client_payable >= operation.minor_units or is_at_stripe(operation, snapshot):
        return
    if operation.is_without_effect(now):
        changes.take(transitions.repayment_abandoned(changes.payment, "paid out of band", now))
        changes.settle(ended_out_of_band(changes.payment, "refunded"))


def abandon(
    changes: ChangeSet, operation: Operation, failure: Failure, refusal: Refusal, taken: int
) -> None:
    """Ends a parked operation for a lost dispute. Its caller is told ``refusal``, except where the
    essential part was done: of what is held then, the dispute takes ``taken``.
    """
    payment = changes.payment
    if operation.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER):
        changes.take(transitions.capture_abandoned(payment, failure.message, failure.time))
        changes.settle(refusal)
    elif operation.is_repayment:
        changes.take(transitions.repayment_abandoned(payment, failure.message, failure.time))
        changes.settle(refusal)
    elif operation.kind is OperationKind.REFUND:
        changes.take(transitions.refund_refused(payment, failure))
        if not operation.returns_remainder:
            changes.settle(refusal)
            return
        # The expert was paid: a caller who is told "refused" would pay once more.
        changes.settle()
        if payment.held > taken:
            changes.discrepancies.append(remainder_not_returned(payment, operation, failure.code))


def may_be_in_flight(
    changes: ChangeSet, snapshot: PaymentSnapshot, operation: Operation | None, now: datetime
) -> int:
    """Returns what a transfer may be sending to the expert just now: the client cannot have it."""
    if operation is None or changes.settled or changes.payment.state is not State.CAPTURING:
        return 0
    if operation.is_without_effect(now) and not is_at_stripe(operation, snapshot):
        return 0
    return operation.minor_units


def out_of_band_refunds(snapshot: PaymentSnapshot, booked_ids: frozenset[str]) -> list[Refund]:
    """What others refund, and is not booked yet; of a payment with no refund of ours in flight."""
    return [one for one in snapshot.refunds if one.refund_id not in booked_ids and not one.failed]


def check_covered(payment: Payment, operation: Operation) -> None:
    """Raise if a parked operation would refund or pay out more than there is by now."""
    if operation.kind is OperationKind.TRANSFER or operation.returns_remainder:
        available = payment.held
    elif operation.kind is not OperationKind.REFUND:
        return
    elif operation.is_repayment:
        available = payment.client_payable
    else:
        available = payment.held + payment.net
    if operation.minor_units > available:
        there_is = payment.money(available)
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"{payment.money(operation.minor_units)} is more than the {there_is} that is left; "
            "abandon the operation (AbandonOperation)",
            {
                "payment_id": payment.payment_id,
                "requested": operation.minor_units,
                "available": available,
                "currency": payment.currency,
            },
        )


def is_at_stripe(operation: Operation, snapshot: PaymentSnapshot) -> bool:
    """Whether Stripe shows what this operation asked for, on the books or not."""
    shown = {one.operation_id for one in snapshot.separate_transfers}
    shown |= {one.operation_id for one in snapshot.refunds}
    shown |= {one.operation_id for transfer in snapshot.transfers for one in transfer.reversals}
    return operation.operation_id in shown


def debt_if_not_reversed(operation: Operation) -> int:
    """What the expert owes if this reversal is not made: the later ones are not tried either."""
    return operation.minor_units + operation.payload_as(ReversalPayload).unrecovered


def remainder_not_returned(payment: Payment, operation: Operation, code: str) -> Discrepancy:
    """The expert was paid by a final capture, and the rest was not given back."""
    return Discrepancy(
        payment.payment_id,
        "remainder_not_returned",
        f"{operation.operation_id}: {code}",
        expected=operation.minor_units,
        found=0,
        currency=payment.currency,
        cure="the rest is still in escrow: RefundPayment, once nothing stands against it",
    )


def ended_out_of_band(payment: Payment, word: str) -> Precondition:
    return Precondition(
        "WRONG_STATE",
        f"meanwhile the payment was {word} at Stripe",
        {"payment_id": payment.payment_id, "state": word.upper(), "allowed_states": ""},
    )
