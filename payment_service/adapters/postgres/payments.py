"""Payments, and their movements at Stripe. ``record`` is the only way to change a payment.

The state machine stays in Python: a statement here only writes what it decided. The schema refuses
what must never be true.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from payment_service.adapters.postgres import rows, texts
from payment_service.adapters.postgres.connections import Connection
from payment_service.adapters.postgres.recording import recording
from payment_service.adapters.postgres.statements import (
    PARTY,
    KnownInstallation,
    Row,
    Statements,
    TransactionStatements,
    locked,
)
from payment_service.domain.audit_trail import chain_hash, event_body
from payment_service.domain.operations import Operation
from payment_service.domain.payment import Payment
from payment_service.domain.plans import ReversibleTransfer
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause, PaymentFilter, StoredEvent
from payment_service.domain.schedule import schedule_of
from payment_service.domain.state_machine import Transition
from payment_service.domain.sync.changes import Movement
from payment_service.domain.sync.superseded import described
from payment_service.domain.texts import seal

#: The movements of a payment, oldest first.
MOVEMENTS: Final = """
SELECT movements.*, coalesce(operations.kind = 'collect_debt', false) AS collects_debt
FROM movements LEFT JOIN operations ON operations.operation_id = movements.operation_id
WHERE movements.payment_id = :payment_id ORDER BY movements.time, movements.movement_id
"""
_OUT_OF_BAND: Final = ("refund", "transfer", "reversal", "fee_refund")


class PaymentWrites(TransactionStatements):
    """Reads and changes payments inside a transaction."""

    def __init__(
        self,
        connection: Connection,
        policy: Policy,
        installation: KnownInstallation | None = None,
        *,
        is_one_round_trip: bool = False,
    ) -> None:
        super().__init__(connection, installation, is_one_round_trip=is_one_round_trip)
        self._policy = policy
        #: The hash of the last event of each payment that this transaction has locked.
        self._heads: dict[str, bytes] = {}
        #: Every transition that was recorded. Metrics read it after the commit.
        self.recorded: list[Transition] = []

    def lock_payment(self, payment_id: str, of_user: str = "") -> Payment | None:
        """Returns the payment and locks its row until the transaction ends, or returns None.

        With ``of_user``, a payment that this user is no party to is not found, nor locked.
        """
        row = self._maybe(
            locked("payments", f"payment_id = :id AND {PARTY}"), id=payment_id, of_user=of_user
        )
        if row is None:
            return None
        return self._locked_payment(row)

    def _locked_payment(self, row: Row) -> Payment:
        """Returns the payment of a row that this transaction has locked."""
        self._tell_time(row["now"])
        self._locked_payments.add(row["payment_id"])
        self._heads[row["payment_id"]] = bytes(row["head_hash"])
        return rows.payment_of(row)

    def payment_of_intent(self, payment_intent_id: str) -> str | None:
        """Returns the id of the payment that has this intent, or None."""
        row = self._maybe(
            "SELECT payment_id FROM payments WHERE payment_intent_id = :id", id=payment_intent_id
        )
        return row and str(row["payment_id"])

    def record(self, transition: Transition, cause: Cause) -> None:
        """Writes the payment's row with its schedule, its event and its postings in one statement.

        If the stored version is not the one that the transition started from, that statement fails,
        with all of the transaction, and the phase runs again.
        """
        after, before = transition.after, transition.before
        schedule = schedule_of(after, self._policy)
        facts, written = seal(transition.facts, texts.new_salt)
        body = event_body(transition, facts, schedule, cause)
        head = chain_hash(
            self._heads.get(after.payment_id, b""),
            after.payment_id,
            after.version,
            transition.kind,
            after.update_time,
            body,
        )
        row = {
            **rows.payment_values(after),
            **rows.schedule_values(schedule),
            "head_hash": head,
        }
        self._later(
            recording(transition, row, has_texts=bool(written)),
            **row,
            **({"version_before": before.version} if before else {}),
            kind=transition.kind.value,
            body=body,
            **rows.posting_values(transition.postings),
            **texts.text_values(written),
        )
        self._heads[after.payment_id] = head
        self.recorded.append(transition)

    def booked_movement_ids(self, payment_id: str) -> frozenset[str]:
        """Returns the ids of all movements of this payment that are in our books."""
        return frozenset(row["movement_id"] for row in self._movements_of(payment_id))

    def _movements_of(self, payment_id: str) -> Sequence[Row]:
        """Returns what is booked of the payment, oldest first; requires its lock."""
        if payment_id not in self._movements:
            self._movements[payment_id] = self._all(MOVEMENTS, payment_id=payment_id)
        return self._movements[payment_id]

    def out_of_band_since(self, operation: Operation) -> Mapping[str, str]:
        """Describes, by id, what was booked out of band since this operation was recorded or last
        resumed.

        The operation must be open. A payment has at most one open operation, so a newer movement
        that does not carry this operation's id was not made by this service; except for what
        collects the expert's debt, which disturbs no operation of the payment.
        """
        since = self._open_since.get(operation.operation_id)
        if since is None:
            since = self._one(
                "SELECT coalesce(resume_time, create_time) AS since FROM operations "
                "WHERE operation_id = :id",
                id=operation.operation_id,
            )["since"]
        return {
            row["movement_id"]: described(row["kind"], row["movement_id"], row["minor_units"])
            for row in self._movements_of(operation.payment_id)
            if row["kind"] in _OUT_OF_BAND
            and row["operation_id"] != operation.operation_id
            and not row["collects_debt"]
            and row["time"] > since
        }

    def add_movement(self, payment_id: str, movement: Movement) -> None:
        """Books one movement. Its amount is in minor units of the payment's currency.

        The primary key refuses a movement that is already booked.
        """
        self._movements.pop(payment_id, None)
        self._later(
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

    def reversed_amounts(self, payment_id: str) -> Mapping[str, int]:
        """Returns what our books say is reversed of each transfer, in the payment's currency."""
        found = self._all(
            "SELECT transfer_id, sum(minor_units)::bigint AS minor_units FROM movements "
            "WHERE payment_id = :id AND kind = 'reversal' GROUP BY transfer_id",
            id=payment_id,
        )
        return {row["transfer_id"]: row["minor_units"] for row in found}

    def await_lines(
        self, payment_id: str, object_ids: Collection[str], patience: timedelta
    ) -> frozenset[str]:
        """Stores since when these objects lack a balance transaction.

        Returns those that have lacked it for ``patience``.
        """
        self._do(
            "INSERT INTO awaited_lines (object_id, payment_id, since) "
            "SELECT object_id, :payment_id, now() FROM unnest(CAST(:ids AS text[])) AS object_id "
            "ON CONFLICT (object_id) DO NOTHING",
            payment_id=payment_id,
            ids=sorted(object_ids),
        )
        found = self._all(
            "SELECT object_id FROM awaited_lines WHERE object_id = ANY(:ids) "
            "AND since <= now() - CAST(:patience AS interval)",
            ids=sorted(object_ids),
            patience=patience,
        )
        return frozenset(row["object_id"] for row in found)

    def reversible_transfers(self, payment_id: str) -> Sequence[ReversibleTransfer]:
        """Returns what our books say is left of each transfer, in minor units, the oldest first."""
        found = self._all(
            "SELECT sent.movement_id, sent.minor_units - coalesce(sum(back.minor_units), 0) AS "
            "minor_units FROM movements AS sent LEFT JOIN movements AS back "
            "ON back.transfer_id = sent.movement_id WHERE sent.payment_id = :id "
            "AND sent.kind = 'transfer' GROUP BY sent.movement_id ORDER BY sent.time",
            id=payment_id,
        )
        return [ReversibleTransfer(row["movement_id"], int(row["minor_units"])) for row in found]


