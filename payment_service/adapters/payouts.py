"""The SQL of an expert's books: payouts and write-offs hang on the expert's audit trail."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import RowMapping

from payment_service.adapters.rows import posted, posting_values
from payment_service.adapters.statements import Statements
from payment_service.domain.errors import Busy
from payment_service.domain.experts import Expert
from payment_service.domain.ledger import Posting, expert_debt, expert_funds
from payment_service.domain.payouts import Payout, PayoutChange, PayoutState
from payment_service.domain.ports import Cause

_COLUMNS: Final = (
    "payout_id expert_id stripe_account_id minor_units currency state automatic arrival_time "
    "failure_code balance_transaction_id failure_balance_transaction_id version create_time "
    "update_time"
).split()
_CHANGED: Final = (
    "state arrival_time failure_code balance_transaction_id failure_balance_transaction_id "
    "version update_time"
).split()

#: The one door for what is an expert's and no payment's: version, event and postings, or nothing.
_POSTED: Final = f"""
WITH moved AS (
    UPDATE experts SET version = version + 1, update_time = :update_time
    WHERE expert_id = :expert_id AND version = :expert_version
    RETURNING expert_id, version
), recorded AS (
    INSERT INTO expert_events (expert_id, sequence, kind, body, time)
    SELECT expert_id, version, :kind, :body, :update_time FROM moved
    RETURNING expert_id, sequence
), {posted("expert_id")}
"""
_RECORD: Final = f"""{_POSTED}, changed AS (
    INSERT INTO payouts ({", ".join(_COLUMNS)})
    SELECT {", ".join(f":{name}" for name in _COLUMNS)} FROM recorded
    ON CONFLICT (payout_id) DO UPDATE SET {", ".join(f"{n} = excluded.{n}" for n in _CHANGED)}
    WHERE payouts.version = :version - 1
    RETURNING payout_id
)
SELECT count(*) FROM changed
"""
_POST: Final = f"{_POSTED} SELECT count(*) FROM recorded"


class PayoutWrites(Statements):
    """What a transaction does with payouts, and with an expert's books."""

    def payout(self, payout_id: str) -> Payout | None:
        """Its expert is locked before: two looks at one payout are written down in turn."""
        row = self._maybe("SELECT * FROM payouts WHERE payout_id = :id", id=payout_id)
        return row and payout_of(row)

    def record_payout(self, change: PayoutChange, expert: Expert, cause: Cause) -> None:
        """Write a change of an expert's payout; the expert was locked in this transaction."""
        self._post(
            _RECORD,
            expert,
            change.postings,
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
        """Write an event and its postings; the expert was locked in this transaction."""
        by = {"caller": cause.caller, "rpc": cause.rpc, "request_id": cause.request_id}
        self._post(
            _POST,
            expert,
            postings,
            expert_id=expert.expert_id,
            update_time=now,
            kind=kind,
            body=json.dumps({**facts, "by": by}, sort_keys=True),
        )

    def _post(
        self, sql: str, expert: Expert, postings: Sequence[Posting], **values: object
    ) -> None:
        written = self._one(
            sql,
            **values,
            expert_version=expert.version,
            **posting_values(postings),
        )
        if written["count"] != 1:
            raise Busy(
                "CONCURRENT_CHANGE",
                "the expert was changed by another call; ask again",
                {"expert_id": expert.expert_id},
            )


class PayoutReads(Statements):
    """What readers ask of payouts; each method is one statement."""

    def payout(self, payout_id: str) -> Payout | None:
        row = self._maybe("SELECT * FROM payouts WHERE payout_id = :id", id=payout_id)
        return row and payout_of(row)

    def payouts(
        self,
        expert_id: str,
        states: Sequence[PayoutState],
        before: tuple[datetime, str] | None,
        limit: int,
    ) -> Sequence[Payout]:
        """An expert's, newest first by Stripe's creation; without states, all."""
        which = " AND state = ANY(:states)" if states else ""
        keyset = " AND (create_time, payout_id) < (:time, :id)" if before else ""
        found = self._all(
            f"SELECT * FROM payouts WHERE expert_id = :expert_id{which}{keyset} "
            "ORDER BY create_time DESC, payout_id DESC LIMIT :limit",
            expert_id=expert_id,
            states=[state.value for state in states],
            time=before and before[0],
            id=before and before[1],
            limit=limit,
        )
        return [payout_of(row) for row in found]

    def expert_balances(self, expert_id: str) -> Sequence[tuple[str, int, int]]:
        """Currency, funds (owed to the expert) and debt (owed by them), both as positive sums."""
        found = self._all(
            "SELECT currency, "
            "-coalesce(sum(minor_units) FILTER (WHERE account = :funds), 0)::bigint AS funds, "
            "coalesce(sum(minor_units) FILTER (WHERE account = :debt), 0)::bigint AS debt "
            "FROM postings WHERE account IN (:funds, :debt) GROUP BY currency ORDER BY currency",
            funds=expert_funds(expert_id),
            debt=expert_debt(expert_id),
        )
        return [(row["currency"], row["funds"], row["debt"]) for row in found]


def payout_event_body(change: PayoutChange, cause: Cause) -> str:
    """What the audit trail keeps: canonical JSON with every line that was posted."""
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
        "by": {"caller": cause.caller, "rpc": cause.rpc, "request_id": cause.request_id},
    }
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def payout_values(payout: Payout) -> dict[str, Any]:
    """A payout as parameters, by column."""
    values: dict[str, Any] = {name: getattr(payout, name) for name in _COLUMNS}
    values["state"] = payout.state.value
    return values


def payout_of(row: RowMapping) -> Payout:
    values = {name: row[name] for name in _COLUMNS}
    return Payout(**{**values, "state": PayoutState(values["state"])})
