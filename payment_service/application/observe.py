"""Ask Stripe how a payment stands, and follow it."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from payment_service.application.core import Core
from payment_service.application.settle import Applied, apply_observation_phase
from payment_service.domain.errors import Busy, Unavailable, payment_not_found
from payment_service.domain.escrow import Payment
from payment_service.domain.observation import Made, Observation
from payment_service.domain.ports import Cause, Reader

_TRIES: Final = 6


async def observe_payment(
    core: Core,
    payment_id: str,
    cause: Cause,
    *,
    made: Made | None = None,
    warned: bool = False,
) -> Applied:
    """Read the intent and everything on it, now, and apply it.

    The payment's version is read *before* Stripe is asked. If it has moved on when the answer is
    written down, the answer may be older than the books, and Stripe is asked again. ``made`` is
    what Stripe has just answered, in case its list lags behind. Early fraud warnings, of which the
    intent shows nothing, are read where one was told of (``warned``) or freezes the payment.
    """
    for _ in range(_TRIES):
        payment = await core.database.read(_payment, payment_id)
        if payment is None:
            raise payment_not_found(payment_id)
        if not payment.payment_intent_id:
            return Applied(payment=payment)
        seen = await core.stripe.observe(payment.payment_intent_id)
        if seen is None:
            core.alarms.discrepancy(payment_id, "intent_missing")
            raise Unavailable(
                "PROCESSOR_MISCONFIGURED",
                "Stripe does not know this payment's intent; an operator is told",
                {"payment_id": payment_id, "stripe_code": "resource_missing"},
            )
        seen = seen.with_answer(made)
        if warned or payment.fraud_warning_id:
            warnings = await core.stripe.fraud_warnings(payment.payment_intent_id)
            seen = replace(seen, fraud_warnings=tuple(warnings))
        applied = await apply(core, payment_id, seen, payment.version, cause)
        if not applied.stale:
            return applied
    raise Busy(
        "CONCURRENT_CHANGE",
        "the payment keeps changing; ask again with the same key",
        {"payment_id": payment_id},
    )


async def apply(
    core: Core, payment_id: str, seen: Observation, version: int, cause: Cause
) -> Applied:
    """Write down one observation, and alarm what it could not explain."""
    applied = await core.database.transact(
        apply_observation_phase, core.answers, core.policy, payment_id, seen, version, cause
    )
    tell(core, applied)
    return replace(applied, client_secret=seen.client_secret)


def tell(core: Core, applied: Applied) -> None:
    """Alarm what an observation could not explain, and what it has parked."""
    if applied.parked is not None:
        core.alarms.operation_parked(applied.parked, applied.parked.last_error)
    for discrepancy in applied.discrepancies:
        core.alarms.discrepancy(discrepancy.payment_id, discrepancy.kind)


def _payment(reader: Reader, payment_id: str) -> Payment | None:
    return reader.payment(payment_id)
