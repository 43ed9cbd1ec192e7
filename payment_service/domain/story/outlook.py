"""What comes next for a payment: what it waits for, whose move, timers, operators' options."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from payment_service.domain.deadlines import deadlines_of
from payment_service.domain.money import Money
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payment import (
    Freeze,
    OnDeadline,
    Payment,
    State,
    WaitingFor,
    WaitingReason,
)
from payment_service.domain.ports.records import WebhookEvent
from payment_service.domain.story.entries import Records, request_of
from payment_service.domain.sync.superseded import CATCHES_UP


class Mover(StrEnum):
    """Who must act for the payment to move."""

    NOBODY = "UNSPECIFIED"
    CLIENT = "CLIENT"
    EXPERT = "EXPERT"
    CALLER = "CALLER"
    SERVICE = "SERVICE"
    STRIPE = "STRIPE"
    OPERATOR = "OPERATOR"


@dataclass(frozen=True, slots=True)
class Timer:
    """A time at which something happens by itself."""

    time: datetime
    sentence: str


@dataclass(frozen=True, slots=True)
class Option:
    """Something that an operator may do now."""

    rpc: str
    sentence: str
    page: str
    id: str


@dataclass(frozen=True, slots=True)
class Outlook:
    """What comes next, as of one moment."""

    waits_for: str
    mover: Mover
    timers: Sequence[Timer]
    options: Sequence[Option]


_REASONS: Final[Mapping[WaitingReason, tuple[Mover, str]]] = {
    WaitingReason.EXPERT_ONBOARDING: (
        Mover.EXPERT,
        "The expert has not completed Stripe's form. The capture continues when that is done.",
    ),
    WaitingReason.EXPERT_PENDING_VERIFICATION: (
        Mover.STRIPE,
        "Stripe verifies the expert's account. The capture continues when that is done.",
    ),
    WaitingReason.EXPERT_RESTRICTED: (
        Mover.EXPERT,
        (
            "Stripe has restricted the expert's account and asks the expert for something. The "
            "capture continues when Stripe has it."
        ),
    ),
    WaitingReason.EXPERT_REJECTED: (
        Mover.OPERATOR,
        (
            "Stripe has rejected the expert's account. The expert needs another account, or the "
            "client a refund."
        ),
    ),
    WaitingReason.EXPERT_DEAUTHORIZED: (
        Mover.OPERATOR,
        (
            "The expert's account has revoked our access. The expert needs another account, or the "
            "client a refund."
        ),
    ),
    WaitingReason.EXPERT_REFUSED: (
        Mover.SERVICE,
        "Stripe refused to pay the expert although the account looks well. It is tried again.",
    ),
    WaitingReason.DESTINATION_ACCOUNT_REPLACED: (
        Mover.CALLER,
        "The charge can pay only an account that the expert has no more. Only a refund ends this.",
    ),
    WaitingReason.REFUND_PENDING_FUNDS: (
        Mover.STRIPE,
        "The refund waits until the platform's balance at Stripe covers it.",
    ),
    WaitingReason.TRANSFER_PENDING_FUNDS: (
        Mover.STRIPE,
        "The transfer waits until the platform's balance at Stripe covers it.",
    ),
}
_FREEZES: Final[Mapping[Freeze, tuple[Mover, str]]] = {
    Freeze.FRAUD_WARNING: (
        Mover.OPERATOR,
        (
            "The card's issuer warns of fraud, so the payment cannot be captured. Somebody must "
            "check it, and then dismiss the warning or refund the client."
        ),
    ),
    Freeze.REVIEW: (Mover.OPERATOR, "Stripe reviews the charge. Somebody decides at Stripe's."),
    Freeze.INQUIRY: (
        Mover.STRIPE,
        (
            "The client's bank inquires about the payment, so it cannot be captured. A refund is "
            "possible."
        ),
    ),
    Freeze.CHARGEBACK: (
        Mover.STRIPE,
        (
            "The client's bank decides about a chargeback. Until then nothing can be captured or "
            "refunded."
        ),
    ),
}
_STATES: Final[Mapping[State, tuple[Mover, str]]] = {
    State.PENDING: (Mover.CLIENT, "The client has not paid yet."),
    State.FAILED: (Mover.CLIENT, "The client's last try to pay failed. The client may try again."),
    State.IN_ESCROW: (
        Mover.CALLER,
        "The money is in escrow. The gig service captures it when the gig is done, or refunds it.",
    ),
    State.CAPTURED: (Mover.NOBODY, "Nothing more happens: the expert's part was paid."),
    State.CANCELED: (Mover.NOBODY, "Nothing more happens: the payment was canceled."),
    State.EXPIRED: (Mover.NOBODY, "Nothing more happens: the payment expired."),
    State.REFUNDED: (Mover.NOBODY, "Nothing more happens: the client has the money back."),
}
_ACTIONS: Final[Mapping[OnDeadline, str]] = {
    OnDeadline.ALERT: "an alarm is raised, and nothing else",
    OnDeadline.CAPTURE: "the payment is captured for the expert",
    OnDeadline.REFUND: "the client gets the money back",
    OnDeadline.PROMOTE: "the card is charged, and the money stays in escrow",
}
_PARKED: Final = "docs/runbook/parked-operations.md"
_DISPUTES: Final = "docs/runbook/disputes.md"


def outlook_of(records: Records) -> Outlook:
    """Returns what comes next for a payment as it stands."""
    mover, waits_for = _waits_for(records)
    timers = sorted(_timers(records), key=lambda timer: timer.time)
    return Outlook(waits_for, mover, timers, list(_options(records)))


def _waits_for(records: Records) -> tuple[Mover, str]:
    payment = records.payment
    if payment.waiting_reason in _REASONS:
        return _REASONS[payment.waiting_reason]
    operation = _open_operation(records)
    if operation is not None:
        what = request_of(operation, payment.currency)
        if operation.state is OperationState.PARKED:
            return Mover.OPERATOR, f"An operator must decide about the request to {what}."
        if operation.last_error == CATCHES_UP:
            return Mover.SERVICE, (
                f"The request to {what} waits until Stripe's events are read and applied."
            )
        if operation.state is OperationState.UNKNOWN:
            return Mover.SERVICE, (
                f"Stripe's answer to the request to {what} is not known. Recovery asks Stripe."
            )
        return Mover.STRIPE, f"Stripe's answer to the request to {what}."
    unanswered = next((one for one in records.disputes if one.needs_response), None)
    if unanswered is not None:
        amount = Money(unanswered.amount, unanswered.currency)
        return Mover.OPERATOR, (
            f"The dispute {unanswered.dispute_id} about {amount} needs an answer, or it is lost."
        )
    if payment.frozen is not Freeze.NONE:
        return _FREEZES[payment.frozen]
    if payment.client_payable:
        owed = payment.money(payment.client_payable)
        return Mover.OPERATOR, f"The client is owed {owed} after a failed refund."
    return _STATES.get(payment.state, (Mover.SERVICE, "A job of this service continues it."))


def _open_operation(records: Records) -> Operation | None:
    """Returns the payment's own open operation; else that of a dispute."""
    own = records.payment.operation_id
    ordered = sorted(records.open_operations, key=lambda one: one.operation_id != own)
    return ordered[0] if ordered else None


