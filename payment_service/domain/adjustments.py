"""Corrections of the books by two people: what may be adjusted, by whom, and what is posted.

An adjustment is never about money that Stripe or the row of a payment vouches for. A line
on ``stripe:*`` without a balance transaction, or on ``escrow:*`` without the payment's row, would
make two books say different things. Those have operations and calls of their own.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Final

from payment_service.domain.errors import NotFound, Precondition
from payment_service.domain.ledger import (
    COMMISSION,
    DISPUTE_FEE,
    FX,
    LOSSES,
    OPENING_BALANCE,
    PROCESSOR_FEE,
    SETTLED_OUT_OF_BAND,
    Posting,
    expert_debt,
    written_off,
)
from payment_service.domain.money import MAXIMUM_MINOR_UNITS
from payment_service.domain.platform_lines import ACCOUNT_DEFICITS, CONTRIBUTIONS, PLATFORM_FEES
from payment_service.domain.ports.policy import Policy
from payment_service.domain.texts import FreeText, KeptText, seal_of

#: Accounts of the platform's result that no row and no balance transaction repeats.
_RESULT: Final = frozenset(
    {LOSSES, SETTLED_OUT_OF_BAND, FX, PLATFORM_FEES, CONTRIBUTIONS, ACCOUNT_DEFICITS}
)
#: For one payment they stand in its row or in its disputes, and both must say the same. So they
#: can be adjusted for an expert or for the platform, and not for a payment.
_IN_ROWS: Final = frozenset({COMMISSION, PROCESSOR_FEE, DISPUTE_FEE})
#: Of the platform alone: what its opening balance consisted of, people know and nothing repeats.
_OWN: Final = frozenset({OPENING_BALANCE})

#: How many lines an adjustment may have.
LEAST_LINES: Final = 2
MOST_LINES: Final = 20
#: For how long what one person has written off counts against that person's limit.
WRITE_OFF_WINDOW: Final = timedelta(days=30)


class AdjustmentState(StrEnum):
    """Where an adjustment stands. Expired is not stored: it follows from the time."""

    PROPOSED = "PROPOSED"
    APPROVED = "APPROVED"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"


class AdjustmentKind(StrEnum):
    """What an adjustment is."""

    CORRECTION = "CORRECTION"
    WRITE_OFF = "WRITE_OFF"


@dataclass(frozen=True, slots=True)
class AdjustmentLine:
    """A line that is proposed: a debit is positive."""

    account: str
    currency: str
    minor_units: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Adjustment:
    """A proposal, and what became of it. Without payment and expert it is the platform's own."""

    adjustment_id: str
    kind: AdjustmentKind
    payment_id: str
    expert_id: str
    lines: tuple[AdjustmentLine, ...]
    ticket: str
    reason: str
    #: What proves the reason for as long as it is there: its salt, and the hash of both.
    reason_salt: bytes
    reason_seal: str
    proposed_by: str
    create_time: datetime
    expire_time: datetime
    #: As stored: never EXPIRED.
    state: AdjustmentState = AdjustmentState.PROPOSED
    decided_by: str = ""
    decide_time: datetime | None = None
    decide_reason: str = ""
    #: The sequence of the event with its postings; 0 before.
    sequence: int = 0

    def state_at(self, now: datetime) -> AdjustmentState:
        """Returns the state with regard to the time: an open proposal expires by itself."""
        if self.state is AdjustmentState.PROPOSED and now >= self.expire_time:
            return AdjustmentState.EXPIRED
        return self.state

    @property
    def transaction_id(self) -> str:
        """Returns what joins its postings in the ledger, or "" before they are there."""
        if not self.sequence:
            return ""
        owner = self.payment_id or self.expert_id or self.adjustment_id
        return f"{owner}:{self.sequence}"

    @property
    def postings(self) -> list[Posting]:
        """Returns what its approval posts."""
        if self.kind is AdjustmentKind.WRITE_OFF:
            loss = next(line for line in self.lines if line.account == LOSSES)
            return written_off(self.expert_id, loss.minor_units, loss.currency)
        return adjusted(self.lines)

    @property
    def facts(self) -> Mapping[str, object]:
        """Returns what the event of its approval says. The approver is the event's cause."""
        return {
            "adjustment_id": self.adjustment_id,
            "proposed_by": self.proposed_by,
            "ticket": self.ticket,
            "reason": FreeText(self.reason),
            "lines": [[line.account, line.currency, line.minor_units] for line in self.lines],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What somebody proposes."""

    kind: AdjustmentKind
    payment_id: str
    expert_id: str
    lines: Sequence[AdjustmentLine]
    ticket: str
    reason: str
    proposed_by: str


def proposed(
    draft: Draft, adjustment_id: str, salt: bytes, now: datetime, policy: Policy
) -> Adjustment:
    """Returns the proposal that a draft becomes."""
    return Adjustment(
        adjustment_id=adjustment_id,
        kind=draft.kind,
        payment_id=draft.payment_id,
        expert_id=draft.expert_id,
        lines=tuple(draft.lines),
        ticket=draft.ticket,
        reason=draft.reason,
        reason_salt=salt,
        reason_seal=seal_of(KeptText("reason", salt, draft.reason)),
        proposed_by=draft.proposed_by,
        create_time=now,
        expire_time=now + timedelta(seconds=policy.adjustment_life),
    )


def write_off_lines(expert_id: str, amount: int, currency: str) -> list[AdjustmentLine]:
    """Returns the lines of a write-off."""
    return [
        AdjustmentLine(line.account, line.currency, line.minor_units)
        for line in written_off(expert_id, amount, currency)
    ]


def adjusted(lines: Sequence[AdjustmentLine]) -> list[Posting]:
    """Returns the postings of a correction."""
    return [Posting(line.account, line.minor_units, line.currency, "adjusted") for line in lines]


def debt_relief(adjustment: Adjustment) -> Mapping[str, int]:
    """Returns by how much the adjustment lowers an expert's debt, for each currency."""
    relief: dict[str, int] = defaultdict(int)
    for line in adjustment.lines:
        if line.account.startswith(expert_debt("")):
            relief[line.currency] -= line.minor_units
    return {currency: units for currency, units in relief.items() if units > 0}


def adjustable_accounts(expert_id: str, *, of_payment: bool) -> frozenset[str]:
    """Returns the accounts that an adjustment may name.

    ``expert_id`` is the expert of the payment or of the books, and "" for the platform's own.
    """
    accounts = _RESULT if of_payment else _RESULT | _IN_ROWS
    if expert_id:
        return accounts | {expert_debt(expert_id)}
    return accounts if of_payment else accounts | _OWN


def faults_of_lines(
    lines: Sequence[AdjustmentLine], accounts: frozenset[str]
) -> list[tuple[str, str]]:
    """Returns (field, fault) for everything that is wrong with proposed lines."""
    faults: list[tuple[str, str]] = []
    if not LEAST_LINES <= len(lines) <= MOST_LINES:
        faults.append(("lines", f"must be {LEAST_LINES} to {MOST_LINES} lines"))
        return faults
    sums: dict[str, int] = defaultdict(int)
    for number, line in enumerate(lines):
        field = f"lines[{number}]"
        if line.account not in accounts:
            known = ", ".join(sorted(accounts))
            faults.append((f"{field}.account", f"cannot be adjusted here; these can: {known}"))
        if not line.minor_units:
            faults.append((f"{field}.amount.minor_units", "must not be zero"))
        if abs(line.minor_units) > MAXIMUM_MINOR_UNITS:
            most = f"must be at most {MAXIMUM_MINOR_UNITS} minor units"
            faults.append((f"{field}.amount.minor_units", most))
        sums[line.currency] += line.minor_units
    faults += [
        ("lines", f"must sum to zero in {currency}, and sum to {off} minor units")
        for currency, off in sorted(sums.items())
        if off
    ]
    return faults


def check_size(lines: Sequence[AdjustmentLine], limit: int) -> None:
    """Raises :class:`Refusal` (ADJUSTMENT_TOO_LARGE) if more is debited than the limit allows."""
    debits: dict[str, int] = defaultdict(int)
    for line in lines:
        debits[line.currency] += max(line.minor_units, 0)
    for currency, moved in sorted(debits.items()):
        if moved > limit:
            raise Precondition(
                "ADJUSTMENT_TOO_LARGE",
                f"an adjustment may move at most {limit} minor units of {currency}",
                {"currency": currency, "requested": moved, "limit": limit},
            )


def approve(adjustment: Adjustment, approver: str, now: datetime, policy: Policy) -> Adjustment:
    """Returns the approved adjustment, still without the sequence. Raises :class:`Refusal`."""
    _require_open(adjustment, now)
    # One person may have got two spellings of a name: an issuer need not care about their case.
    is_same = approver.casefold() == adjustment.proposed_by.casefold()
    if is_same and not policy.adjustments_by_one_person:
        raise Precondition(
            "APPROVER_IS_PROPOSER",
            "the caller who proposed an adjustment cannot approve it; while callers are not "
            "authenticated, all of them are one caller",
            {
                "adjustment_id": adjustment.adjustment_id,
                "proposed_by": adjustment.proposed_by,
            },
        )
    return replace(adjustment, state=AdjustmentState.APPROVED, decided_by=approver, decide_time=now)


def reject(adjustment: Adjustment, caller: str, reason: str, now: datetime) -> Adjustment:
    """Returns the rejected adjustment. Raises :class:`Refusal`."""
    _require_open(adjustment, now)
    return replace(
        adjustment,
        state=AdjustmentState.REJECTED,
        decided_by=caller,
        decide_time=now,
        decide_reason=reason,
    )


def _require_open(adjustment: Adjustment, now: datetime) -> None:
    state = adjustment.state_at(now)
    if state is AdjustmentState.EXPIRED:
        raise Precondition(
            "ADJUSTMENT_EXPIRED",
            "nobody decided the adjustment in time; propose it again",
            {
                "adjustment_id": adjustment.adjustment_id,
                "expire_time": adjustment.expire_time.isoformat(),
            },
        )
    if state is not AdjustmentState.PROPOSED:
        raise Precondition(
            "WRONG_STATE",
            f"the adjustment is {state}, and only a PROPOSED one can be decided",
            {
                "adjustment_id": adjustment.adjustment_id,
                "state": state.value,
                "allowed_states": AdjustmentState.PROPOSED.value,
            },
        )


def adjustment_not_found(adjustment_id: str) -> NotFound:
    return NotFound(
        "ADJUSTMENT_NOT_FOUND",
        "there is no adjustment with this id",
        {"adjustment_id": adjustment_id},
    )
