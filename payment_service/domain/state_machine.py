"""The state machine of a payment: its edges, and the one way along them.

Every change is a :class:`Transition`: the payment before and after, the event that records it, and
its postings. A transition is a pure function of the payment and of facts. Only
``Transaction.record`` writes it: all of it or nothing. :data:`TRANSITIONS` lists every edge that
exists. Any other edge raises :class:`IllegalTransition`, which is a bug and changes nothing.
``transitions/`` has the functions, one for each kind of event.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from payment_service.domain.ledger import Posting, imbalance
from payment_service.domain.payment import (
    Payment,
    State,
)


class EventKind(StrEnum):
    """What happened to a payment. The value is the event's name in the audit trail and the feed."""

    INITIATED = "payment.initiated"
    INTENT_CREATED = "payment.intent_created"
    CREATION_REFUSED = "payment.creation_refused"
    ATTEMPT_FAILED = "payment.attempt_failed"
    ATTEMPT_RESTARTED = "payment.attempt_restarted"
    AUTHORIZED = "payment.authorized"
    EXPIRE_TIME_KNOWN = "payment.expire_time_known"
    CAPTURE_STARTED = "payment.capture_started"
    CAPTURE_REFUSED = "payment.capture_refused"
    CAPTURED = "payment.captured"
    CAPTURED_OUT_OF_BAND = "payment.captured_out_of_band"
    CAPTURE_ABANDONED = "payment.capture_abandoned"
    CHARGED = "payment.charged"
    CHARGED_OUT_OF_BAND = "payment.charged_out_of_band"
    PROMOTE_STARTED = "payment.promote_started"
    PROMOTE_REFUSED = "payment.promote_refused"
    TRANSFERRED_OUT_OF_BAND = "payment.transferred_out_of_band"
    DEADLINE_NEAR = "payment.deadline_near"
    DEADLINE_PASSED = "payment.deadline_passed"
    CANCEL_STARTED = "payment.cancel_started"
    CANCEL_REFUSED = "payment.cancel_refused"
    CANCELED = "payment.canceled"
    EXPIRED = "payment.expired"
    REFUND_STARTED = "payment.refund_started"
    REFUND_REFUSED = "payment.refund_refused"
    REFUND_ACCEPTED = "payment.refund_accepted"
    PENDING_REFUND_FAILED = "payment.pending_refund_failed"
    CLIENT_REFUNDED = "payment.client_refunded"
    TRANSFER_REVERSED = "payment.transfer_reversed"
    EXPERT_DEBT_RECORDED = "payment.expert_debt_recorded"
    DEBT_COLLECTED = "payment.debt_collected"
    REFUNDED_OUT_OF_BAND = "payment.refunded_out_of_band"
    REVERSED_OUT_OF_BAND = "payment.reversed_out_of_band"
    FEE_REFUNDED_OUT_OF_BAND = "payment.fee_refunded_out_of_band"
    REFUND_FAILED = "payment.refund_failed"
    REFUND_FAILED_UNBOOKED = "payment.refund_failed_unbooked"
    CLIENT_REPAID = "payment.client_repaid"
    REPAYMENT_DUE = "payment.repayment_due"
    REPAYMENT_ABANDONED = "payment.repayment_abandoned"
    CLIENT_PAYABLE_SETTLED = "payment.client_payable_settled"
    PROCESSOR_FEE = "payment.processor_fee_recorded"
    DISPUTE_OPENED = "payment.dispute_opened"
    DISPUTE_ESCALATED = "payment.dispute_escalated"
    DISPUTE_UPDATED = "payment.dispute_updated"
    DISPUTE_FUNDS_WITHDRAWN = "payment.dispute_funds_withdrawn"
    DISPUTE_FUNDS_REINSTATED = "payment.dispute_funds_reinstated"
    DISPUTE_WON = "payment.dispute_won"
    DISPUTE_LOST = "payment.dispute_lost"
    DISPUTE_CLOSED = "payment.dispute_closed"
    DISPUTE_ANSWER_STARTED = "payment.dispute_answer_started"
    DISPUTE_ANSWER_REFUSED = "payment.dispute_answer_refused"
    FRAUD_WARNING = "payment.fraud_warning"
    FRAUD_WARNING_OVER = "payment.fraud_warning_over"
    FRAUD_WARNING_DISMISSED = "payment.fraud_warning_dismissed"
    REVIEW_OPENED = "payment.review_opened"
    REVIEW_CLOSED = "payment.review_closed"
    WAITING_CHANGED = "payment.waiting_changed"
    ADJUSTED = "payment.adjusted"


_S = State

