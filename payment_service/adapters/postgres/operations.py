"""Operations: durable intents to change something at Stripe, and the leases on them.

A lease says which replica may work on an operation now. Every statement that a lease holder runs
names the lease's token (fencing), so a stale holder changes nothing.
"""

from __future__ import annotations

import itertools
import json
import secrets
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.statements import (
    OPEN,
    Row,
    Statements,
    TransactionStatements,
)
from payment_service.domain.operation_payloads import OperationPayload, payload_to_json
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.payment import WaitingReason
from payment_service.domain.ports.records import ListedOperation

_LEASE: Final = """
    lease_token = :token, lease_until = now() + :lease, next_try_time = now() + :lease,
    tries = tries + 1
"""

_OF_PAYMENT: Final = (
    "(payment_id = :payment_id OR dispute_id IN "
    "(SELECT dispute_id FROM disputes WHERE payment_id = :payment_id))"
)
#: Why the payment's open operation waits for the expert's account; empty if it does not.
_WAITING_REASON: Final = (
    "(SELECT p.waiting_reason FROM payments p WHERE p.payment_id = operations.payment_id "
    "AND p.operation_id = operations.operation_id AND p.waiting_for = 'expert')"
)


_ADD: Final = (
    f"INSERT INTO operations ({', '.join(rows.OPERATION_COLUMNS)}) "
    f"VALUES (:{', :'.join(rows.OPERATION_COLUMNS)})"
)
#: The same, and its claim says what it led to.
_ADD_OF_CLAIM: Final = (
    f"WITH added AS ({_ADD} RETURNING claim_id, operation_id, payment_id) "
    "UPDATE idempotency_keys SET payment_id = added.payment_id, "
    "operation_id = added.operation_id FROM added WHERE idempotency_keys.claim_id = added.claim_id"
)
#: With what is asked next: the RPC of the operation's claim, and whether it has no answer yet.
#: Without the lock of the payment the second part is worth nothing: this statement may have waited
#: for the operation's row, and what it reads of other rows is from before that.
LOCKED_OPERATION: Final = (
    "SELECT operations.*, claims.rpc AS claim_rpc, claims.settle_time IS NULL AS is_unanswered "
    "FROM operations LEFT JOIN idempotency_keys AS claims USING (claim_id)"
)
_LOCK: Final = f"{LOCKED_OPERATION} WHERE operations.operation_id = :id FOR UPDATE OF operations"


