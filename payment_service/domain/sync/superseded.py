"""Out-of-band movements, and the operation that was open when a snapshot showed them.

One rule, ours: what somebody else moved at Stripe since the open operation was recorded keeps that
operation from being sent. It is parked with a reason that names the movement, and an operator
resumes or abandons it. If Stripe shows the operation itself as done, that ends it as always.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from payment_service.domain import transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.operation_payloads import ReversalPayload
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.payment import Failure, Payment, State, WaitingFor
from payment_service.domain.snapshot import PaymentSnapshot, Refund
from payment_service.domain.sync.changes import ChangeSet, Discrepancy, SyncContext

#: Why a reversal is parked whose amount the expert may have paid in another way.
RECOVERED_BESIDE: Final = "recovered beside it"
#: Why a reversal waits: the books may be older than Stripe, and the amount may be paid by now.
CATCHES_UP: Final = "Stripe's last events are not applied yet"


def out_of_band_movements(context: SyncContext) -> tuple[str, ...]:
    """Describes the movements that are not booked yet and that the operation did not make."""
    snapshot = context.snapshot
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
            if one.is_done
        ),
        *(
            ("fee_refund", one.fee_refund_id, one.minor_units, "")
            for one in (fee.refunds if fee else ())
        ),
    ]
    return tuple(
        described(kind, movement_id, minor_units)
        for kind, movement_id, minor_units, made_by in found
        if movement_id not in context.booked_ids
        and not context.is_made_by_operation(made_by)
        and made_by not in context.collections
    )


def described(kind: str, movement_id: str, minor_units: int) -> str:
    """Names a movement in the reason for which an operation is parked."""
    return f"{kind} {movement_id} of {minor_units}"


def check_superseded(changes: ChangeSet, context: SyncContext, moved: Sequence[str]) -> None:
    """Keeps the open operation from being sent if anything ``moved`` out of band meanwhile.

    If one of its requests may be in flight, only the lease holder may park it, by
    ``ChangeSet.blocked_by``: nobody else knows what was sent. The operation that follows one that
    is done is recorded parked.
    """
    operation = context.operation
    if operation is None or not moved:
        return
    why = f"moved out of band meanwhile: {', '.join(moved)}"
    if changes.settled:
        _park_next(changes, context, why)
        return
    if changes.operation_deferred or is_at_stripe(operation, context.snapshot):
        return
    changes.blocked_by = why
    is_parked = operation.state is OperationState.PARKED
    if is_parked and changes.payment.waiting_for is not WaitingFor.OPERATOR:
        _wait_for_operator(changes, context, why)


def check_recovered(changes: ChangeSet, context: SyncContext) -> None:
    """Parks what takes money back from the expert if a lost collection was recovered beside it.

    A restored database does not know whether the collection has paid for the very same.
    """
    if context.recovered:
        _park_next(changes, context, f"{RECOVERED_BESIDE}: {', '.join(context.recovered)}")


def _park_next(changes: ChangeSet, context: SyncContext, why: str) -> None:
    if changes.next_operation is None or changes.next_operation.parked:
        return
    changes.next_operation = replace(changes.next_operation, parked=why)
    _wait_for_operator(changes, context, why)


def _wait_for_operator(changes: ChangeSet, context: SyncContext, why: str) -> None:
    changes.take(
        transitions.waiting_changed(changes.payment, WaitingFor.OPERATOR, why, context.now)
    )


def end_repayment(changes: ChangeSet, context: SyncContext) -> None:
    """Ends a parked repayment once less is payable to the client than it would pay.

    Its amount is never edited, since Stripe may know its key. What is still payable is parked as a
    new operation.
    """
    operation = context.operation
    if operation is None or not operation.is_repayment or changes.settled:
        return
    if changes.payment.client_payable >= operation.minor_units:
        return
    if is_at_stripe(operation, context.snapshot):
        return
    if operation.is_without_effect(context.now):
        abandoned = transitions.repayment_abandoned(
            changes.payment, "paid out of band", context.now
        )
        changes.take(abandoned)
        changes.settle(ended_out_of_band(changes.payment, "refunded"))


def abandon(
    changes: ChangeSet,
    operation: Operation,
    failure: Failure,
    refusal: Refusal,
    disputed_amount: int,
) -> None:
    """Ends a parked operation because of a lost dispute over ``disputed_amount`` (minor units).

    Its caller gets ``refusal``, except for a remainder: the expert was paid, and a caller who gets
    a refusal would pay once more.
    """
    payment = changes.payment
    if operation.pays_expert:
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
        changes.settle()
        if payment.held > disputed_amount:
            changes.discrepancies.append(remainder_not_returned(payment, operation, failure.code))


def may_be_in_flight(changes: ChangeSet, context: SyncContext) -> int:
    """Returns what a transfer may be sending to the expert now, in minor units.

    The client cannot get that amount.
    """
    operation = context.operation
    if operation is None or changes.settled or changes.payment.state is not State.CAPTURING:
        return 0
    snapshot = context.snapshot
    refused = snapshot.refused_operation == operation.operation_id
    ended = refused or operation.is_without_effect(context.now)
    if ended and not is_at_stripe(operation, snapshot):
        return 0
    return operation.minor_units


def out_of_band_refunds(context: SyncContext) -> list[Refund]:
    """Returns the refunds that are not booked yet. Requires that no refund of ours is open."""
    return [
        one
        for one in context.snapshot.refunds
        if one.refund_id not in context.booked_ids and not one.failed
    ]


def check_covered(payment: Payment, operation: Operation) -> None:
    """Raises Precondition if a parked operation would move more than there is by now."""
    if operation.kind is OperationKind.REFUND and payment.pending_refund:
        available = payment.pending_refund  # It was divided when it was accepted.
    elif operation.kind is OperationKind.TRANSFER or operation.returns_remainder:
        available = payment.held
    elif operation.kind is not OperationKind.REFUND:
        return
    elif operation.is_repayment:
        available = payment.client_payable
    else:
        available = payment.held + payment.net
    # What waits for the platform's balance is counted as refunded already.
    available += payment.pending_refund
    if operation.minor_units > available:
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"{payment.money(operation.minor_units)} is more than the {payment.money(available)} "
            "that is left; abandon the operation (AbandonOperation)",
            {
                "payment_id": payment.payment_id,
                "requested": operation.minor_units,
                "available": available,
                "currency": payment.currency,
            },
        )


def is_at_stripe(operation: Operation, snapshot: PaymentSnapshot) -> bool:
    """Whether Stripe shows what this operation requested, booked or not."""
    operation_ids = {one.operation_id for one in snapshot.separate_transfers}
    operation_ids |= {one.operation_id for one in snapshot.refunds} | {snapshot.empty_transfer}
    operation_ids |= {
        one.operation_id for transfer in snapshot.transfers for one in transfer.reversals
    }
    return operation.operation_id in operation_ids


def shows_no_effect(operation: Operation, changes: ChangeSet, context: SyncContext) -> bool:
    """Whether a parked operation can take effect no more, and the snapshot shows none of it.

    Until a snapshot has shown that, nothing may pre-empt the operation.
    """
    return (
        operation.is_without_effect(context.now)
        and not (changes.settled or changes.operation_deferred)
        and not is_at_stripe(operation, context.snapshot)
    )


def debt_if_not_reversed(operation: Operation) -> int:
    """Returns the expert's debt, in minor units, if this reversal and the later ones do not happen.

    Raises TypeError for another kind of operation.
    """
    return operation.minor_units + operation.payload_as(ReversalPayload).unrecovered


def remainder_not_returned(payment: Payment, operation: Operation, code: str) -> Discrepancy:
    """A final capture paid the expert, and the remainder was not refunded."""
    return Discrepancy(
        payment.payment_id,
        DiscrepancyKind.REMAINDER_NOT_RETURNED,
        f"{operation.operation_id}: {code}",
        expected=operation.minor_units,
        found=0,
        currency=payment.currency,
        remediation="the remainder is still in escrow: call RefundPayment once nothing prevents it",
    )


def pending_refund_failed(payment: Payment, operation: Operation, code: str) -> Discrepancy:
    """A refund that waited for the platform's balance will not be made: the client is owed it."""
    return Discrepancy(
        payment.payment_id,
        DiscrepancyKind.REFUND_FAILED,
        f"{operation.operation_id} of {payment.pending_refund}: {code}",
        expected=payment.pending_refund,
        found=0,
        currency=payment.currency,
        remediation="the repayment is parked: resume it, or call SettleClientPayable",
    )


def ended_out_of_band(payment: Payment, word: str) -> Precondition:
    """The refusal of an operation that an out-of-band change has made pointless."""
    return Precondition(
        "WRONG_STATE",
        f"meanwhile the payment was {word} at Stripe",
        {"payment_id": payment.payment_id, "state": word.upper(), "allowed_states": ""},
    )
