"""What every replica does by itself: finish what a crash left, close what nobody paid."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from payment_service.application.answer_dispute import carry_out_answer
from payment_service.application.carry_out import carry_out, go_on
from payment_service.application.core import Core
from payment_service.application.create_expert_account import carry_out_account
from payment_service.application.observe import observe_payment
from payment_service.application.operate import unpark
from payment_service.application.settle import leased_operation
from payment_service.domain import escrow, plans
from payment_service.domain.errors import Refusal
from payment_service.domain.escrow import State, WaitingFor, WaitingReason
from payment_service.domain.operations import OF_A_DISPUTE, Operation, OperationKind
from payment_service.domain.ports import Cause, Policy, Transaction

log = structlog.get_logger(__name__)

SWEEP: Final = Cause("payment_service", "sweep")
_BATCH: Final = 32


async def sweep_operations(core: Core) -> int:
    """Take up operations whose holder is gone or whose outcome is unknown; how many there were."""
    if core.stripe.is_away:
        return 0
    due = await core.database.transact(lease_due, core.policy)
    await asyncio.gather(*(_take_up(core, operation) for operation in due))
    return len(due)


def lease_due(tx: Transaction, policy: Policy) -> Sequence[Operation]:
    return tx.lease_due_operations(policy.lease, _BATCH)


async def _take_up(core: Core, operation: Operation) -> None:
    try:
        if operation.kind is OperationKind.CREATE_ACCOUNT:
            await carry_out_account(core, operation, SWEEP)
        elif operation.kind in OF_A_DISPUTE:
            await carry_out_answer(core, operation, 0, SWEEP)
        else:
            await carry_out(core, operation, 0, SWEEP)
    except Refusal as refusal:
        # Written down already; the lease is given back, and its time will come.
        log.info("operation_unsettled", operation=operation.operation_id, reason=refusal.reason)
    except Exception as error:  # noqa: BLE001 - the lease runs out and the next sweep tries again
        log.error("operation_failed", operation=operation.operation_id, error=type(error).__name__)


async def resume_waiting_captures(core: Core) -> int:
    """Send captures on whose expert can be paid again; the others say why they cannot yet."""
    otherwise = await core.database.read(lambda reader: reader.payments_waiting_otherwise(_BATCH))
    for payment_id in otherwise:
        await core.database.transact(tell_reason, payment_id)
    waiting = await core.database.read(lambda reader: reader.payments_waiting_for_experts(_BATCH))
    for payment_id, operation_id in waiting:
        try:
            # Resumed, it counts as on its way; what a hand refunded unseen must be seen before.
            await go_on(core, await observe_payment(core, payment_id, SWEEP), SWEEP)
            await core.database.transact(unpark, operation_id, payment_id, SWEEP)
        except Refusal as refusal:  # Given up, or resumed by another replica.
            log.info("capture_not_resumed", payment=payment_id, reason=refusal.reason)
    return 0


def tell_reason(tx: Transaction, payment_id: str) -> None:
    """Write down why a capture waits for its expert by now."""
    payment = tx.lock_payment(payment_id)
    if payment is None or not plans.waits_for_expert(payment):
        return
    expert = tx.expert(payment.expert_id)
    assert expert is not None
    reason = plans.reason_to_wait(payment, expert)
    # Of an account that is well by now there is nothing to tell: the capture goes on.
    if reason not in (payment.waiting_reason, WaitingReason.EXPERT_REFUSED):
        why = "the expert's account has changed"
        tx.record(escrow.waiting(payment, WaitingFor.EXPERT, why, tx.now, reason), SWEEP)


async def settle_lost_disputes(core: Core) -> int:
    """Write off what was lost while something else was under way on the payment."""
    if core.stripe.is_away:
        return 0
    lost = await core.database.read(lambda reader: reader.payments_with_unsettled_losses(_BATCH))
    for payment_id in lost:
        try:
            applied = await observe_payment(core, payment_id, SWEEP)
            await go_on(core, applied, SWEEP)
        except Refusal as refusal:
            log.info("lost_dispute_unsettled", payment=payment_id, reason=refusal.reason)
    return 0  # Asked once a round: where it has to wait, asking again changes nothing.


async def expire_unpaid(core: Core) -> int:
    """Cancel payments that nobody confirmed within the payment window; how many there were.

    An unpaid intent never expires at Stripe, so the window is ours.
    """
    if core.stripe.is_away:
        return 0
    begun = await core.database.transact(begin_expiry, core.policy)
    for operation, version in begun:
        try:
            await carry_out(core, operation, version, SWEEP)
        except Refusal as refusal:
            log.info("expiry_unsettled", operation=operation.operation_id, reason=refusal.reason)
    return len(begun)


def begin_expiry(tx: Transaction, policy: Policy) -> list[tuple[Operation, int]]:
    """Record the cancellations; no two replicas take the same payment."""
    begun = []
    for payment_id in tx.payments_past_window(_BATCH):
        payment = tx.lock_payment(payment_id)
        if payment is None or payment.state not in (State.PENDING, State.FAILED):
            continue
        operation = leased_operation(
            tx,
            policy,
            kind=OperationKind.CANCEL,
            payment_id=payment_id,
            minor_units=payment.amount,
            params={"payment_intent_id": payment.payment_intent_id, "because": "deadline"},
        )
        transition = escrow.start_cancel(
            payment, operation.operation_id, "the payment window closed", tx.now
        )
        tx.record(transition, SWEEP)
        begun.append((operation, transition.after.version))
    return begun


async def ask_about_lapsed_holds(core: Core) -> int:
    """Ask Stripe about authorizations that must have lapsed although no webhook said so."""
    lapsed = await core.database.read(lambda reader: reader.holds_past_expiry(_BATCH))
    for payment_id in lapsed:
        try:
            await observe_payment(core, payment_id, SWEEP)
        except Refusal as refusal:
            log.info("lapsed_hold_unsettled", payment=payment_id, reason=refusal.reason)
    return 0  # Asked once a round: where Stripe still shows the hold, asking again changes nothing.
