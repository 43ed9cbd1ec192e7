"""Payouts, and all other postings that belong to an expert and to no payment.

Such postings belong to an event of the expert, as a payment's postings belong to an event of the
payment.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from payment_service.adapters.postgres.debts import START_DEBT_CHECK
from payment_service.adapters.postgres.rows import (
    PAYOUT_COLUMNS,
    payout_of,
    payout_values,
    posted,
    posting_values,
)
from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.adapters.postgres.texts import kept, new_salt, text_values
from payment_service.domain.audit_trail import cause_values
from payment_service.domain.errors import Busy
from payment_service.domain.experts import Expert
from payment_service.domain.ledger import Posting, expert_debt
from payment_service.domain.payouts import Payout, PayoutChange, PayoutState
from payment_service.domain.ports.records import Cause
from payment_service.domain.texts import KeptText, seal

#: The columns of a payout that may change.
_CHANGED: Final = (
    "state arrival_time failure_code balance_transaction_id failure_balance_transaction_id "
    "version update_time"
).split()

#: The only way to change an expert's books: the expert's version, the event and its postings are
#: written in one statement, or nothing is.
_POSTED: Final = f"""
WITH moved AS (
    UPDATE experts SET version = version + 1, update_time = :update_time
    WHERE expert_id = :expert_id AND version = :expert_version
    RETURNING expert_id, version
), recorded AS (
    INSERT INTO expert_events (expert_id, sequence, kind, body, time)
    SELECT expert_id, version, :kind, :body, :update_time FROM moved
    RETURNING expert_id, sequence
), {posted("expert_id")}, {kept("expert_id")}
"""
_RECORD: Final = f"""{_POSTED}, changed AS (
    INSERT INTO payouts ({", ".join(PAYOUT_COLUMNS)})
    SELECT {", ".join(f":{name}" for name in PAYOUT_COLUMNS)} FROM recorded
    ON CONFLICT (payout_id) DO UPDATE SET {", ".join(f"{n} = excluded.{n}" for n in _CHANGED)}
    WHERE payouts.version = :version - 1
    RETURNING payout_id
)
SELECT count(*) FROM changed
"""
_POST: Final = f"{_POSTED} SELECT count(*) FROM recorded"


class PayoutWrites(TransactionStatements):
    """Writes an expert's books inside a transaction."""

    def payout(self, payout_id: str) -> Payout | None:
        """Returns the payout, or None.

        The caller has locked the expert, so two syncs of one payout are stored one after the other.
        """
        row = self._maybe("SELECT * FROM payouts WHERE payout_id = :id", id=payout_id)
        return row and payout_of(row)

    def record_payout(self, change: PayoutChange, expert: Expert, cause: Cause) -> None:
        """Writes a payout, its event and its postings in one statement.

        The caller has locked the expert in this transaction. Raises :class:`Busy`
        (CONCURRENT_CHANGE) if the expert or the payout has another version than the caller read.
        """
        self._post(
            _RECORD,
            expert,
            change.postings,
            (),
            **payout_values(change.after),
            kind=change.kind,
            body=payout_event_body(change, cause),
        )

    def post_for_expert(
        self,
        expert: Expert,
        kind: str,
        facts: Mapping[str, object],
        postings: Sequence[Posting],
        now: datetime,
        cause: Cause,
    ) -> None:
        """Writes an event of an expert and its postings in one statement.

        The caller has locked the expert in this transaction. Raises :class:`Busy`
        (CONCURRENT_CHANGE) if the expert has another version than the caller read.
        """
        sealed, texts = seal(facts, new_salt)
        self._post(
            _POST,
            expert,
            postings,
            texts,
            expert_id=expert.expert_id,
            update_time=now,
            kind=kind,
            body=json.dumps({**sealed, "by": cause_values(cause)}, sort_keys=True),
        )
        owed = expert_debt(expert.expert_id)
        if any(line.account == owed and line.minor_units > 0 for line in postings):
            self._do(START_DEBT_CHECK, expert_id=expert.expert_id)

    def _post(
        self,
        sql: str,
        expert: Expert,
        postings: Sequence[Posting],
        texts: Sequence[KeptText],
        **values: object,
    ) -> None:
        """Runs one of the two statements and checks that it wrote its row."""
        written = self._one(
            sql,
            **values,
            expert_version=expert.version,
            **posting_values(postings),
            **text_values(texts),
        )
        if written["count"] != 1:
            raise Busy(
                "CONCURRENT_CHANGE",
                "the expert was changed by another call; ask again",
                {"expert_id": expert.expert_id},
            )


class PayoutReads(Statements):
    """Reads payouts outside transactions."""

    def payout(self, payout_id: str) -> Payout | None:
        """Returns the payout, or None."""
        row = self._maybe("SELECT * FROM payouts WHERE payout_id = :id", id=payout_id)
        return row and payout_of(row)

    def payouts(
        self,
        expert_id: str,
        states: Sequence[PayoutState],
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> Sequence[Payout]:
        """Returns one page of an expert's payouts, newest first by Stripe's creation time.

        Without states, the page has payouts in every state.
        """
        which = " AND state = ANY(:states)" if states else ""
        found = self._page(
            f"SELECT * FROM payouts WHERE expert_id = :expert_id{which}",
            ("create_time", "payout_id"),
            before,
            limit,
            newest_first=True,
            expert_id=expert_id,
            states=[state.value for state in states],
        )
        return [payout_of(row) for row in found]


def payout_event_body(change: PayoutChange, cause: Cause) -> str:
    """Returns the body of the event: canonical JSON with every posting."""
    before, after = change.before, change.after
    body = {
        "payout_id": after.payout_id,
        "from": before.state.value if before else None,
        "to": after.state.value,
        "amount": after.minor_units,
        "currency": after.currency,
        "arrival_time": after.arrival_time.isoformat(),
        "failure_code": after.failure_code,
        "postings": [
            [
                posting.account,
                posting.minor_units,
                posting.currency,
                posting.balance_transaction_id,
            ]
            for posting in change.postings
        ],
        "by": cause_values(cause),
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
