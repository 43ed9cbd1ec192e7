"""Applies refunds, transfer reversals and fee refunds, and continues with what they require."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from payment_service.domain import plans, transitions
from payment_service.domain.ledger import LOSSES, StripeAmount
from payment_service.domain.operation_payloads import RefundPayload, ReversalLeg, ReversalPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Failure, Payment
from payment_service.domain.processor_errors import refused_by_processor
from payment_service.domain.snapshot import PaymentSnapshot, Refund, Reversal, Transfer
from payment_service.domain.state_machine import Transition
from payment_service.domain.sync.changes import ChangeSet, Movement, NextOperation, amount_of
from payment_service.domain.sync.superseded import (
    ended_out_of_band,
    may_be_in_flight,
    remainder_not_returned,
)


def sync_money_back(
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
    operation: Operation | None,
    booked_ids: frozenset[str],
    next_operation_id: str,
    now: datetime,
) -> None:
    """Refunds, reversals and fee refunds that are not on the books yet; ours come first."""
    if not changes.payment.charged:
        return
    mine = operation.operation_id if operation else ""
    for refund in sorted(snapshot.refunds, key=lambda refund: refund.operation_id != mine):
        if refund.refund_id not in booked_ids:
            if operation is not None and mine and refund.operation_id == mine:
                _apply_refund(changes, snapshot, refund, operation, next_operation_id, now)
            else:
                _apply_out_of_band_refund(
                    changes, refund, may_be_in_flight(changes, snapshot, operation, now), now
                )
    for transfer in snapshot.transfers:
        for reversal in transfer.reversals:
            if reversal.reversal_id in booked_ids:
                continue
            if operation is not None and mine and reversal.operation_id == mine:
                _apply_reversal(changes, transfer, reversal, operation, next_operation_id, now)
            else:
                _apply_out_of_band_reversal(changes, transfer, reversal, now)
    application_fee = snapshot.charge.application_fee if snapshot.charge else None
    for fee_refund in application_fee.refunds if application_fee else ():
        if fee_refund.fee_refund_id in booked_ids:
            continue
        platform = amount_of(
            fee_refund.line, StripeAmount(fee_refund.minor_units, changes.payment.currency)
        )
        changes.take(
            transitions.fee_refunded_out_of_band(
                changes.payment,
                fee_refund.fee_refund_id,
                fee_refund.minor_units,
                platform,
                StripeAmount(platform.minor_units, platform.currency),
                now,
            )
        )
        changes.report("out_of_band_fee_refund", f"{fee_refund.fee_refund_id}")
        changes.movements.append(
            Movement(fee_refund.fee_refund_id, "fee_refund", fee_refund.minor_units)
        )


def _apply_reversal(
    changes: ChangeSet,
    transfer: Transfer,
    reversal: Reversal,
    operation: Operation,
    next_operation_id: str,
    now: datetime,
) -> None:
    """The reversal that our open operation asked for; the further ones follow."""
    part, payload = operation.minor_units, operation.payload_as(ReversalPayload)
    legs, debt = payload.remaining_legs, payload.debt_after
    platform, connected = _amounts_of(reversal, transfer)
    follows = next_reversal_id(next_operation_id, legs, debt)
    changes.take(
        transitions.transfer_reversed(
            changes.payment, reversal.reversal_id, part, platform, connected, follows, now
        )
    )
    continue_reversals(changes, legs, debt, operation.purpose, now)
    changes.settle()
    changes.movements.append(_reversed(part, transfer, reversal))


def _apply_out_of_band_reversal(
    changes: ChangeSet, transfer: Transfer, reversal: Reversal, now: datetime
) -> None:
    """What it took from the expert is the platform's until an operator settles with the expert."""
    part = _in_payment_currency(reversal.minor_units, transfer, changes.payment)
    platform, connected = _amounts_of(reversal, transfer)
    changes.take(
        transitions.reversed_out_of_band(
            changes.payment, reversal.reversal_id, part, platform, connected, now
        )
    )
    changes.report("out_of_band_reversal", f"{reversal.reversal_id} of {part}")
    changes.movements.append(_reversed(part, transfer, reversal))


def _amounts_of(reversal: Reversal, transfer: Transfer) -> tuple[StripeAmount, StripeAmount]:
    platform = amount_of(reversal.line, StripeAmount(reversal.minor_units, transfer.currency))
    return platform, amount_of(reversal.connected_line, platform)


def _reversed(part: int, transfer: Transfer, reversal: Reversal) -> Movement:
    return Movement(
        reversal.reversal_id, "reversal", part, reversal.operation_id, transfer.transfer_id
    )


