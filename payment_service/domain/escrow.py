"""The whole state machine of a payment: its states, its edges, and what each edge does.

Every change is a :class:`Transition`: the payment before and after, the event that records it, and
the postings that go with it. A transition is a pure function of the payment and of facts; the one
door (``Transaction.record``) writes all of it or nothing. :data:`TRANSITIONS` lists every edge that
exists; any other raises :class:`IllegalTransition`, which is a bug and changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from payment_service.domain import money
from payment_service.domain.errors import Precondition, invalid_field, operation_in_progress
from payment_service.domain.ledger import (
    Book,
    CaptureLines,
    Posting,
    Settled,
    expert_debt,
    imbalance,
)
from payment_service.domain.money import Money


class State(StrEnum):
    """Where a payment stands, and who moves it on."""

    PENDING = "PENDING"  # Left by the client's confirmation, or by the payment window.
    FAILED = "FAILED"  # Left by the client's next attempt, or by the payment window.
    IN_ESCROW = "IN_ESCROW"  # Left by CapturePayment, RefundPayment, or the card's expiry.
    CAPTURING = "CAPTURING"  # Left by Stripe's answer, a webhook, or the sweep.
    CANCELING = "CANCELING"  # Left by Stripe's answer, a webhook, or the sweep.
    REFUNDING = "REFUNDING"  # Left by Stripe's answer, a webhook, the sweep, or an operator.
    CAPTURED = "CAPTURED"  # Left by RefundPayment alone.
    CANCELED = "CANCELED"  # Left by a correction only, if Stripe shows a capture after all.
    EXPIRED = "EXPIRED"  # Left by a correction only, if Stripe shows a capture after all.
    REFUNDED = "REFUNDED"  # Left only when a refund bounces later.


class Kind(StrEnum):
    """What happened; the event's name."""

    INITIATED = "payment.initiated"
    INTENT_CREATED = "payment.intent_created"
    CREATION_REFUSED = "payment.creation_refused"
    ATTEMPT_FAILED = "payment.attempt_failed"
    ATTEMPT_RESTARTED = "payment.attempt_restarted"
    AUTHORIZED = "payment.authorized"
    CAPTURE_STARTED = "payment.capture_started"
    CAPTURE_REFUSED = "payment.capture_refused"
    CAPTURED = "payment.captured"
    CAPTURED_ELSEWHERE = "payment.captured_elsewhere"
    CANCEL_STARTED = "payment.cancel_started"
    CANCEL_REFUSED = "payment.cancel_refused"
    CANCELED = "payment.canceled"
    EXPIRED = "payment.expired"
    REFUND_STARTED = "payment.refund_started"
    REFUND_REFUSED = "payment.refund_refused"
    CLIENT_REFUNDED = "payment.client_refunded"
    EXPERT_REVERSED = "payment.expert_reversed"
    EXPERT_OWES = "payment.expert_owes"
    REFUNDED_ELSEWHERE = "payment.refunded_elsewhere"
    REVERSED_ELSEWHERE = "payment.reversed_elsewhere"
    FEE_REFUNDED_ELSEWHERE = "payment.fee_refunded_elsewhere"
    REFUND_FAILED = "payment.refund_failed"
    REFUND_RESENT = "payment.refund_resent"
    PROCESSOR_FEE = "payment.processor_fee_recorded"
    WAITING = "payment.waiting"


_S = State
_UNPAID: Final = frozenset({_S.PENDING, _S.FAILED})
_UNCAPTURED: Final = _UNPAID | {_S.IN_ESCROW, _S.CAPTURING, _S.CANCELING}
_PAID_OUT: Final = frozenset({_S.CAPTURED, _S.REFUNDING, _S.REFUNDED})
_BUSY: Final = frozenset({_S.CAPTURING, _S.CANCELING, _S.REFUNDING})


def _edges(sources: frozenset[State] | set[State], *targets: State) -> dict[State, set[State]]:
    return {source: set(targets) for source in sources}


