"""InitiatePayment: the payment and its intent at Stripe, ready for the client to confirm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

from payment_service.application.core import Begun, Core, Keyed, refuse_for_good, resume
from payment_service.application.keyed import Told, run_keyed
from payment_service.application.refresh_expert import refresh_expert
from payment_service.application.settle import leased_operation
from payment_service.domain import escrow, money
from payment_service.domain.errors import Precondition, expert_not_found
from payment_service.domain.escrow import ChargeModel, EscrowMode, Payment
from payment_service.domain.experts import ExpertStatus
from payment_service.domain.money import Money
from payment_service.domain.operations import OperationKind
from payment_service.domain.ports import Answers, Policy, Transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class InitiatePayment(Keyed):
    client_id: str
    expert_id: str
    gig_id: str
    amount: Money
    description: str
    escrow_mode: EscrowMode = EscrowMode.CARD_HOLD
    #: Stripe was asked about the expert just now; what it said stands.
    expert_is_fresh: bool = False


class ExpertMayBeReady(Exception):
    """The expert is not ready as far as we know, and what we know is old: ask, and begin again."""


async def initiate_payment(core: Core, command: InitiatePayment) -> Told:
    """Create the payment. The client secret is read from Stripe, since it is never stored."""
    try:
        told = await run_keyed(core, begin_initiation, command)
    except ExpertMayBeReady:
        await refresh_expert(core, command.expert_id, command.cause)
        told = await run_keyed(core, begin_initiation, replace(command, expert_is_fresh=True))
    if told.client_secret:
        return told
    payment = await core.database.read(lambda reader: reader.payment(told.payment_id))
    if payment is None or not payment.payment_intent_id:
        return told
    secret = await core.stripe.client_secret(payment.payment_intent_id)
    return replace(told, client_secret=secret)


def begin_initiation(
    tx: Transaction, answers: Answers, policy: Policy, command: InitiatePayment
) -> Begun:
    claim = tx.claim(command.cause, command.key, command.fields)
    if not claim.fresh:
        return resume(tx, policy, claim)
    expert = tx.expert(command.expert_id)
    if expert is None:
        raise expert_not_found(command.expert_id)
    if expert.status is not ExpertStatus.READY and not command.expert_is_fresh:
        raise ExpertMayBeReady
    try:
        expert.check_ready()
        transition = escrow.initiate(_payment(tx, policy, command, expert.commission_basis_points))
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    operation_id = tx.new_id("op")
    payment = replace(
        transition.after,
        operation_id=operation_id,
        destination_account_id=expert.account.stripe_account_id,
    )
    tx.record(replace(transition, after=payment), command.cause)
    operation = leased_operation(
        tx,
        policy,
        kind=OperationKind.CREATE_INTENT,
        operation_id=operation_id,
        payment_id=payment.payment_id,
        minor_units=payment.amount,
        claim_id=claim.claim_id,
        params={
            "currency": payment.currency,
            "application_fee": payment.commission,
            "destination_account_id": payment.destination_account_id,
            "description": payment.description,
            "client_id": payment.client_id,
            "expert_id": payment.expert_id,
            "gig_id": payment.gig_id,
        },
    )
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Begun(claim, operation, payment.version)


def _payment(
    tx: Transaction, policy: Policy, command: InitiatePayment, basis_points: int
) -> Payment:
    """The new payment with its quote, frozen from here on."""
    amount = command.amount
    quote = money.split_quote(amount.minor_units, basis_points, amount.currency)
    return Payment(
        payment_id=tx.new_id("pay"),
        client_id=command.client_id,
        expert_id=command.expert_id,
        gig_id=command.gig_id,
        description=command.description,
        escrow_mode=command.escrow_mode,
        charge_model=ChargeModel.DESTINATION,
        destination_account_id="",
        currency=amount.currency,
        amount=amount.minor_units,
        commission_basis_points=basis_points,
        commission=quote.commission,
        expert_amount=quote.expert,
        create_time=tx.now,
        update_time=tx.now,
        payment_expire_time=tx.now + timedelta(seconds=policy.payment_window),
    )
