"""The SQL behind the reader port: single statements on a held connection, outside transactions."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from payment_service.adapters import rows
from payment_service.adapters.accounts import AccountReads
from payment_service.adapters.feed import FeedReads
from payment_service.adapters.invariants import INVARIANTS
from payment_service.adapters.payouts import PayoutReads
from payment_service.adapters.trails import TRAILS, trail_of
from payment_service.domain.disputes import Dispute
from payment_service.domain.escrow import Payment
from payment_service.domain.experts import Expert
from payment_service.domain.ledger import Posting
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.ports import (
    Backlog,
    Claim,
    DisputeFilter,
    HeldMoney,
    InboxEvent,
    PaymentFilter,
    StoredDiscrepancy,
    StoredEvent,
    StoredPosting,
    Trail,
    Work,
)

#: `plans.check_destination` in SQL: a destination charge, and the expert has another account.
_DESTINATION_REPLACED: Final = (
    "(charge_model = 'DESTINATION' AND destination_account_id <> stripe_account_id)"
)


class SqlReader(FeedReads, PayoutReads, AccountReads):
    """Reads for RPCs. Each method is one statement."""

    def payment(self, payment_id: str) -> Payment | None:
        row = self._maybe("SELECT * FROM payments WHERE payment_id = :id", id=payment_id)
        return row and rows.payment_of(row)

    def payments(self, which: PaymentFilter, limit: int) -> Sequence[Payment]:
        """A page by keyset: each side reads at most ``limit`` rows off its own index."""
        sides = [
            f"(SELECT * FROM payments WHERE {column} = :user_id{_conditions(which)} "
            "ORDER BY create_time DESC, payment_id DESC LIMIT :limit)"
            for column, wanted in (
                ("client_id", which.as_client),
                ("expert_id", which.as_expert),
            )
            if wanted
        ]
        before = which.before or (None, None)
        found = self._all(
            f"SELECT * FROM ({' UNION ALL '.join(sides)}) AS page "
            "ORDER BY create_time DESC, payment_id DESC LIMIT :limit",
            user_id=which.user_id,
            states=[state.value for state in which.states],
            gig_id=which.gig_id,
            create_time_from=which.create_time_from,
            create_time_until=which.create_time_until,
            deadline_until=which.deadline_until,
            before_time=before[0],
            before_id=before[1],
            limit=limit,
        )
        return [rows.payment_of(row) for row in found]

    def dispute(self, dispute_id: str) -> Dispute | None:
        row = self._maybe("SELECT * FROM disputes WHERE dispute_id = :id", id=dispute_id)
        return row and rows.dispute_of(row)

    def disputes(self, which: DisputeFilter, limit: int) -> Sequence[Dispute]:
        """A page by keyset, newest first."""
        conditions = {
            "payment_id = :payment_id": which.payment_id,
            "expert_id = :expert_id": which.expert_id,
            "outcome = 'OPEN'": which.open_only,
            "(create_time, dispute_id) < (:before_time, :before_id)": which.before,
        }
        chosen = "".join(f" AND {sql}" for sql, given in conditions.items() if given)
        before = which.before or (None, None)
        found = self._all(
            f"SELECT * FROM disputes WHERE true{chosen} "
            "ORDER BY create_time DESC, dispute_id DESC LIMIT :limit",
            payment_id=which.payment_id,
            expert_id=which.expert_id,
            before_time=before[0],
            before_id=before[1],
            limit=limit,
        )
        return [rows.dispute_of(row) for row in found]

    def payment_of(self, reference: str) -> str | None:
        """The payment that one of Stripe's ids, or our own, belongs to."""
        column = {"pay": "payment_id", "pi": "payment_intent_id", "ch": "charge_id"}.get(
            reference.partition("_")[0]
        )
        row = self._maybe(
            f"SELECT payment_id FROM payments WHERE {column} = :id LIMIT 1"
            if column
            else "SELECT payment_id FROM movements WHERE movement_id = :id",
            id=reference,
        )
        return row and str(row["payment_id"])

    def payments_near_deadline(self, ahead: float, limit: int) -> Sequence[str]:
        """Escrows of whose deadline nobody was warned yet; `deadlines.deadline_near` in SQL."""
        near = (
            "({time} BETWEEN now() AND now() + :ahead "
            "AND (warn_time IS NULL OR warn_time < {time}))"
        )
        found = self._in_turn(
            Work.WARNINGS,
            "SELECT payment_id, least(release_due_time, escrow_expire_time) - :ahead AS due "
            "FROM payments WHERE held > 0 "
            "AND state IN ('IN_ESCROW', 'CAPTURING', 'REFUNDING') AND "
            f"({near.format(time='release_due_time')} OR {near.format(time='escrow_expire_time')})",
            limit,
            ahead=timedelta(seconds=ahead),
        )
        return [row["payment_id"] for row in found]

    def payments_past_window(self, limit: int) -> Sequence[str]:
        """Unpaid payments whose window has closed and that nothing is being done about."""
        found = self._in_turn(
            Work.PAYMENT_WINDOW,
            "SELECT payment_id, payment_expire_time AS due FROM payments "
            "WHERE state IN ('PENDING', 'FAILED') "
            "AND payment_expire_time < now() AND operation_id = ''",
            limit,
        )
        return [row["payment_id"] for row in found]

    def holds_past_expiry(self, limit: int) -> Sequence[str]:
        """Payments whose authorization must have lapsed although nobody told us."""
        found = self._in_turn(
            Work.LAPSED_HOLDS,
            "SELECT payment_id, escrow_expire_time AS due FROM payments "
            "WHERE held > 0 AND charged = 0 AND state IN ('IN_ESCROW', 'CAPTURING') "
            "AND escrow_expire_time < now()",
            limit,
        )
        return [row["payment_id"] for row in found]

    def payments_waiting_for_experts(self, limit: int) -> Sequence[tuple[str, str]]:
        """Parked captures whose expert can be paid again, with their operations.

        At once where the account was at fault, or has changed since; else after a minute: Stripe
        may have refused although it calls the account well. A charge whose destination is not the
        expert's account any more is never tried; `plans.check_destination` refuses it as well.
        """
        found = self._in_turn(
            Work.WAITING_CAPTURES,
            "SELECT payment_id, payments.operation_id, payments.update_time AS due "
            "FROM payments JOIN experts USING (expert_id) "
            "WHERE waiting_for = 'expert' AND transfers_active AND NOT deauthorized "
            "AND NOT starts_with(disabled_reason, 'rejected.') AND frozen = 'NONE' "
            f"AND NOT {_DESTINATION_REPLACED} "
            "AND (waiting_reason NOT IN ('', 'EXPERT_REFUSED') "
            "OR experts.update_time > payments.update_time "
            "OR payments.update_time < now() - interval '1 minute')",
            limit,
        )
        return [(row["payment_id"], row["operation_id"]) for row in found]

    def payments_waiting_otherwise(self, limit: int) -> Sequence[str]:
        """Captures that wait for their expert for another reason than the one that is written.

        `plans.reason_to_wait` in SQL, without those that go on now.
        """
        found = self._in_turn(
            Work.WAITING_REASONS,
            "SELECT payment_id, payments.update_time AS due "
            "FROM payments JOIN experts USING (expert_id) "
            "WHERE waiting_for = 'expert' AND waiting_reason <> "
            f"CASE WHEN {_DESTINATION_REPLACED} THEN 'DESTINATION_ACCOUNT_REPLACED' "
            "WHEN deauthorized THEN 'EXPERT_DEAUTHORIZED' "
            "WHEN starts_with(disabled_reason, 'rejected.') THEN 'EXPERT_REJECTED' "
            "WHEN transfers_active THEN waiting_reason "
            "WHEN NOT details_submitted THEN 'EXPERT_ONBOARDING' "
            "WHEN cardinality(requirements_due) > 0 OR (disabled_reason <> '' "
            "AND position('pending_verification' IN disabled_reason) = 0) "
            "THEN 'EXPERT_RESTRICTED' ELSE 'EXPERT_PENDING_VERIFICATION' END",
            limit,
        )
        return [row["payment_id"] for row in found]

    def payments_with_unsettled_losses(self, limit: int) -> Sequence[str]:
        """A loss waits while something else is under way; `Dispute.unsettled` in SQL.

        A parked operation is given up for it, if it is `Operation.is_without_effect`; but not a
        reversal, since the client has what that is to take back from the expert.
        """
        found = self._in_turn(
            Work.LOST_DISPUTES,
            "SELECT DISTINCT payment_id, payments.update_time AS due "
            "FROM disputes JOIN payments USING (payment_id) "
            "WHERE outcome IN ('LOST', 'PREVENTED') "
            "AND withdrawn > reinstated + disputes.lost "
            "AND (payments.operation_id = '' OR EXISTS "
            "(SELECT 1 FROM operations WHERE operations.operation_id = payments.operation_id "
            "AND operations.state = 'PARKED' AND kind <> 'reverse_transfer' "
            "AND (unsure_until IS NULL OR unsure_until <= now())))",
            limit,
        )
        return [row["payment_id"] for row in found]

    def expert(self, expert_id: str) -> Expert | None:
        row = self._maybe("SELECT * FROM experts WHERE expert_id = :id", id=expert_id)
        return row and rows.expert_of(row)

    def claim(self, claim_id: str) -> Claim | None:
        row = self._maybe("SELECT * FROM claims WHERE claim_id = :id", id=claim_id)
        return row and rows.claim_of(row)

    def operation(self, operation_id: str) -> Operation | None:
        row = self._maybe("SELECT * FROM operations WHERE operation_id = :id", id=operation_id)
        return row and rows.operation_of(row)

    def operations(
        self, state: OperationState | None, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Operation]:
        """Oldest first; without a state, all that are not settled."""
        which = "state = :state" if state else "state IN ('STARTED', 'UNKNOWN', 'PARKED')"
        keyset = " AND (create_time, operation_id) > (:time, :id)" if after else ""
        found = self._all(
            f"SELECT * FROM operations WHERE {which}{keyset} "
            "ORDER BY create_time, operation_id LIMIT :limit",
            state=state and state.value,
            time=after and after[0],
            id=after and after[1],
            limit=limit,
        )
        return [rows.operation_of(row) for row in found]

    def inbox(
        self, state: str | None, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[InboxEvent]:
        """Oldest first; without a state, those that wait or are parked."""
        which = "state = :state" if state else "state IN ('WAITING', 'PARKED')"
        keyset = " AND (receive_time, event_id) > (:time, :id)" if after else ""
        found = self._all(
            f"SELECT * FROM inbox WHERE {which}{keyset} "
            "ORDER BY receive_time, event_id LIMIT :limit",
            state=state,
            time=after and after[0],
            id=after and after[1],
            limit=limit,
        )
        return [rows.inbox_event_of(row) for row in found]

    def inbox_event(self, event_id: str) -> InboxEvent | None:
        row = self._maybe("SELECT * FROM inbox WHERE event_id = :id", id=event_id)
        return row and rows.inbox_event_of(row)

    def discrepancies(
        self, payment_id: str, before: int | None, limit: int, *, open_only: bool
    ) -> Sequence[StoredDiscrepancy]:
        conditions = "WHERE true"
        conditions += " AND resolve_time IS NULL" if open_only else ""
        conditions += " AND payment_id = :payment_id" if payment_id else ""
        conditions += " AND discrepancy_id < :before" if before else ""
        found = self._all(
            f"SELECT * FROM discrepancies {conditions} ORDER BY discrepancy_id DESC LIMIT :limit",
            payment_id=payment_id,
            before=before,
            limit=limit,
        )
        return [rows.discrepancy_of(row) for row in found]

    def some_open_discrepancies(
        self, kinds: Sequence[str], payment_id: str, limit: int
    ) -> Sequence[StoredDiscrepancy]:
        """Of these kinds, of all payments or of one; others each time, if there are many."""
        found = self._all(
            "SELECT * FROM discrepancies WHERE resolve_time IS NULL AND kind = ANY(:kinds) "
            "AND (:payment_id = '' OR payment_id = :payment_id) ORDER BY random() LIMIT :limit",
            kinds=list(kinds),
            payment_id=payment_id,
            limit=limit,
        )
        return [rows.discrepancy_of(row) for row in found]

    def events(self, payment_id: str, after: int, limit: int) -> Sequence[StoredEvent]:
        found = self._all(
            "SELECT * FROM events WHERE payment_id = :id AND sequence > :after "
            "ORDER BY sequence LIMIT :limit",
            id=payment_id,
            after=after,
            limit=limit,
        )
        return [rows.stored_event_of(row) for row in found]

    def event_hash(self, payment_id: str, sequence: int) -> bytes:
        """The hash of one event; empty before the first."""
        row = self._maybe(
            "SELECT hash FROM events WHERE payment_id = :id AND sequence = :sequence",
            id=payment_id,
            sequence=sequence,
        )
        return bytes(row["hash"]) if row else b""

    def postings(self, payment_id: str) -> Sequence[StoredPosting]:
        found = self._all(
            "SELECT * FROM postings WHERE payment_id = :id ORDER BY posting_id", id=payment_id
        )
        return [
            StoredPosting(
                row["posting_id"],
                f"{row['payment_id']}:{row['sequence']}",
                row["payment_id"],
                Posting(
                    row["account"],
                    row["minor_units"],
                    row["currency"],
                    row["kind"],
                    row["balance_transaction_id"],
                ),
                row["time"],
            )
            for row in found
        ]

    def balances(
        self, prefix: str, after: tuple[str, str] | None, limit: int
    ) -> Sequence[tuple[str, str, int]]:
        keyset = " AND (account, currency) > (:account, :currency)" if after else ""
        found = self._all(
            "SELECT account, currency, sum(minor_units)::bigint AS balance FROM postings "
            f"WHERE starts_with(account, :prefix){keyset} "
            "GROUP BY account, currency ORDER BY account, currency LIMIT :limit",
            prefix=prefix,
            account=after and after[0],
            currency=after and after[1],
            limit=limit,
        )
        return [(row["account"], row["currency"], row["balance"]) for row in found]

    def obligations(self) -> Sequence[tuple[str, int]]:
        """By currency, what the platform holds for others: in escrow, or owed to clients."""
        found = self._all(
            "SELECT currency, -sum(minor_units)::bigint AS owed FROM postings "
            "WHERE account LIKE 'escrow:%' OR account LIKE 'client_payable:%' "
            "GROUP BY currency HAVING sum(minor_units) <> 0"
        )
        return [(row["currency"], row["owed"]) for row in found]

    def totals(self) -> Sequence[tuple[str, int]]:
        found = self._all(
            "SELECT currency, sum(minor_units)::bigint AS total FROM postings "
            "GROUP BY currency ORDER BY currency"
        )
        return [(row["currency"], row["total"]) for row in found]

    def held_money(self) -> Sequence[HeldMoney]:
        """What is in escrow, by currency, mode and the time that is left."""
        found = self._all(
            "SELECT currency, escrow_mode, CASE WHEN first < now() + interval '6 hours' THEN '6' "
            "WHEN first < now() + interval '24 hours' THEN '24' "
            "WHEN first < now() + interval '72 hours' THEN '72' ELSE 'more' END AS hours_left, "
            "sum(held)::bigint AS held FROM (SELECT currency, escrow_mode, held, "
            "least(escrow_expire_time, release_due_time) AS first FROM payments WHERE held > 0) "
            "AS escrow GROUP BY 1, 2, 3"
        )
        return [
            HeldMoney(row["currency"], row["escrow_mode"], row["hours_left"], row["held"])
            for row in found
        ]

    def backlog(self) -> Sequence[Backlog]:
        """What waits: operations, webhook events, disputes and the feed's events, by state."""
        found = self._all(
            "SELECT 'operation' AS what, state, count(*) AS count, "
            "extract(epoch FROM now() - min(create_time))::float AS oldest FROM operations "
            "WHERE state IN ('STARTED', 'UNKNOWN', 'PARKED') GROUP BY state UNION ALL "
            "SELECT 'webhook_event', state, count(*), "
            "extract(epoch FROM now() - min(receive_time))::float FROM inbox "
            "WHERE state IN ('WAITING', 'PARKED') GROUP BY state UNION ALL "
            # A dispute that nobody answers is lost: first all of those, then those due in 3 days.
            "SELECT 'dispute', due.state, count(*), "
            "extract(epoch FROM now() - min(create_time))::float FROM disputes, "
            "(VALUES ('NEEDS_RESPONSE', interval '10 years'), ('DUE_SOON', interval '3 days')) "
            "AS due (state, ahead) "
            "WHERE status IN ('needs_response', 'warning_needs_response') "
            "AND (evidence_due_time IS NULL OR evidence_due_time < now() + ahead) "
            "GROUP BY due.state UNION ALL "
            "SELECT 'feed_event', 'PENDING', count(*), "
            "extract(epoch FROM now() - min(time))::float FROM feed_pending HAVING count(*) > 0"
        )
        return [Backlog(row["what"], row["state"], row["count"], row["oldest"]) for row in found]

    def payments_changed(
        self, since: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[Payment]:
        """Payments that changed since then; oldest change first."""
        keyset = "AND (update_time, payment_id) > (:time, :id) " if after else ""
        found = self._all(
            "SELECT * FROM payments WHERE update_time >= :since AND payment_intent_id IS NOT NULL "
            f"{keyset}ORDER BY update_time, payment_id LIMIT :limit",
            since=since,
            time=after and after[0],
            id=after and after[1],
            limit=limit,
        )
        return [rows.payment_of(row) for row in found]

    def ledger_lines(self, ids: Sequence[str]) -> Mapping[tuple[str, str], int]:
        """What the ledger's ``stripe:*`` lines with these balance transactions sum to."""
        found = self._all(
            "SELECT balance_transaction_id AS id, currency, sum(minor_units)::bigint AS total "
            "FROM postings WHERE balance_transaction_id = ANY(:ids) GROUP BY 1, 2",
            ids=list(ids),
        )
        return {(row["id"], row["currency"]): row["total"] for row in found}

    def ledger_line_ids(self, account: str, since: datetime, until: datetime) -> Mapping[str, str]:
        """The balance transactions that the ledger names on an account, with their payments.

        A payout may be heard of days late: its line is then younger here than at Stripe, and no
        list that begins at this time would have it.
        """
        found = self._all(
            "SELECT DISTINCT balance_transaction_id AS id, payment_id FROM postings "
            "WHERE account = :account AND time >= :since AND time < :until "
            "AND balance_transaction_id <> '' AND NOT EXISTS (SELECT FROM payouts "
            "WHERE payouts.balance_transaction_id = postings.balance_transaction_id "
            "AND payouts.create_time < :since)",
            account=account,
            since=since,
            until=until,
        )
        return {row["id"]: row["payment_id"] or "" for row in found}

    def trails(
        self, since: datetime, after: tuple[datetime, str], limit: int, payment_id: str
    ) -> Sequence[Trail]:
        """All that is stored of the payments that changed since then, or of one of them."""
        found = self._all(
            TRAILS,
            since=since,
            after_time=after[0],
            after_id=after[1],
            limit=limit,
            payment_id=payment_id,
        )
        return [trail_of(row) for row in found]

    def violations(
        self, since: datetime, payment_id: str = "", names: Collection[str] = ()
    ) -> Mapping[str, Sequence[str]]:
        """Every invariant of the books by name, with the payments that violate it; or these only.

        Held against all payments that changed since then, or against one of them.
        """
        return {
            name: [row["payment_id"] for row in self._all(sql, since=since, payment_id=payment_id)]
            for name, sql in INVARIANTS.items()
            if not names or name in names
        }

    def landing(self, token_hash: bytes) -> tuple[str, str] | None:
        """The expert and the onward address behind a landing page's token, until it expires."""
        row = self._maybe(
            "SELECT expert_id, onward_url FROM landing_tokens "
            "WHERE token_hash = :hash AND expire_time > now()",
            hash=token_hash,
        )
        return row and (row["expert_id"], row["onward_url"])


def _conditions(which: PaymentFilter) -> str:
    """The filters that are set; values are bound, never written into the statement."""
    conditions = {
        "state = ANY(:states)": which.states,
        "gig_id = :gig_id": which.gig_id,
        "create_time >= :create_time_from": which.create_time_from,
        "create_time < :create_time_until": which.create_time_until,
        "held > 0 AND least(escrow_expire_time, release_due_time) < :deadline_until": (
            which.deadline_until
        ),
        "(create_time, payment_id) < (:before_time, :before_id)": which.before,
    }
    return "".join(f" AND {condition}" for condition, wanted in conditions.items() if wanted)
