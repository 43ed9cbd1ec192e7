"""Acts when an escrow's time runs out: does what the payment's ``on_deadline`` says.

Stripe is synced before anything is done. A payment that is not in escrow any more has no deadline.
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
from payment_service.domain.deadlines import Deadline, deadline_due
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

_PREEMPTED_BECAUSE: Final = "a deadline comes first"


async def act_on_deadlines(app: App) -> int:
    """Acts on the deadlines that have come, and returns 0: one batch is enough for each round.

    An action that Stripe refused must not be tried again without a pause.
    """
    if app.stripe.is_unavailable:
        return 0

    async def act(payment_id: str) -> None:
        if await app.database.transact(due_deadline, app.policy, payment_id) is None:
            return
        await sync_payment(app, payment_id, DEADLINE)
        begun = await app.database.transact(begin_deadline, app.policy, payment_id)
        if begun is not None:
            await execute(app, begun[0], begun[1], DEADLINE)

    due = await app.database.read(
        lambda reader: reader.payments_due(JobKind.ACT_ON_DEADLINES, _BATCH)
    )
    await process_fairly(app, JobKind.ACT_ON_DEADLINES, due, act)
    return 0


def due_deadline(tx: Transaction, policy: Policy, payment_id: str) -> Deadline | None:
    """Returns the deadline that must be acted on now, or None. Changes nothing."""
    payment = tx.lock_payment(payment_id)
    if payment is None:
        return None
    preempted = plan_preemption(tx, payment, _PREEMPTED_BECAUSE)
    return _due(tx, policy, payment, preempted.after if preempted else payment)


def _due(tx: Transaction, policy: Policy, payment: Payment, resting: Payment) -> Deadline | None:
    """Returns the due deadline. ``resting`` is the payment after what the action pre-empts."""
    if resting.state is not State.IN_ESCROW or resting.operation_id:
        return None
    expert = tx.expert(payment.expert_id)
    return deadline_due(
        payment,
        tx.now,
        timedelta(seconds=policy.deadline_margin),
        timedelta(seconds=policy.deadline_retry),
        can_capture=expert is not None and not guards.is_destination_replaced(payment, expert),
    )


def begin_deadline(
    tx: Transaction, policy: Policy, payment_id: str
) -> tuple[Operation, int] | None:
    """Records what is to be done, if it is still due. So no two replicas do it twice."""
    payment = tx.lock_payment(payment_id)
    if payment is None:
        return None
    preempted = plan_preemption(tx, payment, _PREEMPTED_BECAUSE)
    due = _due(tx, policy, payment, preempted.after if preempted else payment)
    if due is None:
        return None
    refused = ""
    try:
        begun = _begin(tx, policy, payment, preempted, due.action)
    except Refusal as refusal:  # For example a freeze: it is recorded, and tried again later.
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
    preempted: Transition | None,
    action: OnDeadline,
) -> tuple[Operation, Transition] | None:
    resting = preempted.after if preempted else payment
    match action:
        case OnDeadline.ALERT:
            return None
        case OnDeadline.CAPTURE:
            plan = plan_capture(tx, policy, resting, None, final=True)
            payment = preempt(tx, payment, preempted, DEADLINE)
            return start_capture(tx, policy, payment, plan, _ORIGIN, final=True)
        case OnDeadline.REFUND:
            refund = plans.plan_refund(resting, None)
            payment = preempt(tx, payment, preempted, DEADLINE)
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
