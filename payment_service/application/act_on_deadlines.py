"""What happens when an escrow's time runs out: warn ahead, then do what the payment says.

Stripe is asked before anything is done, and what it shows is followed first; a deadline whose
payment has moved on is no deadline any more.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import structlog

from payment_service.application.capture_payment import plan_capture, start_capture
from payment_service.application.carry_out import carry_out
from payment_service.application.core import Core
from payment_service.application.make_way import make_way, repayment_making_way
from payment_service.application.observe import observe_payment
from payment_service.application.refund_payment import start_refund
from payment_service.application.settle import leased_operation
from payment_service.domain import escrow, plans
from payment_service.domain.deadlines import deadline_due, deadline_near
from payment_service.domain.errors import Refusal
from payment_service.domain.escrow import OnDeadline, Payment, State, Transition
from payment_service.domain.operations import Operation, OperationKind
from payment_service.domain.ports import Cause, Policy, Transaction

log = structlog.get_logger(__name__)

DEADLINE: Final = Cause("payment_service", "deadline")
_BATCH: Final = 32
#: An action that Stripe refused is tried again; often enough to matter, seldom enough to bear.
_AGAIN: Final = timedelta(hours=1)
#: A capture that waits for the expert's account does not keep a card hold from lapsing.
_WARNED: Final = (State.IN_ESCROW, State.CAPTURING, State.REFUNDING)


async def warn_of_deadlines(core: Core) -> int:
    """Write down an event for every deadline that is near; how many there were."""
    return await core.database.transact(warn_phase, core.policy)


def warn_phase(tx: Transaction, policy: Policy) -> int:
    warned = 0
    for payment_id in tx.payments_near_deadline(policy.deadline_warning, _BATCH):
        payment = tx.lock_payment(payment_id)
        if payment is None or payment.state not in _WARNED:
            continue
        near = deadline_near(payment, tx.now, timedelta(seconds=policy.deadline_warning))
        if near is None:
            continue
        tx.record(escrow.deadline_near(payment, near.kind.value, near.time, tx.now), DEADLINE)
        warned += 1
    return warned


async def act_on_deadlines(core: Core) -> int:
    """Do what the payments say whose time has come; how many there were."""
    if core.stripe.is_away:
        return 0
    due = await core.database.transact(find_due, core.policy)
    for payment_id in due:
        try:
            await observe_payment(core, payment_id, DEADLINE)
            begun = await core.database.transact(begin_deadline, core.policy, payment_id)
            if begun is not None:
                await carry_out(core, begun[0], begun[1], DEADLINE)
        except Refusal as refusal:
            log.info("deadline_unsettled", payment=payment_id, reason=refusal.reason)
    return 0  # Asked once a round: what Stripe refused is not to be tried without a pause.


def find_due(tx: Transaction, policy: Policy) -> list[str]:
    return list(tx.payments_at_deadline(policy.deadline_margin, _BATCH))


def begin_deadline(
    tx: Transaction, policy: Policy, payment_id: str
) -> tuple[Operation, int] | None:
    """Record what is to be done, if it still is; no two replicas do it twice."""
    payment = tx.lock_payment(payment_id)
    if payment is None:
        return None
    given_up = repayment_making_way(tx, payment, "a deadline comes first")
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
        passed = escrow.deadline_passed(payment, due.kind.value, due.time, tx.now, refused)
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
            payment = make_way(tx, payment, given_up, DEADLINE)
            return start_capture(
                tx, policy, payment, plan, "deadline", final=True, by_deadline=True
            )
        case OnDeadline.REFUND:
            refund = plans.plan_refund(resting, None)
            payment = make_way(tx, payment, given_up, DEADLINE)
            return start_refund(tx, policy, payment, refund, "deadline", by_deadline=True)
        case OnDeadline.PROMOTE:
            plans.check_promotion(payment)
            operation = leased_operation(
                tx,
                policy,
                kind=OperationKind.PROMOTE,
                payment_id=payment.payment_id,
                minor_units=payment.held,
                params={"payment_intent_id": payment.payment_intent_id, "notes": "deadline"},
            )
            return operation, escrow.start_promotion(payment, operation.operation_id, tx.now)