def _timers(records: Records) -> Iterable[Timer]:
    payment, schedule = records.payment, records.schedule
    if schedule.expire_due_time is not None:
        yield Timer(schedule.expire_due_time, "If the client has not paid, it is canceled.")
    for deadline in deadlines_of(payment):
        yield Timer(deadline.time, f"{deadline.kind.value}: {_ACTIONS[deadline.action]}.")
    if schedule.deadline_due_time is not None:
        yield Timer(schedule.deadline_due_time, "The job that acts on deadlines examines it.")
    if schedule.warn_due_time is not None:
        yield Timer(schedule.warn_due_time, "A warning that a deadline is near.")
    if schedule.capture_retry_due_time is not None:
        yield Timer(schedule.capture_retry_due_time, "The capture is tried again if it can be.")
    yield from _timers_beside(records)


def _timers_beside(records: Records) -> Iterable[Timer]:
    """Yields the times of the payment's operations, disputes and webhooks."""
    for operation in records.open_operations:
        if operation.next_try_time is not None:
            yield Timer(operation.next_try_time, f"{operation.operation_id} is tried again.")
        if operation.unsure_until is not None and operation.state is OperationState.PARKED:
            yield Timer(
                operation.unsure_until, f"From then on {operation.operation_id} can be abandoned."
            )
    for dispute in records.disputes:
        if dispute.needs_response and dispute.evidence_due_time is not None:
            yield Timer(
                dispute.evidence_due_time,
                f"Until then the bank takes an answer to {dispute.dispute_id}.",
            )
    for event in records.waiting_webhooks:
        if event.next_try_time is not None:
            yield Timer(event.next_try_time, f"Stripe's event {event.event_id} is tried again.")