#: kind → state before → states after. What is not here does not happen.
TRANSITIONS: Final[Mapping[Kind, Mapping[State, set[State]]]] = {
    Kind.INTENT_CREATED: _edges({_S.PENDING}, _S.PENDING),
    Kind.CREATION_REFUSED: _edges({_S.PENDING}, _S.CANCELED),
    Kind.ATTEMPT_FAILED: _edges(_UNPAID, _S.FAILED),
    Kind.ATTEMPT_RESTARTED: _edges({_S.FAILED}, _S.PENDING),
    # From CANCELING too: the client may confirm in the moment in which we cancel.
    Kind.AUTHORIZED: _edges(_UNPAID | {_S.CANCELING}, _S.IN_ESCROW),
    Kind.CAPTURE_STARTED: _edges({_S.IN_ESCROW}, _S.CAPTURING),
    Kind.CAPTURE_REFUSED: _edges({_S.CAPTURING}, _S.IN_ESCROW),
    Kind.CAPTURED: _edges({_S.CAPTURING}, _S.CAPTURED),
    Kind.CAPTURED_ELSEWHERE: _edges(
        (_UNCAPTURED | {_S.CANCELED, _S.EXPIRED}) - {_S.CAPTURING}, _S.CAPTURED
    ),
    Kind.CANCEL_STARTED: _edges(_UNPAID | {_S.IN_ESCROW}, _S.CANCELING),
    Kind.CANCEL_REFUSED: _edges({_S.CANCELING}, _S.PENDING, _S.IN_ESCROW),
    Kind.CANCELED: _edges(_UNCAPTURED, _S.CANCELED),
    Kind.EXPIRED: _edges(_UNCAPTURED, _S.EXPIRED),
    Kind.REFUND_STARTED: _edges({_S.CAPTURED}, _S.REFUNDING),
    # REFUNDED if meanwhile everything was given back at Stripe's dashboard.
    Kind.REFUND_REFUSED: _edges({_S.REFUNDING}, _S.CAPTURED, _S.REFUNDED),
    Kind.CLIENT_REFUNDED: _edges({_S.REFUNDING}, _S.REFUNDING, _S.CAPTURED, _S.REFUNDED),
    Kind.EXPERT_REVERSED: _edges({_S.REFUNDING}, _S.CAPTURED, _S.REFUNDED),
    Kind.EXPERT_OWES: _edges({_S.REFUNDING}, _S.CAPTURED, _S.REFUNDED),
    Kind.REFUNDED_ELSEWHERE: {
        _S.CAPTURED: {_S.CAPTURED, _S.REFUNDED},
        _S.REFUNDING: {_S.REFUNDING},
    },
    Kind.REVERSED_ELSEWHERE: {state: {state} for state in _PAID_OUT},
    Kind.FEE_REFUNDED_ELSEWHERE: {state: {state} for state in _PAID_OUT},
    Kind.REFUND_FAILED: _edges(_PAID_OUT, _S.REFUNDING),
    Kind.REFUND_RESENT: _edges({_S.REFUNDING}, _S.CAPTURED, _S.REFUNDED),
    Kind.PROCESSOR_FEE: {state: {state} for state in _PAID_OUT},
    Kind.WAITING: {state: {state} for state in _BUSY | {_S.PENDING}},
}


class EscrowMode(StrEnum):
    CARD_HOLD = "CARD_HOLD"  # The card is authorized, and charged on capture.


class ChargeModel(StrEnum):
    DESTINATION = "DESTINATION"  # Stripe splits the charge when it is captured.


class WaitingFor(StrEnum):
    NOTHING = ""
    PROCESSOR = "processor"  # Stripe's answer is not known yet; the sweep asks.
    OPERATOR = "operator"  # The operation is parked.


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the last attempt failed: Stripe's codes and a sentence of ours."""

    code: str
    decline_code: str
    message: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payment as it stands. Amounts are minor units of ``currency``, times UTC."""

    payment_id: str
    client_id: str
    expert_id: str
    gig_id: str
    description: str
    state: State = State.PENDING
    escrow_mode: EscrowMode = EscrowMode.CARD_HOLD
    charge_model: ChargeModel = ChargeModel.DESTINATION
    #: The expert's connected account, fixed at initiation.
    destination_account_id: str
    currency: str
    amount: int
    commission_basis_points: int
    #: The quote, frozen: ``commission + expert_amount == amount``.
    commission: int
    expert_amount: int
    held: int = 0
    captured: int = 0
    refunded: int = 0
    #: The platform's part of ``captured - refunded``.
    net_commission: int = 0
    #: A refund bounced: Stripe gave this back to us, and we owe it to the client.
    client_owed: int = 0
    #: Stripe's own fee; None until its balance transaction was seen.
    processor_fee: int | None = None
    payment_intent_id: str = ""
    charge_id: str = ""
    transfer_id: str = ""
    #: The open operation at Stripe; at most one.
    operation_id: str = ""
    waiting_for: WaitingFor = WaitingFor.NOTHING
    failure: Failure | None = None
    version: int = 0
    create_time: datetime
    update_time: datetime
    escrow_time: datetime | None = None
    capture_time: datetime | None = None
    escrow_expire_time: datetime | None = None
    payment_expire_time: datetime

    @property
    def net(self) -> int:
        return self.captured - self.refunded

    @property
    def net_expert(self) -> int:
        return self.net - self.net_commission

    @property
    def book(self) -> Book:
        return Book(self.payment_id, self.expert_id, self.currency)

    def money(self, minor_units: int) -> Money:
        return Money(minor_units, self.currency)


@dataclass(frozen=True, slots=True)
class Transition:
    """One change of one payment, to be written whole or not at all."""

    before: Payment | None
    after: Payment
    kind: Kind
    facts: Mapping[str, object] = field(default_factory=dict)
    postings: tuple[Posting, ...] = ()


class IllegalTransition(RuntimeError):
    """An edge that :data:`TRANSITIONS` does not list: a bug of ours, never the caller's fault."""


