"""What the use cases need from outside: a database, Stripe, an encoder of answers.

Two rules are in the types. A *phase* is a plain function that gets a :class:`Transaction`; it
cannot await, so no transaction can be open across a call to Stripe. A mutation at Stripe answers
with an :data:`Outcome`, a value: only Stripe's definite word is ``Done`` or ``Refused``, everything
else is ``Unknown``, which is never taken for a failure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Concatenate, Final, Generic, ParamSpec, Protocol, TypeAlias, TypeVar

from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import Refusal
from payment_service.domain.escrow import Payment, State, Transition
from payment_service.domain.experts import Account, BusinessType, Expert
from payment_service.domain.followed import Discrepancy, Movement
from payment_service.domain.ledger import Posting
from payment_service.domain.money import Money
from payment_service.domain.observation import (
    FraudWarning,
    Observation,
    Refund,
    Reversal,
    ShownDispute,
    Transfer,
)
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payouts import (
    AccountBalance,
    Payout,
    PayoutChange,
    PayoutState,
    SeenPayout,
)
from payment_service.domain.plans import Reversible

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
P = ParamSpec("P")

# ---- who asks ----


@dataclass(frozen=True, slots=True)
class Cause:
    """Who or what makes a change; written into the audit trail."""

    caller: str
    rpc: str
    request_id: str = ""


class Work(StrEnum):
    """What a loop does to payments, one by one. A payment has its turns in each apart."""

    DEADLINES = "deadlines"
    WARNINGS = "warnings"
    PAYMENT_WINDOW = "payment_window"
    LAPSED_HOLDS = "lapsed_holds"
    WAITING_REASONS = "waiting_reasons"
    WAITING_CAPTURES = "waiting_captures"
    LOST_DISPUTES = "lost_disputes"
    QUIET_PAYMENTS = "quiet_payments"
    RECONCILIATION = "reconciliation"


# ---- Stripe ----


@dataclass(frozen=True, slots=True)
class Done(Generic[T_co]):
    """Stripe did it, and this is what it shows."""

    value: T_co


@dataclass(frozen=True, slots=True)
class Refused:
    """Stripe's final no (400, 402): the same request will never succeed."""

    code: str
    decline_code: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True)
class NotSent:
    """Certainly without effect: rate limit, a lock at Stripe, or no connection at all."""

    why: str
    rate_limited: bool = False


@dataclass(frozen=True, slots=True)
class Unknown:
    """A timeout, a reset, a 5xx, a body that cannot be read: Stripe may have acted."""

    why: str
    #: Stripe replayed a stored error: the same key will give it again for 24 hours.
    replayed: bool = False


@dataclass(frozen=True, slots=True)
class Misconfigured:
    """401, 403, our own id unknown, our own key mismatched: a human must look."""

    code: str
    request_id: str = ""


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


class StripePort(Protocol):
    """Stripe. Mutations take a stored idempotency key and never raise for what Stripe answers.

    Reads return None for what Stripe does not know, and raise :class:`Unavailable` otherwise.
    """

    @property
    def is_away(self) -> bool:
        """Stripe has not answered lately: a call would be refused at once, unsent."""

    async def create_intent(self, key: str, new: NewIntent) -> Outcome[Observation]: ...
    async def capture(
        self,
        key: str,
        payment_intent_id: str,
        minor_units: int,
        application_fee: int | None,
        metadata: Mapping[str, str],
    ) -> Outcome[Observation]: ...
    async def cancel(self, key: str, payment_intent_id: str) -> Outcome[Observation]: ...
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
    ) -> Outcome[ShownDispute]: ...
    async def accept_dispute(self, key: str, dispute_id: str) -> Outcome[ShownDispute]: ...

    async def observe(self, payment_intent_id: str) -> Observation | None: ...
    async def find_intent(self, operation_id: str, created: datetime) -> Observation | None: ...
    async def fraud_warnings(self, payment_intent_id: str) -> Sequence[FraudWarning]: ...
    async def client_secret(self, payment_intent_id: str) -> str: ...
    async def account(self, stripe_account_id: str) -> Account | None: ...
    async def find_account(self, operation_id: str, created: datetime) -> Account | None: ...
    async def payout(self, stripe_account_id: str, payout_id: str) -> SeenPayout | None: ...
    async def account_balance(self, stripe_account_id: str) -> Sequence[AccountBalance] | None:
        """An account's balance; the platform's own for an empty id."""

    async def platform_pays_out_by_hand(self) -> bool: ...
    async def balance_entries(
        self, stripe_account_id: str, since: datetime
    ) -> Sequence[BalanceEntry] | None:
        """None if the expert has cut the account off."""

    async def events(
        self, stripe_account_id: str, after_event_id: str, since: datetime
    ) -> Sequence[InboxEvent]: ...
    async def onboarding_link(
        self, stripe_account_id: str, refresh_url: str, return_url: str
    ) -> str: ...
    async def dashboard_link(self, stripe_account_id: str) -> str: ...


