"""What a snapshot is judged by, and what applying it changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import Refusal
from payment_service.domain.ids import derived_id
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.operation_payloads import OperationPayload
from payment_service.domain.operations import Operation, OperationKind, OperationPurpose
from payment_service.domain.payment import Payment
from payment_service.domain.snapshot import BalanceTransaction, PaymentSnapshot
from payment_service.domain.state_machine import Transition


@dataclass(frozen=True, slots=True, kw_only=True)
class SyncContext:
    """What decides, besides the payment itself, how a snapshot changes it. Read under its lock."""

    snapshot: PaymentSnapshot
    #: The payment's own open operation. An answer to a dispute is not one.
    operation: Operation | None
    #: The ids of the movements, fraud warnings and dispute transactions that are on the books.
    booked_ids: frozenset[str]
    #: What is reversed of each transfer in the books, in the payment's currency.
    reversed_amounts: Mapping[str, int] = field(default_factory=dict)
    #: The collections of the expert's debt that made a reversal which is not booked yet, by id.
    collections: Mapping[str, Operation] = field(default_factory=dict)
    #: Describes the movements that were booked out of band since the open operation was recorded or
    #: last resumed.
    out_of_band: Sequence[str] = ()
    #: Describes the collections that the database had lost and that are recorded again just now.
    recovered: Sequence[str] = ()
    #: The id for an operation that this snapshot may require. At most one is recorded.
    next_operation_id: str
    #: This database's, from which the ids of its operations are derived.
    installation_id: str = ""
    #: How long the platform may hold what was charged.
    holding_limit: timedelta
    #: The payment's disputes as recorded, by their ids.
    dispute_records: Mapping[str, Dispute] = field(default_factory=dict)
    freezes_on_warning: bool = False
    #: The objects whose missing balance transactions are not waited for any more.
    overdue: frozenset[str] = frozenset()
    #: The database's time, in UTC.
    now: datetime

    def loss_operation_id(self, dispute: Dispute) -> str:
        """The id for the operation that takes back what a lost dispute cost.

        Whatever else the same snapshot shows, it is the same one. A dispute that is won on appeal
        may be lost again.
        """
        origin = (dispute.dispute_id, "loss", str(dispute.withdrawn))
        return derived_id("op", self.installation_id, *origin)

    def is_made_by_operation(self, operation_id: str) -> bool:
        """Whether the open operation made an object that carries this operation id at Stripe."""
        return self.operation is not None and operation_id == self.operation.operation_id


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """Something at Stripe that the books do not explain. An operator gets an alarm."""

    payment_id: str
    kind: DiscrepancyKind
    detail: str
    #: Our amount and Stripe's, if it is about an amount; minor units of ``currency``.
    expected: int | None = None
    found: int | None = None
    currency: str = ""
    #: What an operator can do about it.
    remediation: str = ""
    #: The balance transaction that it is about, if it is about one.
    line_id: str = ""


@dataclass(frozen=True, slots=True)
class Movement:
    """A transfer, refund, reversal or fee refund on the books; once for each id at Stripe."""

    movement_id: str
    kind: str
    #: In the payment's currency.
    minor_units: int
    operation_id: str = ""
    #: The transfer that a reversal reverses.
    transfer_id: str = ""


@dataclass(frozen=True, slots=True)
class NextOperation:
    """An operation that is recorded together with the transitions: the next step of the money."""

    kind: OperationKind
    minor_units: int
    payload: OperationPayload
    #: LOSS if a lost dispute is the reason, and not the call whose operation is just over.
    purpose: OperationPurpose
    #: Why it is recorded parked, for an operator; empty if it may be sent.
    parked: str = ""


@dataclass(slots=True)
class ChangeSet:
    """What a snapshot changes. ``settled`` says that the open operation is over."""

    payment: Payment
    transitions: list[Transition] = field(default_factory=list)
    movements: list[Movement] = field(default_factory=list)
    discrepancies: list[Discrepancy] = field(default_factory=list)
    next_operation: NextOperation | None = None
    settled: bool = False
    #: Why the settled operation did not do what was requested; None if it did.
    refusal: Refusal | None = None
    #: Stripe has accepted what was requested, and does it later by itself. The caller is answered
    #: now; the operation stays open.
    accepted: bool = False
    #: The collections of the expert's debt that ended, and whether they collected it.
    collected: dict[str, bool] = field(default_factory=dict)
    #: The collections whose reversal is at Stripe and not done yet.
    collecting: set[str] = field(default_factory=set)
    #: Stripe does not show every balance transaction yet: the payment must be synced again later.
    deferred: bool = False
    #: A missing balance transaction ends the open operation: until it is there, the operation must
    #: be neither sent again nor refused.
    operation_deferred: bool = False
    #: The objects that are final at Stripe and lack a balance transaction.
    awaiting: set[str] = field(default_factory=set)
    #: Why the open operation must not be sent: something was moved out of band meanwhile.
    blocked_by: str = ""
    #: The disputes that changed, by their ids, as they are now.
    disputes: dict[str, Dispute] = field(default_factory=dict)

    def take(self, transition: Transition) -> None:
        """Adds a transition and continues with the payment after it."""
        self.transitions.append(transition)
        self.payment = transition.after

    def settle(self, refusal: Refusal | None = None) -> None:
        """Ends the open operation; with a refusal if it did not do what was requested."""
        self.settled = True
        self.refusal = refusal

    def accept(self) -> None:
        """The open operation is at Stripe, which does it later. It must not be sent again.

        An event of Stripe's says when it is done, so the payment need not be synced until then.
        """
        self.accepted = True
        self.operation_deferred = True

    def defer(self, *, operation: bool) -> None:
        """Waits for a balance transaction. Postings are never edited, so none is made before.

        ``operation`` says whether the open operation waits for it too. A refund that somebody made
        out of band, and that Stripe keeps pending for days, does not delay our operation.
        """
        self.deferred = True
        self.operation_deferred |= operation

    def await_line(self, object_id: str, context: SyncContext, *, operation: bool) -> bool:
        """Waits for a balance transaction of an object that is final at Stripe.

        Returns False once it was waited for long enough, and reports that: then the object is
        booked by what is known, and what never came counts as nothing.
        """
        if object_id in context.overdue:
            self.report(DiscrepancyKind.LINE_NEVER_CAME, object_id)
            return False
        self.awaiting.add(object_id)
        self.defer(operation=operation)
        return True

    def report(self, kind: DiscrepancyKind, detail: str) -> None:
        self.discrepancies.append(Discrepancy(self.payment.payment_id, kind, detail))


def report_state(changes: ChangeSet, snapshot: PaymentSnapshot) -> None:
    """Reports that our state and Stripe's status exclude each other."""
    changes.report(
        DiscrepancyKind.STATE_MISMATCH, f"{changes.payment.state} here, {snapshot.status} at Stripe"
    )


def amount_of(line: BalanceTransaction | None, otherwise: StripeAmount) -> StripeAmount:
    """Returns what a balance transaction moved, or ``otherwise`` if Stripe shows none."""
    return line.settled if line is not None else otherwise
