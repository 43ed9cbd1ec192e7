"""Operations: durable intents to change something at Stripe, and what came of them.

An operation is committed *before* Stripe is called, with the idempotency key that Stripe will see,
and closed *afterwards*. The process may stop in between. The recovery job then reads Stripe first
and sends again only what Stripe does not have.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias, TypeVar

from payment_service.domain.ledger import CaptureSplit
from payment_service.domain.operation_payloads import (
    AcceptancePayload,
    CancelPayload,
    CapturePayload,
    CollectionPayload,
    CreateAccountPayload,
    CreateIntentPayload,
    EvidencePayload,
    OperationPayload,
    RefundPayload,
    ReversalPayload,
    TransferPayload,
)

#: Stripe's rule: an idempotency key is forgotten once it is 24 hours old, and the same key is then
#: a *new* request. We stop an hour earlier.
RESEND_LIMIT: Final = timedelta(hours=23)

P = TypeVar("P", bound=OperationPayload)


class OperationKind(StrEnum):
    """The request that an operation sends to Stripe."""

    CREATE_INTENT = "create_intent"
    CAPTURE = "capture"
    CANCEL = "cancel"
    REFUND = "refund"
    PROMOTE = "promote"
    TRANSFER = "transfer"
    REVERSE_TRANSFER = "reverse_transfer"
    COLLECT_DEBT = "collect_debt"
    CREATE_ACCOUNT = "create_account"
    SUBMIT_EVIDENCE = "submit_evidence"
    ACCEPT_DISPUTE = "accept_dispute"


PAYLOAD_TYPES: Final[Mapping[OperationKind, type[OperationPayload]]] = {
    OperationKind.CREATE_INTENT: CreateIntentPayload,
    OperationKind.CAPTURE: CapturePayload,
    OperationKind.PROMOTE: CapturePayload,
    OperationKind.CANCEL: CancelPayload,
    OperationKind.REFUND: RefundPayload,
    OperationKind.TRANSFER: TransferPayload,
    OperationKind.REVERSE_TRANSFER: ReversalPayload,
    OperationKind.COLLECT_DEBT: CollectionPayload,
    OperationKind.CREATE_ACCOUNT: CreateAccountPayload,
    OperationKind.SUBMIT_EVIDENCE: EvidencePayload,
    OperationKind.ACCEPT_DISPUTE: AcceptancePayload,
}


class OperationPurpose(StrEnum):
    """Why an operation exists. The operations that follow from it have the same purpose."""

    #: A caller asked for it.
    REQUESTED = "REQUESTED"
    #: The payment's deadline, or its payment window, has passed.
    DEADLINE = "DEADLINE"
    #: A refund of what a final capture left in escrow.
    REMAINDER = "REMAINDER"
    #: A refund that pays the client again, after an earlier refund failed.
    REPAYMENT = "REPAYMENT"
    #: A reversal that takes back from the expert what a lost dispute cost.
    LOSS = "LOSS"
    #: A reversal that takes from the expert what the expert owes.
    DEBT = "DEBT"


#: Answers to a dispute: they belong to the dispute and leave the payment's own operation alone.
OF_A_DISPUTE: Final = frozenset({OperationKind.SUBMIT_EVIDENCE, OperationKind.ACCEPT_DISPUTE})


class OperationState(StrEnum):
    STARTED = "STARTED"  # Left by the call that holds the lease, a webhook, or the recovery job.
    UNKNOWN = "UNKNOWN"  # Left by a webhook or the recovery job.
    PARKED = "PARKED"  # Left by an operator's ResumeOperation, or a webhook.
    SUCCEEDED = "SUCCEEDED"
    REFUSED = "REFUSED"


OPEN_STATES: Final = frozenset(
    {OperationState.STARTED, OperationState.UNKNOWN, OperationState.PARKED}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How an operation is released to be tried again. Durations are seconds.

    After too many tries it is parked instead, unless the try does not count.
    """

    why: str
    after: float
    #: The last request may have reached Stripe: the state becomes UNKNOWN, and else STARTED.
    may_be_sent: bool = True
    #: Whether the try counts. One that an outage prevented does not.
    counts: bool = True
    #: Stripe has stored an error under the present key and would repeat it for 24 hours.
    spent_key: bool = False
    #: The next request goes out under a new key.
    new_key: bool = False
    #: Stripe has answered that it comes later: the tries before do not count any more.
    answered: bool = False


@dataclass(frozen=True, slots=True)
class Park:
    """How an operation is released to an operator, who resumes or abandons it."""

    why: str
    #: For how many seconds a request may still take effect unseen; None if none can.
    may_arrive_for: float | None = None
    #: What Stripe said, for operators; never part of an event.
    said: str = ""


