"""Sums of a month of the books, and the statement of one expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Final

from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.ledger import (
    COMMISSION,
    LOSSES,
    STRIPE_PLATFORM,
    expert_debt,
    expert_funds,
    stripe_connected,
)
from payment_service.domain.monthly import NamedDifference, StatementLine, Sums

#: An account without the payment or the expert in its name.
_GROUP: Final = (
    "CASE WHEN account LIKE 'stripe:%' THEN 'stripe:' || split_part(account, ':', 2) "
    "ELSE split_part(account, ':', 1) END"
)
_SUMS: Final = (
    "coalesce(sum(minor_units) FILTER (WHERE time < :start), 0)::bigint AS opening, "
    "coalesce(sum(minor_units) FILTER (WHERE time >= :start AND minor_units > 0), 0)::bigint "
    "AS debits, "
    "coalesce(-sum(minor_units) FILTER (WHERE time >= :start AND minor_units < 0), 0)::bigint "
    "AS credits, "
    "sum(minor_units)::bigint AS closing"
)
#: Lines on the platform's account that Stripe and the ledger do not have with the same amount, as
#: the ledger stands now. What a person has resolved still differs, so it is among them. What was
#: seen before the books were bound to the present account is in its opening balance.
_NAMED: Final = """
WITH kept AS (
    SELECT discrepancy_id, kind, detail, line_id, currency, found,
        resolve_time IS NOT NULL AS is_resolved
    FROM discrepancies
    WHERE (resolve_time IS NULL OR resolved_by <> '') AND line_id <> ''
        AND last_seen_time >= (SELECT coalesce(bind_time, '-infinity') FROM installation)
), named AS (
    -- A line may have been reported under several kinds, and differs once.
    SELECT DISTINCT ON (line_id, currency) discrepancy_id, is_resolved, currency,
        found - (SELECT coalesce(sum(p.minor_units), 0) FROM postings p
            WHERE p.balance_transaction_id = kept.line_id AND p.account = :platform
            AND p.currency = kept.currency) AS amount
    FROM kept
    WHERE kind IN ('line_differs', 'missing_in_ledger', 'unknown_balance_transaction')
        AND detail LIKE :on_platform
    ORDER BY line_id, currency, is_resolved, discrepancy_id DESC
)
SELECT discrepancy_id, is_resolved, currency, amount FROM named WHERE amount <> 0
UNION ALL
SELECT kept.discrepancy_id, kept.is_resolved, p.currency, -sum(p.minor_units)
FROM kept JOIN postings p ON p.balance_transaction_id = kept.line_id AND p.account = :platform
WHERE kept.kind = 'missing_at_stripe' AND starts_with(kept.detail, :platform)
GROUP BY 1, 2, 3
ORDER BY is_resolved, discrepancy_id LIMIT 1000
"""
_STATEMENT: Final = (
    "WITH moved AS (SELECT payment_id, expert_id, sequence, currency, "
    "min(posting_id) AS posting_id, min(time) AS time, "
    "string_agg(DISTINCT kind, ', ' ORDER BY kind) AS kind, "
    "coalesce(sum(minor_units) FILTER (WHERE account = :funds AND kind <> ALL(:payouts)), 0) "
    "AS funds, "
    "coalesce(sum(minor_units) FILTER (WHERE account = :funds AND kind = ANY(:payouts)), 0) "
    "AS paid_out, "
    "coalesce(sum(minor_units) FILTER (WHERE account = :debt), 0) AS debt "
    "FROM postings WHERE account IN (:funds, :debt) AND time >= :start AND time < :end "
    "GROUP BY payment_id, expert_id, sequence, currency "
    "HAVING min(posting_id) > :after ORDER BY min(posting_id) LIMIT :limit) "
    "SELECT moved.*, coalesce((SELECT sum(minor_units) FROM postings AS other "
    "WHERE other.payment_id = moved.payment_id AND other.sequence = moved.sequence "
    "AND other.currency = moved.currency AND other.account = :commission), 0) AS commission, "
    # What the platform bears of it. In a lost dispute that is no part of what was captured.
    "coalesce((SELECT sum(minor_units) FROM postings AS other "
    "WHERE (other.payment_id = moved.payment_id OR other.expert_id = moved.expert_id) "
    "AND other.sequence = moved.sequence AND other.currency = moved.currency "
    "AND other.account = :losses AND other.kind <> 'dispute_lost'), 0) AS losses "
    "FROM moved ORDER BY posting_id"
)
_PAYOUTS: Final = ["paid_out", "payout_returned"]
#: The oldest posting is one of the first: transactions last for seconds, so ids are nearly in the
#: order of the times. No index finds the least time.
OPEN_SINCE: Final = (
    "SELECT coalesce((SELECT max(end_time) FROM month_closings), date_trunc('month', "
    "(SELECT min(time) FROM (SELECT time FROM postings ORDER BY posting_id LIMIT 1000) AS first), "
    "'UTC')) AS time"
)


class MonthWrites(TransactionStatements):
    """Closes months."""

    def open_since(self) -> datetime | None:
        """Returns since when no month is closed, or None before the first posting."""
        row = self._one(OPEN_SINCE)
        since: datetime | None = row["time"]
        return since

    def close_month(self, start: datetime, end: datetime) -> None:
        """Stores every account's balance at ``end``: that at ``start``, and the postings since."""
        self._do(
            "INSERT INTO month_closings (end_time, account, currency, minor_units) "
            "SELECT :end, account, currency, sum(minor_units)::bigint FROM ("
            "SELECT account, currency, minor_units FROM month_closings WHERE end_time = :start "
            f"UNION ALL SELECT {_GROUP}, currency, minor_units FROM postings "
            "WHERE time >= :start AND time < :end) AS moved "
            "GROUP BY account, currency ON CONFLICT DO NOTHING",
            start=start,
            end=end,
        )


