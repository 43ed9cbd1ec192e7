"""Which discrepancies are mended, whenever they were found: each is asked by itself.

That a reconciliation does not find one again says nothing: its line may be older than the run
reaches, its payment unchanged since, its account one that Stripe did not show this time.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from typing import Final

from payment_service.application.core import Core
from payment_service.application.verify import verify
from payment_service.domain.ports import StoredDiscrepancy

#: A line that the ledger lacks, or has otherwise than Stripe.
_OF_STRIPES_LINES: Final = ("missing_in_ledger", "line_differs", "unknown_balance_transaction")
_COVER: Final = "escrow_not_covered"
LINE_KINDS: Final = (*_OF_STRIPES_LINES, "missing_at_stripe", _COVER)
#: The detail of an invariant that a query has found violated.
CONTRADICTION: Final = "the books contradict themselves"
_INVARIANT: Final = "invariant_"
#: All that can still be asked about a payment without a row.
_NOTHING_LEFT: Final = f"{_INVARIANT}nothing_is_left_of_a_payment_that_is_gone"
#: So many are looked at by one run, others by the next.
_MOST: Final = 500
_EVER: Final = datetime.min.replace(tzinfo=UTC)


async def look_again(
    core: Core,
    shown: Collection[str],
    compared: Collection[str],
    invariants: Collection[str],
    payment_id: str = "",
) -> list[int]:
    """The ids of open discrepancies that are gone, of all payments or of one, unless the run to
    which these lines were ``shown``, which ``compared`` some and checked ``invariants``, has found
    them again.
    """
    kinds = [*LINE_KINDS, *(f"{_INVARIANT}{name}" for name in invariants)]
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
        else:
            if one.payment_id not in violated:
                violated[one.payment_id] = await _violated_by(core, one.payment_id, found)
            mended = (one.kind, one.detail) not in violated[one.payment_id]
        if mended:
            gone.append(stored.discrepancy_id)
    return gone


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
    if await core.database.read(lambda reader: reader.payment(payment_id)) is None:
        violated |= {(one.kind, one.detail) for one in its_own if one.kind != _NOTHING_LEFT}
    faults = (await verify(core, _EVER, payment_id)).get(payment_id, ())
    return violated | {(f"{_INVARIANT}{fault.name}", str(fault)) for fault in faults}
