"""Durable intents to change something at Stripe, and what came of them.

An operation is committed *before* Stripe is called, with the idempotency key that Stripe will see,
and settled *after*. In between the process may die: the sweep then reads Stripe first and sends
again only what Stripe does not have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final, TypeAlias

from payment_service.domain.ledger import CaptureSplit

#: Stripe prunes idempotency keys once they are 24 hours old; after that the same key is a *new*
#: request. We stop an hour earlier.
RESEND_LIMIT: Final = timedelta(hours=23)


class OperationKind(StrEnum):
    CREATE_INTENT = "create_intent"
    CAPTURE = "capture"
    CANCEL = "cancel"
    REFUND = "refund"
    PROMOTE = "promote"
    TRANSFER = "transfer"
    REVERSE_TRANSFER = "reverse_transfer"
    CREATE_ACCOUNT = "create_account"
    SUBMIT_EVIDENCE = "submit_evidence"
    ACCEPT_DISPUTE = "accept_dispute"


#: Answers to a dispute: they hang on it and leave the payment's own operation alone.
OF_A_DISPUTE: Final = frozenset({OperationKind.SUBMIT_EVIDENCE, OperationKind.ACCEPT_DISPUTE})


class OperationState(StrEnum):
    STARTED = "STARTED"  # Left by the call that holds the lease, a webhook, or the sweep.
    UNKNOWN = "UNKNOWN"  # Left by a webhook or the sweep.
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


@dataclass(frozen=True, slots=True)
class Park:
    """How an operation is released to an operator, who resumes or abandons it."""

    why: str
    #: For how many seconds a request may still take effect unseen; None if none can.
    may_arrive_for: float | None = None


Release: TypeAlias = Retry | Park


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One mutation at Stripe. ``minor_units`` is what it asks for, in the payment's currency."""

    operation_id: str
    kind: OperationKind
    payment_id: str = ""
    expert_id: str = ""
    dispute_id: str = ""
    #: What was asked besides the amount; plain JSON values.
    params: Mapping[str, object] = field(default_factory=dict)
    minor_units: int = 0
    #: The claim (caller's key) that it answers; empty for what the service does by itself.
    claim_id: str = ""
    state: OperationState = OperationState.STARTED
    #: Counts the *requests* that Stripe may tell apart; each has a key of its own.
    attempt: int = 1
    #: Counts the times that it was sent, or looked for, in vain.
    tries: int = 0
    last_error: str = ""
    create_time: datetime
    #: When the present key was first used; the 23 hours count from here.
    attempt_time: datetime
    #: Until then its holder alone may work on it; the token tells holders apart.
    lease_until: datetime | None = None
    lease_token: str = ""
    next_try_time: datetime | None = None
    #: Of a parked one: a request may still be on its way until then, whatever Stripe shows now.
    #: None where Stripe has answered each, or has seen none.
    unsure_until: datetime | None = None
    #: By the clock of the process that took the lease, a moment before it did. Never stored; None
    #: for whoever only reads the operation.
    held_since: float | None = field(default=None, compare=False)

    @property
    def stripe_key(self) -> str:
        """The idempotency key that Stripe sees: stable over tries, new for each attempt."""
        return f"{self.operation_id}-{self.attempt}"

    @property
    def share(self) -> CaptureSplit:
        """How the part that a transfer sends on divides."""
        return CaptureSplit(self.minor_units, self.number("commission"), self.number("netted"))

    def is_held_by(self, holder: Operation) -> bool:
        """Fencing: whoever lost the lease, or came after the end, changes nothing any more."""
        return self.is_open and self.lease_token == holder.lease_token

    def is_surely_held(self, clock: float, lease: float) -> bool:
        """By its holder's own clock: the lease of so many seconds cannot have run out yet."""
        return self.held_since is not None and clock - self.held_since < lease

    @property
    def is_open(self) -> bool:
        return self.state in OPEN_STATES

    def is_without_effect(self, now: datetime) -> bool:
        """Whether nothing can come of it any more, where reading Stripe *now* shows nothing of it.

        Nobody sends what is parked, and it is resumed only under the payment's lock.
        """
        parked = self.state is OperationState.PARKED
        return parked and (self.unsure_until is None or self.unsure_until <= now)

    def may_resend(self, now: datetime) -> bool:
        """Whether the same key still means the same request at Stripe."""
        return now - self.attempt_time < RESEND_LIMIT

    def text(self, name: str) -> str:
        return str(self.params.get(name) or "")

    def mapping(self, name: str) -> Mapping[str, object]:
        value = self.params.get(name, {})
        if not isinstance(value, Mapping):
            raise TypeError(f"{name} of {self.operation_id} is not a mapping")
        return value

    def items(self, name: str) -> Sequence[Mapping[str, object]]:
        value = self.params.get(name, [])
        if not isinstance(value, Sequence):
            raise TypeError(f"{name} of {self.operation_id} is not a list")
        return value

    def number(self, name: str) -> int:
        value = self.params.get(name, 0)
        if not isinstance(value, int):
            raise TypeError(f"{name} of {self.operation_id} is not a number")
        return value
