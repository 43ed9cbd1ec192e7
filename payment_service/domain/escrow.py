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

from payment_service.domain.errors import Precondition
from payment_service.domain.ledger import (
    LOSSES,
    Book,
    CaptureLines,
    Posting,
    RefundSplit,
    Settled,
    Share,
    expert_debt,
    imbalance,
)
from payment_service.domain.money import Money


class State(StrEnum):
    """Where a payment stands, and who moves it on."""

    PENDING = "PENDING"  # Left by the client's confirmation, or by the payment window.
    FAILED = "FAILED"  # Left by the client's next attempt, or by the payment window.
    IN_ESCROW = "IN_ESCROW"  # Left by CapturePayment, RefundPayment, or a deadline.
    CAPTURING = "CAPTURING"  # Left by Stripe's answer, a webhook, the sweep, or the expert.
    PROMOTING = "PROMOTING"  # Left by Stripe's answer, a webhook, or the sweep.
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
    CAPTURE_GIVEN_UP = "payment.capture_given_up"
    CHARGED = "payment.charged"
    CHARGED_ELSEWHERE = "payment.charged_elsewhere"
    PROMOTE_STARTED = "payment.promote_started"
    PROMOTE_REFUSED = "payment.promote_refused"
    TRANSFERRED_ELSEWHERE = "payment.transferred_elsewhere"
    DEADLINE_NEAR = "payment.deadline_near"
    DEADLINE_PASSED = "payment.deadline_passed"
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
    REFUND_BOUNCED = "payment.refund_bounced"
    REFUND_RESENT = "payment.refund_resent"
    REPAYMENT_DUE = "payment.repayment_due"
    REPAYMENT_GIVEN_UP = "payment.repayment_given_up"
    OWED_SETTLED = "payment.owed_settled"
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
    FRAUD_WARNING_RELEASED = "payment.fraud_warning_released"
    WAITING = "payment.waiting"


_S = State
_UNPAID: Final = frozenset({_S.PENDING, _S.FAILED})
_UNCAPTURED: Final = _UNPAID | {_S.IN_ESCROW, _S.CAPTURING, _S.CANCELING, _S.PROMOTING}
_ENDED_UNPAID: Final = frozenset({_S.CANCELED, _S.EXPIRED})
#: Where the card may have been charged already.
_CHARGED: Final = frozenset({_S.IN_ESCROW, _S.CAPTURING, _S.CAPTURED, _S.REFUNDING, _S.REFUNDED})
BUSY: Final = frozenset({_S.CAPTURING, _S.CANCELING, _S.REFUNDING, _S.PROMOTING})
#: Where a payment may rest once its card was charged: by what is held and by what was paid out.
_RESTING: Final = frozenset({_S.IN_ESCROW, _S.CAPTURED, _S.REFUNDED})


def _edges(sources: frozenset[State] | set[State], *targets: State) -> dict[State, set[State]]:
    return {source: set(targets) for source in sources}


def _stay(states: frozenset[State] | set[State]) -> dict[State, set[State]]:
    return {state: {state} for state in states}