class Unbalanced(RuntimeError):
    """Postings that do not sum to zero: a bug of ours; nothing is written."""


def _move(
    payment: Payment,
    kind: Kind,
    state: State,
    now: datetime,
    *,
    facts: Mapping[str, object] | None = None,
    postings: list[Posting] | None = None,
    **changes: Any,
) -> Transition:
    """The only way to another version of a payment."""
    if state not in TRANSITIONS[kind].get(payment.state, ()):
        raise IllegalTransition(f"{payment.payment_id}: {kind} from {payment.state} to {state}")
    if imbalance(postings or ()):
        raise Unbalanced(f"{payment.payment_id}: {kind} is off by {imbalance(postings or ())}")
    after = replace(payment, state=state, version=payment.version + 1, update_time=now, **changes)
    return Transition(payment, after, kind, facts or {}, tuple(postings or ()))


#: What every transition says that ends the operation at Stripe.
_NOTHING_UNDER_WAY: Final[Mapping[str, Any]] = {
    "operation_id": "",
    "waiting_for": WaitingFor.NOTHING,
}


# ---- initiation ----


def initiate(payment: Payment) -> Transition:
    """The payment exists; its intent at Stripe does not yet."""
    if payment.commission >= payment.amount:
        raise Precondition(
            "COMMISSION_TOO_LARGE",
            "the commission would be the whole amount; the expert must be left something",
            {"amount": payment.amount, "commission": payment.commission},
        )
    return Transition(None, replace(payment, version=1), Kind.INITIATED)


def intent_created(payment: Payment, payment_intent_id: str, now: datetime) -> Transition:
    return _move(
        payment,
        Kind.INTENT_CREATED,
        State.PENDING,
        now,
        facts={"payment_intent_id": payment_intent_id},
        payment_intent_id=payment_intent_id,
        **_NOTHING_UNDER_WAY,
    )


def creation_refused(payment: Payment, failure: Failure) -> Transition:
    """Stripe will not have this payment; nobody was or can be charged."""
    return _move(
        payment,
        Kind.CREATION_REFUSED,
        State.CANCELED,
        failure.time,
        facts={"code": failure.code},
        failure=failure,
        **_NOTHING_UNDER_WAY,
    )


def attempt_failed(payment: Payment, failure: Failure) -> Transition:
    return _move(
        payment,
        Kind.ATTEMPT_FAILED,
        State.FAILED,
        failure.time,
        facts={"code": failure.code, "decline_code": failure.decline_code},
        failure=failure,
    )


def attempt_restarted(payment: Payment, now: datetime) -> Transition:
    return _move(payment, Kind.ATTEMPT_RESTARTED, State.PENDING, now)


def authorized(
    payment: Payment, charge_id: str, expire_time: datetime | None, now: datetime
) -> Transition:
    """The card's authorization stands: the money is secured and belongs to nobody yet."""
    return _move(
        payment,
        Kind.AUTHORIZED,
        State.IN_ESCROW,
        now,
        facts={"charge_id": charge_id},
        postings=payment.book.authorized(payment.amount),
        held=payment.amount,
        charge_id=charge_id,
        escrow_time=now,
        escrow_expire_time=expire_time,
        failure=None,
        **_NOTHING_UNDER_WAY,
    )


