"""Running balances: the sums of the postings of a closed span, and the newer postings beside them.

No transaction that writes postings touches a balance, so no two of them wait for one another. A job
folds the postings of a closed span into the balances. A span is closed when no transaction can
write into it any more. Its end is the last posting's id that was given to anyone. A transaction
with such an id had got its own number before, because it writes its event first. So its number is
below the one that the folding transaction gets afterwards. When all of those have ended, the span
is closed.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from payment_service.adapters.postgres.statements import Statements, TransactionStatements

#: The greatest character: every text that begins with a prefix is less than the prefix and this.
_BEYOND: Final = "\U0010ffff"

_LAST_ID: Final = (
    "SELECT CASE WHEN is_called THEN last_value ELSE 0 END AS last FROM postings_posting_id_seq"
)
#: Whether transactions may still be under way that can write into the next span. A number from the
#: future is of another server: the database was restored.
_STILL_OPEN: Final = (
    "next_xid > pg_snapshot_xmin(pg_current_snapshot()) AND next_xid <= pg_current_xact_id()"
)
_CLOSE: Final = f"""
UPDATE ledger_span SET
    closed_until = CASE WHEN {_STILL_OPEN} THEN closed_until ELSE next_until END,
    next_until = CASE WHEN {_STILL_OPEN} THEN next_until ELSE greatest(next_until, :last) END,
    next_xid = CASE WHEN {_STILL_OPEN} THEN next_xid ELSE pg_current_xact_id() END
RETURNING folded_until, closed_until, next_until
"""
_LINES: Final = (
    "SELECT account, currency, sum(minor_units) AS units FROM postings "
    "WHERE posting_id > :since AND posting_id <= :until GROUP BY account, currency"
)


def _added(column: str) -> str:
    """Returns the statement's parts that add a span's lines to a column of both tables."""
    return f"""
WITH lines AS MATERIALIZED ({_LINES}), accounts AS (
    INSERT INTO ledger_balances AS old (account, currency, {column})
    SELECT account, currency, units FROM lines ORDER BY account, currency
    ON CONFLICT (account, currency) DO UPDATE SET {column} = old.{column} + excluded.{column}
), families AS (
    INSERT INTO ledger_families AS old (family, currency, {column})
    SELECT split_part(account, ':', 1), currency, sum(units) FROM lines GROUP BY 1, 2 ORDER BY 1, 2
    ON CONFLICT (family, currency) DO UPDATE SET {column} = old.{column} + excluded.{column}
)
"""


_FOLD: Final = (
    f"{_added('minor_units')} UPDATE ledger_span SET folded_until = :until, next_time = now() + "
    "CASE WHEN :until < closed_until THEN interval '0' "
    "WHEN next_until > closed_until THEN :soon ELSE :later END"
)
_CHECK: Final = f"{_added('checked_units')} UPDATE ledger_span SET checked_until = :until"
_OF_FAMILIES: Final = (
    "SELECT currency, sum(minor_units)::bigint AS total FROM ("
    "SELECT family, currency, minor_units FROM ledger_families UNION ALL "
    "SELECT split_part(account, ':', 1), currency, minor_units FROM open_postings()) AS lines"
)


class BalanceWrites(TransactionStatements):
    """Folds postings into balances, and sums them up a second time to check that."""

    def fold_postings(self, soon: float, later: float, limit: int) -> bool:
        """Folds at most ``limit`` postings of the closed span. Returns whether there are more.

        The next turn is after ``soon`` seconds if there are newer postings, otherwise after
        ``later``. Does nothing while another replica folds.
        """
        # First of all: this transaction must get its own number after that.
        last = self._one(_LAST_ID)["last"]
        if self._maybe("SELECT FROM ledger_span FOR UPDATE SKIP LOCKED") is None:
            return False
        span = self._one(_CLOSE, last=last)
        until = min(span["closed_until"], span["folded_until"] + limit)
        self._do(
            _FOLD,
            since=span["folded_until"],
            until=until,
            soon=timedelta(seconds=soon),
            later=timedelta(seconds=later),
        )
        return bool(until < span["closed_until"])

    def check_balances(self, limit: int) -> bool:
        """Sums up at most ``limit`` folded postings again. Returns whether there are more."""
        span = self._maybe(
            "SELECT checked_until, folded_until FROM ledger_span FOR UPDATE SKIP LOCKED"
        )
        if span is None or span["checked_until"] == span["folded_until"]:
            return False
        until = min(span["folded_until"], span["checked_until"] + limit)
        self._do(_CHECK, since=span["checked_until"], until=until)
        return bool(until < span["folded_until"])


class BalanceReads(Statements):
    """Reads sums of postings. Amounts are minor units; credits are negative."""

    def balances(
        self, prefix: str, after: tuple[str, str] | None, limit: int
    ) -> Sequence[tuple[str, str, int]]:
        """Returns one page of (account, currency, balance) of the accounts with this prefix."""
        which = "account >= :prefix AND account < :beyond"
        which += " AND (account, currency) > (:account, :currency)" if after else ""
        found = self._all(
            "SELECT account, currency, sum(minor_units)::bigint AS balance FROM ("
            f"(SELECT account, currency, minor_units FROM ledger_balances WHERE {which} "
            "ORDER BY account, currency LIMIT :limit) UNION ALL "
            f"SELECT account, currency, minor_units FROM open_postings() WHERE {which}) AS lines "
            "GROUP BY account, currency ORDER BY account, currency LIMIT :limit",
            prefix=prefix,
            beyond=prefix + _BEYOND,
            account=after and after[0],
            currency=after and after[1],
            limit=limit,
        )
        return [(row["account"], row["currency"], row["balance"]) for row in found]

    def obligations(self) -> Sequence[tuple[str, int]]:
        """Returns (currency, amount) that the platform owes: escrow, and what clients still get."""
        found = self._all(
            f"{_OF_FAMILIES} WHERE family IN ('escrow', 'client_payable', 'pending_refund') "
            "GROUP BY currency HAVING sum(minor_units) <> 0"
        )
        return [(row["currency"], -row["total"]) for row in found]

    def totals(self) -> Sequence[tuple[str, int]]:
        """Returns (currency, sum of all postings). Each sum is 0 if the books are correct."""
        found = self._all(f"{_OF_FAMILIES} GROUP BY currency ORDER BY currency")
        return [(row["currency"], row["total"]) for row in found]