#: kind → state before → states after. What is not here does not happen.
TRANSITIONS: Final[Mapping[Kind, Mapping[State, set[State]]]] = {
    Kind.INTENT_CREATED: _stay({_S.PENDING}),
    Kind.CREATION_REFUSED: _edges({_S.PENDING}, _S.CANCELED),
    Kind.ATTEMPT_FAILED: _edges(_UNPAID, _S.FAILED),
    Kind.ATTEMPT_RESTARTED: _edges({_S.FAILED}, _S.PENDING),
    # From CANCELING too: as below.
    Kind.AUTHORIZED: _edges(_UNPAID | {_S.CANCELING}, _S.IN_ESCROW),
    # Onto the platform (SEPARATE): by the client's confirmation, as a capture's first leg, or by
    # a promotion.
    Kind.CHARGED: {
        # From CANCELING too: the client may confirm in the moment in which we cancel.
        **_edges(_UNPAID | {_S.PROMOTING, _S.CANCELING}, _S.IN_ESCROW),
        _S.CAPTURING: {_S.CAPTURING, _S.IN_ESCROW},
    },
    Kind.CHARGED_ELSEWHERE: _edges(
        _UNPAID | {_S.IN_ESCROW, _S.CANCELING} | _ENDED_UNPAID, _S.IN_ESCROW
    ),
    Kind.PROMOTE_STARTED: _edges({_S.IN_ESCROW}, _S.PROMOTING),
    Kind.PROMOTE_REFUSED: _edges({_S.PROMOTING}, _S.IN_ESCROW),
    Kind.CAPTURE_STARTED: _edges({_S.IN_ESCROW}, _S.CAPTURING),
    # Elsewhere than IN_ESCROW if meanwhile all that was held was refunded out of band.
    Kind.CAPTURE_REFUSED: _edges({_S.CAPTURING}, *_RESTING),
    Kind.CAPTURE_GIVEN_UP: _edges({_S.CAPTURING}, *_RESTING),
    # IN_ESCROW after a part of what the platform holds; REFUNDING where the rest goes back.
    Kind.CAPTURED: _edges({_S.CAPTURING}, _S.CAPTURED, _S.IN_ESCROW, _S.REFUNDING),
    Kind.CAPTURED_ELSEWHERE: _edges(
        (_UNCAPTURED | _ENDED_UNPAID) - {_S.CAPTURING, _S.PROMOTING}, _S.CAPTURED
    ),
    Kind.CANCEL_STARTED: _edges(_UNPAID | {_S.IN_ESCROW}, _S.CANCELING),
    Kind.CANCEL_REFUSED: _edges({_S.CANCELING}, _S.PENDING, _S.IN_ESCROW),
    Kind.CANCELED: _edges(_UNCAPTURED, _S.CANCELED),
    Kind.EXPIRED: _edges(_UNCAPTURED, _S.EXPIRED),
    Kind.REFUND_STARTED: _edges({_S.CAPTURED, _S.IN_ESCROW}, _S.REFUNDING),
    # REFUNDED if meanwhile everything was given back at Stripe's dashboard.
    Kind.REFUND_REFUSED: _edges({_S.REFUNDING}, *_RESTING),
    Kind.CLIENT_REFUNDED: _edges({_S.REFUNDING}, _S.REFUNDING, *_RESTING),
    # One leg a transfer; REFUNDING while there are more of them.
    Kind.EXPERT_REVERSED: _edges({_S.REFUNDING}, _S.REFUNDING, *_RESTING),
    Kind.EXPERT_OWES: _edges({_S.REFUNDING}, *_RESTING),
    Kind.REFUNDED_ELSEWHERE: {
        _S.IN_ESCROW: set(_RESTING),
        _S.CAPTURED: {_S.CAPTURED, _S.REFUNDED},
        **_stay({_S.REFUNDING, _S.CAPTURING}),
        # All was given back, a refund bounced, and another one by hand has paid the client.
        _S.REFUNDED: {_S.REFUNDED},
    },
    Kind.TRANSFERRED_ELSEWHERE: _stay(_CHARGED),
    Kind.REVERSED_ELSEWHERE: _stay(_CHARGED),
    Kind.FEE_REFUNDED_ELSEWHERE: _stay(_CHARGED),
    # At once, whatever is under way; paying it again comes when nothing is.
    Kind.REFUND_FAILED: _stay(_CHARGED),
    Kind.REFUND_BOUNCED: _stay(_CHARGED),
    Kind.REPAYMENT_DUE: _edges(_RESTING, _S.REFUNDING),
    Kind.REPAYMENT_GIVEN_UP: _edges({_S.REFUNDING}, *_RESTING),
    # Whatever else is under way, but for a repayment.
    Kind.OWED_SETTLED: _stay(_CHARGED),
    Kind.REFUND_RESENT: _edges({_S.REFUNDING}, *_RESTING),
    Kind.PROCESSOR_FEE: _stay(_CHARGED),
    # A dispute is a record of its own: it freezes the payment where it stands.
    **{
        kind: _stay(_CHARGED)
        for kind in (
            Kind.DISPUTE_OPENED,
            Kind.DISPUTE_ESCALATED,
            Kind.DISPUTE_UPDATED,
            Kind.DISPUTE_FUNDS_WITHDRAWN,
            Kind.DISPUTE_FUNDS_REINSTATED,
            Kind.DISPUTE_WON,
            Kind.DISPUTE_CLOSED,
            Kind.DISPUTE_ANSWER_STARTED,
            Kind.DISPUTE_ANSWER_REFUSED,
        )
    },
    # An issuer may warn of a card that is only authorized.
    **{
        kind: _stay(_CHARGED | {_S.CANCELING, _S.PROMOTING})
        for kind in (
            Kind.FRAUD_WARNING,
            Kind.FRAUD_WARNING_OVER,
            Kind.FRAUD_WARNING_RELEASED,
        )
    },
    # Money is taken only at rest; REFUNDING while the expert's part is taken back. A dispute that
    # ends without having moved any may do so at any time.
    Kind.DISPUTE_LOST: {
        **_stay({_S.CAPTURING, _S.REFUNDING}),
        _S.IN_ESCROW: {_S.REFUNDING, *_RESTING},
        _S.CAPTURED: {_S.REFUNDING, _S.CAPTURED, _S.REFUNDED},
        _S.REFUNDED: {_S.REFUNDED},
    },
    Kind.WAITING: _stay(BUSY | {_S.PENDING}),
    # REFUNDING while money is held besides what the client is owed.
    Kind.DEADLINE_NEAR: _stay({_S.IN_ESCROW, _S.CAPTURING, _S.REFUNDING}),
    Kind.DEADLINE_PASSED: _stay({_S.IN_ESCROW, _S.REFUNDING}),
}


