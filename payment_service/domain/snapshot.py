"""What Stripe shows of a payment, read at one moment: the only thing transitions believe.

An observation is the *object retrieved now*, never an event's snapshot. Only the fields that decide
something are kept. Amounts are minor units, times UTC, ids Stripe's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias

from payment_service.domain.ledger import StripeAmount

#: As of November 2026 Stripe names seven days for payments that a cardholder makes, and 4 days and
#: 18 hours for a Visa card that a merchant charges, the shortest of all networks
#: (docs.stripe.com/payments/place-a-hold-on-a-payment-method).
SHORTEST_AUTHORIZATION: Final = timedelta(days=4, hours=18)


class IntentStatus(StrEnum):
    """Stripe's statuses of a PaymentIntent. An unknown one is treated as a discrepancy."""

    REQUIRES_PAYMENT_METHOD = "requires_payment_method"
    REQUIRES_CONFIRMATION = "requires_confirmation"
    REQUIRES_ACTION = "requires_action"
    PROCESSING = "processing"
    REQUIRES_CAPTURE = "requires_capture"
    SUCCEEDED = "succeeded"
    CANCELED = "canceled"
    UNKNOWN = "unknown"


UNPAID = frozenset(
    {
        IntentStatus.REQUIRES_PAYMENT_METHOD,
        IntentStatus.REQUIRES_CONFIRMATION,
        IntentStatus.REQUIRES_ACTION,
        IntentStatus.PROCESSING,
    }
)


@dataclass(frozen=True, slots=True)
class Decline:
    """Why an attempt failed, in Stripe's codes."""

    code: str
    decline_code: str = ""


@dataclass(frozen=True, slots=True)
class BalanceTransaction:
    """One of Stripe's balance transactions, unsigned: the gross amount and Stripe's own fee."""

    balance_transaction_id: str
    currency: str
    minor_units: int
    fee: int = 0

    @property
    def settled(self) -> StripeAmount:
        return StripeAmount(self.minor_units, self.currency, self.balance_transaction_id)

    @property
    def fee_settled(self) -> StripeAmount:
        return StripeAmount(self.fee, self.currency, self.balance_transaction_id)


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund: ours, or made out of band (then without ``operation_id``)."""

    refund_id: str
    minor_units: int
    status: str
    operation_id: str = ""
    line: BalanceTransaction | None = None
    failure_line: BalanceTransaction | None = None
    #: Stripe's metadata, and when Stripe made it.
    metadata: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime | None = None

    @property
    def failed(self) -> bool:
        """Stripe's ``failed`` or ``canceled``: the money came back to the platform."""
        return self.status in ("failed", "canceled")

    @property
    def waits_for_funds(self) -> bool:
        """Stripe has accepted it, and pays it when the platform's balance covers it."""
        return self.status == "pending" and self.line is None


@dataclass(frozen=True, slots=True)
class Reversal:
    """A transfer reversal, in the transfer's currency."""

    reversal_id: str
    minor_units: int
    operation_id: str = ""
    line: BalanceTransaction | None = None
    connected_line: BalanceTransaction | None = None
    #: Stripe's status. Most reversals have none: they are done when they are made.
    status: str = ""
    #: Stripe's metadata, and when Stripe made it.
    metadata: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime | None = None

    @property
    def is_done(self) -> bool:
        return self.status in ("", "succeeded")

    @property
    def failed(self) -> bool:
        """Stripe could not take the money: it stays with the expert."""
        return self.status in ("failed", "canceled")


@dataclass(frozen=True, slots=True)
class FeeRefund:
    """An application fee returned to the connected account; always out of band."""

    fee_refund_id: str
    minor_units: int
    line: BalanceTransaction | None = None


@dataclass(frozen=True, slots=True)
class Transfer:
    """The transfer of a captured DESTINATION charge, or one that this service made."""

    transfer_id: str
    minor_units: int
    currency: str
    operation_id: str = ""
    line: BalanceTransaction | None = None
    connected_line: BalanceTransaction | None = None
    reversals: tuple[Reversal, ...] = ()
    #: The connected account that it was sent to.
    destination_account_id: str = ""
    #: Stripe's metadata, and when Stripe made it.
    metadata: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime | None = None

    def without(self, reversal_ids: Collection[str]) -> Transfer:
        """Returns the transfer without these reversals."""
        kept = tuple(one for one in self.reversals if one.reversal_id not in reversal_ids)
        return replace(self, reversals=kept)

    @property
    def left(self) -> int:
        """What no reversal takes, done or not done yet, in the transfer's currency."""
        return self.minor_units - sum(
            reversal.minor_units for reversal in self.reversals if not reversal.failed
        )


@dataclass(frozen=True, slots=True)
class ApplicationFee:
    """The fee that a captured destination charge paid to the platform."""

    fee_id: str
    minor_units: int
    line: BalanceTransaction | None = None
    refunds: tuple[FeeRefund, ...] = ()


@dataclass(frozen=True, slots=True)
class Charge:
    """The intent's latest charge."""

    charge_id: str
    captured: bool
    amount_captured: int
    capture_before: datetime | None = None
    line: BalanceTransaction | None = None
    transfer: Transfer | None = None
    #: The fee that Stripe will collect, or has; the object itself may appear a moment later.
    application_fee_amount: int = 0
    application_fee: ApplicationFee | None = None
    #: Radar's manual review of it, while that is open.
    review_id: str = ""
    create_time: datetime | None = None

    @property
    def assumed_expire_time(self) -> datetime | None:
        """When an authorization may expire that shows no ``capture_before``."""
        return None if self.create_time is None else self.create_time + SHORTEST_AUTHORIZATION


