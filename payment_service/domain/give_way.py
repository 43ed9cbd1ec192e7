"""What gives way: an operation that waits, to what hands at Stripe's dashboard did meanwhile.

``follow`` asks it at every look, before it books what hands did. What is not at Stripe and can take
effect no more is given up; what may still be on its way is kept from being sent again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

from payment_service.domain import escrow
from payment_service.domain.errors import Precondition, Refusal
from payment_service.domain.escrow import Failure, Payment, State
from payment_service.domain.followed import Discrepancy, Followed
from payment_service.domain.observation import (
    Observation,
    Refund,
    Reversal,
    Transfer,
)
from payment_service.domain.operations import Operation, OperationKind


def give_way(
    to: Followed,
    seen: Observation,
    operation: Operation,
    known: frozenset[str],
    by_hand: frozenset[str],
    now: datetime,
) -> bool:
    """What is not at Stripe is not sent any more once hands did the same, or took what it takes.

    It is given up if nothing can come of it. If a request may be on its way, its holder is told.
    True if refunds by hand take what a capture may take still: out of what they are paid is only
    known when that is over, and until then they are not booked.
    """
    if to.settled or to.operation_deferred or is_shown(operation, seen):
        return False
    kind, payment = operation.kind, to.payment
    refunds = refunds_by_hand(seen, known)
    # By hand what is owed to the client is paid first.
    taken = max(sum(refund.minor_units for refund in refunds) - payment.client_owed, 0)
    if kind in (OperationKind.CAPTURE, OperationKind.TRANSFER):
        if payment.state is not State.CAPTURING:
            return False
        # What fits in what is held beside it does not concern it.
        overtaken = taken > payment.held - on_its_way(payment, operation)
        if not overtaken and _transferred_by_hand(seen, operation, known, by_hand):
            # Of another amount: what the expert is still to have, somebody has to decide.
            to.stands_back = "transferred at Stripe by hand"
            return False
    elif kind is OperationKind.REFUND and not operation.params.get("owed"):
        # Of which amount it is does not matter: its caller decided without knowing of it.
        overtaken = bool(refunds) or "refund" in by_hand
    elif kind is OperationKind.REVERSE_TRANSFER:
        overtaken = "reversal" in by_hand or is_reversed_by_hand(seen, operation, known)
    else:
        return False
    if not overtaken:
        return False
    word = "reversed" if kind is OperationKind.REVERSE_TRANSFER else "refunded"
    why = " ".join((f"{word} at Stripe by hand", *(refund.refund_id for refund in refunds)))
    if operation.is_without_effect(now):
        failure = Failure(f"{word}_elsewhere", "", why, now)
        give_up(to, operation, failure, ended_otherwise(payment, word), taken)
        return False
    to.stands_back = why
    return kind in (OperationKind.CAPTURE, OperationKind.TRANSFER)


def give_up(
    to: Followed, operation: Operation, failure: Failure, refusal: Refusal, taken: int
) -> None:
    """End an operation that nothing can come of. Its caller is told ``refusal``, but where the
    essential was done: of what is held then, ``taken`` goes elsewhere.
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
    elif operation.kind is OperationKind.REVERSE_TRANSFER:
        # The client has the money. What hands took of the expert's part pays what is owed now.
        to.take(escrow.expert_owes(payment, owed_after(operation), failure.code, failure.time))
        to.settle()


def is_made_for_us(
    to: Followed, transfer: Transfer, operation: Operation, seen: Observation, now: datetime
) -> bool:
    """Whether somebody made by hand exactly the transfer that is parked, to the same account:
    resumed, it would be made again.
    """
    asked = (operation.share.sent, to.payment.currency, operation.text("destination_account_id"))
    return (
        operation.kind is OperationKind.TRANSFER
        and operation.is_without_effect(now)
        and not to.settled
        and not transfer.operation_id
        and (transfer.minor_units, transfer.currency, transfer.destination_account_id) == asked
        and not is_shown(operation, seen)
    )


def _transferred_by_hand(
    seen: Observation, operation: Operation, known: frozenset[str], by_hand: frozenset[str]
) -> bool:
    """Whether hands have paid the expert too since our transfer was recorded, by what nobody has
    insisted on who resumed ours.
    """
    if operation.kind is not OperationKind.TRANSFER:
        return False
    unknown = any(one.transfer_id not in known for one in seen.separate_transfers)
    return unknown or "transfer" in by_hand


def on_its_way(payment: Payment, operation: Operation | None) -> int:
    """What a capture is just sending to the expert is not the client's any more."""
    if operation is None or payment.state is not State.CAPTURING:
        return 0
    return operation.number("part") or operation.minor_units


def refunds_by_hand(seen: Observation, known: frozenset[str]) -> list[Refund]:
    """What others refund, and is not booked yet; of a payment with no refund of ours in flight."""
    return [one for one in seen.refunds if one.refund_id not in known and not one.failed]


def is_reversed_by_hand(
    seen: Observation, operation: Operation | None, known: frozenset[str]
) -> bool:
    """Whether Stripe shows a reversal that is not on the books yet, and not our operation's."""
    return bool(reversals_by_hand(seen, operation, known))


def reversals_by_hand(
    seen: Observation, operation: Operation | None, known: frozenset[str]
) -> list[tuple[Transfer, Reversal]]:
    mine = operation.operation_id if operation else None
    return [
        (transfer, reversal)
        for transfer in seen.transfers
        for reversal in transfer.reversals
        if reversal.reversal_id not in known and reversal.operation_id != mine
    ]


def is_shown(operation: Operation, seen: Observation) -> bool:
    """Whether Stripe shows what this operation asked for, on the books or not."""
    shown = {one.operation_id for one in seen.separate_transfers}
    shown |= {one.operation_id for one in seen.refunds}
    shown |= {one.operation_id for transfer in seen.transfers for one in transfer.reversals}
    return operation.operation_id in shown


def owed_after(operation: Operation) -> int:
    """What the expert owes if this reversal is not made: the later ones are not tried either."""
    later = minor_units_of(operation.items("legs"))
    return operation.minor_units + later + operation.number("owed_then")


def minor_units_of(legs: Sequence[Mapping[str, object]]) -> int:
    """What reversals that are still to come take back together."""
    return sum(int(str(leg["minor_units"])) for leg in legs)


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
