"""A dispute: the client's bank disputes a payment, or asks about it first.

A record of its own beside the payment, whose states it does not multiply: it freezes the payment
(``freeze_of``) and may take money from it. The stage follows from Stripe's status:

    INQUIRY     warning_needs_response, warning_under_review   no money has moved; capture freezes
    CHARGEBACK  needs_response, under_review, appeal_…         Stripe took it; refunds freeze too

Amounts are minor units, times UTC, ids and statuses Stripe's own.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Final

from payment_service.domain.errors import (
    Busy,
    NotFound,
    Precondition,
    invalid_field,
    invalid_fields,
)
from payment_service.domain.guards import payment_disputed
from payment_service.domain.payment import Freeze, FreezeReason, Payment
from payment_service.domain.snapshot import DisputeSnapshot, DisputeTransaction


class Stage(StrEnum):
    INQUIRY = "INQUIRY"  # Left by Stripe: closed, or escalated into a chargeback.
    CHARGEBACK = "CHARGEBACK"  # Left by the bank's decision, by AcceptDispute, or by its due date.


class Outcome(StrEnum):
    OPEN = "OPEN"  # Nothing is decided yet.
    WON = "WON"  # The money comes back.
    LOST = "LOST"  # The client's bank keeps it; left only by an appeal.
    CLOSED = "CLOSED"  # The inquiry ended and nothing came of it.
    PREVENTED = "PREVENTED"  # Stripe settled it before it became a dispute.


_OUTCOMES: Final[Mapping[str, Outcome]] = {
    "won": Outcome.WON,
    "lost": Outcome.LOST,
    "warning_closed": Outcome.CLOSED,
    "prevented": Outcome.PREVENTED,
}
#: What an open dispute can do besides waiting: answer. `under_review` means that it was done.
_UNANSWERED: Final = frozenset({"needs_response", "warning_needs_response"})
#: Stripe documents at most two lines of a dispute: what was withdrawn, and what was reinstated.
MOST_DISPUTE_LINES: Final = 2
_FREEZES: Final = {Stage.INQUIRY: Freeze.INQUIRY, Stage.CHARGEBACK: Freeze.CHARGEBACK}

#: Stripe's limits on evidence, in characters: of one text, of one line or id, and of all together.
_MAX_TEXT: Final = 20_000
_MAX_LINE: Final = 500
_MAX_ALL: Final = 150_000
#: Stripe's names of what may be long; all other evidence is a line, or the id of a file.
LONG_TEXTS: Final = frozenset(
    {
        "access_activity_log",
        "cancellation_policy_disclosure",
        "cancellation_rebuttal",
        "duplicate_charge_explanation",
        "product_description",
        "refund_policy_disclosure",
        "refund_refusal_explanation",
        "uncategorized_text",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Dispute:
    """A dispute as recorded. Amounts are in the payment's currency, except the fee; times UTC."""

    dispute_id: str
    payment_id: str
    expert_id: str
    charge_id: str
    stage: Stage
    #: Stripe's own word, also if this service does not know it.
    status: str
    outcome: Outcome = Outcome.OPEN
    #: Stripe's own word: `fraudulent`, `product_not_received`, …
    reason: str
    currency: str
    #: The disputed amount; may be less than the charge.
    amount: int
    #: What Stripe took from the platform, and what of it came back.
    withdrawn: int = 0
    reinstated: int = 0
    #: What is written off as lost. Funds that are reinstated afterwards, by an appeal, lower it.
    lost: int = 0
    #: Stripe's fee for it, less what it gave back; of ``fee_currency``, as settled.
    fee: int = 0
    fee_currency: str = ""
    evidence_due_time: datetime | None = None
    has_evidence: bool = False
    #: How often evidence was submitted to the bank, which is final each time.
    submission_count: int = 0
    #: The open operation that answers it, if there is one.
    operation_id: str = ""
    create_time: datetime
    update_time: datetime
    close_time: datetime | None = None

    @property
    def is_open(self) -> bool:
        return self.outcome is Outcome.OPEN

    @property
    def needs_response(self) -> bool:
        return self.status in _UNANSWERED

    @property
    def taken(self) -> int:
        """What the bank has and what is not written off yet."""
        return max(self.withdrawn - self.reinstated - self.lost, 0)

    @property
    def unsettled(self) -> int:
        """What is lost and not written off yet."""
        return self.taken if self.outcome in (Outcome.LOST, Outcome.PREVENTED) else 0

    @property
    def freezes(self) -> bool:
        """Whether it freezes the payment. The money must not move until a loss is written off."""
        return self.is_open or self.unsettled > 0


