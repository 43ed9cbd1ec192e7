"""Which discrepancies are mended, whenever they were found: each is asked by itself.

That a reconciliation does not find one again says nothing: its line may be older than the run
reaches, its payment unchanged since, its account one that Stripe did not show this time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

import structlog

from payment_service.application.core import Core
from payment_service.application.observe import observe_payment
from payment_service.application.verify import verify
from payment_service.domain.errors import Refusal
from payment_service.domain.escrow import Payment
from payment_service.domain.ports import Cause, Reader, StoredDiscrepancy

log = structlog.get_logger(__name__)

#: A line that the ledger lacks, or has otherwise than Stripe.
_OF_STRIPES_LINES: Final = ("missing_in_ledger", "line_differs", "unknown_balance_transaction")
_COVER: Final = "escrow_not_covered"
LINE_KINDS: Final = (*_OF_STRIPES_LINES, "missing_at_stripe", _COVER)
#: The detail of an invariant that a query has found violated.
CONTRADICTION: Final = "the books contradict themselves"
_INVARIANT: Final = "invariant_"
#: All that can still be asked about a payment without a row.
_NOTHING_LEFT: Final = f"{_INVARIANT}nothing_is_left_of_a_payment_that_is_gone"
#: What follows from an observation, and is said by every one for as long as it is so.
_OF_OBSERVATIONS: Final = ("state_mismatch", "second_intent", "charge_missing")
_REST: Final = "rest_not_returned"
_BOUNCE: Final = "refund_failed"
#: So many are looked at by one run, others by the next.
_MOST: Final = 500
_EVER: Final = datetime.min.replace(tzinfo=UTC)


async def look_again(
    core: Core,
    shown: Collection[str],
    compared: Collection[str],
    invariants: Collection[str],
    faulty: Collection[str],
    cause: Cause,
    payment_id: str = "",
) -> list[int]:
    """The ids of open discrepancies that are gone, of all payments or of one, unless the run to
    which these lines were ``shown``, which ``compared`` some and checked ``invariants``, has found
    them again. What else has happened and is told of, nothing undoes: somebody decides it.
    """
    kinds = [*LINE_KINDS, *_OF_OBSERVATIONS, _REST, _BOUNCE]
    kinds += [f"{_INVARIANT}{name}" for name in invariants]
    found = await core.database.read(
        lambda reader: reader.some_open_discrepancies(kinds, payment_id, _MOST)
    )
    lines = [one.discrepancy.line_id for one in found if one.discrepancy.line_id]
    ours = await core.database.read(lambda reader: reader.ledger_lines(lines))
    named = {line_id for line_id, _ in ours}
    violated: dict[str, set[tuple[str, str]]] = {}
    gone = []
    for stored in found:
        one = stored.discrepancy
        if one.kind == _COVER:
            mended = not payment_id  # Every run of all payments looks at it.
        elif one.kind in _OF_STRIPES_LINES:
            # Stripe's lines never change: this one is as it was found.
            agrees = ours.get((one.line_id, one.currency)) == one.found
            mended = agrees or one.line_id in compared
        elif one.kind in LINE_KINDS:
            mended = one.line_id in shown or one.line_id not in named
        elif one.kind in (_REST, _BOUNCE):
            payment = await core.database.read(_payment, one.payment_id)
            left = payment and (payment.held if one.kind == _REST else payment.client_owed)
            mended = left == 0
        elif one.kind in _OF_OBSERVATIONS:
            mended = one.payment_id not in faulty and await _explained(core, one.payment_id, cause)
        else:
            if one.payment_id not in violated:
                violated[one.payment_id] = await _violated_by(core, one.payment_id, found)
            mended = (one.kind, one.detail) not in violated[one.payment_id]
        if mended:
            gone.append(stored.discrepancy_id)
    return gone


async def _explained(core: Core, payment_id: str, cause: Cause) -> bool:
    """Whether Stripe shows nothing of the payment by now that does not fit."""
    try:
        applied = await observe_payment(core, payment_id, cause)
    except Refusal:
        return False
    except Exception as error:  # noqa: BLE001 - one payment holds up no other
        log.error("look_again_failed", payment=payment_id, error=type(error).__name__)
        return False
    return not applied.discrepancies


async def _violated_by(
    core: Core, payment_id: str, found: Sequence[StoredDiscrepancy]
) -> set[tuple[str, str]]:
    """The invariants that a payment violates now, with their details; without one, what nobody's
    rows violate of what was ``found``.
    """
    its_own = [one.discrepancy for one in found if one.discrepancy.payment_id == payment_id]
    names = {one.kind.removeprefix(_INVARIANT) for one in its_own}
    by_query = await core.database.read(
        lambda reader: reader.violations(_EVER, payment_id, names=names)
    )
    violated = {(f"{_INVARIANT}{name}", CONTRADICTION) for name, who in by_query.items() if who}
    if not payment_id:
        return violated
    if await core.database.read(_payment, payment_id) is None:
        violated |= {(one.kind, one.detail) for one in its_own if one.kind != _NOTHING_LEFT}
    faults = (await verify(core, _EVER, payment_id)).get(payment_id, ())
    return violated | {(f"{_INVARIANT}{fault.name}", str(fault)) for fault in faults}


def _payment(reader: Reader, payment_id: str) -> Payment | None:
    return reader.payment(payment_id)
