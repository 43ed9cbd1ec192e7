"""Fetches a payment from Stripe and applies what Stripe shows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from payment_service.application.app import App
from payment_service.application.sync.apply_snapshot import (
    FetchedSnapshot,
    SyncResult,
    apply_snapshot,
)
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Busy, Unavailable, payment_not_found
from payment_service.domain.payment import Payment
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Cause
from payment_service.domain.snapshot import MutationResult, PaymentSnapshot

_TRIES: Final = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """Why a payment is synced, where that decides what is asked and done."""

    #: An event has reported an early fraud warning. The intent does not show these.
    warned: bool = False
    #: Books at once what lacks a balance transaction.
    without_lines: bool = False
    #: The events that the sync answers: they are closed in its transaction.
    event_ids: tuple[str, ...] = ()


_NO_OCCASION: Final = Occasion()


async def sync_payment(
    app: App,
    payment_id: str,
    cause: Cause,
    *,
    made: MutationResult | None = None,
    occasion: Occasion = _NO_OCCASION,
) -> SyncResult:
    """Fetches the payment's intent and all that belongs to it, and applies the snapshot.

    The payment's version is read *before* Stripe. If it has changed when the snapshot is applied,
    the snapshot may be older than the books, and a new one is fetched. ``made`` is what Stripe has
    just returned, in case Stripe's lists lag behind. An intent does not show early fraud warnings:
    they are fetched if an event reported one or one is recorded.

    A snapshot that shows operations of ours which the books have lost is applied once for each.

    Raises NotFound for an unknown payment, Unavailable if Stripe does not know the intent, and Busy
    if the payment has changed each time.
    """
    tries, before = 0, SyncResult()
    while tries < _TRIES:
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
                "Stripe does not know this payment's intent; an operator gets an alarm",
                {"payment_id": payment_id, "stripe_code": "resource_missing"},
            )
        snapshot = snapshot.with_answer(made)
        if occasion.warned or payment.fraud_warning_id:
            warnings = await app.stripe.fraud_warnings(payment.payment_intent_id)
            snapshot = replace(snapshot, fraud_warnings=tuple(warnings))
        fetched = FetchedSnapshot(
            payment_id=payment_id,
            version=payment.version,
            snapshot=snapshot,
            without_lines=occasion.without_lines,
            event_ids=occasion.event_ids,
        )
        applied = await _apply(app, fetched, cause)
        if applied.stale:
            tries += 1
            continue
        applied = _together(before, applied)
        if not applied.shows_more:
            return applied
        before = applied
    raise Busy(
        "CONCURRENT_CHANGE",
        "the payment keeps changing; ask again with the same key",
        {"payment_id": payment_id},
    )


def _together(before: SyncResult, applied: SyncResult) -> SyncResult:
    """Returns the last result with what the syncs before it have changed and stored."""
    return replace(
        applied,
        changed=before.changed or applied.changed,
        discrepancies=(*before.discrepancies, *applied.discrepancies),
        answers={**before.answers, **applied.answers},
    )


async def apply(
    app: App, payment_id: str, snapshot: PaymentSnapshot, version: int, cause: Cause
) -> SyncResult:
    """Applies one snapshot, and raises an alarm for what the books do not explain."""
    fetched = FetchedSnapshot(payment_id=payment_id, version=version, snapshot=snapshot)
    return await _apply(app, fetched, cause)


async def _apply(app: App, fetched: FetchedSnapshot, cause: Cause) -> SyncResult:
    applied = await app.database.transact(apply_snapshot, app.answers, app.policy, fetched, cause)
    alarm_discrepancies(app, applied)
    return replace(applied, client_secret=fetched.snapshot.client_secret)


def alarm_discrepancies(app: App, applied: SyncResult) -> None:
    """Raises an alarm for each discrepancy, and for an operation that now waits for an operator."""
    if applied.parked is not None:
        app.alarms.operation_parked(applied.parked, applied.parked.last_error)
    for discrepancy in applied.discrepancies:
        app.alarms.discrepancy(discrepancy.payment_id, discrepancy.kind)


def _payment(reader: Reader, payment_id: str) -> Payment | None:
    return reader.payment(payment_id)