# ---- answers ----


@dataclass(frozen=True, slots=True)
class Answer:
    """What a caller was told, as the bytes on the wire: a response, or a ``google.rpc.Status``."""

    ok: bool
    body: bytes


class Answers(Protocol):
    """Turns outcomes into bytes, so that a repeated key gets the same ones for ever."""

    def response(self, rpc: str, payment: Payment) -> Answer: ...
    def written_off(self, expert_id: str, part: Money, debt: Money) -> Answer: ...
    def owed_settled(self, payment: Payment, part: int) -> Answer: ...
    def account_replaced(self, expert: Expert) -> Answer: ...
    def dispute_response(self, rpc: str, dispute: Dispute) -> Answer: ...
    def refusal(self, refusal: Refusal) -> Answer: ...


# ---- the database ----


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
class InboxEvent:
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


@dataclass(frozen=True, slots=True)
class Watch:
    """Whose list of events is read: the platform's (scope ``platform``) or an account's."""

    scope: str
    seen_until: datetime
    #: The last event that was read and is old enough for none to appear before it any more.
    after_event_id: str = ""

    @property
    def stripe_account_id(self) -> str:
        return "" if self.scope == "platform" else self.scope


@dataclass(frozen=True, slots=True)
class PaymentFilter:
    """Which payments ListPayments shows. ``before`` is the keyset of the former page's last row."""

    user_id: str
    as_client: bool = True
    as_expert: bool = True
    states: tuple[State, ...] = ()
    gig_id: str = ""
    create_time_from: datetime | None = None
    create_time_until: datetime | None = None
    #: In escrow, with a deadline before then.
    deadline_until: datetime | None = None
    before: tuple[datetime, str] | None = None


@dataclass(frozen=True, slots=True)
class DisputeFilter:
    """Which disputes ListDisputes shows; empty means any."""

    payment_id: str = ""
    expert_id: str = ""
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


#: How much of an event's hash a mark carries: enough to tell another feed's event at its place.
MARK_BYTES: Final = 8


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in the feed: a position, and how the hash of its event begins."""

    position: int
    digest: bytes


#: Before the first event.
BEGINNING: Final = Mark(0, b"")


@dataclass(frozen=True, slots=True)
class FedEvent:
    """An event and its position in the feed of all payments' events."""

    position: int
    event: StoredEvent

    @property
    def mark(self) -> Mark:
        return Mark(self.position, self.event.hash[:MARK_BYTES])


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
    head_hash: bytes
    #: By sequence.
    events: Sequence[StoredEvent]
    #: Each with the sequence of its event, and its time.
    postings: Sequence[tuple[int, datetime, Posting]]
    movements: Sequence[Movement]


@dataclass(frozen=True, slots=True)
class StoredDiscrepancy:
    discrepancy_id: int
    discrepancy: Discrepancy
    time: datetime
    last_seen_time: datetime
    resolve_time: datetime | None
    #: Who decided it and what they found; empty if it was seen to be gone.
    resolved_by: str = ""
    note: str = ""


@dataclass(frozen=True, slots=True)
class BalanceEntry:
    """One of Stripe's balance transactions of one account, as it counts: signed and net."""

    balance_transaction_id: str
    currency: str
    net: int
    type: str
    #: By which the payment is found (see InboxEvent); empty where there is none.
    payment_ref: str
    create_time: datetime

    @property
    def payout_id(self) -> str:
        """The payout that it belongs to; empty if it is none's."""
        return self.payment_ref if self.payment_ref.startswith("po_") else ""


