"""Callers' idempotency keys: who used a key, for which request, and the stored answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Final

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.polling import CATCHES_UP
from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.errors import answer_not_kept, key_reused
from payment_service.domain.ports.records import Answer, Cause, Claim

_ANSWER: Final = (
    "UPDATE idempotency_keys SET ok = :ok, answer = :answer, settle_time = now() "
    "WHERE claim_id = :claim_id AND settle_time IS NULL"
)


class ClaimWrites(TransactionStatements):
    """Takes keys and stores answers."""

    def claim(self, cause: Cause, key: str, fields: Mapping[str, str]) -> Claim:
        """Takes the caller's key, or returns the claim that has it already (``fresh`` is False).

        A key belongs to a caller, the user for whom it acts, and an RPC: so nobody who acts for one
        user gets the answer of another user's call, or learns or takes its key. The claim's id is
        derived from all four: after the restore of an older backup the repeated call has the same
        one. Only a digest of each field is stored. Raises
        :class:`Conflict` if the key was used with other content, and :class:`Precondition`
        (ANSWER_NOT_KEPT) if its answer was deleted. A second caller waits here until the
        transaction of the first one has ended (the unique index blocks it), and not longer.
        """
        digests = {
            name: hashlib.sha256(value.encode()).hexdigest()[:32] for name, value in fields.items()
        }
        values = {
            "caller": cause.caller,
            "act_for": cause.act_for,
            "rpc": cause.rpc,
            "key": key,
        }
        claim_id = self.derived_id("clm", cause.caller, cause.act_for, cause.rpc, key)
        operation_id = self.derived_id("op", claim_id, "0")
        made = self._maybe(
            "INSERT INTO idempotency_keys "
            "(claim_id, caller, act_for, rpc, key, fields, create_time) "
            "VALUES (:claim_id, :caller, :act_for, :rpc, :key, :fields, now()) "
            # Of either unique index: the id follows from the key, and any of the two may be checked
            # first.
            "ON CONFLICT DO NOTHING RETURNING clock_timestamp() AS now, "
            # What every call that starts an operation asks next.
            "NOT EXISTS (SELECT FROM operations WHERE operation_id = :operation_id) AS is_free, "
            f"{CATCHES_UP} AS catches_up",
            claim_id=claim_id,
            operation_id=operation_id,
            fields=json.dumps(digests),
            **values,
        )
        self._claim_rpcs[claim_id] = cause.rpc
        if made is not None:
            self._tell_time(made["now"])
            self._catches_up = bool(made["catches_up"])
            self._unanswered.add(claim_id)
            if made["is_free"]:
                self._free_ids.add(operation_id)
            return Claim(claim_id, cause.rpc, fresh=True)
        row = self._one(
            "SELECT * FROM idempotency_keys WHERE caller = :caller AND act_for = :act_for "
            "AND rpc = :rpc AND key = :key",
            **values,
        )
        if row["settle_time"] is not None and row["answer"] is None:
            raise answer_not_kept(key)
        for name in sorted(digests.keys() | row["fields"].keys()):
            if digests.get(name) != row["fields"].get(name):
                raise key_reused(key, name)
        return rows.claim_of(row)

    def bind_claim(self, claim_id: str, payment_id: str, operation_id: str) -> None:
        """Stores which payment and operation a claim led to."""
        self._do(
            "UPDATE idempotency_keys SET payment_id = :payment_id, operation_id = :operation_id "
            "WHERE claim_id = :claim_id",
            claim_id=claim_id,
            payment_id=payment_id or None,
            operation_id=operation_id or None,
        )

    def settle_claim(self, claim_id: str, answer: Answer) -> Answer:
        """Stores the answer, once, and returns the answer that the claim has now.

        A claim that already has an answer keeps it: a caller always gets the same answer again.
        """
        stored = {"claim_id": claim_id, "ok": answer.ok, "answer": answer.body}
        if claim_id in self._unanswered:
            self._unanswered.remove(claim_id)
            self._later(_ANSWER, **stored)
            return answer
        if self._do(_ANSWER, **stored):
            return answer
        kept = self._one("SELECT * FROM idempotency_keys WHERE claim_id = :id", id=claim_id)
        return rows.claim_of(kept).answer or answer

    def claim_rpc(self, claim_id: str) -> str:
        """Returns the name of the RPC that took the claim."""
        if known := self._claim_rpcs.get(claim_id):
            return known
        row = self._one(
            "SELECT rpc FROM idempotency_keys WHERE claim_id = :claim_id", claim_id=claim_id
        )
        return str(row["rpc"])


class ClaimReads(Statements):
    """Reads claims outside transactions."""

    def claim(self, claim_id: str) -> Claim | None:
        """Returns the claim with its answer, if it has one, or None."""
        row = self._maybe("SELECT * FROM idempotency_keys WHERE claim_id = :id", id=claim_id)
        return row and rows.claim_of(row)
