"""DismissFraudWarning: an operator checked a warning, and the payment may be captured."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.app import App
from payment_service.application.idempotency import IdempotentCommand, run_local
from payment_service.application.sync.payment import Occasion, sync_payment
from payment_service.domain import disputes, transitions
from payment_service.domain.errors import payment_not_found
from payment_service.domain.payment import Freeze
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Answer, Answers
from payment_service.domain.sync.changes import Movement


@dataclass(frozen=True, slots=True, kw_only=True)
class DismissFraudWarning(IdempotentCommand):
    payment_id: str
    #: Empty means whichever freezes the payment.
    warning_id: str
    reason: str


async def dismiss_fraud_warning(app: App, command: DismissFraudWarning) -> bytes:
    """Lift the freeze of one warning, for good. Raises :class:`Refusal`.

    Stripe is asked first, so that a dispute that has just opened, or another warning, is seen
    before anything is released.
    """
    payment = await app.database.read(lambda reader: reader.payment(command.payment_id))
    if payment is not None and payment.frozen is Freeze.FRAUD_WARNING:
        await sync_payment(app, payment.payment_id, command.cause, occasion=Occasion(warned=True))
    answer = await run_local(app, command, dismiss)
    app.wake.set()  # A capture that waited for its expert can be sent.
    return answer


def dismiss(
    tx: Transaction, answers: Answers, policy: Policy, command: DismissFraudWarning
) -> Answer:
    """One transaction, under the payment's lock: a dispute comes before it or after it."""
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    disputes.check_dismissal(payment, command.warning_id)
    # Kept with what is known of the payment: the same warning, seen again, freezes nothing.
    released = disputes.dismissal_id(payment.fraud_warning_id)
    tx.add_movement(payment.payment_id, Movement(released, "fraud_warning_release", 0))
    transition = transitions.fraud_warning_dismissed(payment, command.reason, tx.now)
    tx.record(transition, command.cause)
    return answers.response(command.cause.rpc, transition.after)
