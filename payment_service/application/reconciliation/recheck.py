"""Re-checks open discrepancies, each by itself, and closes those that are gone.

A reconciliation that does not find a discrepancy again proves nothing: its balance transaction may
be older than the run reaches, its payment unchanged, or its account not shown this time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.application.reconciliation.audit import audit_payments
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.errors import Refusal
from payment_service.domain.payment import Payment
from payment_service.domain.ports.database import Reader
from payment_service.domain.ports.records import Cause, StoredDiscrepancy

log = structlog.get_logger(__name__)


#: A line that the ledger lacks, or has otherwise than Stripe.
_OF_BALANCE_TRANSACTIONS: Final = (
    "missing_in_ledger",
    "line_differs",
    "unknown_balance_transaction",
)


_COVER: Final = "escrow_underfunded"


LINE_KINDS: Final = (*_OF_BALANCE_TRANSACTIONS, "missing_at_stripe", _COVER)


#: The detail of an invariant that a query has found violated.
CONTRADICTION: Final = "the books contradict themselves"


_INVARIANT: Final = "invariant_"


#: All that can still be asked about a payment without a row.
_NOTHING_LEFT: Final = f"{_INVARIANT}nothing_is_left_of_a_payment_that_is_gone"


#: What follows from an observation, and is said by every one for as long as it is so.
_OF_SNAPSHOTS: Final = ("state_mismatch", "intent_mismatch", "charge_missing")


_REMAINDER: Final = "remainder_not_returned"


_BOUNCE: Final = "refund_failed"


#: So many are looked at by one run, others by the next.
_MOST: Final = 500


_EVER: Final = datetime.min.replace(tzinfo=UTC)


async def recheck_open(
    app: App,
    shown: Collection[str],
    compared: Collection[str],
    invariants: Collection[str],
    faulty: Collection[str],
    cause: Cause,
    payment_id: str = "",
) -> list[str]:
    """The ids of open discrepancies that are gone, of all payments or of one, unless the run to
    which these lines were ``shown``, which ``compared`` some and checked ``invariants``, has found
    them again. What else has happened and is told of, nothing undoes: somebody decides it.
    """
    kinds = [*LINE_KINDS, *_OF_SNAPSHOTS, _REMAINDER, _BOUNCE]
    kinds += [f"{_INVARIANT}{name}" for name in invariants]
    found = await app.database.read(
        lambda reader: reader.some_open_discrepancies(kinds, payment_id, _MOST)
    )
    lines = [one.discrepancy.line_id for one in found if one.discrepancy.line_id]
    ours = await app.database.read(lambda reader: reader.ledger_lines(lines))
    named = {line_id for line_id, _ in ours}
    violated: dict[str, set[tuple[str, str]]] = {}
    gone = []
    for stored in found:
        one = stored.discrepancy
        if one.kind == _COVER:
            mended = not payment_id  # Every run of all payments looks at it.
        elif one.kind in _OF_BALANCE_TRANSACTIONS:
            # Stripe's lines never change: this one is as it was found.
            agrees = ours.get((one.line_id, one.currency)) == one.found
            mended = agrees or one.line_id in compared
        elif one.kind in LINE_KINDS:
            mended = one.line_id in shown or one.line_id not in named
        elif one.kind in (_REMAINDER, _BOUNCE):
            payment = await app.database.read(_payment, one.payment_id)
            left = payment and (payment.held if one.kind == _REMAINDER else payment.client_payable)
            mended = left == 0
        elif one.kind in _OF_SNAPSHOTS:
            mended = one.payment_id not in faulty and await no_longer_observed(
                app, one.payment_id, cause
            )
        else:
            if one.payment_id not in violated:
                violated[one.payment_id] = await _violated_by(app, one.payment_id, found)
            mended = (one.kind, one.detail) not in violated[one.payment_id]
        if mended:
            gone.append(stored.discrepancy_id)
    return gone


async def no_longer_observed(app: App, payment_id: str, cause: Cause) -> bool:
    """Whether Stripe shows nothing of the payment by now that does not fit."""
    try:
        applied = await sync_payment(app, payment_id, cause)
    except Refusal:
        return False
    except Exception as error:  # noqa: BLE001 - one payment holds up no other
        log.error("recheck_failed", payment=payment_id, error=type(error).__name__)
        return False
    return not applied.discrepancies


async def _violated_by(
    app: App, payment_id: str, found: Sequence[StoredDiscrepancy]
) -> set[tuple[str, str]]:
    """The invariants that a payment violates now, with their details; without one, what nobody's
    rows violate of what was ``found``.
    """
    its_own = [one.discrepancy for one in found if one.discrepancy.payment_id == payment_id]
    names = {one.kind.removeprefix(_INVARIANT) for one in its_own}
    by_query = await app.database.read(
        lambda reader: reader.violations(_EVER, payment_id, names=names)
    )
    violated = {(f"{_INVARIANT}{name}", CONTRADICTION) for name, who in by_query.items() if who}
    if not payment_id:
        return violated
    if await app.database.read(_payment, payment_id) is None:
        violated |= {(one.kind, one.detail) for one in its_own if one.kind != _NOTHING_LEFT}
    faults = (await audit_payments(app, _EVER, payment_id)).get(payment_id, ())
    return violated | {(f"{_INVARIANT}{fault.name}", str(fault)) for fault in faults}


def _payment(reader: Reader, payment_id: str) -> Payment | None:
    return reader.payment(payment_id)