# ---- capture ----


def check_capture(payment: Payment, part: int | None, final: bool) -> int:
    """How much a capture takes. Raises :class:`Refusal` if it may not."""
    _refuse_unless(payment, State.IN_ESCROW)
    if part is None:
        return payment.held
    _check_part(payment, part, payment.held)
    if part < payment.held and not final:
        raise Precondition(
            "WOULD_RELEASE_REMAINDER",
            "a card hold is captured once and Stripe releases the rest to the client; "
            "say so with final=true, or capture the whole",
            {"payment_id": payment.payment_id, "held": payment.held, "requested": part},
        )
    commission = money.split_capture(
        payment.net, part, payment.commission_basis_points, payment.currency
    ).commission
    if commission >= part:
        raise Precondition(
            "COMMISSION_TOO_LARGE",
            "the commission would be the whole part; the expert must be left something",
            {"amount": part, "commission": commission},
        )
    return part


def start_capture(
    payment: Payment, part: int, operation_id: str, notes: str, now: datetime
) -> Transition:
    return _move(
        payment,
        Kind.CAPTURE_STARTED,
        State.CAPTURING,
        now,
        facts={"amount": part, "notes": notes, "operation_id": operation_id},
        operation_id=operation_id,
        failure=None,
    )


def capture_refused(payment: Payment, failure: Failure) -> Transition:
    return _settled_back(payment, Kind.CAPTURE_REFUSED, State.IN_ESCROW, failure)


def captured(
    payment: Payment,
    part: int,
    commission: int,
    lines: CaptureLines,
    *,
    charge_id: str,
    transfer_id: str,
    now: datetime,
) -> Transition:
    """Stripe took the money and split it; whatever was held beyond ``part`` is the client's again.

    ``commission`` is what Stripe really collected. Also the way by which a capture that somebody
    made at Stripe's dashboard is followed.
    """
    ours = payment.state is State.CAPTURING
    book = payment.book
    return _move(
        payment,
        Kind.CAPTURED if ours else Kind.CAPTURED_ELSEWHERE,
        State.CAPTURED,
        now,
        facts={
            "amount": part,
            "commission": commission,
            "released": max(payment.held - part, 0),
            "charge_id": charge_id,
            "transfer_id": transfer_id,
        },
        postings=[*book.hold_released(payment.held), *book.captured(part, commission, lines)],
        held=0,
        captured=part,
        net_commission=commission,
        charge_id=charge_id,
        transfer_id=transfer_id,
        capture_time=now,
        escrow_time=payment.escrow_time or now,
        failure=None,
        **_NOTHING_UNDER_WAY,
    )


def processor_fee_recorded(payment: Payment, fee: Settled, now: datetime) -> Transition:
    """Stripe's own fee appeared; no transition waits for it."""
    return _move(
        payment,
        Kind.PROCESSOR_FEE,
        payment.state,
        now,
        facts={"fee": fee.minor_units, "currency": fee.currency},
        postings=payment.book.processor_fee(fee) if fee.minor_units else [],
        processor_fee=fee.minor_units,
    )


# ---- the end without a charge ----


def start_cancel(payment: Payment, operation_id: str, reason: str, now: datetime) -> Transition:
    return _move(
        payment,
        Kind.CANCEL_STARTED,
        State.CANCELING,
        now,
        facts={"reason": reason, "operation_id": operation_id},
        operation_id=operation_id,
    )


def cancel_refused(payment: Payment, failure: Failure) -> Transition:
    state = State.IN_ESCROW if payment.held else State.PENDING
    return _settled_back(payment, Kind.CANCEL_REFUSED, state, failure)


def ended_unpaid(payment: Payment, *, expired: bool, reason: str, now: datetime) -> Transition:
    """The intent is cancelled at Stripe; all the money is the client's, who was never charged."""
    return _move(
        payment,
        Kind.EXPIRED if expired else Kind.CANCELED,
        State.EXPIRED if expired else State.CANCELED,
        now,
        facts={"reason": reason, "released": payment.held},
        postings=payment.book.hold_released(payment.held),
        held=0,
        **_NOTHING_UNDER_WAY,
    )


# ---- refund after capture ----


