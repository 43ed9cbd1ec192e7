"""Acts when an escrow's time runs out: warns ahead, then does what the payment says.

Stripe is synced before anything is done. A payment that has moved on has no deadline any more.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.capture_payment import plan_capture, start_capture
from payment_service.application.execution.executor import execute
from payment_service.application.fair_queue import process_fairly
from payment_service.application.operations.preempt_repayment import plan_preemption, preempt
from payment_service.application.operations.start import Origin, start_operation
from payment_service.application.refund_payment import start_refund
from payment_service.application.sync.payment import sync_payment
from payment_service.domain import guards, plans, transitions
from payment_service.domain.deadlines import deadline_due, deadline_near
from payment_service.domain.errors import Refusal
from payment_service.domain.operation_payloads import CapturePayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import OnDeadline, Payment, State
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause, JobKind
from payment_service.domain.state_machine import Transition

log = structlog.get_logger(__name__)


DEADLINE: Final = Cause("payment_service", "deadline")
_ORIGIN: Final = Origin(reason="deadline", by_deadline=True)


_BATCH: Final = 32


#: An action that Stripe refused is tried again; often enough to matter, seldom enough to bear.
_AGAIN: Final = timedelta(hours=1)


#: A capture that waits for the expert's account does not keep a card hold from lapsing.
_WARNED: Final = (State.IN_ESCROW, State.CAPTURING, State.REFUNDING)


async def warn_of_deadlines(app: App) -> int:
    """Write down an event for every deadline that is near; how many there were."""
    ahead = app.policy.deadline_warning
    near = await app.database.read(lambda reader: reader.payments_near_deadline(ahead, _BATCH))
    return await process_fairly(
        app,
        JobKind.WARNINGS,
        near,
        lambda payment_id: app.database.transact(warn_phase, app.policy, payment_id),
    )


def warn_phase(tx: Transaction, policy: Policy, payment_id: str) -> None:
    payment = tx.lock_payment(payment_id)
    if payment is None or payment.state not in _WARNED:
        return
    near = deadline_near(payment, tx.now, timedelta(seconds=policy.deadline_warning))
    if near is not None:
        warning = transitions.deadline_near(
            payment, near.kind.value, near.time, near.action, tx.now
        )
        tx.record(warning, DEADLINE)


async def act_on_deadlines(app: App) -> int:
    """Do what the payments say whose time has come."""
    if app.stripe.is_unavailable:
        return 0

    async def act(payment_id: str) -> None:
        await sync_payment(app, payment_id, DEADLINE)
        begun = await app.database.transact(begin_deadline, app.policy, payment_id)
        if begun is not None:
            await execute(app, begun[0], begun[1], DEADLINE)

    due = await app.database.transact(find_due, app.policy)
    await process_fairly(app, JobKind.DEADLINES, due, act)
    return 0  # Asked once a round: what Stripe refused is not to be tried without a pause.


def find_due(tx: Transaction, policy: Policy) -> list[str]:
    return list(tx.payments_at_deadline(policy.deadline_margin, _AGAIN.total_seconds(), _BATCH))


def begin_deadline(
    tx: Transaction, policy: Policy, payment_id: str
) -> tuple[Operation, int] | None:
    """Record what is to be done, if it still is; no two replicas do it twice."""
    payment = tx.lock_payment(payment_id)
    if payment is None:
        return None
    given_up = plan_preemption(tx, payment, "a deadline comes first")
    resting = given_up.after if given_up else payment
    if resting.state is not State.IN_ESCROW or resting.operation_id:
        return None
    due = deadline_due(payment, tx.now, timedelta(seconds=policy.deadline_margin), _AGAIN)
    if due is None:
        return None
    refused = ""
    try:
        begun = _begin(tx, policy, payment, given_up, due.action)
    except Refusal as refusal:  # A freeze, say: it is told, and tried again.
        log.warning("deadline_refused", payment=payment_id, reason=refusal.reason)
        begun, refused = None, refusal.reason
    if begun is None:
        passed = transitions.deadline_passed(payment, due.kind.value, due.time, tx.now, refused)
        tx.record(passed, DEADLINE)
        return None
    operation, transition = begun
    tx.record(transition, DEADLINE)
    return operation, transition.after.version


def _begin(
    tx: Transaction,
    policy: Policy,
    payment: Payment,
    given_up: Transition | None,
    action: OnDeadline,
) -> tuple[Operation, Transition] | None:
    resting = given_up.after if given_up else payment
    match action:
        case OnDeadline.ALERT:
            return None
        case OnDeadline.CAPTURE:
            plan = plan_capture(tx, resting, None, final=True)
            payment = preempt(tx, payment, given_up, DEADLINE)
            return start_capture(tx, policy, payment, plan, _ORIGIN, final=True)
        case OnDeadline.REFUND:
            refund = plans.plan_refund(resting, None)
            payment = preempt(tx, payment, given_up, DEADLINE)
            return start_refund(tx, policy, payment, refund, _ORIGIN)
        case OnDeadline.PROMOTE:
            guards.check_promotion(payment)
            operation = start_operation(
                tx,
                policy,
                kind=OperationKind.PROMOTE,
                payment_id=payment.payment_id,
                minor_units=payment.held,
                purpose=OperationPurpose.DEADLINE,
                payload=CapturePayload(
                    payment_intent_id=payment.payment_intent_id, notes="deadline"
                ),
            )
            return operation, transitions.start_promotion(payment, operation.operation_id, tx.now)
