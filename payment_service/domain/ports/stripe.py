"""Stripe as the use cases see it.

A mutation returns an :data:`Outcome`, a value: only Stripe's definite answer is ``Done`` or
``Refused``. Everything else is ``Unknown``, which is never taken for a failure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, Protocol, TypeAlias, TypeVar

from payment_service.domain.experts import Account, BusinessType
from payment_service.domain.payouts import AccountBalance, PayoutSnapshot
from payment_service.domain.ports.records import ListedEvents, WebhookEvent
from payment_service.domain.snapshot import (
    DisputeSnapshot,
    FraudWarning,
    PaymentSnapshot,
    Refund,
    Reversal,
    Transfer,
)

T = TypeVar("T")


T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Done(Generic[T_co]):
    """Stripe did it, and this is what it shows."""

    value: T_co


#: Stripe's codes for a fault of the account that was to be paid.
_DESTINATION_CODES: Final = frozenset(
    {
        "insufficient_capabilities_for_transfer",
        "account_invalid",
        "transfers_not_allowed",
        "account_closed",
        "account_country_invalid_address",
    }
)
#: By these parameters Stripe names that account.
_DESTINATION_PARAMS: Final = frozenset(
    {"destination", "transfer_data[destination]", "on_behalf_of"}
)


@dataclass(frozen=True, slots=True)
class Refused:
    """Stripe's final no (400, 402): the same request will never succeed."""

    code: str
    decline_code: str = ""
    request_id: str = ""
    #: The parameter that Stripe names as the cause; empty if it names none.
    param: str = ""
    #: Type, parameter and message as Stripe said them, cut and masked. For operators and the log,
    #: never for callers.
    said: str = ""

    @property
    def last_error(self) -> str:
        """What the operation keeps: the code, and what Stripe said."""
        code = self.code or "refused"
        return f"{code}: {self.said}" if self.said else code

    @property
    def is_about_destination(self) -> bool:
        """Whether the account that was to be paid is at fault: gone, cut off, or not allowed.

        The expert can correct that, or get another account.
        """
        return self.code in _DESTINATION_CODES or self.param in _DESTINATION_PARAMS


@dataclass(frozen=True, slots=True)
class NotSent:
    """Certainly without effect: rate limit, a lock at Stripe, or no connection at all."""

    why: str
    rate_limited: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """A timeout, a reset, a 5xx, a body that cannot be read: Stripe may have acted."""

    why: str
    #: Stripe replayed a stored error, or has the key for another request: the same key will give
    #: the same answer for 24 hours.
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """401, 403, or an id of ours unknown to Stripe: a person must check.

    So is a platform that is not set up at Stripe for what was asked.
    """

    code: str
    request_id: str = ""
    #: As of a refusal.
    said: str = ""
    #: Whether the platform's account at Stripe lacks something that its owner can set up.
    is_not_set_up: bool = False
    #: The same key would give this answer again for a day, also when it is set up by then.
    spent_key: bool = False


Outcome: TypeAlias = Done[T] | Refused | NotSent | Unknown | Misconfigured


@dataclass(frozen=True, slots=True, kw_only=True)
class NewIntent:
    """What a PaymentIntent is created with. Cards only.

    Without ``destination_account_id`` it is a charge on the platform (SEPARATE), without a fee.
    """

    minor_units: int
    currency: str
    application_fee: int
    destination_account_id: str
    #: Authorize now and charge later; else the client's confirmation charges the card.
    manual_capture: bool
    #: Ask for an authorization that lasts longer, where the card has one.
    extended_authorization: bool
    description: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTransfer:
    """A part of a charge on the platform, to be sent to the expert's account."""

    minor_units: int
    currency: str
    destination_account_id: str
    #: Funds follow when the charge settles; no balance of the platform's is needed for it.
    charge_id: str
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class NewAccount:
    """What an Express account is created with."""

    name: str
    email: str
    country: str
    business_type: BusinessType
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class FoundAccount:
    """A connected account with its metadata."""

    account: Account
    metadata: Mapping[str, str]
    create_time: datetime