@dataclass(frozen=True, slots=True)
class RefundPlan:
    """What a refund will do: nothing captured means that the intent is cancelled."""

    cancels: bool
    minor_units: int
    #: Of ``minor_units``: given back by the platform, and to be taken back from the expert.
    commission: int = 0
    expert_part: int = 0


def check_refund(payment: Payment, part: int | None) -> RefundPlan:
    """What RefundPayment would do. Raises :class:`Refusal` if it may not."""
    _refuse_unless(payment, State.PENDING, State.FAILED, State.IN_ESCROW, State.CAPTURED)
    if payment.state is State.CAPTURED:
        part = payment.net if part is None else part
        _check_part(payment, part, payment.net)
        split = refund_split(payment, part)
        return RefundPlan(False, part, split.commission, split.expert)
    # Before the client confirms nothing is held, yet the whole payment can be given up.
    whole = payment.held or payment.amount
    if part is not None:
        _check_part(payment, part, whole)
        if part < whole:
            raise Precondition(
                "PARTIAL_REFUND_NEEDS_CAPTURE",
                "an uncaptured payment is given back whole: leave the amount out, or capture first",
                {"payment_id": payment.payment_id, "held": payment.held, "requested": part},
            )
    return RefundPlan(True, whole)


def refund_split(payment: Payment, part: int) -> money.Split:
    """Who gives back what; never more commission than was really kept."""
    split = money.split_refund(payment.net, part, payment.commission_basis_points, payment.currency)
    commission = payment.net_commission if part == payment.net else split.commission
    commission = max(min(commission, payment.net_commission, part), part - payment.net_expert)
    return money.Split(commission, part - commission)


def start_refund(
    payment: Payment, plan: RefundPlan, operation_id: str, reason: str, now: datetime
) -> Transition:
    return _move(
        payment,
        Kind.REFUND_STARTED,
        State.REFUNDING,
        now,
        facts={
            "amount": plan.minor_units,
            "commission": plan.commission,
            "expert_part": plan.expert_part,
            "reason": reason,
            "operation_id": operation_id,
        },
        operation_id=operation_id,
        failure=None,
    )


def refund_refused(payment: Payment, failure: Failure) -> Transition:
    return _settled_back(payment, Kind.REFUND_REFUSED, _state_of_net(payment.net), failure)


def client_refunded(
    payment: Payment,
    refund_id: str,
    plan: RefundPlan,
    settled: Settled,
    next_operation_id: str,
    now: datetime,
) -> Transition:
    """The first leg: the client has the money. The expert's part is owed until it is reversed."""
    after_net = payment.net - plan.minor_units
    state = State.REFUNDING if next_operation_id else _state_of_net(after_net)
    return _move(
        payment,
        Kind.CLIENT_REFUNDED,
        state,
        now,
        facts={
            "refund_id": refund_id,
            "amount": plan.minor_units,
            "commission": plan.commission,
            "expert_part": plan.expert_part,
        },
        postings=payment.book.client_refunded(
            plan.minor_units, plan.commission, settled, owed_by=expert_debt(payment.expert_id)
        ),
        refunded=payment.refunded + plan.minor_units,
        net_commission=payment.net_commission - plan.commission,
        operation_id=next_operation_id,
        waiting_for=WaitingFor.NOTHING,
    )


def expert_reversed(
    payment: Payment,
    reversal_id: str,
    part: int,
    platform: Settled,
    connected: Settled,
    now: datetime,
) -> Transition:
    """The second leg: the expert's part came back by transfer reversal."""
    return _move(
        payment,
        Kind.EXPERT_REVERSED,
        _state_of_net(payment.net),
        now,
        facts={"reversal_id": reversal_id, "amount": part},
        postings=payment.book.transfer_reversed(
            part, platform, connected, owed_by=expert_debt(payment.expert_id)
        ),
        **_NOTHING_UNDER_WAY,
    )


def expert_owes(payment: Payment, part: int, failure: Failure) -> Transition:
    """Stripe refused to take the expert's part back: it stays on the books as the expert's debt."""
    return _move(
        payment,
        Kind.EXPERT_OWES,
        _state_of_net(payment.net),
        failure.time,
        facts={"amount": part, "code": failure.code},
        **_NOTHING_UNDER_WAY,
    )


