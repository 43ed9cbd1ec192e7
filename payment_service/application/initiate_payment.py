"""InitiatePayment: the payment and its intent at Stripe, ready for the client to confirm."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import TypeVar

from payment_service.application.app import App
from payment_service.application.idempotency import (
    CallResult,
    IdempotentCommand,
    Started,
    run_idempotent,
)
from payment_service.application.operations.start import start_operation
from payment_service.application.sync.account import sync_expert
from payment_service.domain import money, transitions
from payment_service.domain.errors import Precondition, expert_not_found
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.hold_policy import HoldRules, choose_hold
from payment_service.domain.money import Money
from payment_service.domain.operation_payloads import CreateIntentPayload
from payment_service.domain.operations import OperationKind
from payment_service.domain.payment import EscrowMode, OnDeadline, Payment
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.state_machine import Transition

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class InitiatePayment(IdempotentCommand):
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
    #: The expert was synced just now.
    expert_is_fresh: bool = False
    #: Whether the platform's payouts are manual, so that they do not empty its escrow; None means
    #: that Stripe was not asked.
    platform_may_hold: bool | None = None


class ExpertMayBeReady(Exception):
    """The expert was not ready when last synced: sync the expert and start again."""


class PlatformMustBeAsked(Exception):
    """The platform is to hold the money: ask Stripe whether it can, and start again."""


async def informed(
    app: App, command: InitiatePayment, attempt: Callable[[InitiatePayment], Awaitable[T]]
) -> T:
    """Makes the attempt, and makes it again with what it needs from Stripe."""
    while True:
        try:
            return await attempt(command)
        except ExpertMayBeReady:
            await sync_expert(app, command.expert_id, command.cause)
            command = replace(command, expert_is_fresh=True)
        except PlatformMustBeAsked:
            may_hold = await app.stripe.has_manual_payouts()
            command = replace(command, platform_may_hold=may_hold)


async def initiate_payment(app: App, command: InitiatePayment) -> CallResult:
    """Creates the payment. The client secret is read from Stripe, since it is never stored."""
    result = await informed(
        app, command, lambda known: run_idempotent(app, known, begin_initiation)
    )
    if result.client_secret:
        return result
    payment = await app.database.read(lambda reader: reader.payment(result.payment_id))
    if payment is None or not payment.payment_intent_id:
        return result
    secret = await app.stripe.client_secret(payment.payment_intent_id)
    return replace(result, client_secret=secret)


def begin_initiation(
    tx: Transaction, policy: Policy, command: InitiatePayment, claim_id: str
) -> Started:
    """Records the new payment and the operation that creates its intent."""
    operation_id = tx.operation_id_for(claim_id)
    payment_id = tx.derived_id("pay", operation_id)
    transition = plan_initiation(tx, policy, command, payment_id)
    payment = replace(transition.after, operation_id=operation_id)
    tx.record(replace(transition, after=payment), command.cause)
    operation = start_operation(
        tx,
        policy,
        kind=OperationKind.CREATE_INTENT,
        operation_id=operation_id,
        payment_id=payment.payment_id,
        minor_units=payment.amount,
        claim_id=claim_id,
        payload=CreateIntentPayload(
            currency=payment.currency,
            # A charge on the platform has no destination and no fee; less is transferred instead.
            application_fee=0 if payment.is_separate else payment.commission,
            destination_account_id="" if payment.is_separate else payment.destination_account_id,
            automatic_capture=payment.escrow_mode is EscrowMode.PLATFORM_HOLD,
            # A charge that is captured at once has no authorization that could last longer.
            extended_authorization=policy.extended_authorization
            and payment.escrow_mode is EscrowMode.CARD_HOLD,
            description=payment.description,
            client_id=payment.client_id,
            expert_id=payment.expert_id,
            gig_id=payment.gig_id,
            expert_account_id=payment.destination_account_id,
            escrow_mode=payment.escrow_mode.value,
            charge_model=payment.charge_model.value,
            mode_reason=payment.mode_reason.value,
            on_deadline=payment.on_deadline.value,
            expected_completion_time=payment.release_due_time.isoformat()
            if payment.release_due_time
            else "",
            commission_basis_points=payment.commission_basis_points,
            commission=payment.commission,
        ),
    )
    return Started(operation, payment)


async def preview_of_initiation(app: App, command: InitiatePayment) -> Payment:
    """Returns the payment that the call would make. Raises what it would be refused with."""
    return await informed(
        app,
        command,
        lambda known: app.database.transact(initiation_preview, app.policy, known),
    )


def initiation_preview(tx: Transaction, policy: Policy, command: InitiatePayment) -> Payment:
    return plan_initiation(tx, policy, command, payment_id="").after


def plan_initiation(
    tx: Transaction, policy: Policy, command: InitiatePayment, payment_id: str
) -> Transition:
    """Returns the new payment, not recorded yet. Raises what the call is refused with."""
    expert = tx.expert(command.expert_id)
    if expert is None:
        raise expert_not_found(command.expert_id)
    expert.check_known()
    if expert.status is not ExpertStatus.READY and not command.expert_is_fresh:
        raise ExpertMayBeReady
    expert.check_ready(shown_to=command.cause.act_for)
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
    return transitions.initiate(payment)


def _payment(
    tx: Transaction, policy: Policy, command: InitiatePayment, payment_id: str, expert: Expert
) -> Payment:
    """Returns the new payment with its quote, which never changes again."""
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
            policy.platform_country,
            expert.country,
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
