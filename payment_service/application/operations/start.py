"""Records a new operation with its lease, before Stripe is called."""

from __future__ import annotations

from dataclasses import replace
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


def park_repayment(tx: Transaction, policy: Policy, payment: Payment, cause: Cause) -> Payment:
    """If the client is owed after a bounced refund, and nothing is under way: park what repays it.

    Called by every transaction that may have ended an operation or booked a bounce, so that nothing
    owed is ever without an operation. The payment as it then stands.
    """
    due = repayment(payment, tx.new_id("op"), tx.now)
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
) -> Operation:
    """Record an operation and take its lease, so that it can be carried out right after."""
    operation = Operation(
        operation_id=operation_id or tx.new_id("op"),
        kind=kind,
        purpose=purpose,
        payment_id=payment_id,
        expert_id=expert_id,
        dispute_id=dispute_id,
        payload=payload,
        minor_units=minor_units,
        claim_id=claim_id,
        state=OperationState.PARKED if parked else OperationState.STARTED,
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
