"""A payment, and the values that describe it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from payment_service.domain.ledger import Book
from payment_service.domain.money import Money


class State(StrEnum):
    """The state of a payment, and who changes it."""

    PENDING = "PENDING"  # Left by the client's confirmation, or by the payment window.
    FAILED = "FAILED"  # Left by the client's next attempt, or by the payment window.
    IN_ESCROW = "IN_ESCROW"  # Left by CapturePayment, RefundPayment, or a deadline.
    CAPTURING = "CAPTURING"  # Left by Stripe's answer, a webhook, the recovery job, or the expert.
    PROMOTING = "PROMOTING"  # Left by Stripe's answer, a webhook, or the recovery job.
    CANCELING = "CANCELING"  # Left by Stripe's answer, a webhook, or the recovery job.
    REFUNDING = "REFUNDING"  # Left by Stripe's answer, a webhook, the recovery job, or an operator.
    CAPTURED = "CAPTURED"  # Left by RefundPayment alone.
    CANCELED = "CANCELED"  # Left by a correction only, if Stripe shows a capture after all.
    EXPIRED = "EXPIRED"  # Left by a correction only, if Stripe shows a capture after all.
    REFUNDED = "REFUNDED"  # Left only when a refund bounces later.


class EscrowMode(StrEnum):
    CARD_HOLD = "CARD_HOLD"  # The card is authorized, and charged on capture.
    PLATFORM_HOLD = "PLATFORM_HOLD"  # The card is charged; the platform's balance holds the money.


class ChargeModel(StrEnum):
    DESTINATION = "DESTINATION"  # Stripe splits the charge when it is captured.
    SEPARATE = "SEPARATE"  # Charged onto the platform; each part is transferred from there.


class OnDeadline(StrEnum):
    """What happens when the escrow's deadline passes."""

    ALERT = "ALERT"  # An event, and nothing else; a card hold then lapses.
    CAPTURE = "CAPTURE"  # The expert is paid.
    REFUND = "REFUND"  # The client gets the money back.
    PROMOTE = "PROMOTE"  # A card hold is charged onto the platform, and stays in escrow.


class Freeze(StrEnum):
    """What a disputed payment must not do; the strictest of all its reasons."""

    NONE = "NONE"
    FRAUD_WARNING = "FRAUD_WARNING"  # Capture; left by Stripe (not actionable) or by an operator.
    REVIEW = "REVIEW"  # Capture; left when Radar's manual review of the charge is closed.
    INQUIRY = "INQUIRY"  # Capture; left when the inquiry is closed, or escalated.
    CHARGEBACK = "CHARGEBACK"  # Capture and refund; left by the bank's decision.


@dataclass(frozen=True, slots=True)
class FreezeReason:
    """A freeze, and the dispute or the warning that it comes from."""

    freeze: Freeze = Freeze.NONE
    by: str = ""


class ModeReason(StrEnum):
    """Why this escrow mode was chosen."""

    REQUESTED = "REQUESTED"  # The caller named the mode.
    DEFAULT = "DEFAULT"  # Neither a mode nor a date was named.
    FITS_CARD_HOLD = "FITS_CARD_HOLD"  # The gig is done before an authorization lapses.
    OUTLASTS_CARD_HOLD = "OUTLASTS_CARD_HOLD"  # It is not, so the card is charged at once.
    PROMOTION = "PROMOTION"  # on_deadline=PROMOTE: authorized now, charged before it lapses.


class WaitingFor(StrEnum):
    NOTHING = ""
    PROCESSOR = "processor"  # Stripe's answer is not known yet; the recovery job retries.
    OPERATOR = "operator"  # The operation is parked.
    EXPERT = "expert"  # The expert's account cannot be paid now; retried when it can.