@dataclass(frozen=True, slots=True)
class HeldMoney:
    """Minor units in escrow whose first deadline is fewer than so many hours away."""

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
class LedgerAccount:
    """One of the ledger's ``stripe:*`` accounts, and the accounts at Stripe that it stands for."""

    account: str
    #: Those that Stripe shows us; "" is the platform's own.
    stripe_account_ids: tuple[str, ...]
    #: Up to then the ledger may have lines of one that Stripe shows no more; None if there is none.
    unread_time: datetime | None = None


class Transaction(Protocol):
    """One transaction: it commits when the phase returns and rolls back when it raises."""

    @property
    def now(self) -> datetime:
        """The database's time (UTC), the same for the whole transaction."""

    @property
    def clock(self) -> float:
        """This process's own clock (``Database.clock``) as it was before the transaction began."""

    def new_id(self, prefix: str) -> str: ...

    # the caller's keys
    def claim(self, cause: Cause, key: str, fields: Mapping[str, str]) -> Claim: ...
    def bind_claim(self, claim_id: str, payment_id: str, operation_id: str) -> None: ...
    def settle_claim(self, claim_id: str, answer: Answer) -> None: ...
    def claim_rpc(self, claim_id: str) -> str: ...

    # payments: `record` is the one door
    def lock_payment(self, payment_id: str) -> Payment | None: ...
    def record(self, transition: Transition, cause: Cause) -> None: ...
    def known_movements(self, payment_id: str) -> frozenset[str]: ...
    def made_by_hand_since(self, operation: Operation) -> Mapping[str, str]: ...
    def add_movement(self, payment_id: str, movement: Movement) -> None: ...
    def reversible_transfers(self, payment_id: str) -> Sequence[Reversible]: ...
    def post_for_expert(
        self,
        expert: Expert,
        kind: str,
        facts: Mapping[str, object],
        postings: Sequence[Posting],
        now: datetime,
        cause: Cause,
    ) -> None: ...
    def expert_debt(self, expert_id: str, currency: str) -> int: ...
    def payments_at_deadline(self, margin: float, again: float, limit: int) -> Sequence[str]: ...
    def take_turn(self, work: Work, payment_id: str, first: float, most: float) -> bool: ...
    def report(self, discrepancy: Discrepancy) -> None: ...
    def resolve_discrepancies(self, ids: Sequence[int], unseen_since: datetime) -> None: ...
    def lock_discrepancy(self, discrepancy_id: int) -> StoredDiscrepancy | None: ...
    def decide_discrepancy(self, discrepancy_id: int, resolved_by: str, note: str) -> None: ...
    def lease_job(self, name: str, seconds: float) -> bool: ...

    # disputes: whoever holds the payment's lock
    def dispute(self, dispute_id: str) -> Dispute | None: ...
    def disputes_of(self, payment_id: str) -> Sequence[Dispute]: ...
    def save_dispute(self, dispute: Dispute) -> None: ...

    # operations
    def add_operation(self, operation: Operation) -> None: ...
    def operation(self, operation_id: str) -> Operation | None: ...
    def lease_operation(self, operation_id: str, seconds: float) -> Operation | None: ...
    def lease_due_operations(self, seconds: float, limit: int) -> Sequence[Operation]: ...
    def renew_lease(
        self, operation_id: str, lease_token: str, seconds: float
    ) -> datetime | None: ...
    def unpark_operation(
        self, operation_id: str, params: Mapping[str, object], *, next_attempt: bool
    ) -> None: ...
    def settle_operation(
        self, operation_id: str, state: OperationState, last_error: str = ""
    ) -> None: ...
    def postpone_operation(
        self,
        operation: Operation,
        state: OperationState,
        last_error: str,
        seconds: float | None,
        *,
        next_attempt: bool = False,
        params: Mapping[str, object] | None = None,
        unsure_seconds: float | None = None,
    ) -> bool: ...

    # experts
    def expert(self, expert_id: str) -> Expert | None: ...
    def lock_expert(self, expert_id: str) -> Expert | None: ...
    def add_expert(self, expert: Expert, cause: Cause) -> bool: ...
    def save_expert(self, expert: Expert, kind: str, cause: Cause, **facts: str) -> None: ...
    def add_former_account(self, expert: Expert, now: datetime) -> None: ...
    def see_former_account(self, stripe_account_id: str, *, deauthorized: bool) -> bool: ...
    def payout(self, payout_id: str) -> Payout | None: ...
    def record_payout(self, change: PayoutChange, expert: Expert, cause: Cause) -> None: ...
    def add_landing_token(
        self, token_hash: bytes, expert_id: str, onward_url: str, seconds: float
    ) -> None: ...

    # what is asked for because nobody told us
    def watch_account(self, stripe_account_id: str) -> None: ...
    def lease_watches(
        self, seconds: float, limit: int, *, paid_out: bool = False
    ) -> Sequence[Watch]: ...
    def move_watch(self, scope: str, seen_until: datetime, after_event_id: str) -> None: ...
    def lease_quiet_payments(self, quiet_seconds: float, limit: int) -> Sequence[str]: ...

    # the inbox
    def store_event(self, event: InboxEvent) -> bool: ...
    def lease_inbox(self, seconds: float, limit: int) -> Sequence[InboxEvent]: ...
    def finish_event(self, event_id: str, state: str, verdict: str) -> None: ...
    def postpone_event(self, event_id: str, last_error: str, seconds: float | None) -> None: ...
    def retry_event(self, event_id: str) -> InboxEvent | None: ...

    # the feed
    def sequence_feed(self, limit: int) -> tuple[int, int] | None: ...