class EscrowMode(StrEnum):
    CARD_HOLD = "CARD_HOLD"  # The card is authorized, and charged on capture.
    PLATFORM_HOLD = "PLATFORM_HOLD"  # The card is charged; the platform's balance holds the money.


class ChargeModel(StrEnum):
    DESTINATION = "DESTINATION"  # Stripe splits the charge when it is captured.
    SEPARATE = "SEPARATE"  # Charged onto the platform; each part is transferred from there.


class OnDeadline(StrEnum):
    """What is done when the escrow's time runs out."""

    ALERT = "ALERT"  # An event, and nothing else; a card hold then lapses.
    CAPTURE = "CAPTURE"  # The expert is paid.
    REFUND = "REFUND"  # The client gets the money back.
    PROMOTE = "PROMOTE"  # A card hold is charged onto the platform, and stays in escrow.


class Freeze(StrEnum):
    """What a contested payment is kept from; the strictest of all its reasons."""

    NONE = "NONE"
    FRAUD_WARNING = "FRAUD_WARNING"  # Capture; left by Stripe (not actionable) or by an operator.
    INQUIRY = "INQUIRY"  # Capture; left when the inquiry is closed, or escalated.
    CHARGEBACK = "CHARGEBACK"  # Capture and refund; left by the bank's decision.


@dataclass(frozen=True, slots=True)
class Frozen:
    """A freeze, and the dispute or the warning that it comes from."""

    freeze: Freeze = Freeze.NONE
    by: str = ""


class ModeReason(StrEnum):
    """Why the money is held as it is."""

    REQUESTED = "REQUESTED"  # The caller named the mode.
    DEFAULT = "DEFAULT"  # Neither a mode nor a date was named.
    FITS_CARD_HOLD = "FITS_CARD_HOLD"  # The gig is done before an authorization lapses.
    OUTLASTS_CARD_HOLD = "OUTLASTS_CARD_HOLD"  # It is not, so the card is charged at once.
    PROMOTION = "PROMOTION"  # on_deadline=PROMOTE: authorized now, charged before it lapses.


class WaitingFor(StrEnum):
    NOTHING = ""
    PROCESSOR = "processor"  # Stripe's answer is not known yet; the sweep asks.
    OPERATOR = "operator"  # The operation is parked.
    EXPERT = "expert"  # The expert's account cannot be paid now; goes on when it can.


