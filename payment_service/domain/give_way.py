"""Out-of-band movements, and the operation that was open when they were seen.

One rule: what somebody else moved at Stripe since the open operation was recorded keeps that
operation from being sent. It is parked with a reason that names the movement, and an operator
resumes or abandons it. What Stripe shows of the operation itself ends it as ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from payment_service.domain import escrow
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.escrow import Failure, Payment, State, WaitingFor
from payment_service.domain.followed import Discrepancy, Followed
from payment_service.domain.observation import Observation, Refund
from payment_service.domain.operations import Operation, OperationKind, OperationState


def out_of_band(
    seen: Observation, operation: Operation | None, known: frozenset[str]
) -> tuple[str, ...]:
    """Describes the movements that are not booked yet and that the operation did not make."""
    mine = operation.operation_id if operation else ""
    fee = seen.charge.application_fee if seen.charge else None
    found = [
        *(("refund", one.refund_id, one.minor_units, one.operation_id) for one in seen.refunds),
        *(
            ("transfer", one.transfer_id, one.minor_units, one.operation_id)
            for one in seen.separate_transfers
        ),
        *(
            ("reversal", one.reversal_id, one.minor_units, one.operation_id)
            for transfer in seen.transfers
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
        if name not in known and (not made_by or made_by != mine)
    )


def described(kind: str, movement_id: str, minor_units: int) -> str:
    """Names a movement in the reason for which an operation is parked."""
    return f"{kind} {movement_id} of {minor_units}"


def stand_back(
    to: Followed,
    seen: Observation,
    operation: Operation | None,
    moved: Sequence[str],
    now: datetime,
) -> None:
    """Keeps the open operation from being sent if anything ``moved`` out of band meanwhile.

    If a request of it may be on its way, only its holder may park it, by ``Followed.stands_back``:
    nobody else knows what was sent. What follows from an operation that is done is recorded parked.
    """
    if operation is None or not moved:
        return
    why = f"moved out of band meanwhile: {', '.join(moved)}"
    if to.settled:
        if to.next_operation is not None:
            to.next_operation = replace(to.next_operation, parked=why)
            to.take(escrow.waiting(to.payment, WaitingFor.OPERATOR, why, now))
        return
    if to.operation_deferred or is_shown(operation, seen):
        return
    to.stands_back = why
    is_parked = operation.state is OperationState.PARKED
    if is_parked and to.payment.waiting_for is not WaitingFor.OPERATOR:
        to.take(escrow.waiting(to.payment, WaitingFor.OPERATOR, why, now))


def end_repayment(
    to: Followed, seen: Observation, operation: Operation | None, now: datetime
) -> None:
    """Ends a parked repayment once less is payable to the client than it would pay.

    Its amount is never edited, since Stripe may know its key. What is still payable is parked anew.
    """
    if operation is None or not operation.params.get("owed") or to.settled:
        return
    if to.payment.client_owed >= operation.minor_units or is_shown(operation, seen):
        return
    if operation.is_without_effect(now):
        to.take(escrow.repayment_given_up(to.payment, "paid out of band", now))
        to.settle(ended_otherwise(to.payment, "refunded"))


def give_up(
    to: Followed, operation: Operation, failure: Failure, refusal: Refusal, taken: int
) -> None:
    """Ends a parked operation for a lost dispute. Its caller is told ``refusal``, except where the
    essential part was done: of what is held then, the dispute takes ``taken``.
    """
    payment = to.payment
    if operation.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER):
        to.take(escrow.capture_given_up(payment, failure.message, failure.time))
        to.settle(refusal)
    elif operation.params.get("owed"):
        to.take(escrow.repayment_given_up(payment, failure.message, failure.time))
        to.settle(refusal)
    elif operation.kind is OperationKind.REFUND:
        to.take(escrow.refund_refused(payment, failure))
        if not operation.params.get("after_capture"):
            to.settle(refusal)
            return
        # The expert was paid: a caller who is told "refused" would pay once more.
        to.settle()
        if payment.held > taken:
            to.discrepancies.append(rest_not_returned(payment, operation, failure.code))


def on_its_way(to: Followed, seen: Observation, operation: Operation | None, now: datetime) -> int:
    """Returns what a transfer may be sending to the expert just now: the client cannot have it."""
    if operation is None or to.settled or to.payment.state is not State.CAPTURING:
        return 0
    if operation.is_without_effect(now) and not is_shown(operation, seen):
        return 0
    return operation.minor_units


def refunds_by_hand(seen: Observation, known: frozenset[str]) -> list[Refund]:
    """What others refund, and is not booked yet; of a payment with no refund of ours in flight."""
    return [one for one in seen.refunds if one.refund_id not in known and not one.failed]


def check_covered(payment: Payment, operation: Operation) -> None:
    """Raise if a parked operation would refund or pay out more than there is by now."""
    if operation.kind is OperationKind.TRANSFER or operation.params.get("after_capture"):
        available = payment.held
    elif operation.kind is not OperationKind.REFUND:
        return
    elif operation.params.get("owed"):
        available = payment.client_owed
    else:
        available = payment.held + payment.net
    if operation.minor_units > available:
        there_is = payment.money(available)
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"{payment.money(operation.minor_units)} is more than the {there_is} that is left; "
            "abandon the operation (GiveUpOperation)",
            {
                "payment_id": payment.payment_id,
                "requested": operation.minor_units,
                "available": available,
                "currency": payment.currency,
            },
        )


def is_shown(operation: Operation, seen: Observation) -> bool:
    """Whether Stripe shows what this operation asked for, on the books or not."""
    shown = {one.operation_id for one in seen.separate_transfers}
    shown |= {one.operation_id for one in seen.refunds}
    shown |= {one.operation_id for transfer in seen.transfers for one in transfer.reversals}
    return operation.operation_id in shown


def owed_after(operation: Operation) -> int:
    """What the expert owes if this reversal is not made: the later ones are not tried either."""
    later = sum(int(str(leg["minor_units"])) for leg in operation.items("legs"))
    return operation.minor_units + later + operation.number("owed_then")


def rest_not_returned(payment: Payment, operation: Operation, code: str) -> Discrepancy:
    """The expert was paid by a final capture, and the rest was not given back."""
    return Discrepancy(
        payment.payment_id,
        "rest_not_returned",
        f"{operation.operation_id}: {code}",
        expected=operation.minor_units,
        found=0,
        currency=payment.currency,
        cure="the rest is still in escrow: RefundPayment, once nothing stands against it",
    )


def ended_otherwise(payment: Payment, word: str) -> Precondition:
    return Precondition(
        "WRONG_STATE",
        f"meanwhile the payment was {word} at Stripe",
        {"payment_id": payment.payment_id, "state": word.upper(), "allowed_states": ""},
    )