class WaitingReason(StrEnum):
    """Why a payment waits: the status of the expert's account, or the platform's balance."""

    NOTHING = ""
    EXPERT_ONBOARDING = "EXPERT_ONBOARDING"  # Left by the expert, who completes Stripe's form.
    EXPERT_PENDING_VERIFICATION = "EXPERT_PENDING_VERIFICATION"  # Left by Stripe.
    EXPERT_RESTRICTED = "EXPERT_RESTRICTED"  # Left by the expert, who gives what Stripe asks for.
    EXPERT_REJECTED = "EXPERT_REJECTED"  # Left by another account (SEPARATE), or by a refund.
    EXPERT_DEAUTHORIZED = "EXPERT_DEAUTHORIZED"  # As above.
    EXPERT_REFUSED = "EXPERT_REFUSED"  # Stripe calls the account well; tried again each minute.
    #: The charge can pay only an account that the expert has no more. Only a refund ends this.
    DESTINATION_ACCOUNT_REPLACED = "DESTINATION_ACCOUNT_REPLACED"
    REFUND_PENDING_FUNDS = "REFUND_PENDING_FUNDS"  # Left when Stripe pays or fails the refund.
    TRANSFER_PENDING_FUNDS = "TRANSFER_PENDING_FUNDS"  # Left when Stripe accepts the transfer.


WAITS_FOR_FUNDS: Final = frozenset(
    {WaitingReason.REFUND_PENDING_FUNDS, WaitingReason.TRANSFER_PENDING_FUNDS}
)


@dataclass(frozen=True, slots=True)
class Failure:
    """Why the last attempt failed: Stripe's codes, and a sentence of this service."""

    code: str
    decline_code: str
    message: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Payment:
    """A payment. Amounts are minor units of ``currency``, times are UTC."""

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
    #: What the card was charged: ``held + captured + refunded_from_escrow + lost_held``, or 0.
    charged: int = 0
    #: What the expert and the commission got, and what of that was refunded to the client.
    captured: int = 0
    refunded_after_capture: int = 0
    #: Refunded to the client out of escrow, after the card was charged.
    refunded_from_escrow: int = 0
    #: A final capture has paid the expert: what is still held is refunded to the client.
    remainder_to_client: bool = False
    #: What lost disputes took out of escrow, and out of what was captured.
    lost_held: int = 0
    lost: int = 0
    #: What disputes and fraud warnings forbid now, and the id of the one that does.
    frozen: Freeze = Freeze.NONE
    frozen_by: str = ""
    #: The newest early fraud warning that is actionable.
    fraud_warning_id: str = ""
    #: Radar's manual review of the charge, while it is open.
    review_id: str = ""
    #: What the open capture keeps back to pay the expert's debt.
    debt_offset: int = 0
    #: The platform's commission in ``net``.
    net_commission: int = 0
    #: What failed refunds returned to the platform: payable to the client.
    client_payable: int = 0
    #: What a refund that waits for the platform's balance has to pay to the client. It is counted
    #: as refunded already.
    pending_refund: int = 0
    #: Stripe's own fee; None until Stripe shows its balance transaction.
    processor_fee: int | None = None
    payment_intent_id: str = ""
    charge_id: str = ""
    transfer_id: str = ""
    #: The open operation at Stripe; at most one.
    operation_id: str = ""
    waiting_for: WaitingFor = WaitingFor.NOTHING
    #: Why it waits, if it waits for the expert or for the platform's balance.
    waiting_reason: WaitingReason = WaitingReason.NOTHING
    failure: Failure | None = None
    version: int = 0
    create_time: datetime
    update_time: datetime
    escrow_time: datetime | None = None
    capture_time: datetime | None = None
    #: When the hold ends by itself: the card's ``capture_before``, or the holding limit.
    escrow_expire_time: datetime | None = None
    #: When the gig ends, by the caller's request.
    release_due_time: datetime | None = None
    #: The latest deadline with a warning, and when a deadline last caused an action.
    warn_time: datetime | None = None
    deadline_time: datetime | None = None
    payment_expire_time: datetime

    @property
    def net(self) -> int:
        """What the commission and the expert have of it now."""
        return self.captured - self.refunded_after_capture - self.lost

    @property
    def net_expert(self) -> int:
        return self.net - self.net_commission

    @property
    def is_separate(self) -> bool:
        return self.charge_model is ChargeModel.SEPARATE

    @property
    def resting_state(self) -> State:
        """The state of a charged payment while no operation is open."""
        if self.held:
            return State.IN_ESCROW
        return State.CAPTURED if self.net > 0 else State.REFUNDED

    @property
    def waits_for_funds(self) -> bool:
        """Whether the platform's available balance is too low for the open operation."""
        return self.waiting_reason in WAITS_FOR_FUNDS

    @property
    def book(self) -> Book:
        return Book(self.payment_id, self.expert_id, self.currency)

    def money(self, minor_units: int) -> Money:
        return Money(minor_units, self.currency)