class PaymentReads(Statements):
    """Reads payments, their events and their references outside transactions."""

    def payment(self, payment_id: str, of_user: str = "") -> Payment | None:
        """Returns the payment without a lock, or None.

        With ``of_user``, a payment that this user is no party to is not found.
        """
        row = self._maybe(
            f"SELECT * FROM payments WHERE payment_id = :id AND {PARTY}",
            id=payment_id,
            of_user=of_user,
        )
        return row and rows.payment_of(row)

    def payments(self, which: PaymentFilter, limit: int) -> Sequence[Payment]:
        """Returns one page, newest first. ``limit`` is the page size.

        A user may be the client or the expert. Each side reads at most ``limit`` rows from its own
        index, and the union is cut again.
        """
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
            of_user=which.of_user,
            states=[state.value for state in which.states],
            gig_id=which.gig_id,
            min_create_time=which.min_create_time,
            max_create_time=which.max_create_time,
            max_deadline_time=which.max_deadline_time,
            before_time=before[0],
            before_id=before[1],
            limit=limit,
        )
        return [rows.payment_of(row) for row in found]

    def payment_of(self, reference: str) -> str | None:
        """Returns the id of the payment that owns a Stripe id (or one of our own ids), or None.

        The prefix of the id says in which column it is. Any id without a known prefix is looked up
        among the movements.
        """
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

    def payments_changed(
        self, since: datetime, after: tuple[datetime, str] | None, limit: int
    ) -> Sequence[tuple[datetime, str]]:
        """Returns one page of the payments with an intent that changed since then, oldest first.

        Each is its update time and its id. So no row, whatever it holds, hides the others.
        """
        found = self._page(
            "SELECT update_time, payment_id FROM payments "
            "WHERE update_time >= :since AND payment_intent_id IS NOT NULL",
            ("update_time", "payment_id"),
            after,
            limit,
            since=since,
        )
        return [(row["update_time"], row["payment_id"]) for row in found]

    def events(self, payment_id: str, after: int, limit: int) -> Sequence[StoredEvent]:
        """Returns the events of one payment after a sequence number, in their order."""
        found = self._all(
            f"SELECT *, {texts.TEXTS_OF_EVENT} FROM events "
            "WHERE payment_id = :id AND sequence > :after "
            "ORDER BY sequence LIMIT :limit",
            id=payment_id,
            after=after,
            limit=limit,
        )
        return [rows.stored_event_of(row) for row in found]

    def event_hash(self, payment_id: str, sequence: int) -> bytes:
        """Returns the hash of one event, or empty bytes if there is no such event."""
        row = self._maybe(
            "SELECT hash FROM events WHERE payment_id = :id AND sequence = :sequence",
            id=payment_id,
            sequence=sequence,
        )
        return bytes(row["hash"]) if row else b""


def _conditions(which: PaymentFilter) -> str:
    """Returns the SQL of the filters that are set.

    Values are always bound, never written into the statement.
    """
    conditions = {
        PARTY: which.of_user,
        "state = ANY(:states)": which.states,
        "gig_id = :gig_id": which.gig_id,
        "create_time >= :min_create_time": which.min_create_time,
        "create_time < :max_create_time": which.max_create_time,
        "first_deadline_time < :max_deadline_time": which.max_deadline_time,
        "(create_time, payment_id) < (:before_time, :before_id)": which.before,
    }
    return "".join(f" AND {condition}" for condition, wanted in conditions.items() if wanted)
