"""The records that cross the ports: causes, answers, filters, stored rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Final, ParamSpec, Protocol, TypeAlias

from payment_service.domain.adjustments import Adjustment
from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import Refusal
from payment_service.domain.experts import Expert
from payment_service.domain.ledger import Posting
from payment_service.domain.money import Money
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payment import Payment, State, WaitingFor, WaitingReason
from payment_service.domain.schedule import Schedule
from payment_service.domain.sync.changes import Discrepancy, Movement
from payment_service.domain.texts import KeptText

P = ParamSpec("P")


@dataclass(frozen=True, slots=True)
class Cause:
    """Who or what makes a change, for whom and why; written into the audit trail."""

    caller: str
    rpc: str
    request_id: str = ""
    #: The user for whom the caller acts: it reaches only what is that user's. "" means that it acts
    #: for itself and reaches everything.
    act_for: str = ""


class UserKind(StrEnum):
    """Whose data is erased."""

    CLIENT = "CLIENT"
    EXPERT = "EXPERT"


class JobKind(StrEnum):
    """What a background job does with payments or experts, one by one. Each job has a pause of its
    own for a payment, stored under this name.
    """

    ACT_ON_DEADLINES = "act_on_deadlines"
    WARN_OF_DEADLINES = "warn_of_deadlines"
    EXPIRE_UNPAID = "expire_unpaid"
    SYNC_EXPIRED_AUTHORIZATIONS = "sync_expired_authorizations"
    UPDATE_WAITING_REASONS = "update_waiting_reasons"
    RETRY_WAITING_CAPTURES = "retry_waiting_captures"
    WRITE_OFF_LOST_DISPUTES = "write_off_lost_disputes"
    COLLECT_DEBTS = "collect_debts"
    POLL_STALE_PAYMENTS = "poll_stale_payments"
    CHECK_ACCOUNTS = "check_accounts"
    RECONCILE = "reconcile"


@dataclass(frozen=True, slots=True)
class DebtCheck:
    """The turn of one replica to collect what an expert owes."""

    expert_id: str
    #: When the turn passes to another replica, unless this one has ended it before.
    leased_until: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """A caller's answer, as the bytes on the wire: a response, or a ``google.rpc.Status``."""

    ok: bool
    body: bytes


#: The answers that a transaction has stored, by their claims.
StoredAnswers: TypeAlias = Mapping[str, Answer]


class Answers(Protocol):
    """Turns outcomes into bytes, so that a repeated key gets the same ones for ever."""

    def response(self, rpc: str, payment: Payment) -> Answer: ...
    def written_off(self, expert_id: str, part: Money, debt: Money) -> Answer: ...
    def write_off_proposed(
        self, expert_id: str, debt: Money, adjustment: Adjustment | None
    ) -> Answer: ...
    def adjustment(self, rpc: str, adjustment: Adjustment, now: datetime) -> Answer: ...
    def client_payable_settled(self, payment: Payment, part: int) -> Answer: ...
    def account_replaced(self, expert: Expert) -> Answer: ...
    def dispute_response(self, rpc: str, dispute: Dispute) -> Answer: ...
    def refusal(self, refusal: Refusal) -> Answer: ...


@dataclass(frozen=True, slots=True)
class Claim:
    """A caller's idempotency key, held by one operation."""

    claim_id: str
    rpc: str
    #: This transaction made it: the work is ours.
    fresh: bool
    answer: Answer | None = None
    operation_id: str = ""
    payment_id: str = ""


@dataclass(frozen=True, slots=True)
class StripeBinding:
    """The platform's account at Stripe that a database's books are of, and its mode."""

    stripe_account_id: str
    livemode: bool

    def __str__(self) -> str:
        return f"{self.stripe_account_id} in {'live' if self.livemode else 'test'} mode"


@dataclass(frozen=True, slots=True)
class WebhookEvent:
    """A webhook event as stored: its envelope, never its object (which may hold a secret)."""

    event_id: str
    endpoint: str
    type: str
    object_id: str
    account_id: str
    payment_intent_id: str
    #: By which the payment is found: our ``pay_…``, or Stripe's ``pi_…``, ``ch_…``, ``tr_…``.
    payment_ref: str
    payload_sha256: bytes
    create_time: datetime
    state: str = "WAITING"
    verdict: str = ""
    attempts: int = 0
    last_error: str = ""
    receive_time: datetime | None = None
    next_try_time: datetime | None = None
    #: The idempotency key of the request that caused it; empty for others. It is not stored.
    request_key: str = ""
    #: The same key, if the request was of an operation of ours and the event tells nothing but what
    #: such a request does. It is known once the operation has succeeded.
    own_key: str = ""
    #: The span that stored it, so that applying it is linked to the delivery; "" without a trace.
    traceparent: str = ""

    @property
    def list_name(self) -> str:
        """In which of Stripe's lists it is: ``platform``, ``connect`` or ``thin``."""
        return "thin" if self.type.startswith("v2.") else self.endpoint


@dataclass(frozen=True, slots=True)
class ListedEvents:
    """What a read of a list of Stripe's events has shown, oldest first."""

    events: Sequence[WebhookEvent]
    #: Only the end of a list says that there is nothing newer.
    has_more: bool = False


@dataclass(frozen=True, slots=True)
class StoredEvents:
    """What became of webhook events that were to be stored."""

    #: Those that were not stored before.
    new_ids: frozenset[str] = frozenset()
    #: Whether some of them are to be applied soon, and some after the call that has caused them.
    has_due: bool = False
    has_expected: bool = False


@dataclass(frozen=True, slots=True)
class Agenda:
    """Which background jobs have work that is due, by the jobs' names, and the feed's head."""

    due: frozenset[str]
    feed_head: int


