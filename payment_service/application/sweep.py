"""What every replica does by itself: finish what a crash left, close what nobody paid."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import structlog

from payment_service.application.answer_dispute import carry_out_answer
from payment_service.application.carry_out import carry_out, go_on, look_and_go_on
from payment_service.application.core import Core
from payment_service.application.create_expert_account import carry_out_account
from payment_service.application.in_turn import in_turn
from payment_service.application.observe import observe_payment
from payment_service.application.operate import unpark_after_a_look
from payment_service.application.settle import leased_operation
from payment_service.domain import escrow, plans
from payment_service.domain.errors import Refusal
from payment_service.domain.escrow import State, WaitingFor, WaitingReason
from payment_service.domain.operations import (
    OF_A_DISPUTE,
    Operation,
    OperationKind,
)
from payment_service.domain.ports import Cause, Policy, Transaction, Work

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
    await in_turn(
        core,
        Work.WAITING_REASONS,
        otherwise,
        lambda payment_id: core.database.transact(tell_reason, payment_id),
    )
    waiting = dict(
        await core.database.read(lambda reader: reader.payments_waiting_for_experts(_BATCH))
    )

    # Refused where it was given up, or resumed by another replica.
    await in_turn(
        core,
        Work.WAITING_CAPTURES,
        list(waiting),
        lambda payment_id: unpark_after_a_look(core, waiting[payment_id], payment_id, SWEEP),
    )
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
    await in_turn(
        core,
        Work.LOST_DISPUTES,
        lost,
        lambda payment_id: look_and_go_on(core, payment_id, SWEEP),
    )
    return 0  # Asked once a round: where it has to wait, asking again changes nothing.


async def expire_unpaid(core: Core) -> int:
    """Cancel payments that nobody confirmed within the payment window; how many went well.

    An unpaid intent never expires at Stripe, so the window is ours. Stripe is asked first: the
    client may have paid, and nobody told us yet. Who pays between that look and the cancellation
    has the hold released, and the payment ends EXPIRED; or, if the card was charged at once, Stripe
    refuses to cancel, and the money is in escrow.
    """
    if core.stripe.is_away:
        return 0

    async def expire(payment_id: str) -> None:
        looked = await observe_payment(core, payment_id, SWEEP)
        await go_on(core, looked, SWEEP)
        # Paid, but without its lines yet; or what Stripe shows is for an operator to explain.
        if looked.deferred or looked.discrepancies:
            return
        begun = await core.database.transact(begin_expiry, core.policy, payment_id)
        if begun is not None:
            await carry_out(core, begun[0], begun[1], SWEEP)

    unpaid = await core.database.read(lambda reader: reader.payments_past_window(_BATCH))
    return await in_turn(core, Work.PAYMENT_WINDOW, unpaid, expire)


def begin_expiry(tx: Transaction, policy: Policy, payment_id: str) -> tuple[Operation, int] | None:
    """Record the cancellation, if the payment still waits for its client and for nothing else."""
    payment = tx.lock_payment(payment_id)
    if payment is None or payment.state not in (State.PENDING, State.FAILED):
        return None
    if payment.operation_id:
        return None
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
    return operation, transition.after.version


async def ask_about_lapsed_holds(core: Core) -> int:
    """Ask Stripe about authorizations that must have lapsed although no webhook said so."""
    lapsed = await core.database.read(lambda reader: reader.holds_past_expiry(_BATCH))
    await in_turn(
        core,
        Work.LAPSED_HOLDS,
        lapsed,
        lambda payment_id: observe_payment(core, payment_id, SWEEP),
    )
    return 0  # Asked once a round: where Stripe still shows the hold, asking again changes nothing.