Release: TypeAlias = Retry | Park


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One change at Stripe. ``minor_units`` is the amount, in the payment's currency."""

    operation_id: str
    kind: OperationKind
    purpose: OperationPurpose = OperationPurpose.REQUESTED
    #: Its subject is exactly one of the three.
    payment_id: str = ""
    expert_id: str = ""
    dispute_id: str = ""
    payload: OperationPayload
    minor_units: int = 0
    #: The idempotency claim of the caller who waits for it; empty for what the service does itself.
    claim_id: str = ""
    state: OperationState = OperationState.STARTED
    #: Counts the *requests* that Stripe can tell apart; each has an idempotency key of its own.
    attempt: int = 1
    #: Counts how often it was sent, or searched for at Stripe, without a definite result.
    tries: int = 0
    #: Stripe keeps an error under the present key: only a new key can succeed.
    key_spent: bool = False
    #: The payment is frozen by a dispute: it may be searched for at Stripe, and must not be sent.
    verify_only: bool = False
    last_error: str = ""
    create_time: datetime
    #: When the present key was first used; the 23 hours count from here.
    attempt_time: datetime
    #: Until then only the holder of the token may work on it.
    lease_until: datetime | None = None
    lease_token: str = ""
    next_try_time: datetime | None = None
    #: If it is parked: a request may still take effect until then, whatever Stripe shows now.
    #: None where Stripe has answered every request, or has received none.
    unsure_until: datetime | None = None
    #: The monotonic clock of the process that took the lease, a moment before it did; seconds.
    #: Never stored; None for a process that only reads the operation.
    held_since: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not isinstance(self.payload, PAYLOAD_TYPES[self.kind]):
            given = type(self.payload).__name__
            raise TypeError(f"{self.operation_id} is a {self.kind} and cannot carry a {given}")

    def payload_as(self, type_: type[P]) -> P:
        """Returns the payload as this type. Raises TypeError for another kind of operation."""
        if not isinstance(self.payload, type_):
            raise TypeError(f"{self.operation_id} is a {self.kind} and has no {type_.__name__}")
        return self.payload

    @property
    def stripe_key(self) -> str:
        """The idempotency key that Stripe sees: the same for each try, new for each attempt."""
        return f"{self.operation_id}-{self.attempt}"

    @property
    def capture_split(self) -> CaptureSplit:
        """How the amount of a TRANSFER divides. Raises TypeError for another kind."""
        transfer = self.payload_as(TransferPayload)
        return CaptureSplit(self.minor_units, transfer.commission, transfer.debt_offset)

    @property
    def sends_nothing(self) -> bool:
        """Whether it is a transfer of an amount that is all commission."""
        return self.kind is OperationKind.TRANSFER and not self.capture_split.sent

    @property
    def related_payment_id(self) -> str:
        """The payment that it concerns, whatever its subject is; empty for an account."""
        if isinstance(self.payload, EvidencePayload | AcceptancePayload | CollectionPayload):
            return self.payload.payment_id
        return self.payment_id

    @property
    def is_repayment(self) -> bool:
        """Whether it pays the client again after a failed refund."""
        return self.purpose is OperationPurpose.REPAYMENT

    @property
    def returns_remainder(self) -> bool:
        """Whether it refunds what a final capture left in escrow: the expert is paid by now."""
        return self.kind is OperationKind.REFUND and self.purpose is OperationPurpose.REMAINDER

    @property
    def fails_its_call(self) -> bool:
        """Whether it was refused, and its call with it: no other part of the call was done."""
        after_success = self.returns_remainder or self.kind is OperationKind.REVERSE_TRANSFER
        return self.state is OperationState.REFUSED and not after_success

    @property
    def pays_expert(self) -> bool:
        """Whether it pays the expert, now or by the transfer that follows from it."""
        return self.kind in (OperationKind.CAPTURE, OperationKind.TRANSFER)

    @property
    def waits_for_freeze(self) -> bool:
        """Whether it is not sent while the payment is frozen: it pays the expert or charges."""
        return self.pays_expert or self.kind is OperationKind.PROMOTE

    @property
    def amount_to_capture(self) -> int:
        """What a capture takes out of escrow, before commission; minor units.

        A SEPARATE card hold may be charged with more, which then stays in escrow.
        """
        capture = self.payload
        if isinstance(capture, CapturePayload) and capture.transfer is not None:
            return capture.transfer_amount
        return self.minor_units

    def is_held_by(self, holder: Operation) -> bool:
        """Fencing: whether ``holder`` still has the lease, and so may change the operation."""
        return self.is_open and self.lease_token == holder.lease_token

    def is_surely_held(self, clock: float, lease: float) -> bool:
        """Whether a lease of ``lease`` seconds cannot have ended yet, by its holder's own clock."""
        return self.held_since is not None and clock - self.held_since < lease

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    def is_without_effect(self, now: datetime) -> bool:
        """Whether it can have no effect any more if Stripe shows none *now*.

        A parked operation is never sent, and it is resumed only under the payment's lock.
        """
        parked = self.state is OperationState.PARKED
        return parked and (self.unsure_until is None or self.unsure_until <= now)

    def may_resend(self, now: datetime) -> bool:
        """Whether the same key still means the same request at Stripe."""
        return now - self.attempt_time < RESEND_LIMIT
