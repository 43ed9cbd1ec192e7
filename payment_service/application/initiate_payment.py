"""InitiatePayment: the payment and its intent at Stripe, ready for the client to confirm."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from payment_service.application.core import Begun, Core, Keyed, refuse_for_good, resume
from payment_service.application.keyed import Told, run_keyed
from payment_service.application.refresh_expert import refresh_expert
from payment_service.application.settle import leased_operation
from payment_service.domain import escrow, money
from payment_service.domain.errors import Precondition, expert_not_found
from payment_service.domain.escrow import EscrowMode, OnDeadline, Payment, Transition
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.money import Money
from payment_service.domain.operations import OperationKind
from payment_service.domain.plans import HoldRules, choose_hold
from payment_service.domain.ports import Answers, Policy, Transaction

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitiatePayment(Keyed):
    client_id: str
    expert_id: str
    gig_id: str
    amount: Money
    description: str
    #: None lets the service choose.
    escrow_mode: EscrowMode | None = None
    on_deadline: OnDeadline = OnDeadline.ALERT
    #: When the gig is to be done (UTC).
    expected_completion_time: datetime | None = None
    #: Stripe was asked about the expert just now; what it said stands.
    expert_is_fresh: bool = False
    #: Whether the platform's payouts are manual, so that they do not empty its escrow; None means
    #: that Stripe was not asked.
    platform_may_hold: bool | None = None


class ExpertMayBeReady(Exception):
    """The expert is not ready as far as we know, and what we know is old: ask, and begin again."""


class PlatformMustBeAsked(Exception):
    """The platform is to hold the money: ask Stripe whether it may, and begin again."""


async def informed(
    core: Core, command: InitiatePayment, attempt: Callable[[InitiatePayment], Awaitable[T]]
) -> T:
    """The attempt, made again with what it turned out to need from Stripe first."""
    while True:
        try:
            return await attempt(command)
        except ExpertMayBeReady:
            await refresh_expert(core, command.expert_id, command.cause)
            command = replace(command, expert_is_fresh=True)
        except PlatformMustBeAsked:
            may_hold = await core.stripe.platform_pays_out_by_hand()
            command = replace(command, platform_may_hold=may_hold)


async def initiate_payment(core: Core, command: InitiatePayment) -> Told:
    """Create the payment. The client secret is read from Stripe, since it is never stored."""
    told = await informed(core, command, lambda known: run_keyed(core, begin_initiation, known))
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
    try:
        transition = plan_initiation(tx, policy, command, tx.new_id("pay"))
    except Precondition as refusal:
        return refuse_for_good(tx, answers, claim, refusal)
    operation_id = tx.new_id("op")
    payment = replace(transition.after, operation_id=operation_id)
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
            # A charge on the platform has no destination and no fee; less is transferred instead.
            "application_fee": 0 if payment.is_separate else payment.commission,
            "destination_account_id": "" if payment.is_separate else payment.destination_account_id,
            "automatic_capture": payment.escrow_mode is EscrowMode.PLATFORM_HOLD,
            "description": payment.description,
            "client_id": payment.client_id,
            "expert_id": payment.expert_id,
            "gig_id": payment.gig_id,
        },
    )
    tx.bind_claim(claim.claim_id, payment.payment_id, operation.operation_id)
    return Begun(claim, operation, payment.version)


def plan_initiation(
    tx: Transaction, policy: Policy, command: InitiatePayment, payment_id: str
) -> Transition:
    """The new payment, not written yet. Raises what the call is to be refused with."""
    expert = tx.expert(command.expert_id)
    if expert is None:
        raise expert_not_found(command.expert_id)
    if expert.status is not ExpertStatus.READY and not command.expert_is_fresh:
        raise ExpertMayBeReady
    expert.check_ready()
    payment = _payment(tx, policy, command, payment_id, expert)
    if payment.is_separate and command.platform_may_hold is None:
        raise PlatformMustBeAsked
    if payment.is_separate and not command.platform_may_hold:
        raise Precondition(
            "PLATFORM_PAYOUTS_NOT_MANUAL",
            "automatic payouts would empty the platform's balance of what it holds for others; "
            "set the platform's payouts to manual at Stripe",
            {"escrow_mode": payment.escrow_mode.value},
        )
    return escrow.initiate(payment)


def _payment(
    tx: Transaction, policy: Policy, command: InitiatePayment, payment_id: str, expert: Expert
) -> Payment:
    """The new payment with its quote, frozen from here on."""
    amount = command.amount
    hold = choose_hold(
        command.escrow_mode,
        command.on_deadline,
        command.expected_completion_time,
        amount.currency,
        HoldRules(
            timedelta(seconds=policy.card_hold),
            timedelta(seconds=policy.holding_limit),
            policy.settlement_currencies,
        ),
        tx.now,
    )
    basis_points = expert.commission_basis_points
    quote = money.split_quote(amount.minor_units, basis_points, amount.currency)
    return Payment(
        payment_id=payment_id,
        client_id=command.client_id,
        expert_id=command.expert_id,
        gig_id=command.gig_id,
        description=command.description,
        escrow_mode=hold.mode,
        charge_model=hold.model,
        mode_reason=hold.reason,
        on_deadline=command.on_deadline,
        release_due_time=command.expected_completion_time,
        destination_account_id=expert.account.stripe_account_id,
        currency=amount.currency,
        amount=amount.minor_units,
        commission_basis_points=basis_points,
        commission=quote.commission,
        expert_amount=quote.expert,
        create_time=tx.now,
        update_time=tx.now,
        payment_expire_time=tx.now + timedelta(seconds=policy.payment_window),
    )
