"""Records a new operation with its lease, before Stripe is called."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from payment_service.domain.operation_payloads import OperationPayload, TransferPayload
from payment_service.domain.operations import (
    Operation,
    OperationKind,
    OperationPurpose,
    OperationState,
)
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause
from payment_service.domain.sync.money_back import repayment


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Where an operation comes from: a call under its key, or a deadline."""

    #: In the caller's words: the notes of a capture, the reason of a refund.
    reason: str
    claim_id: str = ""
    by_deadline: bool = False

    @property
    def purpose(self) -> OperationPurpose:
        return OperationPurpose.DEADLINE if self.by_deadline else OperationPurpose.REQUESTED


def park_repayment(tx: Transaction, policy: Policy, payment: Payment, cause: Cause) -> Payment:
    """Parks a repayment if the client is owed money and no operation of the payment is open.

    Every transaction calls it that may have ended an operation or booked a failed refund, so that a
    client payable always has an operation. Returns the payment as it stands then.
    """
    if not payment.client_payable or payment.operation_id:
        return payment
    operation_id = tx.operation_id_for(payment.payment_id, OperationPurpose.REPAYMENT)
    due = repayment(payment, operation_id, tx.now)
    if due is None:
        return payment
    transition, coming = due
    start_operation(
        tx,
        policy,
        kind=coming.kind,
        payment_id=payment.payment_id,
        minor_units=coming.minor_units,
        payload=coming.payload,
        purpose=coming.purpose,
        operation_id=transition.after.operation_id,
        parked=True,
    )
    tx.record(transition, cause)
    return transition.after


def with_current_destination(
    tx: Transaction, payment: Payment, transfer: TransferPayload
) -> TransferPayload:
    """Returns the transfer, to the account that the expert has now."""
    expert = tx.expert(payment.expert_id)
    account_id = expert.account.stripe_account_id if expert else payment.destination_account_id
    return replace(transfer, destination_account_id=account_id)


def start_operation(
    tx: Transaction,
    policy: Policy,
    *,
    kind: OperationKind,
    purpose: OperationPurpose = OperationPurpose.REQUESTED,
    payment_id: str = "",
    expert_id: str = "",
    dispute_id: str = "",
    minor_units: int = 0,
    payload: OperationPayload,
    claim_id: str = "",
    operation_id: str = "",
    parked: bool = False,
    last_error: str = "",
    searched_first: bool = False,
) -> Operation:
    """Records an operation and takes its lease, so that it can be executed right after.

    Its id, and so its key at Stripe, is derived from the caller's key or else from its subject and
    its purpose. A restored database that has lost the operation gives it the same id again. With
    ``searched_first`` it is searched for at Stripe, and judged again, before it is sent.
    """
    subject = payment_id or expert_id or dispute_id
    origin = (claim_id,) if claim_id else (subject, purpose.value, kind.value)
    operation = Operation(
        operation_id=operation_id or tx.operation_id_for(*origin),
        kind=kind,
        purpose=purpose,
        payment_id=payment_id,
        expert_id=expert_id,
        dispute_id=dispute_id,
        payload=payload,
        minor_units=minor_units,
        claim_id=claim_id,
        state=OperationState.PARKED if parked else OperationState.STARTED,
        # A restored database may have lost this very operation, and Stripe its key by now. Or it
        # has lost another one, and this one must not come on top. One that was tried before is
        # searched for at Stripe before it is sent.
        tries=1 if searched_first or tx.catches_up() else 0,
        last_error=last_error,
        create_time=tx.now,
        attempt_time=tx.now,
        lease_until=None if parked else tx.now + timedelta(seconds=policy.lease),
        lease_token=tx.new_id("lease"),
        next_try_time=None if parked else tx.now + timedelta(seconds=policy.lease),
        held_since=None if parked else tx.clock,
    )
    tx.add_operation(operation)
    return operation
