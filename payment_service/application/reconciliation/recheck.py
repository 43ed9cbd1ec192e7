"""Re-checks open discrepancies, each by itself, and closes those that are gone.

A reconciliation that does not find a discrepancy again proves nothing: its balance transaction may
be older than the run reaches, its payment unchanged, or its account not shown this time. So each
kind says what closes it (`DiscrepancyKind.closes_when`), and that is checked here.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.reconciliation.audit import audit_payments
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.discrepancies import ClosesWhen, DiscrepancyKind
from payment_service.domain.errors import Refusal
from payment_service.domain.payment import Payment
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Cause, StoredDiscrepancy
from payment_service.domain.sync.changes import Discrepancy

log = structlog.get_logger(__name__)

#: The detail of an invariant that a query found violated.
CONTRADICTION: Final = "the books contradict themselves"

#: One run re-checks at most this many, chosen at random; the next run checks others.
_MOST: Final = 500
_EVER: Final = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Checked:
    """What the present run has compared, so that a re-check can rely on it."""

    #: The balance transactions that Stripe showed, and those of them that were compared.
    shown: Collection[str]
    compared: Collection[str]
    invariants: Collection[DiscrepancyKind]
    #: The payments that contradict their own history. They are not synced.
    faulty: Collection[str]


async def recheck_open(app: App, checked: Checked, cause: Cause, payment_id: str = "") -> list[str]:
    """Returns the ids of open discrepancies that are gone, of all payments or of one.

    The caller closes them, unless the present run has reported them again.
    """
    kinds = [
        kind
        for kind in DiscrepancyKind
        if kind.closes_when is not ClosesWhen.DECIDED
        and (not kind.is_invariant or kind in checked.invariants)
    ]
    found = await app.database.read(
        lambda reader: reader.some_open_discrepancies(kinds, payment_id, _MOST)
    )
    lines = [one.discrepancy.line_id for one in found if one.discrepancy.line_id]
    ours = await app.database.read(lambda reader: reader.ledger_lines(lines))
    recheck = _Recheck(app, checked, cause, found, ours, all_payments=not payment_id)
    return [stored.discrepancy_id for stored in found if await recheck.is_gone(stored.discrepancy)]


@dataclass(slots=True)
class _Recheck:
    """The re-check of one batch. Each payment's invariants are read once."""

    app: App
    checked: Checked
    cause: Cause
    found: Sequence[StoredDiscrepancy]
    #: The ledger's amount of each balance transaction, by id and currency.
    ours: Mapping[tuple[str, str], int]
    all_payments: bool
    violated: dict[str, set[tuple[DiscrepancyKind, str]]] = field(default_factory=dict)

    async def is_gone(self, one: Discrepancy) -> bool:
        match one.kind.closes_when:
            case ClosesWhen.DECIDED:
                return False
            case ClosesWhen.COVERED:
                return self.all_payments  # Every run of all payments checks it.
            case ClosesWhen.LINE_AGREES:
                # Stripe's lines never change: Stripe still has the amount that was found.
                agrees = self.ours.get((one.line_id, one.currency), 0) == one.found
                return agrees or one.line_id in self.checked.compared
            case ClosesWhen.LINE_IS_SHOWN:
                named = {line_id for line_id, _ in self.ours}
                return one.line_id in self.checked.shown or one.line_id not in named
            case ClosesWhen.NOTHING_HELD:
                payment = await self.app.database.read(_payment, one.payment_id)
                return payment is not None and payment.held == 0
            case ClosesWhen.NOTHING_PAYABLE:
                payment = await self.app.database.read(_payment, one.payment_id)
                return payment is not None and payment.client_payable == 0
            case ClosesWhen.FUNDS_CAME:
                payment = await self.app.database.read(_payment, one.payment_id)
                return payment is not None and not payment.waits_for_funds
            case ClosesWhen.SYNC_AGREES:
                faulty = one.payment_id in self.checked.faulty
                return not faulty and await sync_agrees(self.app, one.payment_id, self.cause)
            case ClosesWhen.INVARIANT_HOLDS:
                if one.payment_id not in self.violated:
                    self.violated[one.payment_id] = await _violated_by(
                        self.app, one.payment_id, self.found
                    )
                return (one.kind, one.detail) not in self.violated[one.payment_id]


async def sync_agrees(app: App, payment_id: str, cause: Cause) -> bool:
    """Returns whether a sync of the payment finds nothing that does not fit."""
    try:
        applied = await sync_payment(app, payment_id, cause)
    except Refusal:
        return False
    except Exception as error:  # noqa: BLE001 - one payment that fails must not stop the others
        log.error("recheck_failed", payment=payment_id, error=type(error).__name__)
        return False
    return not applied.discrepancies


async def _violated_by(
    app: App, payment_id: str, found: Sequence[StoredDiscrepancy]
) -> set[tuple[DiscrepancyKind, str]]:
    """Returns the invariants that a payment violates now, each with its detail.

    Without a payment id, these are the invariants in ``found`` that concern no payment.
    """
    its_own = [
        one.discrepancy
        for one in found
        if one.discrepancy.payment_id == payment_id and one.discrepancy.kind.is_invariant
    ]
    kinds = {one.kind for one in its_own}
    by_query = await app.database.read(
        lambda reader: reader.violations(_EVER, payment_id, kinds=kinds)
    )
    violated: set[tuple[DiscrepancyKind, str]] = {
        (kind, CONTRADICTION) for kind, payment_ids in by_query.items() if payment_ids
    }
    if not payment_id:
        return violated
    if await app.database.read(_payment, payment_id) is None:
        # Of a payment without a row, only its other rows can still be checked.
        orphaned = DiscrepancyKind.EACH_ROW_HAS_ITS_PAYMENT
        violated |= {(one.kind, one.detail) for one in its_own if one.kind is not orphaned}
    faults = (await audit_payments(app.database, _EVER, payment_id)).get(payment_id, ())
    return violated | {(fault.kind, str(fault)) for fault in faults}


def _payment(reader: Reader, payment_id: str) -> Payment | None:
    return reader.payment(payment_id)
