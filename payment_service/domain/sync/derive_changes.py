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

(*) somebody captured at Stripe's dashboard; what Stripe really did is posted. That column is for a
DESTINATION charge. A SEPARATE one is then held by the platform: the payment is IN_ESCROW (CAPTURING
until its transfer is settled), and moves by its transfers and refunds from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta

from payment_service.domain import money, transitions
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.operations import Operation
from payment_service.domain.payment import Payment, State
from payment_service.domain.snapshot import UNPAID, IntentStatus, PaymentSnapshot
from payment_service.domain.sync.changes import ChangeSet, report_state
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


def derive_changes(
    payment: Payment,
    snapshot: PaymentSnapshot,
    *,
    operation: Operation | None,
    booked_ids: frozenset[str],
    out_of_band: Sequence[str],
    next_operation_id: str,
    holding: timedelta,
    now: datetime,
) -> ChangeSet:
    """What must change so that the payment is what Stripe shows.

    ``operation`` is the payment's open operation, ``known`` the ids of the movements that are on
    the books already, ``by_hand`` describes those that were booked out of band since the open
    operation was recorded or last resumed, ``next_operation_id`` is the id of an operation that may
    have to be recorded, ``holding`` for how long the platform may hold what was charged.
    """
    changes = ChangeSet(payment)
    if (snapshot.minor_units, snapshot.currency) != (payment.amount, payment.currency):
        shown, asked = (
            money.Money(snapshot.minor_units, snapshot.currency),
            payment.money(payment.amount),
        )
        changes.report(DiscrepancyKind.AMOUNT_MISMATCH, f"Stripe shows {shown}, asked for {asked}")
        return changes
    if not payment.payment_intent_id:
        changes.take(transitions.intent_created(payment, snapshot.payment_intent_id, now))
        changes.settle()
        operation = None
    elif payment.payment_intent_id != snapshot.payment_intent_id:
        changes.report(
            DiscrepancyKind.INTENT_MISMATCH,
            f"Stripe shows another intent, {snapshot.payment_intent_id}",
        )
        return changes

    moved = (*out_of_band, *out_of_band_movements(snapshot, operation, booked_ids))
    state = changes.payment.state
    if snapshot.status in UNPAID:
        if state in (State.PENDING, State.FAILED):
            sync_attempt(changes, snapshot, now)
        elif state is not State.CANCELING:
            report_state(changes, snapshot)
    elif snapshot.status is IntentStatus.REQUIRES_CAPTURE:
        sync_authorization(changes, snapshot, now)
    elif snapshot.status is IntentStatus.SUCCEEDED:
        if payment.is_separate:
            sync_charge(changes, snapshot, operation, next_operation_id, holding, now)
            sync_failed_refunds(changes, snapshot, booked_ids, now)
            sync_transfers(changes, snapshot, operation, booked_ids, next_operation_id, now)
        else:
            sync_capture(changes, snapshot, operation, now)
            sync_failed_refunds(changes, snapshot, booked_ids, now)
        sync_money_back(changes, snapshot, operation, booked_ids, next_operation_id, now)
        end_repayment(changes, snapshot, operation, now)
    elif snapshot.status is IntentStatus.CANCELED:
        sync_cancellation(changes, snapshot, operation, now)
    else:
        report_state(changes, snapshot)
    check_superseded(changes, snapshot, operation, moved, now)
    return changes