def opened(payment: Payment, shown: DisputeSnapshot, now: datetime) -> Dispute:
    """Returns the record of a dispute that a snapshot shows for the first time."""
    record = Dispute(
        dispute_id=shown.dispute_id,
        payment_id=payment.payment_id,
        expert_id=payment.expert_id,
        charge_id=shown.charge_id,
        stage=stage_of(shown.status),
        status=shown.status,
        reason=shown.reason,
        currency=payment.currency,
        amount=shown.minor_units,
        create_time=shown.create_time,
        update_time=now,
    )
    return updated(record, shown, now)


def updated(record: Dispute, shown: DisputeSnapshot, now: datetime) -> Dispute:
    """Returns the record as the snapshot shows the dispute. Its money is booked separately."""
    outcome = _OUTCOMES.get(shown.status, Outcome.OPEN)
    after = replace(
        record,
        stage=stage_of(shown.status),
        status=shown.status,
        outcome=outcome,
        reason=shown.reason,
        amount=shown.minor_units,
        evidence_due_time=shown.due_by,
        has_evidence=shown.has_evidence,
        submission_count=shown.submission_count,
        close_time=None if outcome is Outcome.OPEN else record.close_time or now,
    )
    return record if after == record else replace(after, update_time=now)


def moved_by(record: Dispute, lines: Sequence[DisputeTransaction]) -> int:
    """Returns what the last of a dispute's lines moved, in minor units of the payment's currency.

    ``lines`` are all up to this one, oldest first. A line in another currency is valued at the rate
    of the first withdrawal in it, which took all that is disputed. The sum of the lines is valued
    and not each by itself, so that all of it is all of it. Without such a rate a return is nothing,
    unless the dispute is won: then it is all that is left.
    """
    line = lines[-1]
    taken = line.minor_units < 0
    if line.currency == record.currency:
        return abs(line.minor_units)
    converted = [one.minor_units for one in lines if one.currency == line.currency]
    first = next((-amount for amount in converted if amount < 0), 0)
    if not first:
        won = record.outcome is Outcome.WON
        return record.withdrawn - record.reinstated if won else 0
    moved = sum(abs(amount) for amount in converted if (amount < 0) is taken)
    value = (2 * moved * record.amount + first) // (2 * first)
    if taken:
        most = record.reinstated + record.amount
        return max(min(value, most) - record.withdrawn, 0)
    return max(min(value, record.withdrawn) - record.reinstated, 0)


def stage_of(status: str) -> Stage:
    return Stage.INQUIRY if status.startswith("warning_") else Stage.CHARGEBACK


def freeze_of(
    disputes: Iterable[Dispute],
    fraud_warning_id: str,
    known: Collection[str],
    *,
    freezes_on_warning: bool,
    review_id: str,
) -> FreezeReason:
    """Returns the strictest freeze of a payment's disputes and warnings, the oldest first.

    A warning counts before the manual review ``review_id``, so that an operator can dismiss it. The
    ``known`` movements say whether an operator has let the warning pass.
    """
    frozen = FreezeReason(Freeze.REVIEW, review_id) if review_id else FreezeReason()
    released = dismissal_id(fraud_warning_id) in known
    if fraud_warning_id and freezes_on_warning and not released:
        frozen = FreezeReason(Freeze.FRAUD_WARNING, fraud_warning_id)
    open_ones = sorted(
        (dispute for dispute in disputes if dispute.freezes),
        key=lambda dispute: (dispute.create_time, dispute.dispute_id),
    )
    for stage in (Stage.INQUIRY, Stage.CHARGEBACK):
        for dispute in open_ones:
            if dispute.stage is stage:
                frozen = FreezeReason(_FREEZES[stage], dispute.dispute_id)
                break
    return frozen