_UNPAID: Final = frozenset({_S.PENDING, _S.FAILED})
_UNCAPTURED: Final = _UNPAID | {_S.IN_ESCROW, _S.CAPTURING, _S.CANCELING, _S.PROMOTING}
_ENDED_UNPAID: Final = frozenset({_S.CANCELED, _S.EXPIRED})
#: The card may have been charged already.
_CHARGED: Final = frozenset({_S.IN_ESCROW, _S.CAPTURING, _S.CAPTURED, _S.REFUNDING, _S.REFUNDED})
#: An operation is open on the payment.
BUSY: Final = frozenset({_S.CAPTURING, _S.CANCELING, _S.REFUNDING, _S.PROMOTING})
#: The card was charged and no operation is open; which one depends on what is held and paid out.
_IDLE: Final = frozenset({_S.IN_ESCROW, _S.CAPTURED, _S.REFUNDED})


def _edges(sources: frozenset[State] | set[State], *targets: State) -> dict[State, set[State]]:
    return {source: set(targets) for source in sources}


def _stay(states: frozenset[State] | set[State]) -> dict[State, set[State]]:
    return {state: {state} for state in states}


#: Kind → state before → possible states after. Any other edge is illegal.
TRANSITIONS: Final[Mapping[EventKind, Mapping[State, set[State]]]] = {
    EventKind.INTENT_CREATED: _stay({_S.PENDING}),
    EventKind.CREATION_REFUSED: _edges({_S.PENDING}, _S.CANCELED),
    EventKind.ATTEMPT_FAILED: _edges(_UNPAID, _S.FAILED),
    EventKind.ATTEMPT_RESTARTED: _edges({_S.FAILED}, _S.PENDING),
    # From CANCELING too, for the same reason as CHARGED below.
    EventKind.AUTHORIZED: _edges(_UNPAID | {_S.CANCELING}, _S.IN_ESCROW),
    EventKind.EXPIRE_TIME_KNOWN: _stay({_S.IN_ESCROW}),
    # SEPARATE: onto the platform's balance, by the client's confirmation, as the first step of a
    # capture, or by a promotion.
    EventKind.CHARGED: {
        # From CANCELING too: the client may confirm while the cancellation is in flight.
        **_edges(_UNPAID | {_S.PROMOTING, _S.CANCELING}, _S.IN_ESCROW),
        _S.CAPTURING: {_S.CAPTURING, _S.IN_ESCROW},
    },
    EventKind.CHARGED_OUT_OF_BAND: _edges(
        _UNPAID | {_S.IN_ESCROW, _S.CANCELING} | _ENDED_UNPAID, _S.IN_ESCROW
    ),
    EventKind.PROMOTE_STARTED: _edges({_S.IN_ESCROW}, _S.PROMOTING),
    EventKind.PROMOTE_REFUSED: _edges({_S.PROMOTING}, _S.IN_ESCROW),
    EventKind.CAPTURE_STARTED: _edges({_S.IN_ESCROW}, _S.CAPTURING),
    # Not IN_ESCROW if all that was held was refunded out of band meanwhile.
    EventKind.CAPTURE_REFUSED: _edges({_S.CAPTURING}, *_IDLE),
    EventKind.CAPTURE_ABANDONED: _edges({_S.CAPTURING}, *_IDLE),
    # IN_ESCROW if the platform still holds something; REFUNDING if that remainder is refunded.
    EventKind.CAPTURED: _edges({_S.CAPTURING}, _S.CAPTURED, _S.IN_ESCROW, _S.REFUNDING),
    EventKind.CAPTURED_OUT_OF_BAND: _edges(
        (_UNCAPTURED | _ENDED_UNPAID) - {_S.CAPTURING, _S.PROMOTING}, _S.CAPTURED
    ),
    EventKind.CANCEL_STARTED: _edges(_UNPAID | {_S.IN_ESCROW}, _S.CANCELING),
    EventKind.CANCEL_REFUSED: _edges({_S.CANCELING}, _S.PENDING, _S.IN_ESCROW),
    EventKind.CANCELED: _edges(_UNCAPTURED, _S.CANCELED),
    EventKind.EXPIRED: _edges(_UNCAPTURED, _S.EXPIRED),
    EventKind.REFUND_STARTED: _edges({_S.CAPTURED, _S.IN_ESCROW}, _S.REFUNDING),
    # REFUNDED if everything was refunded out of band meanwhile.
    EventKind.REFUND_REFUSED: _edges({_S.REFUNDING}, *_IDLE),
    # Stripe has the refund and pays it when the platform's balance covers it.
    EventKind.REFUND_ACCEPTED: _stay({_S.REFUNDING}),
    EventKind.PENDING_REFUND_FAILED: _edges({_S.REFUNDING}, *_IDLE),
    EventKind.CLIENT_REFUNDED: _edges({_S.REFUNDING}, _S.REFUNDING, *_IDLE),
    # One reversal for each transfer; REFUNDING while more of them remain.
    EventKind.TRANSFER_REVERSED: _edges({_S.REFUNDING}, _S.REFUNDING, *_IDLE),
    EventKind.EXPERT_DEBT_RECORDED: _edges({_S.REFUNDING}, *_IDLE),
    # Beside whatever happens to the payment: it belongs to the expert.
    EventKind.DEBT_COLLECTED: _stay(_CHARGED),
    EventKind.REFUNDED_OUT_OF_BAND: {
        _S.IN_ESCROW: set(_IDLE),
        _S.CAPTURED: {_S.CAPTURED, _S.REFUNDED},
        **_stay({_S.REFUNDING, _S.CAPTURING}),
        # All was refunded, a refund failed, and another one out of band has paid the client.
        _S.REFUNDED: {_S.REFUNDED},
    },
    EventKind.TRANSFERRED_OUT_OF_BAND: _stay(_CHARGED),
    EventKind.REVERSED_OUT_OF_BAND: _stay(_CHARGED),
    EventKind.FEE_REFUNDED_OUT_OF_BAND: _stay(_CHARGED),
    # Also while an operation is open; the repayment is planned once none is.
    EventKind.REFUND_FAILED: _stay(_CHARGED),
    EventKind.REFUND_FAILED_UNBOOKED: _stay(_CHARGED),
    EventKind.REPAYMENT_DUE: _edges(_IDLE, _S.REFUNDING),
    EventKind.REPAYMENT_ABANDONED: _edges({_S.REFUNDING}, *_IDLE),
    # Also while an operation is open, unless that is a repayment.
    EventKind.CLIENT_PAYABLE_SETTLED: _stay(_CHARGED),
    EventKind.CLIENT_REPAID: _edges({_S.REFUNDING}, *_IDLE),
    EventKind.PROCESSOR_FEE: _stay(_CHARGED),
    # A dispute is a record of its own: it freezes the payment in its present state.
    **{
        kind: _stay(_CHARGED)
        for kind in (
            EventKind.DISPUTE_OPENED,
            EventKind.DISPUTE_ESCALATED,
            EventKind.DISPUTE_UPDATED,
            EventKind.DISPUTE_FUNDS_WITHDRAWN,
            EventKind.DISPUTE_FUNDS_REINSTATED,
            EventKind.DISPUTE_WON,
            EventKind.DISPUTE_CLOSED,
            EventKind.DISPUTE_ANSWER_STARTED,
            EventKind.DISPUTE_ANSWER_REFUSED,
        )
    },
    # An issuer may warn of a card that is only authorized, and Radar puts it into review.
    **{
        kind: _stay(_CHARGED | {_S.CANCELING, _S.PROMOTING})
        for kind in (
            EventKind.FRAUD_WARNING,
            EventKind.FRAUD_WARNING_OVER,
            EventKind.FRAUD_WARNING_DISMISSED,
            EventKind.REVIEW_OPENED,
            EventKind.REVIEW_CLOSED,
        )
    },
    # A loss is booked only while no operation is open; REFUNDING while the expert's amount is taken
    # back. A dispute that ends without having moved money may end in any state.
    EventKind.DISPUTE_LOST: {
        **_stay({_S.CAPTURING, _S.REFUNDING}),
        _S.IN_ESCROW: {_S.REFUNDING, *_IDLE},
        _S.CAPTURED: {_S.REFUNDING, _S.CAPTURED, _S.REFUNDED},
        _S.REFUNDED: {_S.REFUNDED},
    },
    EventKind.WAITING_CHANGED: _stay(BUSY | {_S.PENDING}),
    # Two people correct the books, whatever happens to the payment.
    EventKind.ADJUSTED: _stay(set(_S)),
    # REFUNDING if money is held beside a parked repayment.
    EventKind.DEADLINE_NEAR: _stay({_S.IN_ESCROW, _S.CAPTURING, _S.REFUNDING}),
    EventKind.DEADLINE_PASSED: _stay({_S.IN_ESCROW, _S.REFUNDING}),
}


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of one payment. ``facts`` are the body of its event: JSON values and texts."""

    before: Payment | None
    after: Payment
    kind: EventKind
    facts: Mapping[str, object] = field(default_factory=dict)
    postings: tuple[Posting, ...] = ()


class IllegalTransition(RuntimeError):
    """An edge that :data:`TRANSITIONS` does not list: a bug in this service."""


class Unbalanced(RuntimeError):
    """Postings that do not sum to zero: a bug in this service. Nothing is written."""


def move(
    payment: Payment,
    kind: EventKind,
    state: State,
    now: datetime,
    *,
    facts: Mapping[str, object] | None = None,
    postings: list[Posting] | None = None,
    **changes: Any,
) -> Transition:
    """Returns the transition to the payment's next version, with these changed fields.

    The only way to change a payment. Raises :class:`IllegalTransition` and :class:`Unbalanced`.
    """
    if state not in TRANSITIONS[kind].get(payment.state, ()):
        raise IllegalTransition(f"{payment.payment_id}: {kind} from {payment.state} to {state}")
    if imbalance(postings or ()):
        raise Unbalanced(f"{payment.payment_id}: {kind} is off by {imbalance(postings or ())}")
    after = replace(payment, state=state, version=payment.version + 1, update_time=now, **changes)
    return Transition(payment, after, kind, facts or {}, tuple(postings or ()))