class WaitingReason(StrEnum):
    """Why a capture waits for the expert: how the account stands, as far as we know."""

    NOTHING = ""
    EXPERT_ONBOARDING = "EXPERT_ONBOARDING"  # Left by the expert, who completes Stripe's form.
    EXPERT_PENDING_VERIFICATION = "EXPERT_PENDING_VERIFICATION"  # Left by Stripe.
    EXPERT_RESTRICTED = "EXPERT_RESTRICTED"  # Left by the expert, who gives what Stripe asks for.
    EXPERT_REJECTED = "EXPERT_REJECTED"  # Left by another account (SEPARATE), or by a refund.
    EXPERT_DEAUTHORIZED = "EXPERT_DEAUTHORIZED"  # As above.
    EXPERT_REFUSED = "EXPERT_REFUSED"  # Stripe calls the account well; tried again each minute.
    #: The charge's destination is an account that the expert has no more: left by a refund alone.
    DESTINATION_ACCOUNT_REPLACED = "DESTINATION_ACCOUNT_REPLACED"


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
    mode_reason: ModeReason = ModeReason.DEFAULT
    on_deadline: OnDeadline = OnDeadline.ALERT
    #: The expert's connected account at initiation; a DESTINATION charge can have no other.
    destination_account_id: str
    currency: str
    amount: int
    commission_basis_points: int
    #: The quote, frozen: ``commission + expert_amount == amount``.
    commission: int
    expert_amount: int
    held: int = 0
    #: What the card was charged: ``held + captured + returned + lost_held``, or 0 while it is not.
    charged: int = 0
    #: What went to the expert and the commission, and what of that came back to the client.
    captured: int = 0
    refunded: int = 0
    #: Given back to the client out of escrow, after the card was charged.
    returned: int = 0
    #: A final capture has paid the expert: whatever is held from then on is to go back.
    rest_goes_back: bool = False
    #: What lost disputes took: out of escrow, and of what had been captured.
    lost_held: int = 0
    lost: int = 0
    #: What disputes and warnings forbid now, and by which of them.
    frozen: Freeze = Freeze.NONE
    frozen_by: str = ""
    #: An early fraud warning that can still be acted upon.
    fraud_warning_id: str = ""
    #: What the capture under way keeps back of the expert's debt.
    netting: int = 0
    #: The platform's part of ``net``.
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
    #: Of one that waits for the expert.
    waiting_reason: WaitingReason = WaitingReason.NOTHING
    failure: Failure | None = None
    version: int = 0
    create_time: datetime
    update_time: datetime
    escrow_time: datetime | None = None
    capture_time: datetime | None = None
    #: When the hold ends by itself: the card's ``capture_before``, or the holding limit.
    escrow_expire_time: datetime | None = None
    #: When the gig is to be done, as the caller said.
    release_due_time: datetime | None = None
    #: The latest deadline that was warned of, and when one was last acted upon.
    warn_time: datetime | None = None
    deadline_time: datetime | None = None
    payment_expire_time: datetime

    @property
    def net(self) -> int:
        """What commission and expert have of it now."""
        return self.captured - self.refunded - self.lost

    @property
    def net_expert(self) -> int:
        return self.net - self.net_commission

    @property
    def is_separate(self) -> bool:
        return self.charge_model is ChargeModel.SEPARATE

    @property
    def resting_state(self) -> State:
        """Where it stands when nothing is under way, once its card was charged."""
        if self.held:
            return State.IN_ESCROW
        return State.CAPTURED if self.net > 0 else State.REFUNDED

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
    "waiting_reason": WaitingReason.NOTHING,
    "netting": 0,
}


def _goes_on(next_operation_id: str | None) -> dict[str, Any]:
    """Nothing under way any more, or another operation in place of the one that is over."""
    return {**_NOTHING_UNDER_WAY, "operation_id": next_operation_id or ""}


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


# ---- charged onto the platform (SEPARATE) ----


