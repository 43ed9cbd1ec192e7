"""Fetches a payment from Stripe and applies what Stripe shows."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from payment_service.application.app import App
from payment_service.application.sync.apply_snapshot import SyncResult, apply_snapshot
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Busy, Unavailable, payment_not_found
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Reader
from payment_service.domain.ports.records import Cause
from payment_service.domain.snapshot import MutationResult, PaymentSnapshot

_TRIES: Final = 6


async def sync_payment(
    app: App,
    payment_id: str,
    cause: Cause,
    *,
    made: MutationResult | None = None,
    warned: bool = False,
) -> SyncResult:
    """Read the intent and everything on it, now, and apply it.

    The payment's version is read *before* Stripe is asked. If it has moved on when the answer is
    written down, the answer may be older than the books, and Stripe is asked again. ``made`` is
    what Stripe has just answered, in case its list lags behind. Early fraud warnings, of which the
    intent shows nothing, are read where one was told of (``warned``) or freezes the payment.
    """
    for _ in range(_TRIES):
        payment = await app.database.read(_payment, payment_id)
        if payment is None:
            raise payment_not_found(payment_id)
        if not payment.payment_intent_id:
            return SyncResult(payment=payment)
        snapshot = await app.stripe.observe(payment.payment_intent_id)
        if snapshot is None:
            app.alarms.discrepancy(payment_id, DiscrepancyKind.INTENT_MISSING)
            raise Unavailable(
                "PROCESSOR_MISCONFIGURED",
                "Stripe does not know this payment's intent; an operator is told",
                {"payment_id": payment_id, "stripe_code": "resource_missing"},
            )
        snapshot = snapshot.with_answer(made)
        if warned or payment.fraud_warning_id:
            warnings = await app.stripe.fraud_warnings(payment.payment_intent_id)
            snapshot = replace(snapshot, fraud_warnings=tuple(warnings))
        applied = await apply(app, payment_id, snapshot, payment.version, cause)
        if not applied.stale:
            return applied
    raise Busy(
        "CONCURRENT_CHANGE",
        "the payment keeps changing; ask again with the same key",
        {"payment_id": payment_id},
    )


async def apply(
    app: App, payment_id: str, snapshot: PaymentSnapshot, version: int, cause: Cause
) -> SyncResult:
    """Write down one observation, and alarm what it could not explain."""
    applied = await app.database.transact(
        apply_snapshot, app.answers, app.policy, payment_id, snapshot, version, cause
    )
    alarm_discrepancies(app, applied)
    return replace(applied, client_secret=snapshot.client_secret)


def alarm_discrepancies(app: App, applied: SyncResult) -> None:
    """Alarm what an observation could not explain, and what it has parked."""
    if applied.parked is not None:
        app.alarms.operation_parked(applied.parked, applied.parked.last_error)
    for discrepancy in applied.discrepancies:
        app.alarms.discrepancy(discrepancy.payment_id, discrepancy.kind)


def _payment(reader: Reader, payment_id: str) -> Payment | None:
    return reader.payment(payment_id)
