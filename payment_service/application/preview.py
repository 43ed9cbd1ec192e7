"""``validate_only``: the same checks and the same plan as the call, and nothing written."""

from __future__ import annotations

from payment_service.application.answer_dispute import AcceptDispute, lock_dispute
from payment_service.application.capture_payment import (
    CapturePayment,
    minor_units_of,
    plan_capture,
)
from payment_service.application.core import Core
from payment_service.application.initiate_payment import (
    InitiatePayment,
    informed,
    plan_initiation,
)
from payment_service.application.make_way import repayment_making_way
from payment_service.application.refund_payment import RefundPayment, plan_refund
from payment_service.domain import disputes
from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import payment_not_found
from payment_service.domain.escrow import Payment
from payment_service.domain.plans import check_version
from payment_service.domain.ports import Policy, Transaction
from payment_service.domain.preview import (
    Preview,
    preview_capture,
    preview_loss,
    preview_refund,
)


async def preview_of_initiation(core: Core, command: InitiatePayment) -> Payment:
    """The payment that would be made. Raises what the call would be refused with."""
    return await informed(
        core,
        command,
        lambda known: core.database.transact(initiation_preview, core.policy, known),
    )


def initiation_preview(tx: Transaction, policy: Policy, command: InitiatePayment) -> Payment:
    return plan_initiation(tx, policy, command, payment_id="").after


def capture_preview(tx: Transaction, command: CapturePayment) -> Preview:
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    check_version(payment, command.expected_version)
    given_up = repayment_making_way(tx, payment, "a capture comes first")
    payment = given_up.after if given_up else payment
    plan = plan_capture(tx, payment, minor_units_of(command.part, payment), command.final)
    return preview_capture(payment, plan)


def acceptance_preview(
    tx: Transaction, policy: Policy, command: AcceptDispute
) -> tuple[Dispute, Preview]:
    payment, dispute = lock_dispute(tx, command.dispute_id)
    disputes.check_acceptance(dispute)
    others = (one for one in tx.disputes_of(payment.payment_id) if one != dispute)
    frozen = disputes.freeze_of(
        others,
        payment.fraud_warning_id,
        tx.known_movements(payment.payment_id),
        freezes_on_warning=policy.freeze_on_fraud_warning,
    )
    transfers = tx.reversible_transfers(payment.payment_id)
    # Stripe's line may not be there yet: it takes what is contested.
    part = dispute.taken or dispute.amount
    return dispute, preview_loss(payment, part, transfers, frozen)


def refund_preview(tx: Transaction, command: RefundPayment) -> Preview:
    payment = tx.lock_payment(command.payment_id)
    if payment is None:
        raise payment_not_found(command.payment_id)
    check_version(payment, command.expected_version)
    plan, given_up = plan_refund(tx, payment, command)
    transfers = tx.reversible_transfers(payment.payment_id)
    return preview_refund(given_up.after if given_up else payment, plan, transfers)
