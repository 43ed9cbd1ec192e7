"""The SQL behind the transaction port. ``record`` is the one door for change.

Plain SQL in ``text()``: one guarded statement writes a payment's row, its event and its postings,
or nothing. The state machine stays in Python; what must never be is also refused by the schema.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Final

from sqlalchemy import Connection

from payment_service.adapters import rows
from payment_service.adapters.accounts import AccountWrites
from payment_service.adapters.clock import own_clock
from payment_service.adapters.feed import FeedWrites
from payment_service.adapters.payouts import PayoutWrites
from payment_service.adapters.rows import DISPUTE_COLUMNS, PAYMENT_COLUMNS
from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import Busy, key_reused
from payment_service.domain.escrow import Payment, Transition
from payment_service.domain.events import chain_hash, event_body
from payment_service.domain.experts import Expert
from payment_service.domain.followed import Discrepancy, Movement
from payment_service.domain.give_way import described
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.plans import Reversible
from payment_service.domain.ports import (
    Answer,
    Cause,
    Claim,
    InboxEvent,
    StoredDiscrepancy,
    Watch,
    Work,
)

_CHANGED: Final = [name for name in PAYMENT_COLUMNS if name != "payment_id"]

_RECORD_TAIL: Final = f"""
, recorded AS (
    INSERT INTO events (payment_id, sequence, kind, time, body, hash)
    SELECT payment_id, :version, :kind, :update_time, :body, :head_hash FROM changed
    RETURNING payment_id, sequence
), {rows.posted("payment_id")}
SELECT count(*) FROM recorded
"""
_RECORD_NEW: Final = (
    f"WITH changed AS (INSERT INTO payments ({', '.join(PAYMENT_COLUMNS)}, head_hash) "
    f"VALUES ({', '.join(f':{name}' for name in PAYMENT_COLUMNS)}, :head_hash) "
    f"RETURNING payment_id){_RECORD_TAIL}"
)
_RECORD: Final = (
    f"WITH changed AS (UPDATE payments SET {', '.join(f'{n} = :{n}' for n in _CHANGED)}, "
    "head_hash = :head_hash WHERE payment_id = :payment_id AND version = :version_before "
    f"RETURNING payment_id){_RECORD_TAIL}"
)
_SAVE_DISPUTE: Final = (
    f"INSERT INTO disputes ({', '.join(DISPUTE_COLUMNS)}) "
    f"VALUES ({', '.join(f':{name}' for name in DISPUTE_COLUMNS)}) "
    "ON CONFLICT (dispute_id) DO UPDATE SET "
    + ", ".join(f"{name} = excluded.{name}" for name in DISPUTE_COLUMNS if name != "dispute_id")
)
_EXPERT_COLUMNS: Final = (
    "expert_id name email country business_type commission_basis_points commission_asked "
    "stripe_account_id charges_enabled payouts_enabled transfers_active details_submitted "
    "requirements_due disabled_reason deauthorized operation_id check_time version create_time "
    "update_time"
).split()
#: Of a discrepancy that is seen again: somebody has decided it, and it is still the same.
_DECIDED: Final = (
    "discrepancies.resolved_by <> '' AND NOT :stands "
    "AND discrepancies.found IS NOT DISTINCT FROM excluded.found"
)
_LEASE: Final = """
    lease_token = :token, lease_until = now() + :lease, next_try_time = now() + :lease,
    tries = tries + 1
