"""Encodes the answer that is stored with an idempotency key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final

from google.protobuf.message import Message

from marketplace.payments.v1 import (
    adjustments_pb2,
    disputes_pb2,
    experts_pb2,
    operations_pb2,
    payments_pb2,
)
from payment_service.domain.adjustments import Adjustment
from payment_service.domain.disputes import Dispute
from payment_service.domain.experts import Expert
from payment_service.domain.money import Money
from payment_service.domain.payment import Payment
from payment_service.domain.ports.records import Answer
from payment_service.rpc.messages.adjustments import adjustment_message
from payment_service.rpc.messages.common import money_message
from payment_service.rpc.messages.disputes import dispute_message
from payment_service.rpc.messages.experts import expert_message
from payment_service.rpc.messages.payments import initiated_message, payment_message

#: The answers that are a payment, by their RPCs.
_OF_PAYMENT: Final[Mapping[str, Callable[..., Message]]] = {
    "CapturePayment": payments_pb2.CapturePaymentResponse,
    "RefundPayment": payments_pb2.RefundPaymentResponse,
    "DismissFraudWarning": operations_pb2.DismissFraudWarningResponse,
}


class AnswerEncoder:
    """Encodes outcomes as the bytes that a repeated key gets again, always the same.

    The client secret is not among them: it is not stored, and is read from Stripe for each answer.
    """

    def __init__(self, publishable_key: str, refusal_answer: Any) -> None:
        self._publishable_key = publishable_key
        self.refusal = refusal_answer

    def written_off(self, expert_id: str, part: Money, debt: Money) -> Answer:
        message = operations_pb2.WriteOffExpertDebtResponse(
            expert_id=expert_id,
            written_off_amount=money_message(part.minor_units, part.currency),
            debt=money_message(debt.minor_units, debt.currency),
        )
        return Answer(True, message.SerializeToString(deterministic=True))

    def write_off_proposed(
        self, expert_id: str, debt: Money, adjustment: Adjustment | None
    ) -> Answer:
        """Encodes that nothing is written off yet; without an adjustment it is a preview."""
        message = operations_pb2.WriteOffExpertDebtResponse(
            expert_id=expert_id,
            written_off_amount=money_message(0, debt.currency),
            debt=money_message(debt.minor_units, debt.currency),
            needs_approval=True,
            adjustment_id=adjustment.adjustment_id if adjustment else "",
        )
        return Answer(True, message.SerializeToString(deterministic=True))

    def adjustment(self, rpc: str, adjustment: Adjustment, now: datetime) -> Answer:
        """Encodes an adjustment without its reasons: a stored answer could not be erased."""
        message = adjustment_message(adjustment, now)
        message.ClearField("reason")
        message.ClearField("decide_reason")
        responses: Mapping[str, Message] = {
            "ProposeAdjustment": adjustments_pb2.ProposeAdjustmentResponse(adjustment=message),
            "ApproveAdjustment": adjustments_pb2.ApproveAdjustmentResponse(adjustment=message),
            "RejectAdjustment": adjustments_pb2.RejectAdjustmentResponse(adjustment=message),
        }
        return Answer(True, responses[rpc].SerializeToString(deterministic=True))

    def client_payable_settled(self, payment: Payment, part: int) -> Answer:
        message = operations_pb2.SettleClientPayableResponse(
            payment=payment_message(payment),
            settled_amount=money_message(part, payment.currency),
            client_payable=money_message(payment.client_payable, payment.currency),
        )
        return Answer(True, message.SerializeToString(deterministic=True))

    def account_replaced(self, expert: Expert) -> Answer:
        """Encodes the answer without the onboarding link, which is created for each answer."""
        message = experts_pb2.ReplaceExpertAccountResponse(expert=expert_message(expert))
        return Answer(True, message.SerializeToString(deterministic=True))

    def response(self, rpc: str, payment: Payment) -> Answer:
        response: Message
        if rpc == "InitiatePayment":
            response = initiated_message(payment, self._publishable_key)
        else:
            response = _OF_PAYMENT[rpc](payment=payment_message(payment))
        return Answer(True, response.SerializeToString(deterministic=True))

    def dispute_response(self, rpc: str, dispute: Dispute) -> Answer:
        message = dispute_message(dispute)
        responses: Mapping[str, Message] = {
            "SubmitEvidence": disputes_pb2.SubmitEvidenceResponse(dispute=message),
            "AcceptDispute": disputes_pb2.AcceptDisputeResponse(dispute=message),
        }
        return Answer(True, responses[rpc].SerializeToString(deterministic=True))
