"""ReleaseFraudWarning: an operator has looked into a warning, and the payment may be captured."""

from __future__ import annotations

from dataclasses import dataclass

from payment_service.application.core import Core, Keyed
from payment_service.application.keyed import run_at_once
from payment_service.application.observe import observe_payment
from payment_service.domain import disputes, escrow
from payment_service.domain.errors import payment_not_found
from payment_service.domain.escrow import Freeze
from payment_service.domain.followed import Movement
from payment_service.domain.ports import Answer, Answers, Policy, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseFraudWarning(Keyed):
    payment_id: str
    #: Empty means whichever freezes the payment.
    warning_id: str
    note: str


async def release_fraud_warning(core: Core, command: ReleaseFraudWarning) -> bytes:
    """Lift the freeze of one warning, for good. Raises :class:`Refusal`.

    Stripe is asked first, so that a dispute that has just opened, or another warning, is seen
    before anything is released.
    """
    payment = await core.database.read(lambda reader: reader.payment(command.payment_id))
    if payment is not None and payment.frozen is Freeze.FRAUD_WARNING:
        await observe_payment(core, payment.payment_id, command.cause, warned=True)
    answer = await run_at_once(core, release, command)
    core.wake.set()  # A capture that waited for its expert may go on.
    return answer


def release(
    tx: Transaction, answers: Answers, policy: Policy, command: ReleaseFraudWarning
) -> Answer:
    """One transaction, under the payment's lock: a dispute comes before it or after it."""
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    disputes.check_release(payment, command.warning_id)
    # Kept with what is known of the payment: the same warning, seen again, freezes nothing.
    released = disputes.release_id(payment.fraud_warning_id)
    tx.add_movement(payment.payment_id, Movement(released, "fraud_warning_release", 0))
    transition = escrow.fraud_warning_released(payment, command.note, tx.now)
    tx.record(transition, command.cause)
    return answers.response(command.cause.rpc, transition.after)