def next_reversal_id(next_operation_id: str, legs: Sequence[object], owed: int) -> str | None:
    """For a transition that ``continue_reversals`` follows: None if nothing does."""
    if legs:
        return next_operation_id
    return "" if owed else None


def continue_reversals(
    changes: ChangeSet,
    legs: Sequence[ReversalLeg],
    debt: int,
    purpose: OperationPurpose,
    now: datetime,
) -> None:
    """Plans the next transfer's reversal or, after the last one, records the expert's debt.

    ``debt`` is what no transfer covers, in minor units.
    """
    if legs:
        first, *others = legs
        changes.next_operation = NextOperation(
            OperationKind.REVERSE_TRANSFER,
            first.minor_units,
            ReversalPayload(
                transfer_id=first.transfer_id,
                transfer_minor_units=first.transfer_minor_units,
                remaining_legs=tuple(others),
                debt_after=debt,
            ),
            purpose,
        )
    elif debt:
        changes.take(
            transitions.expert_debt_recorded(changes.payment, debt, "nothing_left_to_reverse", now)
        )


def reversal_legs(
    changes: ChangeSet, snapshot: PaymentSnapshot, expert_part: int
) -> tuple[list[ReversalLeg], int]:
    """Which transfers the expert's part is taken back from, and what none of them covers."""
    payment = changes.payment
    transfers = {transfer.transfer_id: transfer for transfer in snapshot.transfers}
    reversible = [
        plans.ReversibleTransfer(
            transfer.transfer_id, _in_payment_currency(transfer.left, transfer, payment)
        )
        for transfer in snapshot.transfers
    ]
    legs = plans.plan_reversals(expert_part, reversible)
    described = [
        ReversalLeg(
            transfer_id=leg.transfer_id,
            minor_units=leg.minor_units,
            transfer_minor_units=_in_transfer_currency(
                leg.minor_units, transfers[leg.transfer_id], payment
            ),
        )
        for leg in legs
    ]
    return described, expert_part - sum(leg.minor_units for leg in legs)


def _apply_refund(
    changes: ChangeSet,
    snapshot: PaymentSnapshot,
    refund: Refund,
    operation: Operation,
    next_operation_id: str,
    now: datetime,
) -> None:
    """The refund that our open operation asked for."""
    payment = changes.payment
    if _lacks_balance_transaction(refund):
        changes.defer(operation=True)
        return
    settled = amount_of(refund.line, StripeAmount(refund.minor_units, payment.currency))
    changes.movements.append(
        Movement(refund.refund_id, "refund", refund.minor_units, refund.operation_id)
    )
    refused = refused_by_processor("refund_failed", "", payment_id=payment.payment_id)
    if operation.is_repayment and refund.minor_units > payment.client_payable:
        # While it was on its way somebody else paid it too: it is booked like any other refund.
        changes.movements.pop()
        changes.take(transitions.repayment_abandoned(payment, "paid out of band as well", now))
        changes.settle(ended_out_of_band(payment, "refunded"))
        _apply_out_of_band_refund(changes, refund, 0, now)
        return
    if operation.is_repayment:
        changes.take(
            transitions.client_repaid(payment, refund.refund_id, refund.minor_units, settled, now)
        )
        changes.settle(refused if refund.failed else None)
        if refund.failed:  # Bounced once more: still owed, under a new operation for the operator.
            _apply_failed_refund(changes, refund, now)
        return
    if refund.failed:
        changes.movements.append(Movement(failure_id(refund), "refund_failure", refund.minor_units))
        _book_refund_and_failure(changes, refund, now)
        failure = Failure("refund_failed", "", "Stripe could not refund the client", now)
        changes.take(transitions.refund_refused(changes.payment, failure))
        if operation.returns_remainder:
            changes.discrepancies.append(
                remainder_not_returned(payment, operation, "refund_failed")
            )
            changes.settle()
        else:
            changes.settle(refused)
        return
    # Divided anew: a refund made elsewhere may have come in between.
    split = plans.split_refund(payment, refund.minor_units, payment.held)
    legs, owed = reversal_legs(changes, snapshot, split.expert_part)
    follows = next_reversal_id(next_operation_id, legs, owed)
    changes.take(
        transitions.client_refunded(payment, refund.refund_id, split, settled, follows, now)
    )
    continue_reversals(changes, legs, owed, operation.purpose, now)
    changes.settle()