"""

#: What reversals under way are to take back, and what is owed only once they are over.
_BEING_REVERSED: Final = (
    "SELECT coalesce(sum(operations.minor_units + coalesce((params->>'owed_then')::bigint, 0) "
    "+ (SELECT coalesce(sum((leg->>'minor_units')::bigint), 0) "
    "FROM jsonb_array_elements(coalesce(params->'legs', '[]')) AS leg)), 0) "
    "FROM operations JOIN payments USING (payment_id) WHERE kind = 'reverse_transfer' "
    "AND operations.state IN ('STARTED', 'UNKNOWN', 'PARKED')"
)

#: Stripe holds earnings back for at most ninety days outside the US, and a bank may take some more
#: days to refuse. What is older is left to webhooks and to reconciliation.
_PAID_OUT_WITHIN: Final = timedelta(days=100)
_OPEN: Final = (
    "(NOT transfers_active OR EXISTS (SELECT FROM payments WHERE payments.expert_id = "
    "experts.expert_id AND state IN ('PENDING', 'FAILED', 'IN_ESCROW', 'CAPTURING', 'CANCELING', "
    "'PROMOTING', 'REFUNDING')))"
)
_MAY_PAY_OUT: Final = (
    f"NOT {_OPEN} AND (EXISTS (SELECT FROM payments WHERE payments.expert_id = experts.expert_id "
    "AND capture_time > now() - :recent) OR EXISTS (SELECT FROM payouts WHERE payouts.expert_id = "
    "experts.expert_id AND update_time > now() - :recent))"
)
#: Money may be left on an account that the expert has no more, and goes to the bank some day.
_REPLACED: Final = (
    "EXISTS (SELECT FROM former_accounts WHERE stripe_account_id = scope "
    "AND deauthorize_time IS NULL AND (replace_time > now() - :recent OR EXISTS (SELECT FROM "
    "payouts WHERE payouts.stripe_account_id = scope AND update_time > now() - :recent)))"
)

#: One deadline of every escrow that has it, once it has passed: told once, and what is to be done
#: is tried again, but not what can never be captured.
_PASSED: Final = (
    "SELECT payment_id, CASE WHEN deadline_time IS NULL OR deadline_time < {act_time} "
    "THEN {act_time} WHEN (on_deadline IN ('CAPTURE', 'REFUND'){promotes}) "
    "AND NOT (on_deadline = 'CAPTURE' AND charge_model = 'DESTINATION' AND EXISTS (SELECT FROM "
    "former_accounts WHERE stripe_account_id = destination_account_id)) "
    "THEN deadline_time + :again END AS due FROM payments "
    "WHERE held > 0 AND ((state = 'IN_ESCROW' AND operation_id = '') "
    # What is parked to pay the client again gives way; `make_way.repayment_making_way`.
    "OR (state = 'REFUNDING' AND client_owed > 0 AND EXISTS (SELECT FROM operations "
    "WHERE operations.operation_id = payments.operation_id AND params ->> 'owed' = 'true' "
    "AND operations.state = 'PARKED' AND unsure_until IS NULL))) AND {passed}"
)
_DUE: Final = " UNION ALL ".join(
    (
        _PASSED.format(
            act_time="escrow_expire_time - :margin",
            promotes=" OR (on_deadline = 'PROMOTE' AND charged = 0)",
            passed="escrow_expire_time <= now() + :margin",
        ),
        # A promotion concerns the card's authorization alone.
        _PASSED.format(
            act_time="release_due_time", promotes="", passed="release_due_time <= now()"
        ),
    )
)


class SqlTransaction(FeedWrites, PayoutWrites, AccountWrites):
    """One transaction. ``recorded`` keeps the transitions, for metrics after the commit."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self.clock = own_clock()
        self._heads: dict[str, bytes] = {}
        self.recorded: list[Transition] = []

    @cached_property
    def now(self) -> datetime:
        """The database's clock: replicas may disagree about the time, it does not.

        Read when it is first asked for, which is after the payment is locked, and not when the
        transaction began: so a payment's events never go back in time.
        """
        now: datetime = self._one("SELECT clock_timestamp() AS now")["now"]
        return now

    def new_id(self, prefix: str) -> str:
        """Unguessable: 122 random bits."""
        return f"{prefix}_{uuid.uuid4().hex}"

    # ---- claims ----

    def claim(self, cause: Cause, key: str, fields: Mapping[str, str]) -> Claim:
        """Take the caller's key, or find who holds it. Raises :class:`Conflict` on other content.

        A second caller waits here until the first one's claiming transaction is over (the unique
        index sees to that), and never longer.
        """
        digests = {
            name: hashlib.sha256(value.encode()).hexdigest()[:32] for name, value in fields.items()
        }
        values = {"caller": cause.caller, "rpc": cause.rpc, "key": key}
        made = self._maybe(
            "INSERT INTO claims (claim_id, caller, rpc, key, fields, create_time) "
            "VALUES (:claim_id, :caller, :rpc, :key, :fields, now()) "
            "ON CONFLICT ON CONSTRAINT a_key_is_used_once DO NOTHING RETURNING claim_id",
            claim_id=self.new_id("clm"),
            fields=json.dumps(digests),
            **values,
        )
        if made is not None:
            return Claim(made["claim_id"], cause.rpc, fresh=True)
        row = self._one(
            "SELECT * FROM claims WHERE caller = :caller AND rpc = :rpc AND key = :key", **values
        )
        for name in sorted(digests.keys() | row["fields"].keys()):
            if digests.get(name) != row["fields"].get(name):
                raise key_reused(key, name)
        return rows.claim_of(row)

    def bind_claim(self, claim_id: str, payment_id: str, operation_id: str) -> None:
        self._do(
            "UPDATE claims SET payment_id = :payment_id, operation_id = :operation_id "
            "WHERE claim_id = :claim_id",
            claim_id=claim_id,
            payment_id=payment_id or None,
            operation_id=operation_id,
        )

    def settle_claim(self, claim_id: str, answer: Answer) -> None:
        """Write down the answer, once: what a caller was told is never changed."""
        self._do(
            "UPDATE claims SET ok = :ok, answer = :answer, settle_time = now() "
            "WHERE claim_id = :claim_id AND answer IS NULL",
            claim_id=claim_id,
            ok=answer.ok,
            answer=answer.body,
        )

    def claim_rpc(self, claim_id: str) -> str:
        row = self._one("SELECT rpc FROM claims WHERE claim_id = :claim_id", claim_id=claim_id)
        return str(row["rpc"])

    # ---- payments ----

    def lock_payment(self, payment_id: str) -> Payment | None:
        row = self._maybe(
            "SELECT * FROM payments WHERE payment_id = :payment_id FOR UPDATE",
            payment_id=payment_id,
        )
        if row is None:
            return None
        self._heads[payment_id] = bytes(row["head_hash"])
        return rows.payment_of(row)

    def record(self, transition: Transition, cause: Cause) -> None:
        """The one door: the payment's row, its event and its postings, or nothing."""
        after, before = transition.after, transition.before
        body = event_body(transition, cause)
        head = chain_hash(
            self._heads.get(after.payment_id, b""),
            after.payment_id,
            after.version,
            transition.kind,
            after.update_time,
            body,
        )
        written = self._one(
            _RECORD if before else _RECORD_NEW,
            **rows.payment_values(after),
            **({"version_before": before.version} if before else {}),
            head_hash=head,
            kind=transition.kind.value,
            body=body,
            **rows.posting_values(transition.postings),
        )
        if written["count"] != 1:
            raise Busy(
                "CONCURRENT_CHANGE",
                "the payment was changed by another call; ask again with the same key",
                {"payment_id": after.payment_id},
            )
        self._heads[after.payment_id] = head
        self.recorded.append(transition)

    def known_movements(self, payment_id: str) -> frozenset[str]:
        found = self._all(
            "SELECT movement_id FROM movements WHERE payment_id = :payment_id",
            payment_id=payment_id,
        )
        return frozenset(row["movement_id"] for row in found)

    def made_by_hand_since(self, operation: Operation) -> Mapping[str, str]:
        """Describes, by id, what was booked out of band since this open operation was recorded, or
        last resumed.

        A payment has one open operation at most, so what is not this one's is nobody's of ours.
        """
        found = self._all(
            "SELECT movement_id, movements.kind, movements.minor_units FROM movements "
            "JOIN operations ON operations.operation_id = :operation_id "
            "WHERE movements.payment_id = :payment_id "
            "AND movements.operation_id <> :operation_id "
            "AND movements.kind IN ('refund', 'transfer', 'reversal', 'fee_refund') "
            "AND time > coalesce(resume_time, create_time) ORDER BY time, movement_id",
            payment_id=operation.payment_id,
            operation_id=operation.operation_id,
        )
        return {
            row["movement_id"]: described(row["kind"], row["movement_id"], row["minor_units"])
            for row in found
        }

    def add_movement(self, payment_id: str, movement: Movement) -> None:
        self._do(
            "INSERT INTO movements (movement_id, payment_id, kind, minor_units, operation_id, "
            "transfer_id, time) VALUES (:movement_id, :payment_id, :kind, :minor_units, "
            ":operation_id, :transfer_id, now())",
            movement_id=movement.movement_id,
            payment_id=payment_id,
            kind=movement.kind,
            minor_units=movement.minor_units,
            operation_id=movement.operation_id,
            transfer_id=movement.transfer_id,
        )

    def reversible_transfers(self, payment_id: str) -> Sequence[Reversible]:
        """What is left of each transfer, as far as our books know; the oldest first."""
        found = self._all(
            "SELECT sent.movement_id, sent.minor_units - coalesce(sum(back.minor_units), 0) AS "
            "minor_units FROM movements AS sent LEFT JOIN movements AS back "
            "ON back.transfer_id = sent.movement_id WHERE sent.payment_id = :id "
            "AND sent.kind = 'transfer' GROUP BY sent.movement_id ORDER BY sent.time",
            id=payment_id,
        )
        return [Reversible(row["movement_id"], int(row["minor_units"])) for row in found]

    def expert_debt(self, expert_id: str, currency: str) -> int:
        """What the expert owes and nothing under way collects yet, in minor units.

        A capture may be keeping it back, or a reversal taking it back: a refund's further legs, and
        what is owed after them, are owed only until then. Locks the expert until the transaction
        ends, so that two captures do not keep back the same.
        """
        self._maybe("SELECT FROM experts WHERE expert_id = :id FOR UPDATE", id=expert_id)
        row = self._one(
            "SELECT (SELECT coalesce(sum(minor_units), 0) FROM postings "
            "WHERE account = 'expert_debt:' || :id AND currency = :currency) "
            "- (SELECT coalesce(sum(netting), 0) FROM payments "
            "WHERE expert_id = :id AND currency = :currency AND netting > 0) "
            f"- ({_BEING_REVERSED} AND payments.expert_id = :id AND currency = :currency) AS debt",
            id=expert_id,
            currency=currency,
        )
        return max(int(row["debt"]), 0)

    def payments_at_deadline(self, margin: float, again: float, limit: int) -> Sequence[str]:
        """Escrows whose deadline is to be acted upon, by the time since when it is.

        `deadlines.deadline_due` in SQL, whole: what is only looked at would keep its place at the
        head, and those behind it would never be reached.
        """
        found = self._in_turn(
            Work.DEADLINES,
            f"SELECT payment_id, min(due) AS due FROM ({_DUE}) AS passed "
            "WHERE due <= now() GROUP BY payment_id",
            limit,
            margin=timedelta(seconds=margin),
            again=timedelta(seconds=again),
        )
        return [row["payment_id"] for row in found]

    def take_turn(self, work: Work, payment_id: str, first: float, most: float) -> bool:
        """True for one replica. The payment then rests, twice as long as the last time.

        Turns that are over for an hour are forgotten.
        """
        self._do(
            "DELETE FROM turns WHERE (work, payment_id) IN (SELECT work, payment_id FROM turns "
            "WHERE next_time < now() - interval '1 hour' LIMIT 100 FOR UPDATE SKIP LOCKED)"
        )
        taken = self._do(
            "INSERT INTO turns (work, payment_id, pause, next_time) "
            "VALUES (:work, :payment_id, :first, now() + :first) "
            "ON CONFLICT (work, payment_id) DO UPDATE SET pause = least(turns.pause * 2, :most), "
            "next_time = now() + least(turns.pause * 2, :most) WHERE turns.next_time <= now()",
            work=work.value,
            payment_id=payment_id,
            first=timedelta(seconds=first),
            most=timedelta(seconds=most),
        )
        return taken == 1

    def report(self, discrepancy: Discrepancy) -> None:
        """Keep it once, however often it is seen; one that was gone is open again.

        What somebody has decided stays so, unless the amount is another one, or it says how things
        are (``stands``).
        """
        self._do(
            "INSERT INTO discrepancies (payment_id, kind, detail, time, last_seen_time, expected, "
            "found, currency, cure, line_id) VALUES (:payment_id, :kind, :detail, now(), now(), "
            ":expected, :found, :currency, :cure, :line_id) "
            "ON CONFLICT (payment_id, kind, detail) DO UPDATE "
            "SET last_seen_time = now(), found = excluded.found, line_id = excluded.line_id, "
            f"resolve_time = CASE WHEN {_DECIDED} THEN discrepancies.resolve_time END, "
            f"resolved_by = CASE WHEN {_DECIDED} THEN discrepancies.resolved_by ELSE '' END, "
            f"note = CASE WHEN {_DECIDED} THEN discrepancies.note ELSE '' END",
            stands=discrepancy.stands,
            payment_id=discrepancy.payment_id or None,
            kind=discrepancy.kind,
            detail=discrepancy.detail,
            expected=discrepancy.expected,
            found=discrepancy.found,
            currency=discrepancy.currency,
            cure=discrepancy.cure,
            line_id=discrepancy.line_id,
        )

    def resolve_discrepancies(self, ids: Sequence[int], unseen_since: datetime) -> None:
        """They are gone, unless somebody has seen them again since then."""
        self._do(
            "UPDATE discrepancies SET resolve_time = now() WHERE discrepancy_id = ANY(:ids) "
            "AND resolve_time IS NULL AND last_seen_time < :since",
            ids=list(ids),
            since=unseen_since,
        )

    def lock_discrepancy(self, discrepancy_id: int) -> StoredDiscrepancy | None:
        row = self._maybe(
            "SELECT * FROM discrepancies WHERE discrepancy_id = :id FOR UPDATE", id=discrepancy_id
        )
        return row and rows.discrepancy_of(row)

    def decide_discrepancy(self, discrepancy_id: int, resolved_by: str, note: str) -> None:
        self._do(
            "UPDATE discrepancies SET resolve_time = now(), resolved_by = :resolved_by, "
            "note = :note WHERE discrepancy_id = :id",
            id=discrepancy_id,
            resolved_by=resolved_by,
            note=note,
        )

    def lease_job(self, name: str, seconds: float) -> bool:
        """True for one replica, once in so many seconds."""
        made = self._do(
            "INSERT INTO jobs (name, next_time) VALUES (:name, now() + :pause) "
            "ON CONFLICT (name) DO UPDATE SET next_time = excluded.next_time "
            "WHERE jobs.next_time <= now()",
            name=name,
            pause=timedelta(seconds=seconds),
        )
        return made == 1

    # ---- disputes ----

    def dispute(self, dispute_id: str) -> Dispute | None:
        row = self._maybe("SELECT * FROM disputes WHERE dispute_id = :id", id=dispute_id)
        return row and rows.dispute_of(row)

    def disputes_of(self, payment_id: str) -> Sequence[Dispute]:
        found = self._all(
            "SELECT * FROM disputes WHERE payment_id = :id ORDER BY create_time, dispute_id",
            id=payment_id,
        )
        return [rows.dispute_of(row) for row in found]

    def save_dispute(self, dispute: Dispute) -> None:
        """Only under the payment's lock, beside the transition that says what changed."""
        self._do(_SAVE_DISPUTE, **rows.dispute_values(dispute))

    # ---- operations ----

    def add_operation(self, operation: Operation) -> None:
        self._do(
            "INSERT INTO operations (operation_id, kind, payment_id, expert_id, dispute_id, "
            "params, minor_units, claim_id, state, attempt, tries, last_error, create_time, "
            "attempt_time, lease_until, lease_token, next_try_time) "
            "VALUES (:operation_id, :kind, :payment_id, :expert_id, :dispute_id, :params, "
            ":minor_units, :claim_id, :state, :attempt, :tries, :last_error, "
            ":create_time, :attempt_time, :lease_until, :lease_token, :next_try_time)",
            operation_id=operation.operation_id,
            kind=operation.kind.value,
            payment_id=operation.payment_id or None,
            expert_id=operation.expert_id or None,
            dispute_id=operation.dispute_id or None,
            params=json.dumps(dict(operation.params)),
            minor_units=operation.minor_units,
            claim_id=operation.claim_id or None,
            state=operation.state.value,
            attempt=operation.attempt,
            tries=operation.tries,
            last_error=operation.last_error,
            create_time=operation.create_time,
            attempt_time=operation.attempt_time,
            lease_until=operation.lease_until,
            lease_token=operation.lease_token,
            next_try_time=operation.next_try_time,
        )

    def operation(self, operation_id: str) -> Operation | None:
        """Locked, so that nobody settles it meanwhile."""
        row = self._maybe(
            "SELECT * FROM operations WHERE operation_id = :id FOR UPDATE", id=operation_id
        )
        return row and rows.operation_of(row)

    def lease_operation(self, operation_id: str, seconds: float) -> Operation | None:
        """Take it over for so long, unless it is settled, parked, or another's.

        Nor while it rests before a new key (``replayed``): a caller who asks again may shorten any
        other pause, but not the one between the two reads that a second request needs.
        """
        row = self._maybe(
            f"UPDATE operations SET {_LEASE} WHERE operation_id = :id "
            "AND state IN ('STARTED', 'UNKNOWN') "
            "AND (lease_until IS NULL OR lease_until < now()) "
            "AND (params->>'replayed' IS NULL OR next_try_time <= now()) RETURNING *",
            id=operation_id,
            token=secrets.token_hex(8),
            lease=timedelta(seconds=seconds),
        )
        return row and replace(rows.operation_of(row), held_since=self.clock)

    def lease_due_operations(self, seconds: float, limit: int) -> Sequence[Operation]:
        """What the sweep works on next; no two replicas get the same."""
        found = self._all(
            f"UPDATE operations SET {_LEASE} WHERE operation_id IN ("
            "SELECT operation_id FROM operations WHERE state IN ('STARTED', 'UNKNOWN') "
            "AND next_try_time <= now() AND (lease_until IS NULL OR lease_until < now()) "
            "ORDER BY next_try_time LIMIT :limit FOR UPDATE SKIP LOCKED) RETURNING *",
            token=secrets.token_hex(8),
            lease=timedelta(seconds=seconds),
            limit=limit,
        )
        return [replace(rows.operation_of(row), held_since=self.clock) for row in found]

    def renew_lease(self, operation_id: str, lease_token: str, seconds: float) -> datetime | None:
        """The time at which it was renewed, or None: it was given back or taken over meanwhile."""
        renewed = self._maybe(
            "UPDATE operations SET lease_until = now() + :lease WHERE operation_id = :id "
            "AND lease_token = :token AND lease_until IS NOT NULL "
            "AND state IN ('STARTED', 'UNKNOWN') RETURNING clock_timestamp() AS now",
            id=operation_id,
            token=lease_token,
            lease=timedelta(seconds=seconds),
        )
        now: datetime | None = renewed and renewed["now"]
        return now

    def unpark_operation(
        self, operation_id: str, params: Mapping[str, object], *, next_attempt: bool
    ) -> None:
        """Due now, with its tries forgiven but one: it is looked for before it is sent."""
        self._do(
            "UPDATE operations SET state = 'UNKNOWN', tries = 1, lease_until = NULL, "
            "next_try_time = now(), resume_time = now(), params = :params, "
            "attempt = attempt + :more, "
            "attempt_time = CASE WHEN :more > 0 THEN now() ELSE attempt_time END "
            "WHERE operation_id = :id AND state = 'PARKED'",
            id=operation_id,
            params=json.dumps(dict(params)),
            more=1 if next_attempt else 0,
        )

    def settle_operation(
        self, operation_id: str, state: OperationState, last_error: str = ""
    ) -> None:
        self._do(
            "UPDATE operations SET state = :state, last_error = :last_error, settle_time = now(), "
            "lease_until = NULL, next_try_time = NULL WHERE operation_id = :id "
            "AND state IN ('STARTED', 'UNKNOWN', 'PARKED')",
            id=operation_id,
            state=state.value,
            last_error=last_error,
        )

    def postpone_operation(
        self,
        operation: Operation,
        state: OperationState,
        last_error: str,
        seconds: float | None,
        *,
        next_attempt: bool = False,
        params: Mapping[str, object] | None = None,
        unsure_seconds: float | None = None,
    ) -> bool:
        """Give the lease back: to be tried in so many seconds, or never (parked).

        ``unsure_seconds`` says how long a parked one may still take effect; None that it cannot.
        Only for the holder of the present lease (fencing): a replica that slept too long changes
        nothing and gets False.
        """
        done = self._do(
            "UPDATE operations SET state = :state, last_error = :last_error, lease_until = NULL, "
            "next_try_time = now() + :delay, params = COALESCE(CAST(:params AS jsonb), params), "
            "attempt = attempt + :more, unsure_until = now() + :unsure, "
            "attempt_time = CASE WHEN :more > 0 THEN now() ELSE attempt_time END "
            "WHERE operation_id = :id AND lease_token = :token "
            "AND state IN ('STARTED', 'UNKNOWN', 'PARKED')",
            id=operation.operation_id,
            token=operation.lease_token,
            state=state.value,
            last_error=last_error,
            delay=None if seconds is None else timedelta(seconds=seconds),
            params=None if params is None else json.dumps(dict(params)),
            more=1 if next_attempt else 0,
            unsure=None if unsure_seconds is None else timedelta(seconds=unsure_seconds),
        )
        return done == 1

    # ---- experts ----

    def expert(self, expert_id: str) -> Expert | None:
        """Not locked: many payments are initiated for one expert at once."""
        row = self._maybe("SELECT * FROM experts WHERE expert_id = :id", id=expert_id)
        return row and rows.expert_of(row)

    def lock_expert(self, expert_id: str) -> Expert | None:
        row = self._maybe("SELECT * FROM experts WHERE expert_id = :id FOR UPDATE", id=expert_id)
        return row and rows.expert_of(row)

    def add_expert(self, expert: Expert, cause: Cause) -> bool:
        """False if the expert is there already; waits for a concurrent creation to end."""
        columns = _EXPERT_COLUMNS
        made = self._do(
            f"INSERT INTO experts ({', '.join(columns)}) "
            f"VALUES ({', '.join(f':{name}' for name in columns)}) ON CONFLICT DO NOTHING",
            **rows.expert_values(expert),
        )
        if made == 1:
            self._record_expert(expert, "expert.created", cause)
        return made == 1

    def save_expert(self, expert: Expert, kind: str, cause: Cause, **facts: str) -> None:
        """Write an expert that was locked in this transaction, and what happened."""
        columns = [name for name in _EXPERT_COLUMNS if name != "expert_id"]
        self._do(
            f"UPDATE experts SET {', '.join(f'{name} = :{name}' for name in columns)} "
            "WHERE expert_id = :expert_id",
            **rows.expert_values(expert),
        )
        if kind:
            self._record_expert(expert, kind, cause, **facts)

    def _record_expert(self, expert: Expert, kind: str, cause: Cause, **facts: str) -> None:
        account = expert.account
        body = {
            "status": expert.status.value,
            "stripe_account_id": account.stripe_account_id,
            "commission_basis_points": expert.commission_basis_points,
            "requirements_due": list(account.requirements_due),
            "disabled_reason": account.disabled_reason,
            **facts,
            "by": {"caller": cause.caller, "rpc": cause.rpc, "request_id": cause.request_id},
        }
        self._do(
            "INSERT INTO expert_events (expert_id, sequence, kind, body, time) "
            "VALUES (:expert_id, :sequence, :kind, :body, now())",
            expert_id=expert.expert_id,
            sequence=expert.version,
            kind=kind,
            body=json.dumps(body, sort_keys=True),
        )

    def add_landing_token(
        self, token_hash: bytes, expert_id: str, onward_url: str, seconds: float
    ) -> None:
        self._do("DELETE FROM landing_tokens WHERE expire_time < now()")
        self._do(
            "INSERT INTO landing_tokens (token_hash, expert_id, onward_url, expire_time, "
            "create_time) VALUES (:hash, :expert_id, :onward_url, now() + :life, now())",
            hash=token_hash,
            expert_id=expert_id,
            onward_url=onward_url,
            life=timedelta(seconds=seconds),
        )

    # ---- what is asked for because nobody told us ----

    def watch_account(self, stripe_account_id: str) -> None:
        self._do(
            "INSERT INTO watches (scope, seen_until, next_time) VALUES (:id, now(), now()) "
            "ON CONFLICT DO NOTHING",
            id=stripe_account_id,
        )

    def lease_watches(
        self, seconds: float, limit: int, *, paid_out: bool = False
    ) -> Sequence[Watch]:
        """Lists that are due. ``limit`` 0 means the platform's own, else so many accounts'.

        An account is of interest while its expert is not ready, or has open payments; with
        ``paid_out``, one that is not, but was earned for or paid out not long ago, or was replaced.
        """
        due = "SELECT scope FROM watches WHERE next_time <= now() AND "
        which = "scope = 'platform'"
        if limit:
            which = (
                "EXISTS (SELECT FROM experts WHERE stripe_account_id = scope AND NOT deauthorized "
                f"AND {_MAY_PAY_OUT if paid_out else _OPEN})"
            )
            if paid_out:
                which = f"({which} OR {_REPLACED})"
            which += " ORDER BY next_time LIMIT :limit"
        found = self._all(
            "UPDATE watches SET next_time = now() + :pause WHERE scope IN "
            f"({due}{which} FOR UPDATE SKIP LOCKED) RETURNING scope, seen_until, after_event_id",
            pause=timedelta(seconds=seconds),
            limit=limit,
            recent=_PAID_OUT_WITHIN,
        )
        return [Watch(row["scope"], row["seen_until"], row["after_event_id"]) for row in found]

    def move_watch(self, scope: str, seen_until: datetime, after_event_id: str) -> None:
        self._do(
            "UPDATE watches SET seen_until = :seen_until, after_event_id = :after "
            "WHERE scope = :scope AND seen_until <= :seen_until",
            scope=scope,
            seen_until=seen_until,
            after=after_event_id,
        )

    def lease_quiet_payments(self, quiet_seconds: float, limit: int) -> Sequence[str]:
        """Open payments to be asked about now; the pause until the next time grows with age."""
        found = self._all(
            "WITH quiet AS (SELECT payment_id, update_time FROM payments LEFT JOIN payment_asks "
            "USING (payment_id) WHERE state IN ('PENDING', 'FAILED', 'IN_ESCROW') "
            "AND payment_intent_id IS NOT NULL AND update_time < now() - :quiet "
            "AND (next_time IS NULL OR next_time <= now()) "
            "ORDER BY next_time NULLS FIRST LIMIT :limit) "
            "INSERT INTO payment_asks (payment_id, next_time) "
            "SELECT payment_id, now() + greatest(:quiet, (now() - update_time) / 2) FROM quiet "
            "ORDER BY payment_id ON CONFLICT (payment_id) DO UPDATE "
            "SET next_time = excluded.next_time WHERE payment_asks.next_time <= now() "
            "RETURNING payment_id",
            quiet=timedelta(seconds=quiet_seconds),
            limit=limit,
        )
        return [row["payment_id"] for row in found]

    # ---- the inbox ----

    def store_event(self, event: InboxEvent) -> bool:
        """False if it is there already."""
        made = self._do(
            "INSERT INTO inbox (event_id, endpoint, type, object_id, account_id, "
            "payment_intent_id, payment_ref, payload_sha256, create_time, state, verdict, "
            "attempts, last_error, receive_time, next_try_time) VALUES (:event_id, :endpoint, "
            ":type, :object_id, :account_id, :payment_intent_id, :payment_ref, :payload_sha256, "
            ":create_time, :state, :verdict, 0, '', now(), "
            "CASE WHEN :state = 'WAITING' THEN now() END) ON CONFLICT DO NOTHING",
            event_id=event.event_id,
            endpoint=event.endpoint,
            type=event.type,
            object_id=event.object_id,
            account_id=event.account_id,
            payment_intent_id=event.payment_intent_id,
            payment_ref=event.payment_ref,
            payload_sha256=event.payload_sha256,
            create_time=event.create_time,
            state=event.state,
            verdict=event.verdict,
        )
        return made == 1

    def lease_inbox(self, seconds: float, limit: int) -> Sequence[InboxEvent]:
        """The next events to apply; no two replicas get the same."""
        found = self._all(
            "UPDATE inbox SET attempts = attempts + 1, next_try_time = now() + :lease "
            "WHERE event_id IN (SELECT event_id FROM inbox WHERE state = 'WAITING' "
            "AND next_try_time <= now() ORDER BY next_try_time LIMIT :limit "
            "FOR UPDATE SKIP LOCKED) RETURNING *",
            lease=timedelta(seconds=seconds),
            limit=limit,
        )
        return [rows.inbox_event_of(row) for row in found]

    def finish_event(self, event_id: str, state: str, verdict: str) -> None:
        self._do(
            "UPDATE inbox SET state = :state, verdict = :verdict, last_error = '', "
            "next_try_time = NULL, apply_time = now() WHERE event_id = :id "
            "AND state IN ('WAITING', 'PARKED')",
            id=event_id,
            state=state,
            verdict=verdict,
        )

    def postpone_event(self, event_id: str, last_error: str, seconds: float | None) -> None:
        """To be tried in so many seconds, or parked."""
        self._do(
            "UPDATE inbox SET state = :state, last_error = :last_error, "
            "next_try_time = now() + :delay WHERE event_id = :id AND state = 'WAITING'",
            id=event_id,
            state="PARKED" if seconds is None else "WAITING",
            last_error=last_error,
            delay=None if seconds is None else timedelta(seconds=seconds),
        )

    def retry_event(self, event_id: str) -> InboxEvent | None:
        """Put a parked event back to work; None if it is not parked."""
        row = self._maybe(
            "UPDATE inbox SET state = 'WAITING', attempts = 0, next_try_time = now() "
            "WHERE event_id = :id AND state = 'PARKED' RETURNING *",
            id=event_id,
        )
        return row and rows.inbox_event_of(row)