class StripePort(Protocol):
    """Stripe. Mutations take a stored idempotency key and never raise for what Stripe answers.

    Reads return None for what Stripe does not know, and raise :class:`Unavailable` otherwise.
    """

    @property
    def is_unavailable(self) -> bool:
        """Stripe has not answered lately: a call would be refused at once, unsent."""

    async def create_intent(self, key: str, new: NewIntent) -> Outcome[PaymentSnapshot]: ...
    async def capture(
        self,
        key: str,
        payment_intent_id: str,
        minor_units: int,
        application_fee: int | None,
        metadata: Mapping[str, str],
    ) -> Outcome[PaymentSnapshot]: ...
    async def cancel(self, key: str, payment_intent_id: str) -> Outcome[PaymentSnapshot]: ...
    async def refund(
        self, key: str, payment_intent_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Refund]: ...
    async def reverse_transfer(
        self, key: str, transfer_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Reversal]: ...
    async def transfer(self, key: str, new: NewTransfer) -> Outcome[Transfer]: ...
    async def create_account(self, key: str, new: NewAccount) -> Outcome[Account]: ...
    async def submit_evidence(
        self,
        key: str,
        dispute_id: str,
        evidence: Mapping[str, str],
        *,
        submit: bool,
        operation_id: str,
    ) -> Outcome[DisputeSnapshot]: ...
    async def accept_dispute(self, key: str, dispute_id: str) -> Outcome[DisputeSnapshot]: ...

    async def observe(self, payment_intent_id: str) -> PaymentSnapshot | None: ...
    async def find_intent(self, operation_id: str, created: datetime) -> PaymentSnapshot | None: ...
    async def fraud_warnings(self, payment_intent_id: str) -> Sequence[FraudWarning]: ...
    async def client_secret(self, payment_intent_id: str) -> str: ...
    async def account(self, stripe_account_id: str) -> Account | None: ...
    async def find_account(self, operation_id: str, created: datetime) -> Account | None: ...
    async def found_account(self, stripe_account_id: str) -> FoundAccount | None: ...
    async def accounts_since(self, since: datetime) -> Sequence[FoundAccount]: ...
    async def intents_since(self, since: datetime) -> Sequence[tuple[str, Mapping[str, str]]]:
        """The intents that were created since then, the oldest first, with their metadata."""

    async def payout(self, stripe_account_id: str, payout_id: str) -> PayoutSnapshot | None: ...
    async def account_balance(self, stripe_account_id: str) -> Sequence[AccountBalance] | None:
        """An account's balance; the platform's own for an empty id."""

    async def own_account_id(self) -> str: ...
    async def has_manual_payouts(self) -> bool: ...
    async def balance_entries(
        self, stripe_account_id: str, since: datetime
    ) -> Sequence[BalanceEntry] | None:
        """None if the expert has cut the account off."""

    async def balance_entry(self, stripe_account_id: str, line_id: str) -> BalanceEntry | None: ...
    async def events(
        self, stripe_account_id: str, after_event_id: str, since: datetime
    ) -> ListedEvents | None:
        """None if the expert has cut the account off; so for the links below."""

    async def thin_events(self, since: datetime) -> Sequence[WebhookEvent]: ...
    async def onboarding_link(
        self, stripe_account_id: str, refresh_url: str, return_url: str
    ) -> str | None: ...
    async def dashboard_link(self, stripe_account_id: str) -> str | None: ...


@dataclass(frozen=True, slots=True)
class BalanceEntry:
    """One of Stripe's balance transactions of one account, as it counts: signed and net."""

    balance_transaction_id: str
    currency: str
    net: int
    type: str
    #: By which the payment is found (see WebhookEvent); empty where there is none.
    payment_ref: str
    create_time: datetime
    #: Stripe's reporting category and its description.
    category: str = ""
    description: str = ""
    #: The object that moved the money; empty where there is none.
    source_id: str = ""

    @property
    def payout_id(self) -> str:
        """The payout that it belongs to; empty if it is none's."""
        return self.payment_ref if self.payment_ref.startswith("po_") else ""