class Reader(Protocol):
    """Reads outside any transaction, each a single statement."""

    def payment(self, payment_id: str) -> Payment | None: ...
    def payments(self, which: PaymentFilter, limit: int) -> Sequence[Payment]: ...
    def dispute(self, dispute_id: str) -> Dispute | None: ...
    def disputes(self, which: DisputeFilter, limit: int) -> Sequence[Dispute]: ...
    def payment_of(self, reference: str) -> str | None: ...
    def expert_of_account(self, stripe_account_id: str) -> str | None: ...
    def readable_accounts(self, expert_id: str) -> Sequence[str]: ...
    def payments_near_deadline(self, ahead: float, limit: int) -> Sequence[str]: ...
    def payments_past_window(self, limit: int) -> Sequence[str]: ...
    def holds_past_expiry(self, limit: int) -> Sequence[str]: ...
    def payments_waiting_for_experts(self, limit: int) -> Sequence[tuple[str, str]]: ...
    def payments_waiting_otherwise(self, limit: int) -> Sequence[str]: ...
    def payments_with_unsettled_losses(self, limit: int) -> Sequence[str]: ...
    def expert(self, expert_id: str) -> Expert | None: ...
    def claim(self, claim_id: str) -> Claim | None: ...
    def operation(self, operation_id: str) -> Operation | None: ...
    def operations(
        self, state: OperationState | None, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Operation]: ...
    def inbox(
        self, state: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[InboxEvent]: ...
    def inbox_event(self, event_id: str) -> InboxEvent | None: ...
    def discrepancies(
        self, payment_id: str, before: int | None, limit: int, *, open_only: bool
    ) -> Sequence[StoredDiscrepancy]: ...
    def some_open_discrepancies(
        self, kinds: Sequence[str], payment_id: str, limit: int
    ) -> Sequence[StoredDiscrepancy]: ...
    def events(self, payment_id: str, after: int, limit: int) -> Sequence[StoredEvent]: ...
    def event_hash(self, payment_id: str, sequence: int) -> bytes: ...
    def feed_head(self) -> int: ...
    def feed(self, after: int, limit: int) -> Sequence[FedEvent]: ...
    def postings(self, payment_id: str) -> Sequence[StoredPosting]: ...
    def balances(
        self, prefix: str, after: tuple[str, str] | None, limit: int
    ) -> Sequence[tuple[str, str, int]]: ...
    def obligations(self) -> Sequence[tuple[str, int]]: ...
    def totals(self) -> Sequence[tuple[str, int]]: ...
    def backlog(self) -> Sequence[Backlog]: ...
    def held_money(self) -> Sequence[HeldMoney]: ...
    def payments_changed(
        self, since: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Payment]: ...
    def ledger_lines(self, ids: Sequence[str]) -> Mapping[tuple[str, str], int]: ...
    def ledger_line_ids(
        self, account: str, since: datetime, until: datetime
    ) -> Mapping[str, str]: ...
    def accounts_with_postings(self, since: datetime) -> Sequence[LedgerAccount]: ...
    def trails(
        self, since: datetime, after: tuple[datetime, str], limit: int, payment_id: str
    ) -> Sequence[Trail]: ...
    def violations(
        self, since: datetime, payment_id: str = "", names: Collection[str] = ()
    ) -> Mapping[str, Sequence[str]]: ...
    def payout(self, payout_id: str) -> Payout | None: ...
    def payouts(
        self,
        expert_id: str,
        states: Sequence[PayoutState],
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> Sequence[Payout]: ...
    def expert_balances(self, expert_id: str) -> Sequence[tuple[str, int, int]]: ...
    def landing(self, token_hash: bytes) -> tuple[str, str] | None: ...


Phase: TypeAlias = Callable[Concatenate[Transaction, P], T]


class Database(Protocol):
    """PostgreSQL, behind two small pools."""

    async def transact(
        self, phase: Callable[Concatenate[Transaction, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run a phase in one transaction. Raises :class:`Unavailable` if it cannot."""

    async def read(
        self, query: Callable[Concatenate[Reader, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Run reads on a connection of their own. Raises :class:`Unavailable` if it cannot."""

    async def listen(self, hear: Callable[[int], None]) -> None:
        """Hand on how far the feed is said to reach, until cancelled. Some words are missed."""

    def clock(self) -> float:
        """Seconds by this process's own clock, which goes on while it is stopped or asleep."""


# ---- policy ----


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """The settings that rules depend on. Durations are seconds."""

    default_commission_basis_points: int = 1000
    default_currency: str = "USD"
    default_country: str = "US"
    platform_country: str = "US"
    maximum_charge_minor_units: int = 99_999_999
    #: The currencies in which Stripe settles the platform's charges.
    settlement_currencies: frozenset[str] = frozenset({"USD"})
    publishable_key: str = ""
    gateway_public_url: str = "http://127.0.0.1:8005"
    allowed_origins: frozenset[str] = field(default_factory=frozenset)
    #: Whether an early fraud warning keeps a payment from being captured, or is only told of.
    freeze_on_fraud_warning: bool = True
    #: A gig that ends within so many seconds fits a card's authorization.
    card_hold: float = 6 * 24 * 3600.0
    #: For how long the platform may hold charged money (Stripe's limit by the platform's country).
    holding_limit: float = 90 * 24 * 3600.0
    #: How long before the hold ends by itself its deadline's action is taken.
    deadline_margin: float = 12 * 3600.0
    #: How long before a deadline a warning goes out.
    deadline_warning: float = 48 * 3600.0
    #: How long a client may take to confirm a payment.
    payment_window: float = 24 * 3600.0
    #: How soon after its holder's death an operation is taken up; renewed while the holder lives.
    lease: float = 6.0
    #: How long a repeated key waits for the first call before it is told ABORTED.
    claim_wait: float = 5.0
    #: How long a landing page's token lives.
    landing_token_life: float = 7 * 24 * 3600.0
    #: How old the knowledge about an account that is not ready may be.
    account_freshness: float = 2.0
    #: After so many tries an event is parked; an operation, which an outage can hold up through
    #: no fault of its own, after ``patience`` times as many.
    tries_before_parking: int = 30
    patience: int = 10
    #: How often the books are held against each other, and how far back.
    reconcile_seconds: float = 3600.0
    reconcile_span: float = 2 * 24 * 3600.0
    #: How often Stripe's list of the platform's events is read, and an account's.
    poll_seconds: float = 10.0
    account_poll_seconds: float = 30.0
    #: The same of an account that has nothing open, but may pay out what was earned.
    payout_poll_seconds: float = 600.0
    #: An open payment that nothing was heard of for so long is asked about, then ever more seldom.
    quiet_seconds: float = 60.0