class OperationWrites(TransactionStatements):
    """Creates, leases and closes operations inside a transaction."""

    def add_operation(self, operation: Operation) -> None:
        """Inserts an operation, and stores with its claim, if it has one, what the claim led to.

        The schema refuses a second open operation on the same payment, expert or dispute.
        """
        self._free_ids.discard(operation.operation_id)
        self._operations.clear()
        self._later(
            _ADD_OF_CLAIM if operation.claim_id else _ADD, **rows.operation_values(operation)
        )

    def operation_id_for(self, *origin: str) -> str:
        """Returns the id for a new operation of this origin: the first one that is not taken.

        An origin may lead to several operations one after another. Requires the lock of the
        operation's subject, or of its claim.
        """
        for number in itertools.count():
            operation_id = self.derived_id("op", *origin, str(number))
            if operation_id in self._free_ids:
                return operation_id
            taken = self._maybe(
                "SELECT 1 AS taken FROM operations WHERE operation_id = :id", id=operation_id
            )
            if taken is None:
                return operation_id
        raise AssertionError("the numbers do not end")

    def known_operations(self, operation_ids: Sequence[str]) -> frozenset[str]:
        """Returns which of these operations are recorded."""
        if not operation_ids:
            return frozenset()
        found = self._all(
            "SELECT operation_id FROM operations WHERE operation_id = ANY(:ids)",
            ids=list(operation_ids),
        )
        return frozenset(row["operation_id"] for row in found)

    def correct_operation(
        self, operation_id: str, kind: OperationKind, minor_units: int, payload: OperationPayload
    ) -> None:
        """Makes an open operation what Stripe has executed under its id."""
        self._write_operation(
            "UPDATE operations SET kind = :kind, minor_units = :minor_units, payload = :payload "
            f"WHERE operation_id = :id AND state IN {OPEN}",
            id=operation_id,
            kind=kind.value,
            minor_units=minor_units,
            payload=json.dumps(payload_to_json(payload)),
        )

    def give_operation_to_claim(self, operation_id: str, claim_id: str) -> None:
        """Lets a recovered operation answer the caller who has repeated the call."""
        self._write_operation(
            "UPDATE operations SET claim_id = :claim_id "
            "WHERE operation_id = :id AND claim_id IS NULL",
            id=operation_id,
            claim_id=claim_id,
        )

    def operation(self, operation_id: str) -> Operation | None:
        """Returns the operation and locks it until the transaction ends, or returns None."""
        if operation_id in self._free_ids:
            return None
        if operation_id not in self._operations:
            row = self._maybe(_LOCK, id=operation_id)
            if row is None:
                return None
            return self._locked_operation(row)
        return self._operations[operation_id]

    def _locked_operation(self, row: Row) -> Operation:
        """Returns the operation of a row that this transaction has locked."""
        operation = rows.operation_of(row)
        if operation.claim_id:
            self._claim_rpcs[operation.claim_id] = row["claim_rpc"]
            if row["is_unanswered"] and operation.payment_id in self._locked_payments:
                self._unanswered.add(operation.claim_id)
        operation_id = operation.operation_id
        self._open_since[operation_id] = row["resume_time"] or row["create_time"]
        self._operations[operation_id] = operation
        return operation

    def _write_operation(self, sql: str, **values: Any) -> int:
        """Returns how many operations the statement wrote."""
        self._operations.clear()
        return self._do(sql, **values)

    def lease_operation(self, operation_id: str, seconds: float) -> Operation | None:
        """Leases one operation for ``seconds``.

        Returns None if it is closed, parked or leased by another holder, and also while it waits
        before a new key (``key_spent``). A caller who repeats a request may shorten any other
        pause, but not this one: a second request needs two reads of Stripe with a pause between.
        """
        self._operations.clear()
        row = self._maybe(
            f"UPDATE operations SET {_LEASE} WHERE operation_id = :id "
            "AND state IN ('STARTED', 'UNKNOWN') "
            "AND (lease_until IS NULL OR lease_until < now()) "
            "AND (NOT key_spent OR next_try_time <= now()) RETURNING *",
            id=operation_id,
            token=secrets.token_hex(8),
            lease=timedelta(seconds=seconds),
        )
        return row and replace(rows.operation_of(row), held_since=self.clock)

    def lease_due_operations(self, seconds: float, limit: int) -> Sequence[Operation]:
        """Leases at most ``limit`` operations that are due, and returns them.

        Two replicas never get the same operation.
        """
        self._operations.clear()
        found = self._all(
            f"UPDATE operations SET {_LEASE} WHERE operation_id IN ("
            "SELECT operation_id FROM operations WHERE state IN ('STARTED', 'UNKNOWN') "
            "AND greatest(next_try_time, lease_until) <= now() "
            "ORDER BY greatest(next_try_time, lease_until) LIMIT :limit "
            "FOR UPDATE SKIP LOCKED) RETURNING *",
            token=secrets.token_hex(8),
            lease=timedelta(seconds=seconds),
            limit=limit,
        )
        return [replace(rows.operation_of(row), held_since=self.clock) for row in found]

    def renew_lease(self, operation_id: str, lease_token: str, seconds: float) -> datetime | None:
        """Extends a lease by ``seconds`` from now.

        Returns the database's time of the renewal, or None if the lease has been given back or
        taken over meanwhile.
        """
        self._operations.clear()
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
        self,
        operation_id: str,
        payload: OperationPayload,
        *,
        next_attempt: bool,
        verify_only: bool,
    ) -> None:
        """Makes a parked operation due now, with this payload.

        ``tries`` becomes 1, not 0, so that the operation is searched for at Stripe before it is
        sent. ``next_attempt`` gives it a new idempotency key at Stripe. ``verify_only`` says that
        it must not be sent.
        """
        self._write_operation(
            "UPDATE operations SET state = 'UNKNOWN', tries = 1, lease_until = NULL, "
            "next_try_time = now(), resume_time = now(), payload = :payload, "
            "verify_only = :verify_only, attempt = attempt + :more, "
            "attempt_time = CASE WHEN :more > 0 THEN now() ELSE attempt_time END "
            "WHERE operation_id = :id AND state = 'PARKED'",
            id=operation_id,
            payload=json.dumps(payload_to_json(payload)),
            verify_only=verify_only,
            more=1 if next_attempt else 0,
        )

    def settle_operation(
        self, operation_id: str, state: OperationState, last_error: str = ""
    ) -> None:
        """Closes an open operation with its final state. A closed operation is not changed."""
        self._operations.clear()
        self._later(
            "UPDATE operations SET state = :state, last_error = :last_error, settle_time = now(), "
            "lease_until = NULL, next_try_time = NULL WHERE operation_id = :id "
            f"AND state IN {OPEN}",
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
        key_spent: bool | None = None,
        unsure_seconds: float | None = None,
        restart_tries: bool = False,
    ) -> bool:
        """Gives the lease back.

        The operation is tried again after ``seconds``, or never if this is None (it is parked).
        ``key_spent`` says whether Stripe keeps an error under the present key; None leaves it as it
        is. ``unsure_seconds`` says for how long a parked operation may still take effect at Stripe;
        None means that it cannot. With ``restart_tries`` the tries are counted anew. Returns False,
        and changes nothing, if the caller's lease is not the present one (fencing).
        """
        done = self._write_operation(
            "UPDATE operations SET state = :state, last_error = :last_error, lease_until = NULL, "
            "next_try_time = now() + :delay, key_spent = COALESCE(:key_spent, key_spent), "
            "attempt = attempt + :more, unsure_until = now() + :unsure, "
            "tries = CASE WHEN :restart THEN least(tries, 1) ELSE tries END, "
            "attempt_time = CASE WHEN :more > 0 THEN now() ELSE attempt_time END "
            "WHERE operation_id = :id AND lease_token = :token "
            f"AND state IN {OPEN}",
            id=operation.operation_id,
            token=operation.lease_token,
            state=state.value,
            last_error=last_error,
            delay=None if seconds is None else timedelta(seconds=seconds),
            key_spent=key_spent,
            more=1 if next_attempt else 0,
            restart=restart_tries,
            unsure=None if unsure_seconds is None else timedelta(seconds=unsure_seconds),
        )
        return done == 1

    def confirm_without_effect(self, operation_id: str) -> None:
        """Records that a read of Stripe has shown no effect of a parked operation.

        ``unsure_until`` must have passed; before that, nothing changes.
        """
        self._write_operation(
            "UPDATE operations SET unsure_until = NULL WHERE operation_id = :id "
            "AND state = 'PARKED' AND unsure_until <= now()",
            id=operation_id,
        )


class OperationReads(Statements):
    """Reads operations outside transactions."""

    def operation(self, operation_id: str) -> Operation | None:
        """Returns the operation without a lock, or None."""
        row = self._maybe("SELECT * FROM operations WHERE operation_id = :id", id=operation_id)
        return row and rows.operation_of(row)

    def operations(
        self,
        payment_id: str,
        state: OperationState | None,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> Sequence[ListedOperation]:
        """Returns one page, oldest first. Without a state, the page has all open operations.

        With a payment it has only that payment's operations and those of its disputes.
        """
        which = "state = :state" if state else f"state IN {OPEN}"
        which += f" AND {_OF_PAYMENT}" if payment_id else ""
        found = self._page(
            f"SELECT *, {_WAITING_REASON} AS waiting_reason FROM operations WHERE {which}",
            ("create_time", "operation_id"),
            after,
            limit,
            state=state and state.value,
            payment_id=payment_id,
        )
        return [
            ListedOperation(rows.operation_of(row), WaitingReason(row["waiting_reason"] or ""))
            for row in found
        ]