class MonthReads(Statements):
    """Reads sums of postings. The engine sees to it that all of a report are of one moment."""

    def moment(self) -> datetime:
        """Returns the database's time."""
        moment: datetime = self._one("SELECT clock_timestamp() AS moment")["moment"]
        return moment

    def month_sums(self, start: datetime, end: datetime, currency: str = "") -> Sequence[Sums]:
        """Returns the sums of all accounts until ``end``, by account, kind and currency.

        What was before the newest closing comes from there, under an empty kind. So the cost is
        that of the months since.
        """
        found = self._all(
            "WITH closed AS (SELECT max(end_time) AS time FROM month_closings "
            "WHERE end_time <= :start) "
            "SELECT account, '' AS kind, currency, minor_units AS opening, 0 AS debits, "
            "0 AS credits, minor_units AS closing FROM month_closings "
            "WHERE end_time = (SELECT time FROM closed) "
            "AND (:currency = '' OR currency = :currency) UNION ALL "
            f"SELECT {_GROUP}, kind, currency, {_SUMS} FROM postings "
            "WHERE time >= coalesce((SELECT time FROM closed), '-infinity') AND time < :end "
            "AND (:currency = '' OR currency = :currency) "
            "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
            start=start,
            end=end,
            currency=currency,
        )
        return [_sums_of(row) for row in found]

    def expert_sums(self, expert_id: str, start: datetime, end: datetime) -> Sequence[Sums]:
        """Returns the sums of one expert's accounts until ``end``."""
        found = self._all(
            f"SELECT {_GROUP} AS account, kind, currency, {_SUMS} FROM postings "
            "WHERE account = ANY(:accounts) AND time < :end "
            "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3",
            accounts=[
                expert_funds(expert_id),
                expert_debt(expert_id),
                stripe_connected(expert_id),
            ],
            start=start,
            end=end,
        )
        return [_sums_of(row) for row in found]

    def held_payments(self) -> Mapping[str, int]:
        """Returns how many payments hold money now, by currency."""
        found = self._all(
            "SELECT currency, count(*) AS count FROM payments WHERE held > 0 GROUP BY currency"
        )
        return {row["currency"]: row["count"] for row in found}

    def platform_differences(self) -> Sequence[NamedDifference]:
        """Returns the discrepancies that name what Stripe's balance has more, open ones first."""
        found = self._all(_NAMED, platform=STRIPE_PLATFORM, on_platform=f"%on {STRIPE_PLATFORM}")
        return [
            NamedDifference(
                f"disc_{row['discrepancy_id']}",
                row["currency"],
                int(row["amount"]),
                is_resolved=row["is_resolved"],
            )
            for row in found
        ]

    def statement(
        self, expert_id: str, start: datetime, end: datetime, after: int, limit: int
    ) -> Sequence[StatementLine]:
        """Returns one page of an expert's events with postings, oldest first."""
        found = self._all(
            _STATEMENT,
            funds=expert_funds(expert_id),
            debt=expert_debt(expert_id),
            commission=COMMISSION,
            losses=LOSSES,
            payouts=_PAYOUTS,
            start=start,
            end=end,
            after=after,
            limit=limit,
        )
        return [
            StatementLine(
                row["posting_id"],
                row["time"],
                row["payment_id"] or "",
                row["kind"],
                row["currency"],
                gross=-int(row["funds"] + row["debt"] + row["commission"] + row["losses"]),
                commission=-int(row["commission"]),
                funds=-int(row["funds"]),
                paid_out=int(row["paid_out"]),
                debt=int(row["debt"]),
            )
            for row in found
        ]


def _sums_of(row: Mapping[str, object]) -> Sums:
    return Sums(**{name: row[name] for name in Sums.__dataclass_fields__})  # type: ignore[arg-type]  # by name