def charged(
    payment: Payment,
    part: int,
    settled: Settled,
    *,
    charge_id: str,
    expire_time: datetime,
    elsewhere: bool,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """The card was charged onto the platform: the money stays in escrow, held by us now.

    By the client's confirmation, by a promotion, as the first leg of a capture (which goes on with
    ``next_operation_id``), or ``elsewhere``: by a hand at Stripe's dashboard.
    """
    book = payment.book
    goes_on = _goes_on(next_operation_id)
    if next_operation_id is not None:
        goes_on["netting"] = payment.netting
    return _move(
        payment,
        Kind.CHARGED_ELSEWHERE if elsewhere else Kind.CHARGED,
        State.IN_ESCROW if next_operation_id is None else State.CAPTURING,
        now,
        facts={
            "amount": part,
            "released": max(payment.held - part, 0),
            "charge_id": charge_id,
        },
        postings=[*book.hold_released(payment.held), *book.charged(part, settled)],
        held=part,
        charged=part,
        escrow_mode=EscrowMode.PLATFORM_HOLD,
        charge_id=charge_id,
        escrow_time=payment.escrow_time or now,
        escrow_expire_time=expire_time,
        warn_time=None,
        failure=None,
        **goes_on,
    )


def start_promotion(payment: Payment, operation_id: str, now: datetime) -> Transition:
    """The authorization is about to lapse: charge it onto the platform."""
    return _move(
        payment,
        Kind.PROMOTE_STARTED,
        State.PROMOTING,
        now,
        facts={"amount": payment.held, "operation_id": operation_id},
        operation_id=operation_id,
        deadline_time=now,
        failure=None,
    )


def promotion_refused(payment: Payment, failure: Failure) -> Transition:
    return _settled_back(payment, Kind.PROMOTE_REFUSED, State.IN_ESCROW, failure)


# ---- capture ----


def start_capture(
    payment: Payment,
    share: Share,
    operation_id: str,
    notes: str,
    now: datetime,
    *,
    by_deadline: bool = False,
) -> Transition:
    return _move(
        payment,
        Kind.CAPTURE_STARTED,
        State.CAPTURING,
        now,
        facts={
            "amount": share.part,
            "netted": share.netted,
            "notes": notes,
            "operation_id": operation_id,
        },
        operation_id=operation_id,
        netting=share.netted,
        deadline_time=now if by_deadline else payment.deadline_time,
        failure=None,
    )


def capture_refused(payment: Payment, failure: Failure) -> Transition:
    return _settled_back(payment, Kind.CAPTURE_REFUSED, payment.resting_state, failure)


def capture_given_up(payment: Payment, reason: str, now: datetime) -> Transition:
    """A capture that nothing came of is not to be made any more."""
    return _move(
        payment,
        Kind.CAPTURE_GIVEN_UP,
        payment.resting_state,
        now,
        facts={"reason": reason, "operation_id": payment.operation_id},
        **_NOTHING_UNDER_WAY,
    )


def captured(
    payment: Payment,
    share: Share,
    lines: CaptureLines,
    *,
    charge_id: str,
    transfer_id: str,
    now: datetime,
) -> Transition:
    """Stripe took the money and split it; whatever was held beyond it is the client's again.

    ``share`` is what Stripe really collected. Also the way by which a capture that somebody made at
    Stripe's dashboard is followed. (DESTINATION)
    """
    ours = payment.state is State.CAPTURING
    book = payment.book
    return _move(
        payment,
        Kind.CAPTURED if ours else Kind.CAPTURED_ELSEWHERE,
        State.CAPTURED,
        now,
        facts={
            "amount": share.part,
            "commission": share.commission,
            "netted": share.netted,
            "released": max(payment.held - share.part, 0),
            "charge_id": charge_id,
            "transfer_id": transfer_id,
        },
        postings=[*book.hold_released(payment.held), *book.captured(share, lines)],
        held=0,
        charged=share.part,
        captured=share.part,
        net_commission=share.commission,
        charge_id=charge_id,
        transfer_id=transfer_id,
        capture_time=now,
        escrow_time=payment.escrow_time or now,
        failure=None,
        **_NOTHING_UNDER_WAY,
    )


def transferred(
    payment: Payment,
    share: Share,
    sent: Settled,
    received: Settled,
    *,
    transfer_id: str,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """A part of what the platform holds went to the expert. (SEPARATE)

    ``next_operation_id`` refunds the rest to the client, where the capture was to be the last.
    """
    after = replace(payment, held=payment.held - share.part, captured=payment.captured + share.part)
    return _move(
        payment,
        Kind.CAPTURED,
        after.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={
            "amount": share.part,
            "commission": share.commission,
            "netted": share.netted,
            "sent": share.sent,
            "transfer_id": transfer_id,
        },
        postings=payment.book.transferred(share, sent, received),
        held=after.held,
        captured=after.captured,
        net_commission=payment.net_commission + share.commission,
        # Remembered now, since Stripe may refuse that refund, today and again.
        rest_goes_back=payment.rest_goes_back or next_operation_id is not None,
        transfer_id=transfer_id,
        capture_time=now,
        failure=None,
        **_goes_on(next_operation_id),
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


def start_cancel(
    payment: Payment, operation_id: str, reason: str, now: datetime, *, by_deadline: bool = False
) -> Transition:
    return _move(
        payment,
        Kind.CANCEL_STARTED,
        State.CANCELING,
        now,
        facts={"reason": reason, "operation_id": operation_id},
        operation_id=operation_id,
        deadline_time=now if by_deadline else payment.deadline_time,
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
        # Whatever the issuer warned of, there is nothing left to keep from being captured.
        fraud_warning_id="",
        **_freeze(Frozen()),
        **_NOTHING_UNDER_WAY,
    )


# ---- refund of what was charged ----


def start_refund(
    payment: Payment,
    split: RefundSplit,
    operation_id: str,
    reason: str,
    now: datetime,
    *,
    by_deadline: bool = False,
) -> Transition:
    return _move(
        payment,
        Kind.REFUND_STARTED,
        State.REFUNDING,
        now,
        facts={**_split_facts(split), "reason": reason, "operation_id": operation_id},
        operation_id=operation_id,
        deadline_time=now if by_deadline else payment.deadline_time,
        failure=None,
    )


def refund_refused(payment: Payment, failure: Failure) -> Transition:
    return _settled_back(payment, Kind.REFUND_REFUSED, payment.resting_state, failure)


def client_refunded(
    payment: Payment,
    refund_id: str,
    split: RefundSplit,
    settled: Settled,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """The first leg: the client has the money. The expert's part is owed until it is reversed.

    ``next_operation_id`` None means that this was the last leg.
    """
    after = less_refund(payment, split)
    return _move(
        payment,
        Kind.CLIENT_REFUNDED,
        after.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={"refund_id": refund_id, **_split_facts(split)},
        postings=payment.book.client_refunded(
            split, settled, owed_by=expert_debt(payment.expert_id)
        ),
        **_amounts(after),
        **_goes_on(next_operation_id),
    )


def expert_reversed(
    payment: Payment,
    reversal_id: str,
    part: int,
    platform: Settled,
    connected: Settled,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """A further leg: the expert's part came back by the reversal of one transfer."""
    return _move(
        payment,
        Kind.EXPERT_REVERSED,
        payment.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={"reversal_id": reversal_id, "amount": part},
        postings=payment.book.transfer_reversed(
            part, platform, connected, pays=expert_debt(payment.expert_id)
        ),
        **_goes_on(next_operation_id),
    )


def expert_owes(payment: Payment, part: int, code: str, now: datetime) -> Transition:
    """What Stripe does not give back of the expert's part stays on the books as debt."""
    return _move(
        payment,
        Kind.EXPERT_OWES,
        payment.resting_state,
        now,
        facts={"amount": part, "code": code},
        **_NOTHING_UNDER_WAY,
    )


def less_refund(payment: Payment, split: RefundSplit) -> Payment:
    """The payment's amounts once the client has it."""
    return replace(
        payment,
        held=payment.held - split.from_escrow,
        returned=payment.returned + split.from_escrow,
        refunded=payment.refunded + split.from_captured,
        net_commission=payment.net_commission - split.commission,
        client_owed=payment.client_owed - split.from_owed,
    )


def _amounts(after: Payment) -> dict[str, int]:
    names = ("held", "returned", "refunded", "net_commission", "client_owed")
    return {name: getattr(after, name) for name in names}


def _split_facts(split: RefundSplit) -> dict[str, int]:
    return {
        "amount": split.whole,
        "from_owed": split.from_owed,
        "from_escrow": split.from_escrow,
        "commission": split.commission,
        "expert_part": split.expert_part,
    }


def refund_failed(
    payment: Payment, refund_id: str, part: int, settled: Settled, now: datetime
) -> Transition:
    """A refund bounced later: we owe the client, whatever else is under way on the payment."""
    return _move(
        payment,
        Kind.REFUND_FAILED,
        payment.state,
        now,
        facts={"refund_id": refund_id, "amount": part},
        postings=payment.book.refund_failed(part, settled),
        client_owed=payment.client_owed + part,
    )


def refund_bounced(
    payment: Payment, refund_id: str, part: int, sent: Settled, returned: Settled, now: datetime
) -> Transition:
    """A refund came back before it was on the books: nobody has it, and nobody is owed it."""
    return _move(
        payment,
        Kind.REFUND_BOUNCED,
        payment.state,
        now,
        facts={"refund_id": refund_id, "amount": part},
        postings=payment.book.refund_bounced(part, sent, returned),
    )


def repayment_due(payment: Payment, operation_id: str, now: datetime) -> Transition:
    """Nothing is under way any more, and the client is owed: an operator decides how to pay."""
    return _move(
        payment,
        Kind.REPAYMENT_DUE,
        State.REFUNDING,
        now,
        facts={"amount": payment.client_owed, "operation_id": operation_id},
        operation_id=operation_id,
        waiting_for=WaitingFor.OPERATOR,
    )


def repayment_given_up(payment: Payment, reason: str, now: datetime) -> Transition:
    """The open operation is not to pay what is owed: it was paid otherwise, or something else
    comes first.
    """
    return _move(
        payment,
        Kind.REPAYMENT_GIVEN_UP,
        payment.resting_state,
        now,
        facts={"reason": reason, "operation_id": payment.operation_id},
        **_NOTHING_UNDER_WAY,
    )


def owed_settled(payment: Payment, part: int, note: str, now: datetime) -> Transition:
    """An operator says that the client is not owed this any more; Stripe has no part in it."""
    return _move(
        payment,
        Kind.OWED_SETTLED,
        payment.state,
        now,
        facts={"amount": part, "note": note},
        postings=payment.book.owed_settled(part),
        client_owed=payment.client_owed - part,
    )


def refund_resent(
    payment: Payment, refund_id: str, part: int, settled: Settled, now: datetime
) -> Transition:
    return _move(
        payment,
        Kind.REFUND_RESENT,
        payment.resting_state,
        now,
        facts={"refund_id": refund_id, "amount": part},
        postings=payment.book.refund_resent(part, settled),
        client_owed=payment.client_owed - part,
        **_NOTHING_UNDER_WAY,
    )


# ---- done by a hand at Stripe's dashboard ----


def refunded_elsewhere(
    payment: Payment,
    refund_id: str,
    split: RefundSplit,
    settled: Settled,
    losses: str,
    now: datetime,
) -> Transition:
    """The expert's part of such a refund is the platform's loss until an operator decides."""
    after = less_refund(payment, split)
    return _move(
        payment,
        Kind.REFUNDED_ELSEWHERE,
        payment.state if payment.state in BUSY else after.resting_state,
        now,
        facts={"refund_id": refund_id, **_split_facts(split)},
        postings=payment.book.client_refunded(split, settled, owed_by=losses),
        **_amounts(after),
    )


def transferred_elsewhere(
    payment: Payment, transfer_id: str, part: int, sent: Settled, received: Settled, now: datetime
) -> Transition:
    """Somebody sent the expert money by hand: the platform's loss until an operator decides."""
    return _move(
        payment,
        Kind.TRANSFERRED_ELSEWHERE,
        payment.state,
        now,
        facts={"transfer_id": transfer_id, "amount": part},
        postings=payment.book.transferred_elsewhere(part, sent, received),
    )


def reversed_elsewhere(
    payment: Payment,
    reversal_id: str,
    part: int,
    platform: Settled,
    connected: Settled,
    now: datetime,
) -> Transition:
    """What was taken from the expert out of band is the platform's until an operator decides."""
    return _move(
        payment,
        Kind.REVERSED_ELSEWHERE,
        payment.state,
        now,
        facts={"reversal_id": reversal_id, "amount": part},
        postings=payment.book.transfer_reversed(part, platform, connected, pays=LOSSES),
    )


def fee_refunded_elsewhere(
    payment: Payment,
    fee_refund_id: str,
    part: int,
    platform: Settled,
    connected: Settled,
    now: datetime,
) -> Transition:
    """It lowers what the platform has kept; what it had not kept any more is its loss."""
    commission = min(part, payment.net_commission)
    return _move(
        payment,
        Kind.FEE_REFUNDED_ELSEWHERE,
        payment.state,
        now,
        facts={"fee_refund_id": fee_refund_id, "amount": part, "commission": commission},
        postings=payment.book.fee_refunded(part, commission, platform, connected),
        net_commission=payment.net_commission - commission,
    )


# ---- disputes ----


def dispute_changed(
    payment: Payment, kind: Kind, facts: Mapping[str, object], frozen: Frozen, now: datetime
) -> Transition:
    """Something about a dispute that moves no money."""
    return _move(payment, kind, payment.state, now, facts=facts, **_freeze(frozen))


def dispute_funds_moved(
    payment: Payment,
    facts: Mapping[str, object],
    postings: list[Posting],
    frozen: Frozen,
    now: datetime,
    *,
    taken: bool,
) -> Transition:
    """Stripe withdrew the contested money from the platform, or reinstated it."""
    return _move(
        payment,
        Kind.DISPUTE_FUNDS_WITHDRAWN if taken else Kind.DISPUTE_FUNDS_REINSTATED,
        payment.state,
        now,
        facts=facts,
        postings=postings,
        **_freeze(frozen),
    )


def dispute_lost(
    payment: Payment,
    split: RefundSplit,
    beyond: int,
    facts: Mapping[str, object],
    frozen: Frozen,
    next_operation_id: str | None,
    now: datetime,
) -> Transition:
    """The client's bank keeps the money: what is owed to the client first, then what is held,
    then of what was captured.

    ``beyond`` had been given back to the client before: the platform bears it. The expert's part is
    owed until it is reversed; ``next_operation_id`` None means that nothing is to be taken back.
    """
    after = less_loss(payment, split)
    names = ("held", "lost_held", "lost", "net_commission", "client_owed")
    return _move(
        payment,
        Kind.DISPUTE_LOST,
        after.resting_state if next_operation_id is None else State.REFUNDING,
        now,
        facts={
            **facts,
            **_split_facts(split),
            "amount": split.whole + beyond,
            "beyond": beyond,
        },
        postings=payment.book.dispute_lost(split, beyond),
        **{name: getattr(after, name) for name in names},
        **_freeze(frozen),
        **_goes_on(next_operation_id),
    )


def less_loss(payment: Payment, split: RefundSplit) -> Payment:
    """The payment's amounts once the client's bank has it for good."""
    return replace(
        payment,
        held=payment.held - split.from_escrow,
        lost_held=payment.lost_held + split.from_escrow,
        lost=payment.lost + split.from_captured,
        net_commission=payment.net_commission - split.commission,
        client_owed=payment.client_owed - split.from_owed,
    )


def fraud_warned(
    payment: Payment,
    kind: Kind,
    facts: Mapping[str, object],
    fraud_warning_id: str,
    frozen: Frozen,
    now: datetime,
) -> Transition:
    """The issuer reported the charge as fraud, or that has become pointless."""
    return _move(
        payment,
        kind,
        payment.state,
        now,
        facts=facts,
        fraud_warning_id=fraud_warning_id,
        **_freeze(frozen),
    )


def fraud_warning_released(payment: Payment, note: str, now: datetime) -> Transition:
    """An operator has looked into the warning that freezes the payment: it may be captured."""
    return _move(
        payment,
        Kind.FRAUD_WARNING_RELEASED,
        payment.state,
        now,
        facts={"warning_id": payment.fraud_warning_id, "note": note},
        **_freeze(Frozen()),
    )


def _freeze(frozen: Frozen) -> dict[str, Any]:
    return {"frozen": frozen.freeze, "frozen_by": frozen.by}


# ---- waiting ----


def waiting(
    payment: Payment,
    waiting_for: WaitingFor,
    why: str,
    now: datetime,
    reason: WaitingReason = WaitingReason.NOTHING,
) -> Transition:
    """Stripe's answer is not known (the sweep asks), or the operation is parked.

    ``reason`` says why it waits for the expert, where it does.
    """
    return _move(
        payment,
        Kind.WAITING,
        payment.state,
        now,
        facts={
            "waiting_for": waiting_for.value,
            "why": why,
            **({"waiting_reason": reason.value} if reason else {}),
        },
        waiting_for=waiting_for,
        waiting_reason=reason,
    )


# ---- deadlines ----


def deadline_near(
    payment: Payment, what: str, time: datetime, action: OnDeadline, now: datetime
) -> Transition:
    """A warning, ahead of time: ``what`` runs out at ``time``, and then ``action`` is taken."""
    return _move(
        payment,
        Kind.DEADLINE_NEAR,
        payment.state,
        now,
        facts={"deadline": what, "time": time.isoformat(), "action": action.value},
        warn_time=time,
    )


def deadline_passed(
    payment: Payment, what: str, time: datetime, now: datetime, refused: str = ""
) -> Transition:
    """A deadline at which nothing is done but telling: that, and what was ``refused`` why."""
    return _move(
        payment,
        Kind.DEADLINE_PASSED,
        payment.state,
        now,
        facts={
            "deadline": what,
            "time": time.isoformat(),
            **({"refused": refused} if refused else {}),
        },
        deadline_time=now,
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