@dataclass(frozen=True, slots=True)
class DisputeTransaction:
    """A balance transaction of a dispute, signed: negative where Stripe took it from the platform.

    ``fee`` is Stripe's own beside it; positive where Stripe took one, negative where it gave one
    back.
    """

    balance_transaction_id: str
    currency: str
    minor_units: int
    fee: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DisputeSnapshot:
    """A dispute of the charge, in the charge's currency. ``status`` and ``reason`` are open."""

    dispute_id: str
    charge_id: str
    status: str
    reason: str
    minor_units: int
    due_by: datetime | None = None
    has_evidence: bool = False
    submission_count: int = 0
    #: The operation whose evidence Stripe received last; empty if it was out of band.
    operation_id: str = ""
    #: Oldest first: what was withdrawn, then what was reinstated.
    lines: tuple[DisputeTransaction, ...] = ()
    create_time: datetime


@dataclass(frozen=True, slots=True)
class FraudWarning:
    """The issuer reports the charge as fraud; ``actionable`` while a refund still prevents one."""

    warning_id: str
    fraud_type: str
    actionable: bool


@dataclass(frozen=True, slots=True)
class EmptyTransfer:
    """A transfer of an amount that is all commission: there is nothing to ask Stripe for."""

    operation_id: str


@dataclass(frozen=True, slots=True)
class NothingMade:
    """Stripe has refused the operation: no request of it is on its way any more."""

    operation_id: str


#: What a mutation made, if that is not the intent itself.
MutationResult: TypeAlias = (
    Refund | Transfer | Reversal | DisputeSnapshot | EmptyTransfer | NothingMade
)


@dataclass(frozen=True, slots=True)
class PaymentSnapshot:
    """A PaymentIntent with everything that belongs to it, as Stripe shows it now."""

    payment_intent_id: str
    status: IntentStatus
    minor_units: int
    currency: str
    amount_received: int = 0
    cancellation_reason: str = ""
    #: False if cards are off in the platform's settings at Stripe: then nobody can pay it.
    accepts_cards: bool = True
    decline: Decline | None = None
    charge: Charge | None = None
    refunds: tuple[Refund, ...] = ()
    #: The transfers of a SEPARATE charge, oldest first. A DESTINATION charge has its own one.
    separate_transfers: tuple[Transfer, ...] = ()
    #: The operation whose transfer was empty; Stripe shows nothing of it.
    empty_transfer: str = ""
    #: The operation that Stripe has just refused.
    refused_operation: str = ""
    #: Oldest first.
    disputes: tuple[DisputeSnapshot, ...] = ()
    #: Early fraud warnings, oldest first; None if they were not fetched.
    fraud_warnings: tuple[FraudWarning, ...] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    create_time: datetime | None = None
    #: It allows its holder to pay: never stored, never logged.
    client_secret: str = field(default="", repr=False)

    @property
    def expired(self) -> bool:
        """Whether Stripe itself canceled the intent, because the authorization expired."""
        return self.cancellation_reason in ("automatic", "expired")

    @property
    def transfers(self) -> tuple[Transfer, ...]:
        """All transfers to the expert, oldest first."""
        own = self.charge.transfer if self.charge else None
        return (own, *self.separate_transfers) if own else self.separate_transfers

    def without(self, object_ids: Collection[str]) -> PaymentSnapshot:
        """Returns the snapshot without these refunds, transfers and reversals."""
        if not object_ids:
            return self
        charge = self.charge
        if charge is not None and charge.transfer is not None:
            charge = replace(charge, transfer=charge.transfer.without(object_ids))
        return replace(
            self,
            charge=charge,
            refunds=tuple(one for one in self.refunds if one.refund_id not in object_ids),
            separate_transfers=tuple(
                one.without(object_ids)
                for one in self.separate_transfers
                if one.transfer_id not in object_ids
            ),
        )

    def before_capture(self) -> PaymentSnapshot:
        """Returns the snapshot as it was while the card was only authorized."""
        charge = self.charge
        if charge is not None:
            charge = replace(charge, captured=False, amount_captured=0, line=None, transfer=None)
        return replace(
            self,
            status=IntentStatus.REQUIRES_CAPTURE,
            amount_received=0,
            charge=charge,
            refunds=(),
            separate_transfers=(),
            disputes=(),
        )

    def with_answer(self, made: MutationResult | None) -> PaymentSnapshot:
        """Returns the snapshot with what Stripe has just returned, even if its lists lag behind.

        A reversal is not added: its transfer says how much was reversed, and is fetched again.
        """
        if isinstance(made, NothingMade):
            return replace(self, refused_operation=made.operation_id)
        if isinstance(made, EmptyTransfer):
            return replace(self, empty_transfer=made.operation_id)
        if isinstance(made, Refund) and made.refund_id not in {
            refund.refund_id for refund in self.refunds
        }:
            return replace(self, refunds=(*self.refunds, made))
        if isinstance(made, Transfer) and made.transfer_id not in {
            transfer.transfer_id for transfer in self.separate_transfers
        }:
            return replace(self, separate_transfers=(*self.separate_transfers, made))
        if isinstance(made, DisputeSnapshot) and made.dispute_id not in {
            dispute.dispute_id for dispute in self.disputes
        }:
            return replace(self, disputes=(*self.disputes, made))
        return self