@dataclass(frozen=True, slots=True)
class EventCursor:
    """Whose list of events is read: the platform's (scope ``platform``) or an account's.

    The scope ``thin`` is the one list of thin events, which are about accounts.
    """

    scope: str
    seen_until: datetime
    #: The last event that was read and is old enough for none to appear before it any more.
    after_event_id: str
    #: The database's time at which the list became due for its reader, before it was read.
    lease_time: datetime

    @property
    def stripe_account_id(self) -> str:
        return "" if self.scope == "platform" else self.scope

    @property
    def is_thin(self) -> bool:
        return self.scope == "thin"

    @property
    def list_name(self) -> str:
        """As ``WebhookEvent.list_name``: one name for the lists of all connected accounts."""
        return self.scope if self.scope in ("platform", "thin") else "connect"


@dataclass(frozen=True, slots=True)
class PaymentFilter:
    """Which payments ListPayments shows. ``before`` is the keyset of the former page's last row."""

    user_id: str
    #: Only those that this user is a party to; empty means any.
    of_user: str = ""
    as_client: bool = True
    as_expert: bool = True
    states: tuple[State, ...] = ()
    gig_id: str = ""
    min_create_time: datetime | None = None
    max_create_time: datetime | None = None
    #: In escrow, with a deadline before then.
    max_deadline_time: datetime | None = None
    before: tuple[datetime, str] | None = None


@dataclass(frozen=True, slots=True)
class DisputeFilter:
    """Which disputes ListDisputes shows; empty means any."""

    payment_id: str = ""
    expert_id: str = ""
    #: Only those of payments that this user is a party to.
    of_user: str = ""
    open_only: bool = False
    before: tuple[datetime, str] | None = None


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """One line of a payment's audit trail, with the bytes as stored."""

    payment_id: str
    sequence: int
    kind: str
    time: datetime
    body: str
    hash: bytes
    #: The texts that are kept beside it, by the names of their facts.
    texts: Mapping[str, str] = field(default_factory=dict)


#: How much of an event's hash a mark carries: enough to tell another feed's event at its place.
CURSOR_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class FeedCursor:
    """A place in the feed: a position, and how the hash of its event begins."""

    position: int
    digest: bytes


#: Before the first event.
BEGINNING: Final = FeedCursor(0, b"")


@dataclass(frozen=True, slots=True)
class FeedEvent:
    """An event and its position in the feed of all payments' events."""

    position: int
    event: StoredEvent

    @property
    def mark(self) -> FeedCursor:
        return FeedCursor(self.position, self.event.hash[:CURSOR_BYTES])


@dataclass(frozen=True, slots=True)
class StoredPosting:
    """A posting as stored. ``transaction_id`` joins the lines that sum to zero."""

    posting_id: int
    transaction_id: str
    payment_id: str
    posting: Posting
    time: datetime


@dataclass(frozen=True, slots=True)
class Trail:
    """Everything that is stored of a payment, as of one moment."""

    payment: Payment
    schedule: Schedule
    head_hash: bytes
    #: By sequence.
    events: Sequence[StoredEvent]
    #: Each with the sequence of its event, and its time.
    postings: Sequence[tuple[int, datetime, Posting]]
    movements: Sequence[Movement]
    #: Each with the sequence of its event.
    texts: Sequence[tuple[int, KeptText]] = ()

    @property
    def payment_id(self) -> str:
        return self.payment.payment_id

    @property
    def update_time(self) -> datetime:
        return self.payment.update_time


@dataclass(frozen=True, slots=True)
class ListedOperation:
    """An operation with what it waits for, as operators see it."""

    operation: Operation
    #: Why a parked operation waits for the expert's account; empty if it does not.
    waiting_reason: WaitingReason = WaitingReason.NOTHING

    @property
    def waiting_for(self) -> WaitingFor:
        if not self.operation.is_open:
            return WaitingFor.NOTHING
        if self.operation.state is not OperationState.PARKED:
            return WaitingFor.PROCESSOR
        return WaitingFor.EXPERT if self.waiting_reason else WaitingFor.OPERATOR


@dataclass(frozen=True, slots=True)
class StoredDiscrepancy:
    """A discrepancy as stored. Its id is ``disc_`` and a number."""

    discrepancy_id: str
    discrepancy: Discrepancy
    time: datetime
    last_seen_time: datetime
    resolve_time: datetime | None
    #: The operator who resolved it and the reason; empty if it was no longer found.
    resolved_by: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class HeldMoney:
    """Minor units in escrow whose first deadline is less than that many hours away."""

    currency: str
    mode: str
    #: An upper bound, or ``more``.
    hours_left: str
    minor_units: int


@dataclass(frozen=True, slots=True)
class Backlog:
    """How much of one thing waits in one state, and how old the oldest is, in seconds."""

    what: str
    state: str
    count: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class MoneyAtRisk:
    """Money of one currency that may be lost or is owed."""

    what: str
    currency: str
    minor_units: int


@dataclass(frozen=True, slots=True)
class OpenDiscrepancies:
    """How many discrepancies of a kind are open, and how old the oldest is, in seconds."""

    kind: str
    count: int
    oldest_seconds: float


@dataclass(frozen=True, slots=True)
class LedgerAccount:
    """One of the ledger's ``stripe:*`` accounts, and the accounts at Stripe that it stands for."""

    account: str
    #: Those that Stripe shows us; "" is the platform's own.
    stripe_account_ids: tuple[str, ...]
    #: Up to then the ledger may have lines of one that Stripe shows no more; None if there is none.
    unread_time: datetime | None = None
    #: Up to when it is compared with Stripe, if that is less than all others; else None.
    compared_until: datetime | None = None