def dismissal_id(warning_id: str) -> str:
    """The id under which the dismissal of a fraud warning is booked."""
    return f"{warning_id}:released"


def check_dismissal(payment: Payment, warning_id: str) -> None:
    """Raises unless this fraud warning, and nothing stricter, freezes the payment.

    An empty ``warning_id`` means whichever it is.
    """
    if payment.frozen in (Freeze.INQUIRY, Freeze.CHARGEBACK):
        raise payment_disputed(payment, "released")
    if payment.frozen is not Freeze.FRAUD_WARNING or warning_id not in ("", payment.frozen_by):
        raise Precondition(
            "FRAUD_WARNING_NOT_ACTIVE",
            "no such fraud warning freezes the payment: there is nothing to release",
            {
                "payment_id": payment.payment_id,
                "warning_id": payment.frozen_by,
                "stage": payment.frozen.value,
            },
        )


# ---- guards of the answers ----


def check_evidence(
    dispute: Dispute, evidence: Mapping[str, str], *, submit: bool, now: datetime
) -> None:
    """Raises unless this evidence can be staged or submitted now. Its fields are checked before."""
    _check_unanswered(dispute)
    if dispute.evidence_due_time is not None and dispute.evidence_due_time <= now:
        raise Precondition(
            "EVIDENCE_PAST_DUE",
            "the bank takes no evidence any more: the date by which it was due has passed",
            {**_facts(dispute), "due_time": dispute.evidence_due_time.isoformat()},
        )
    if not evidence and not (submit and dispute.has_evidence):
        raise invalid_field("evidence", "must hold something: nothing is staged for this dispute")


def check_acceptance(dispute: Dispute) -> None:
    """Raises unless the dispute can be accepted as lost."""
    if dispute.is_open and dispute.stage is Stage.INQUIRY:
        raise Precondition(
            "DISPUTE_IS_INQUIRY",
            "an inquiry has taken no money yet, so it cannot be lost; refund the payment, "
            "or answer with evidence",
            _facts(dispute),
        )
    _check_unanswered(dispute)


def _check_unanswered(dispute: Dispute) -> None:
    if dispute.operation_id:
        raise Busy(
            "OPERATION_IN_PROGRESS",
            "another answer to this dispute is under way; ask again later",
            {"payment_id": dispute.payment_id, "dispute_id": dispute.dispute_id, "state": ""},
        )
    if not dispute.is_open:
        raise Precondition(
            "DISPUTE_CLOSED", f"the dispute is over: {dispute.outcome.lower()}", _facts(dispute)
        )
    if not dispute.needs_response:
        raise Precondition(
            "EVIDENCE_ALREADY_SUBMITTED",
            "evidence is submitted once and for all; the bank decides now",
            _facts(dispute),
        )


def check_evidence_fields(evidence: Mapping[str, str]) -> None:
    """Raises for evidence that Stripe would refuse in any state of the dispute."""
    faults = []
    for name, value in sorted(evidence.items()):
        most = _MAX_TEXT if name in LONG_TEXTS else _MAX_LINE
        if len(value) > most:
            faults.append((f"evidence.{name}", f"must be at most {most} characters"))
        elif any(ord(character) < 32 and character not in "\t\n\r" for character in value):
            faults.append((f"evidence.{name}", "must not contain control characters"))
    if sum(map(len, evidence.values())) > _MAX_ALL:
        faults.append(("evidence", f"must be at most {_MAX_ALL} characters in all"))
    if faults:
        raise invalid_fields(faults)


def dispute_not_found(dispute_id: str) -> NotFound:
    return NotFound(
        "DISPUTE_NOT_FOUND", "there is no dispute with this id", {"dispute_id": dispute_id}
    )


def _facts(dispute: Dispute) -> dict[str, object]:
    return {
        "dispute_id": dispute.dispute_id,
        "payment_id": dispute.payment_id,
        "status": dispute.status,
    }
