"""Proposed corrections of the books, their decisions, and the postings that belong to no event."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final

from payment_service.adapters.postgres.rows import posted, posting_values
from payment_service.adapters.postgres.statements import (
    Row,
    Statements,
    TransactionStatements,
    locked,
)
from payment_service.adapters.postgres.texts import new_salt
from payment_service.domain.adjustments import (
    Adjustment,
    AdjustmentKind,
    AdjustmentLine,
    AdjustmentState,
)

_COLUMNS: Final = (
    "adjustment_id kind payment_id expert_id lines ticket reason reason_salt reason_seal "
    "proposed_by create_time expire_time state decided_by decide_time decide_reason sequence"
).split()
#: An open proposal is expired once its time is over; the state that is stored says nothing of it.
_STATE_NOW: Final = (
    "CASE WHEN state = 'PROPOSED' AND expire_time <= now() THEN 'EXPIRED' ELSE state END"
)
#: The platform's own: what it posts belongs to the adjustment itself.
_POST: Final = f"""
WITH recorded AS (
    SELECT adjustment_id, 1 AS sequence FROM adjustments WHERE adjustment_id = :adjustment_id
), {posted("adjustment_id")}
SELECT count(*) FROM recorded
"""


class AdjustmentWrites(TransactionStatements):
    """Writes proposals and decides them."""

    def new_salt(self) -> bytes:
        """Returns what a text is hashed with, so that nobody can guess it from the hash."""
        return new_salt()

    def add_adjustment(self, adjustment: Adjustment) -> None:
        """Inserts a proposal."""
        self._do(
            f"INSERT INTO adjustments ({', '.join(_COLUMNS)}) "
            f"VALUES ({', '.join(f':{name}' for name in _COLUMNS)})",
            adjustment_id=adjustment.adjustment_id,
            kind=adjustment.kind.value,
            payment_id=adjustment.payment_id or None,
            expert_id=adjustment.expert_id or None,
            lines=json.dumps(
                [[line.account, line.currency, line.minor_units] for line in adjustment.lines]
            ),
            ticket=adjustment.ticket,
            reason=adjustment.reason,
            reason_salt=adjustment.reason_salt,
            reason_seal=adjustment.reason_seal,
            proposed_by=adjustment.proposed_by,
            create_time=adjustment.create_time,
            expire_time=adjustment.expire_time,
            state=adjustment.state.value,
            decided_by=adjustment.decided_by,
            decide_time=adjustment.decide_time,
            decide_reason=adjustment.decide_reason,
            sequence=adjustment.sequence,
        )

    def lock_adjustment(self, adjustment_id: str) -> Adjustment | None:
        """Returns the adjustment and locks its row until the transaction ends, or returns None."""
        row = self._maybe(locked("adjustments", "adjustment_id = :id"), id=adjustment_id)
        if row is None:
            return None
        self._tell_time(row["now"])
        return adjustment_of(row)

    def decide_adjustment(self, decided: Adjustment) -> None:
        """Stores the decision about an adjustment that this transaction has locked."""
        self._do(
            "UPDATE adjustments SET state = :state, decided_by = :decided_by, "
            "decide_time = :decide_time, decide_reason = :decide_reason, sequence = :sequence "
            "WHERE adjustment_id = :id",
            id=decided.adjustment_id,
            state=decided.state.value,
            decided_by=decided.decided_by,
            decide_time=decided.decide_time,
            decide_reason=decided.decide_reason,
            sequence=decided.sequence,
        )

    def post_adjustment(self, adjustment: Adjustment) -> None:
        """Posts an adjustment of the platform's own accounts."""
        self._one(
            _POST,
            adjustment_id=adjustment.adjustment_id,
            update_time=self.now,
            **posting_values(adjustment.postings),
        )

    def written_off_by_one(self, expert_id: str, currency: str, within: timedelta) -> int:
        """Returns what was written off for an expert without a second person, lately.

        Requires the expert's lock.
        """
        row = self._one(
            "SELECT coalesce(sum(l.minor_units), 0)::bigint AS total FROM postings l "
            "JOIN expert_events e USING (expert_id, sequence) WHERE l.expert_id = :expert_id "
            "AND l.currency = :currency AND l.account = 'losses' "
            "AND l.kind = 'debt_written_off' AND e.time > now() - CAST(:within AS interval) "
            "AND e.body::jsonb ->> 'adjustment_id' IS NULL",
            expert_id=expert_id,
            currency=currency,
            within=within,
        )
        return int(row["total"])


class AdjustmentReads(Statements):
    """Reads adjustments outside transactions."""

    def adjustments(
        self,
        which: tuple[str, str],
        state: AdjustmentState | None,
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> Sequence[tuple[Adjustment, datetime]]:
        """Returns one page, the newest first, each with the time at which it was read.

        ``which`` is the id of a payment and of an expert; "" means any.
        """
        payment_id, expert_id = which
        conditions = "true"
        conditions += " AND payment_id = :payment_id" if payment_id else ""
        conditions += " AND expert_id = :expert_id" if expert_id else ""
        conditions += f" AND {_STATE_NOW} = :state" if state else ""
        found = self._page(
            f"SELECT *, now() AS read_time FROM adjustments WHERE {conditions}",
            ("create_time", "adjustment_id"),
            before,
            limit,
            newest_first=True,
            payment_id=payment_id,
            expert_id=expert_id,
            state=state and state.value,
        )
        return [(adjustment_of(row), row["read_time"]) for row in found]


def adjustment_of(row: Row) -> Adjustment:
    """Returns the adjustment that a row of ``adjustments`` holds."""
    return Adjustment(
        adjustment_id=row["adjustment_id"],
        kind=AdjustmentKind(row["kind"]),
        payment_id=row["payment_id"] or "",
        expert_id=row["expert_id"] or "",
        lines=tuple(AdjustmentLine(*line) for line in row["lines"]),
        ticket=row["ticket"],
        reason=row["reason"],
        reason_salt=bytes(row["reason_salt"]),
        reason_seal=row["reason_seal"],
        proposed_by=row["proposed_by"],
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        state=AdjustmentState(row["state"]),
        decided_by=row["decided_by"],
        decide_time=row["decide_time"],
        decide_reason=row["decide_reason"],
        sequence=row["sequence"],
    )
