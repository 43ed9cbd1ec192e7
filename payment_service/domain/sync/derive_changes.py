"""Derives what changes from a snapshot: the table of our states against Stripe's.

``derive_changes`` is the one place where a snapshot becomes transitions. RPCs, webhooks and jobs
all use it, so any order and any repetition of them ends in the same state. What the books cannot
explain becomes a :class:`Discrepancy`, never a silent overwrite.

    from \\ intent     unpaid            requires_capture   succeeded        canceled
    PENDING, FAILED   FAILED | PENDING  IN_ESCROW          CAPTURED (*)     CANCELED | EXPIRED
    IN_ESCROW         discrepancy       stay               CAPTURED (*)     CANCELED | EXPIRED
    CAPTURING         discrepancy       stay               CAPTURED         CANCELED | EXPIRED
    PROMOTING         discrepancy       stay               IN_ESCROW        CANCELED | EXPIRED
    CANCELING         stay              stay               CAPTURED (*)     CANCELED | EXPIRED
    CANCELED EXPIRED  discrepancy       discrepancy        CAPTURED (*)     stay
    CAPTURED …        discrepancy       discrepancy        by its refunds   discrepancy

(*) captured out of band; what Stripe really did is posted. That column is for a DESTINATION charge.
A SEPARATE charge is then held by the platform: the payment is IN_ESCROW (CAPTURING until its
transfer is booked), and its transfers and refunds change it from there.
"""

from __future__ import annotations

from dataclasses import replace

from payment_service.domain import money, transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.payment import Payment, State
from payment_service.domain.snapshot import UNPAID, IntentStatus
from payment_service.domain.sync.changes import ChangeSet, SyncContext, report_state
from payment_service.domain.sync.charge import (
    sync_attempt,
    sync_authorization,
    sync_cancellation,
    sync_capture,
    sync_charge,
)
from payment_service.domain.sync.money_back import sync_failed_refunds, sync_money_back
from payment_service.domain.sync.superseded import (
    check_superseded,
    end_repayment,
    out_of_band_movements,
)
from payment_service.domain.sync.transfers import sync_transfers


def derive_changes(payment: Payment, context: SyncContext) -> ChangeSet:
    """Returns what must change so that the payment is what the snapshot shows."""
    changes = ChangeSet(payment)
    snapshot = context.snapshot
    if (snapshot.minor_units, snapshot.currency) != (payment.amount, payment.currency):
        at_stripe = money.Money(snapshot.minor_units, snapshot.currency)
        requested = payment.money(payment.amount)
        changes.report(
            DiscrepancyKind.AMOUNT_MISMATCH, f"Stripe shows {at_stripe}, requested {requested}"
        )
        return changes
    if not payment.payment_intent_id:
        changes.take(transitions.intent_created(payment, snapshot.payment_intent_id, context.now))
        changes.settle()
        context = replace(context, operation=None)
    elif payment.payment_intent_id != snapshot.payment_intent_id:
        changes.report(
            DiscrepancyKind.INTENT_MISMATCH,
            f"Stripe shows another intent, {snapshot.payment_intent_id}",
        )
        return changes

    moved = (*context.out_of_band, *out_of_band_movements(context))
    state = changes.payment.state
    if snapshot.status in UNPAID:
        if state in (State.PENDING, State.FAILED):
            sync_attempt(changes, context)
        elif state is not State.CANCELING:
            report_state(changes, snapshot)
    elif snapshot.status is IntentStatus.REQUIRES_CAPTURE:
        sync_authorization(changes, context)
    elif snapshot.status is IntentStatus.SUCCEEDED:
        if payment.is_separate:
            sync_charge(changes, context)
            sync_failed_refunds(changes, context)
            sync_transfers(changes, context)
        else:
            sync_capture(changes, context)
            sync_failed_refunds(changes, context)
        sync_money_back(changes, context)
        end_repayment(changes, context)
    elif snapshot.status is IntentStatus.CANCELED:
        sync_cancellation(changes, context)
    else:
        report_state(changes, snapshot)
    check_superseded(changes, context, moved)
    return changes
