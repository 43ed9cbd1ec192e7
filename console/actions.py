"""What an operator can do from the console: each action with its form, its words and its request.

An action calls exactly one RPC. What may be done, and to what, is decided by the service.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from grpc import aio

from console.core import Core
from console.shown import money
from marketplace.payments.v1 import (
    adjustments_pb2,
    disputes_pb2,
    operations_pb2,
    payments_pb2,
)
from marketplace.payments.v1.money_pb2 import Money

REASON_MAX: Final = 500


@dataclass(frozen=True)
class Draft:
    """What an operator has entered, checked for its form."""

    target: str
    #: Made when the form was shown, so that a double click acts once.
    key: str
    reason: str = ""
    amount: Money | None = None
    flag: bool = False
    currency: str = ""
    #: The version on which the operator decided; 0 if the RPC takes none.
    version: int = 0
    #: The fraud warning on which the operator decided.
    warning: str = ""


@dataclass(frozen=True)
class Action:
    """One thing that an operator can do."""

    name: str
    title: str
    #: `Service/Method`, whose roles decide whether the button is usable.
    rpc: str
    #: What kind of thing it is done to: see `console.subjects`.
    subject: str
    #: What will happen, in sentences.
    effect: str
    build: Callable[[Draft], Any]
    call: Callable[[Core], aio.UnaryUnaryMultiCallable[Any, Any]]
    tell: Callable[[Any], str]
    takes_amount: bool = False
    amount_help: str = ""
    #: The sentence of a box to tick; empty if there is none.
    flag: str = ""
    #: What the reason is asked as; empty if none is asked.
    reason: str = ""
    #: Whether the RPC has `validate_only`.
    has_preview: bool = False
    #: Whether it moves money or cannot be undone.
    is_final: bool = False


def _capture(draft: Draft) -> payments_pb2.CapturePaymentRequest:
    return payments_pb2.CapturePaymentRequest(
        payment_id=draft.target,
        final=draft.flag,
        notes=draft.reason,
        idempotency_key=draft.key,
        expected_version=draft.version,
        amount=draft.amount,
    )


def _refund(draft: Draft) -> payments_pb2.RefundPaymentRequest:
    return payments_pb2.RefundPaymentRequest(
        payment_id=draft.target,
        reason=draft.reason,
        idempotency_key=draft.key,
        expected_version=draft.version,
        amount=draft.amount,
    )


def _settle(draft: Draft) -> operations_pb2.SettleClientPayableRequest:
    return operations_pb2.SettleClientPayableRequest(
        payment_id=draft.target,
        reason=draft.reason,
        idempotency_key=draft.key,
        amount=draft.amount,
    )


def _write_off(draft: Draft) -> operations_pb2.WriteOffExpertDebtRequest:
    return operations_pb2.WriteOffExpertDebtRequest(
        expert_id=draft.target,
        currency_code=draft.currency,
        reason=draft.reason,
        idempotency_key=draft.key,
        amount=draft.amount,
    )


def _say_state(answer: Any) -> str:
    state = payments_pb2.PaymentState.Name(answer.payment.state).removeprefix("PAYMENT_STATE_")
    return f"Done. The payment is {state.replace('_', ' ').lower()} now."


def _say_write_off(answer: operations_pb2.WriteOffExpertDebtResponse) -> str:
    if answer.needs_approval:
        return (
            f"Nothing is written off yet: the proposal {answer.adjustment_id} waits for another "
            "person's approval."
        )
    return (
        f"{money(answer.written_off_amount)} is written off; the expert still owes "
        f"{money(answer.debt)}."
    )


def _say_run(answer: operations_pb2.RunReconciliationResponse) -> str:
    return (
        f"Compared {answer.checked_payments} payments and {answer.checked_lines} lines of Stripe's "
        f"balance; corrected {answer.corrected_payments}; found {len(answer.discrepancies)} "
        "discrepancies."
    )


def _say_settled(answer: operations_pb2.SettleClientPayableResponse) -> str:
    return (
        f"{money(answer.settled_amount)} is settled; {money(answer.client_payable)} is still "
        "payable."
    )


_PAYMENT_ACTIONS: Final = (
    Action(
        name="capture",
        title="Capture the payment",
        rpc="PaymentService/CapturePayment",
        subject="payment",
        effect="The escrow ends in the expert's favour: the expert is paid, less the commission.",
        build=_capture,
        call=lambda core: core.stubs.payments.CapturePayment,
        tell=_say_state,
        takes_amount=True,
        amount_help="Empty: all that is held.",
        flag="Return what is held beyond the amount to the client",
        reason="Why",
        has_preview=True,
        is_final=True,
    ),
    Action(
        name="refund",
        title="Refund the payment",
        rpc="PaymentService/RefundPayment",
        subject="payment",
        effect="Money returns to the client. What was paid to the expert is taken back, and what "
        "cannot be taken back becomes the expert's debt.",
        build=_refund,
        call=lambda core: core.stubs.payments.RefundPayment,
        tell=_say_state,
        takes_amount=True,
        amount_help="Empty: all that is held or, if nothing is held, all that was paid out.",
        reason="Why",
        has_preview=True,
        is_final=True,
    ),
    Action(
        name="settle",
        title="Settle what is payable to the client",
        rpc="OperationsService/SettleClientPayable",
        subject="payment",
        effect="The books say that the client was paid in another way. Nothing is sent to Stripe, "
        "and the parked repayment ends.",
        build=_settle,
        call=lambda core: core.stubs.operations.SettleClientPayable,
        tell=_say_settled,
        takes_amount=True,
        amount_help="Empty: all that is payable.",
        reason="How it was settled",
        is_final=True,
    ),
    Action(
        name="dismiss",
        title="Dismiss the fraud warning",
        rpc="OperationsService/DismissFraudWarning",
        subject="payment",
        effect="The payment can be captured again. This warning does not come back; a new one or "
        "a dispute freezes the payment again.",
        build=lambda draft: operations_pb2.DismissFraudWarningRequest(
            payment_id=draft.target,
            warning_id=draft.warning,
            reason=draft.reason,
            idempotency_key=draft.key,
        ),
        call=lambda core: core.stubs.operations.DismissFraudWarning,
        tell=lambda answer: "The warning is dismissed.",
        reason="What was found",
        is_final=True,
    ),
    Action(
        name="reconcile",
        title="Compare the payment with Stripe",
        rpc="OperationsService/RunReconciliation",
        subject="payment",
        effect="The payment, its ledger and Stripe's own objects are compared now. No money "
        "moves. Differences become discrepancies.",
        build=lambda draft: operations_pb2.RunReconciliationRequest(payment_id=draft.target),
        call=lambda core: core.stubs.operations.RunReconciliation,
        tell=_say_run,
    ),
)

_OTHER_ACTIONS: Final = (
    Action(
        name="resume",
        title="Resume the operation",
        rpc="OperationsService/ResumeOperation",
        subject="operation",
        effect="Stripe is read first. Then only what Stripe does not have is sent: money can move "
        "that this operation was to move, once.",
        build=lambda draft: operations_pb2.ResumeOperationRequest(operation_id=draft.target),
        call=lambda core: core.stubs.operations.ResumeOperation,
        tell=lambda answer: "The operation is resumed.",
        is_final=True,
    ),
    Action(
        name="abandon",
        title="Abandon the operation",
        rpc="OperationsService/AbandonOperation",
        subject="operation",
        effect="Nothing is sent, now or later. The payment is as before the operation, and its "
        "caller is refused for good.",
        build=lambda draft: operations_pb2.AbandonOperationRequest(
            operation_id=draft.target, reason=draft.reason
        ),
        call=lambda core: core.stubs.operations.AbandonOperation,
        tell=lambda answer: "The operation is abandoned.",
        reason="Why, and what was done instead",
        is_final=True,
    ),
    Action(
        name="resolve",
        title="Resolve the discrepancy",
        rpc="OperationsService/ResolveDiscrepancy",
        subject="discrepancy",
        effect="It is closed with your reason. No money moves. It opens again if it is found with "
        "another amount, or describes a state that still holds.",
        build=lambda draft: operations_pb2.ResolveDiscrepancyRequest(
            discrepancy_id=draft.target, reason=draft.reason
        ),
        call=lambda core: core.stubs.operations.ResolveDiscrepancy,
        tell=lambda answer: "The discrepancy is resolved.",
        reason="What was found and decided",
    ),
    Action(
        name="retry",
        title="Retry the webhook event",
        rpc="OperationsService/RetryWebhookEvent",
        subject="webhook",
        effect="The event is applied at once. What Stripe shows is booked; nothing is sent.",
        build=lambda draft: operations_pb2.RetryWebhookEventRequest(event_id=draft.target),
        call=lambda core: core.stubs.operations.RetryWebhookEvent,
        tell=lambda answer: "The event is due now.",
    ),
    Action(
        name="approve",
        title="Approve the adjustment",
        rpc="OperationsService/ApproveAdjustment",
        subject="adjustment",
        effect="Its lines are posted to the books at once. Nothing moves at Stripe.",
        build=lambda draft: adjustments_pb2.ApproveAdjustmentRequest(
            adjustment_id=draft.target, idempotency_key=draft.key
        ),
        call=lambda core: core.stubs.operations.ApproveAdjustment,
        tell=lambda answer: "The adjustment is posted.",
        is_final=True,
    ),
    Action(
        name="reject",
        title="Reject the adjustment",
        rpc="OperationsService/RejectAdjustment",
        subject="adjustment",
        effect="It can never be approved. Nothing is posted.",
        build=lambda draft: adjustments_pb2.RejectAdjustmentRequest(
            adjustment_id=draft.target, reason=draft.reason, idempotency_key=draft.key
        ),
        call=lambda core: core.stubs.operations.RejectAdjustment,
        tell=lambda answer: "The adjustment is rejected.",
        reason="Why",
        is_final=True,
    ),
    Action(
        name="accept",
        title="Accept the dispute as lost",
        rpc="DisputeService/AcceptDispute",
        subject="dispute",
        effect="The bank keeps the money, and what the expert has of it is taken back. It cannot "
        "be undone.",
        build=lambda draft: disputes_pb2.AcceptDisputeRequest(
            dispute_id=draft.target, idempotency_key=draft.key
        ),
        call=lambda core: core.stubs.disputes.AcceptDispute,
        tell=lambda answer: "The dispute is accepted as lost.",
        has_preview=True,
        is_final=True,
    ),
    Action(
        name="write_off",
        title="Write off the expert's debt",
        rpc="OperationsService/WriteOffExpertDebt",
        subject="debt",
        effect="The debt becomes the platform's loss, and later captures do not keep it back.",
        build=_write_off,
        call=lambda core: core.stubs.operations.WriteOffExpertDebt,
        tell=_say_write_off,
        takes_amount=True,
        amount_help="Empty: all of the debt.",
        reason="Why",
        has_preview=True,
        is_final=True,
    ),
)

ACTIONS: Final[Mapping[str, Action]] = {
    action.name: action for action in (*_PAYMENT_ACTIONS, *_OTHER_ACTIONS)
}


@dataclass(frozen=True)
class Subject:
    """What an action is done to, as the operator sees it above the form."""

    title: str
    #: The page to which the operator returns.
    back: str
    facts: tuple[tuple[str, str], ...] = ()
    currency: str = ""
    version: int = 0
    #: What an empty amount of a settlement means, as the operator saw it.
    payable: Money | None = None
    warning: str = ""


def offered(payment: payments_pb2.Payment) -> list[Action]:
    """Returns the actions that make sense for a payment as it is now."""
    names = []
    if payment.held_amount.minor_units:
        names.append("capture")
    if payment.held_amount.minor_units or payment.net_amount.minor_units:
        names.append("refund")
    if payment.client_payable.minor_units:
        names.append("settle")
    if payment.freeze == payments_pb2.PAYMENT_FREEZE_FRAUD_WARNING:
        names.append("dismiss")
    return [ACTIONS[name] for name in (*names, "reconcile")]
