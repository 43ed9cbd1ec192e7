"""Records payments and accounts again that the database has lost, from their marks at Stripe.

A client may have been charged for a payment that no book knows, because the database was restored
from an older backup. What the marks of the intent say is enough to record it as it was.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from payment_service.application.app import App
from payment_service.application.execution.accounts import finish_account
from payment_service.application.operations.recovered import sent_operation
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.application.sync.payment import apply, sync_payment
from payment_service.domain import transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.experts import Expert
from payment_service.domain.marks import MarkedOperation, marked_operation
from payment_service.domain.operation_payloads import CreateAccountPayload, CreateIntentPayload
from payment_service.domain.payment import (
    ChargeModel,
    EscrowMode,
    ModeReason,
    OnDeadline,
    Payment,
)
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answers, Cause
from payment_service.domain.ports.stripe import FoundAccount
from payment_service.domain.snapshot import PaymentSnapshot
from payment_service.domain.sync.changes import Discrepancy


@dataclass(frozen=True, slots=True)
class RecordedPayment:
    """The payment of an intent; without an id if it cannot be recorded."""

    payment_id: str = ""
    version: int = 0
    #: Whether it was recorded just now.
    is_new: bool = False
    #: Whether it was known, and its open operation has made the intent.
    awaits_intent: bool = False
    discrepancy: Discrepancy | None = None


async def recover_payment(app: App, payment_intent_id: str, cause: Cause) -> RecordedPayment | None:
    """Records the payment of an intent that this installation has made, and syncs it.

    Returns None for an intent that it has not made.
    """
    snapshot = await app.stripe.observe(payment_intent_id)
    if snapshot is None:
        return None
    marked = marked_operation(
        snapshot.metadata,
        await app.database.installation_id(),
        payment_intent_id,
        snapshot.create_time,
    )
    if marked is None or not isinstance(marked.payload, CreateIntentPayload):
        if snapshot.metadata.get("installation_id") != await app.database.installation_id():
            return None
        unread = await app.database.transact(report_unreadable, snapshot)
        app.alarms.discrepancy("", unread.kind)
        return RecordedPayment(discrepancy=unread)
    await recover_account(app, marked.payload.expert_account_id, cause)
    recorded = await app.database.transact(record_payment, app.policy, snapshot, marked, cause)
    if recorded.discrepancy is not None:
        app.alarms.discrepancy(recorded.payment_id, recorded.discrepancy.kind)
    if recorded.is_new or recorded.awaits_intent:
        await _follow(app, recorded, snapshot, cause)
    return recorded


async def _follow(
    app: App, recorded: RecordedPayment, snapshot: PaymentSnapshot, cause: Cause
) -> SyncResult:
    applied = await apply(app, recorded.payment_id, snapshot, recorded.version, cause)
    if applied.stale or applied.shows_more:
        return await sync_payment(app, recorded.payment_id, cause)
    return applied


def record_payment(
    tx: Transaction,
    policy: Policy,
    snapshot: PaymentSnapshot,
    marked: MarkedOperation,
    cause: Cause,
) -> RecordedPayment:
    """Records the payment as its initiation did, with the operation that created the intent.

    If the payment is known with another intent, this one is nobody's: it gets a payment of its own,
    which is canceled or refunded when the payment window is over.
    """
    intent = snapshot.payment_intent_id
    owner = tx.payment_of_intent(intent)
    if owner is not None:
        return RecordedPayment(owner)
    payment_id = snapshot.metadata.get("payment_id", "")
    known = tx.lock_payment(payment_id)
    if known is not None and not known.payment_intent_id:
        ours = known.operation_id == marked.operation_id
        return RecordedPayment(payment_id, known.version, awaits_intent=ours)
    payload = marked.payload
    assert isinstance(payload, CreateIntentPayload)
    if tx.expert(payload.expert_id) is None:
        return RecordedPayment(discrepancy=_without_payment(tx, snapshot, "", "the expert is lost"))
    operation_id, discrepancy = marked.operation_id, None
    expires = marked.create_time + timedelta(seconds=policy.payment_window)
    if known is not None:
        payment_id, operation_id = tx.derived_id("pay", intent), tx.derived_id("op", intent)
        discrepancy = _without_payment(
            tx, snapshot, payment_id, f"{known.payment_id} has another intent"
        )
    payment = _payment(snapshot, payload, payment_id, operation_id, tx.now, expires)
    if known is not None:
        later = tx.now + timedelta(seconds=policy.payment_window)
        payment = replace(payment, on_deadline=OnDeadline.REFUND, release_due_time=later)
    transition = transitions.initiate(payment)
    tx.record(transition, cause)
    operation = sent_operation(tx, marked)
    tx.add_operation(replace(operation, operation_id=operation_id, payment_id=payment_id))
    version = transition.after.version
    return RecordedPayment(payment_id, version, is_new=True, discrepancy=discrepancy)


def report_unreadable(tx: Transaction, snapshot: PaymentSnapshot) -> Discrepancy:
    """Reports an intent of this installation that does not say what its payment was."""
    return _without_payment(tx, snapshot, "", "its marks cannot be read")


def _without_payment(
    tx: Transaction, snapshot: PaymentSnapshot, payment_id: str, why: str
) -> Discrepancy:
    found = Discrepancy(
        payment_id,
        DiscrepancyKind.INTENT_WITHOUT_PAYMENT,
        f"{snapshot.payment_intent_id}: {why}",
        found=snapshot.minor_units,
        currency=snapshot.currency,
        remediation="cancel or refund it by RefundPayment"
        if payment_id
        else "cancel or refund it at Stripe's dashboard",
    )
    tx.report(found)
    return found


def _payment(
    snapshot: PaymentSnapshot,
    payload: CreateIntentPayload,
    payment_id: str,
    operation_id: str,
    now: datetime,
    expire_time: datetime,
) -> Payment:
    due = payload.expected_completion_time
    return Payment(
        payment_id=payment_id,
        client_id=payload.client_id,
        expert_id=payload.expert_id,
        gig_id=payload.gig_id,
        description=payload.description,
        escrow_mode=EscrowMode(payload.escrow_mode),
        charge_model=ChargeModel(payload.charge_model),
        mode_reason=ModeReason(payload.mode_reason),
        on_deadline=OnDeadline(payload.on_deadline),
        release_due_time=datetime.fromisoformat(due) if due else None,
        destination_account_id=payload.expert_account_id,
        currency=snapshot.currency,
        amount=snapshot.minor_units,
        commission_basis_points=payload.commission_basis_points,
        commission=payload.commission,
        expert_amount=snapshot.minor_units - payload.commission,
        operation_id=operation_id,
        create_time=snapshot.create_time or now,
        update_time=now,
        payment_expire_time=expire_time,
    )


async def recover_account(app: App, stripe_account_id: str, cause: Cause) -> str:
    """Records the expert of an account that this installation has created, or the account.

    Returns the expert's id, or "" if nothing was lost.
    """
    known = await app.database.read(lambda reader: reader.expert_of_account(stripe_account_id))
    if known is not None:
        return ""
    found = await app.stripe.found_account(stripe_account_id)
    if found is None:
        return ""
    return await app.database.transact(record_account, app.answers, app.policy, found, cause)


def record_account(
    tx: Transaction, answers: Answers, policy: Policy, found: FoundAccount, cause: Cause
) -> str:
    """Records the account as its creation did; an account that it replaced becomes a former one.

    An expert whose account is being created now is left alone: that operation finds the account.
    """
    account_id = found.account.stripe_account_id
    marked = marked_operation(found.metadata, tx.installation_id, account_id, found.create_time)
    expert_id = found.metadata.get("expert_id", "")
    if marked is None or not isinstance(marked.payload, CreateAccountPayload) or not expert_id:
        return ""
    if tx.known_operations([marked.operation_id]):
        return ""
    payload = marked.payload
    new = Expert(
        expert_id=expert_id,
        name=payload.name,
        email=payload.email,
        country=payload.country,
        business_type=payload.business_type,
        commission_basis_points=payload.commission_basis_points,
        commission_asked=payload.commission_asked,
        create_time=marked.create_time,
        update_time=tx.now,
    )
    expert = new if tx.add_expert(new, cause) else tx.lock_expert(expert_id)
    if expert is None or expert.operation_id:
        return ""
    operation = replace(sent_operation(tx, marked), expert_id=expert_id)
    tx.add_operation(operation)
    requested = replace(
        expert, operation_id=operation.operation_id, version=expert.version + 1, update_time=tx.now
    )
    tx.save_expert(requested, "expert.account_requested", cause)
    finish_account(tx, answers, policy, operation, found.account, cause)
    return expert_id