def refund_failed(
    payment: Payment, refund_id: str, part: int, settled: Settled, operation_id: str, now: datetime
) -> Transition:
    """A refund bounced later: we owe the client, and an operator decides how to pay."""
    return _move(
        payment,
        Kind.REFUND_FAILED,
        State.REFUNDING,
        now,
        facts={"refund_id": refund_id, "amount": part},
        postings=payment.book.refund_failed(part, settled),
        client_owed=payment.client_owed + part,
        operation_id=payment.operation_id or operation_id,
        waiting_for=WaitingFor.OPERATOR,
    )


def refund_resent(
    payment: Payment, refund_id: str, part: int, settled: Settled, now: datetime
) -> Transition:
    return _move(
        payment,
        Kind.REFUND_RESENT,
        _state_of_net(payment.net),
        now,
        facts={"refund_id": refund_id, "amount": part},
        postings=payment.book.refund_resent(part, settled),
        client_owed=payment.client_owed - part,
        **_NOTHING_UNDER_WAY,
    )


# ---- done by a hand at Stripe's dashboard ----


def refunded_elsewhere(
    payment: Payment, refund_id: str, part: int, settled: Settled, losses: str, now: datetime
) -> Transition:
    """The expert's part of such a refund is the platform's loss until an operator decides."""
    split = refund_split(payment, part)
    state = payment.state
    if state is State.CAPTURED:
        state = _state_of_net(payment.net - part)
    return _move(
        payment,
        Kind.REFUNDED_ELSEWHERE,
        state,
        now,
        facts={"refund_id": refund_id, "amount": part, "commission": split.commission},
        postings=payment.book.client_refunded(part, split.commission, settled, owed_by=losses),
        refunded=payment.refunded + part,
        net_commission=payment.net_commission - split.commission,
    )


def reversed_elsewhere(
    payment: Payment,
    reversal_id: str,
    part: int,
    platform: Settled,
    connected: Settled,
    losses: str,
    now: datetime,
) -> Transition:
    return _move(
        payment,
        Kind.REVERSED_ELSEWHERE,
        payment.state,
        now,
        facts={"reversal_id": reversal_id, "amount": part},
        postings=payment.book.transfer_reversed(part, platform, connected, owed_by=losses),
    )


def fee_refunded_elsewhere(
    payment: Payment,
    fee_refund_id: str,
    part: int,
    platform: Settled,
    connected: Settled,
    now: datetime,
) -> Transition:
    return _move(
        payment,
        Kind.FEE_REFUNDED_ELSEWHERE,
        payment.state,
        now,
        facts={"fee_refund_id": fee_refund_id, "amount": part},
        postings=payment.book.fee_refunded(part, platform, connected),
    )


# ---- waiting ----


def waiting(payment: Payment, waiting_for: WaitingFor, why: str, now: datetime) -> Transition:
    """Stripe's answer is not known (the sweep asks), or the operation is parked."""
    return _move(
        payment,
        Kind.WAITING,
        payment.state,
        now,
        facts={"waiting_for": waiting_for.value, "why": why},
        waiting_for=waiting_for,
    )


# ---- helpers ----


def _settled_back(payment: Payment, kind: Kind, state: State, failure: Failure) -> Transition:
    """Stripe refused; the payment is as it was before it was asked."""
    return _move(
        payment,
        kind,
        state,
        failure.time,
        facts={"code": failure.code},
        failure=failure,
        **_NOTHING_UNDER_WAY,
    )


def _state_of_net(net: int) -> State:
    return State.CAPTURED if net > 0 else State.REFUNDED


def _refuse_unless(payment: Payment, *states: State) -> None:
    if payment.state in _BUSY or (payment.operation_id and payment.state in states):
        raise operation_in_progress(payment.payment_id, payment.state)
    if payment.state not in states:
        raise Precondition(
            "WRONG_STATE",
            f"the payment is {payment.state}; this needs {' or '.join(states)}",
            {
                "payment_id": payment.payment_id,
                "state": payment.state.value,
                "allowed_states": ",".join(states),
            },
        )


def _check_part(payment: Payment, part: int, available: int) -> None:
    try:
        money.check_part(payment.money(part))
    except money.InvalidMoney as fault:
        raise invalid_field("amount.minor_units", str(fault)) from None
    if part > available:
        raise Precondition(
            "AMOUNT_TOO_LARGE",
            f"{payment.money(part)} is more than the {payment.money(available)} that there is",
            {
                "payment_id": payment.payment_id,
                "requested": part,
                "available": available,
                "currency": payment.currency,
            },
        )