def _options(records: Records) -> Iterable[Option]:
    payment = records.payment
    yield from _about_operations(records)
    for dispute in records.disputes:
        if dispute.needs_response:
            yield Option(
                "DisputeService/SubmitEvidence",
                "Answer the bank: the work was done, or the client agreed.",
                _DISPUTES,
                dispute.dispute_id,
            )
            yield Option(
                "DisputeService/AcceptDispute",
                "The client is right: the money stays with the client.",
                _DISPUTES,
                dispute.dispute_id,
            )
    if payment.frozen is Freeze.FRAUD_WARNING:
        yield Option(
            "OperationsService/DismissFraudWarning",
            "Somebody has checked the payment, and the client did pay it.",
            _DISPUTES,
            payment.fraud_warning_id,
        )
    if payment.client_payable:
        yield Option(
            "OperationsService/SettleClientPayable",
            f"The client got {payment.money(payment.client_payable)} in another way.",
            "docs/runbook/discrepancies/refund_failed.md",
            payment.payment_id,
        )
    if records.expert_debt > 0:
        owed = payment.money(records.expert_debt)
        yield Option(
            "OperationsService/WriteOffExpertDebt",
            f"The expert owes {owed} and will not pay it.",
            "docs/runbook/adjustments.md",
            payment.expert_id,
        )
    yield from (_about_webhook(event) for event in records.waiting_webhooks if _is_parked(event))
    for stored in records.open_discrepancies:
        kind = stored.discrepancy.kind.value
        name = "invariant" if kind.startswith("invariant_") else kind
        yield Option(
            "OperationsService/ResolveDiscrepancy",
            f"Somebody has decided about {kind}: {stored.discrepancy.detail}.",
            f"docs/runbook/discrepancies/{name}.md",
            stored.discrepancy_id,
        )


def _about_operations(records: Records) -> Iterable[Option]:
    for operation in records.open_operations:
        waits_for_expert = records.payment.waiting_for is WaitingFor.EXPERT
        if operation.state is not OperationState.PARKED or waits_for_expert:
            continue
        what = request_of(operation, records.payment.currency)
        yield Option(
            "OperationsService/ResumeOperation",
            f"The cause is gone: {what} after all. Stripe is read first, so nothing moves twice.",
            _PARKED,
            operation.operation_id,
        )
        unsure = operation.unsure_until
        if not operation.is_repayment and (unsure is None or unsure <= records.now):
            yield Option(
                "OperationsService/AbandonOperation",
                f"It was done otherwise or is not wanted any more: do not {what}.",
                _PARKED,
                operation.operation_id,
            )


def _is_parked(event: WebhookEvent) -> bool:
    return event.state == "PARKED"


def _about_webhook(event: WebhookEvent) -> Option:
    return Option(
        "OperationsService/RetryWebhookEvent",
        f"The cause is gone ({event.last_error}): apply it again.",
        "docs/runbook/alarms/webhook_event_parked.md",
        event.event_id,
    )


def summary_of(payment: Payment) -> str:
    """Returns what a payment is and where its money is, in two sentences."""
    parts = [
        f"{payment.money(amount)} {where}"
        for amount, where in (
            (payment.held, "held in escrow" if payment.charged else "reserved on the card"),
            (payment.net_expert, "the expert's"),
            (payment.net_commission, "the platform's commission"),
            (payment.refunded_from_escrow + payment.refunded_after_capture, "refunded"),
            (payment.lost + payment.lost_held, "lost in disputes"),
            (payment.client_payable, "of the refunded still owed to the client"),
        )
        if amount
    ]
    money = ", ".join(parts) if parts else "no money was taken, or none is left"
    return f"{match_sentence(payment)}. The money: {money}."


def match_sentence(payment: Payment) -> str:
    """Returns what tells a payment from others."""
    return (
        f"{payment.money(payment.amount)} for {payment.gig_id}, from {payment.client_id} to "
        f"{payment.expert_id}: {payment.state.value}"
    )