def _apply_out_of_band_refund(
    changes: ChangeSet, refund: Refund, reserved: int, now: datetime
) -> None:
    """It pays what is payable to the client first, then what is held but for what is ``reserved``.

    What does not fit beside that waits: out of what it was paid is only known afterwards.
    """
    payment = changes.payment
    if _lacks_balance_transaction(refund):
        changes.defer(operation=False)
        return
    if refund.failed:  # It bounced before we ever saw it; at Stripe it cancels out.
        changes.movements += [
            Movement(refund.refund_id, "refund", refund.minor_units),
            Movement(failure_id(refund), "refund_failure", refund.minor_units),
        ]
        _book_refund_and_failure(changes, refund, now)
        changes.report("out_of_band_refund", f"{refund.refund_id} bounced")
        return
    settled = amount_of(refund.line, StripeAmount(refund.minor_units, payment.currency))
    owed = min(refund.minor_units, payment.client_payable)
    rest = refund.minor_units - owed
    if reserved and rest > payment.held - reserved:
        changes.defer(operation=False)
        return
    from_escrow = min(rest, payment.held)
    if rest - from_escrow > payment.net:
        available = owed + from_escrow + payment.net
        changes.report(
            "refund_exceeds_net", f"{refund.refund_id}: {refund.minor_units} > {available}"
        )
        return
    split = replace(plans.split_refund(payment, rest, from_escrow), from_owed=owed)
    changes.take(
        transitions.refunded_out_of_band(payment, refund.refund_id, split, settled, LOSSES, now)
    )
    changes.movements.append(
        Movement(refund.refund_id, "refund", refund.minor_units, refund.operation_id)
    )
    as_owed = f", {owed} of it as owed" if owed else ""
    changes.report("out_of_band_refund", f"{refund.refund_id} of {refund.minor_units}{as_owed}")


def sync_failed_refunds(
    changes: ChangeSet, snapshot: PaymentSnapshot, booked_ids: frozenset[str], now: datetime
) -> None:
    """Refunds on the books that came back: before all else, so that what is paid next pays them."""
    for refund in snapshot.refunds:
        bounced = (
            refund.failed
            and refund.refund_id in booked_ids
            and failure_id(refund) not in booked_ids
        )
        if not bounced or not changes.payment.charged:
            continue
        if _lacks_balance_transaction(refund):
            # Under the refund's own line the failure would never be explained.
            changes.defer(operation=False)
        else:
            _apply_failed_refund(changes, refund, now)


def _apply_failed_refund(changes: ChangeSet, refund: Refund, now: datetime) -> None:
    settled = amount_of(
        refund.failure_line or refund.line,
        StripeAmount(refund.minor_units, changes.payment.currency),
    )
    changes.take(
        transitions.refund_failed(
            changes.payment, refund.refund_id, refund.minor_units, settled, now
        )
    )
    changes.movements.append(Movement(failure_id(refund), "refund_failure", refund.minor_units))
    changes.report("refund_failed", f"{refund.refund_id} of {refund.minor_units} bounced")


def repayment(
    payment: Payment, operation_id: str, now: datetime
) -> tuple[Transition, NextOperation] | None:
    """What is to pay the client again after bounced refunds, to be parked for an operator.

    None while something else is under way: whoever ends that asks again, in the same transaction.
    """
    if not payment.client_payable or payment.operation_id:
        return None
    coming = NextOperation(
        OperationKind.REFUND,
        payment.client_payable,
        RefundPayload(payment_intent_id=payment.payment_intent_id),
        OperationPurpose.REPAYMENT,
    )
    return transitions.repayment_due(payment, operation_id, now), coming


def _book_refund_and_failure(changes: ChangeSet, refund: Refund, now: datetime) -> None:
    """It failed before it was on the books. One that never moved anything has no lines at all."""
    if refund.line is not None and refund.failure_line is not None:
        sent, refunded_from_escrow = refund.line.settled, refund.failure_line.settled
        part = refund.minor_units
        changes.take(
            transitions.refund_failed_unbooked(
                changes.payment, refund.refund_id, part, sent, refunded_from_escrow, now
            )
        )


def _lacks_balance_transaction(refund: Refund) -> bool:
    """Stripe has not moved the money yet, or back; postings wait for its line: none is edited."""
    if refund.failed:
        return refund.line is not None and refund.failure_line is None
    return refund.line is None


def failure_id(refund: Refund) -> str:
    """Under which a refund's later failure is known."""
    return f"{refund.refund_id}:failed"


def _in_payment_currency(part: int, transfer: Transfer, payment: Payment) -> int:
    """A part of a transfer in the payment's currency; exact where they are the same."""
    if transfer.currency == payment.currency:
        return part
    # Only a destination charge is converted: it has one transfer, of all that was captured.
    return part * payment.captured // transfer.minor_units


def _in_transfer_currency(part: int, transfer: Transfer, payment: Payment) -> int:
    if transfer.currency == payment.currency:
        return part
    return part * transfer.minor_units // payment.captured
