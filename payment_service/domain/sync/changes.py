"""What applying a snapshot comes to: transitions, movements, next operations, discrepancies."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import Refusal
from payment_service.domain.ledger import StripeAmount
from payment_service.domain.operation_payloads import OperationPayload
from payment_service.domain.operations import OperationKind, OperationPurpose
from payment_service.domain.payment import Payment
from payment_service.domain.snapshot import BalanceTransaction, PaymentSnapshot
from payment_service.domain.state_machine import Transition


def report_state(changes: ChangeSet, snapshot: PaymentSnapshot) -> None:
    changes.report("state_mismatch", f"{changes.payment.state} here, {snapshot.status} at Stripe")


def amount_of(line: BalanceTransaction | None, otherwise: StripeAmount) -> StripeAmount:
    return line.settled if line is not None else otherwise


_STANDING: Final = frozenset(
    {"escrow_underfunded", "state_mismatch", "intent_mismatch", "charge_missing"}
)


@dataclass(frozen=True, slots=True)
class Discrepancy:
    """Something at Stripe that the books do not explain; an operator is told."""

    payment_id: str
    kind: str
    detail: str
    #: Ours and Stripe's, where an amount is in question; minor units of ``currency``.
    expected: int | None = None
    found: int | None = None
    currency: str = ""
    cure: str = ""
    #: The balance transaction that it is about, if it is about one.
    line_id: str = ""

    @property
    def stands(self) -> bool:
        """It says how things are, and is seen for as long as they are: nobody's word ends that.

        Of others, which say what happened, somebody decides.
        """
        return self.kind in _STANDING or self.kind.startswith("invariant_")


@dataclass(frozen=True, slots=True)
class Movement:
    """A transfer, refund, reversal or fee refund that is on the books: once, by Stripe's id."""

    movement_id: str
    kind: str
    #: In the payment's currency.
    minor_units: int
    operation_id: str = ""
    #: Of a reversal: what it reverses.
    transfer_id: str = ""


@dataclass(frozen=True, slots=True)
class NextOperation:
    """An operation to be recorded with these transitions: a further leg."""

    kind: OperationKind
    minor_units: int
    payload: OperationPayload
    #: LOSS if a lost dispute is the reason, and not the call whose operation is just over.
    purpose: OperationPurpose
    #: Why it is recorded parked, for an operator; empty if it is to be carried out.
    parked: str = ""


@dataclass(slots=True)
class ChangeSet:
    """What an observation came to. ``settled`` says that the open operation is over."""

    payment: Payment
    transitions: list[Transition] = field(default_factory=list)
    movements: list[Movement] = field(default_factory=list)
    discrepancies: list[Discrepancy] = field(default_factory=list)
    next_operation: NextOperation | None = None
    settled: bool = False
    #: Why the settled operation did not do what was asked; None if it did.
    refusal: Refusal | None = None
    #: Stripe does not show every balance transaction of it yet: look again later.
    deferred: bool = False
    #: Among them one that ends the open operation: it must not be sent again, or refused, before.
    operation_deferred: bool = False
    #: Why the open operation must not be sent: something else was moved out of band meanwhile.
    blocked_by: str = ""
    #: Disputes that changed, by their ids, as they stand now.
    disputes: dict[str, Dispute] = field(default_factory=dict)

    def take(self, transition: Transition) -> None:
        self.transitions.append(transition)
        self.payment = transition.after

    def settle(self, refusal: Refusal | None = None) -> None:
        self.settled = True
        self.refusal = refusal

    def defer(self, *, operation: bool) -> None:
        """Postings are never edited, so they wait until all is known.

        ``operation`` says whether the open operation waits for it too. One that something else has
        to wait for, a refund by hand that Stripe keeps pending for days, is none of its business.
        """
        self.deferred = True
        self.operation_deferred |= operation

    def report(self, kind: str, detail: str) -> None:
        self.discrepancies.append(Discrepancy(self.payment.payment_id, kind, detail))
