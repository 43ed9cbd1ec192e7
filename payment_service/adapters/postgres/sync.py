"""What a sync reads under the payment's lock, in the round trip that takes the lock."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from payment_service.adapters.postgres import rows
from payment_service.adapters.postgres.operations import LOCKED_OPERATION, OperationWrites
from payment_service.adapters.postgres.payments import MOVEMENTS, PaymentWrites
from payment_service.domain.payment import Payment

_LOCK: Final = "SELECT FROM payments WHERE payment_id = :payment_id FOR UPDATE"
_OPENED: Final = "opened_"
_OPENED_COLUMNS: Final = (
    *rows.OPERATION_COLUMNS,
    "resume_time",
    "claim_rpc",
    "is_unanswered",
)
#: A statement of its own, after the lock: what it reads of other rows is from after any waiting.
#: The operation is locked, too: recovery and a repeated call lease it without the payment's lock.
_READ: Final = f"""
WITH opened AS MATERIALIZED ({LOCKED_OPERATION} WHERE operations.operation_id = (
    SELECT operation_id FROM payments WHERE payment_id = :payment_id) FOR UPDATE OF operations)
SELECT payments.*, clock_timestamp() AS now,
    {", ".join(f"opened.{name} AS {_OPENED}{name}" for name in _OPENED_COLUMNS)},
    (SELECT coalesce(jsonb_agg(to_jsonb(booked)), '[]') FROM ({MOVEMENTS}) AS booked) AS booked,
    ARRAY(SELECT operation_id FROM operations WHERE payment_id = :payment_id) AS taken_ids
FROM payments LEFT JOIN opened ON true WHERE payments.payment_id = :payment_id
"""


class SyncWrites(PaymentWrites, OperationWrites):
    """Locks a payment for a sync."""

    def lock_payment_to_sync(self, payment_id: str) -> Payment | None:
        """Returns the payment and locks it, with its open operation; or returns None.

        Reads at the same time what a sync asks next: the operation, the movements, and whether the
        operation that may follow has a free id. Who records that one holds this lock.
        """
        self._later(_LOCK, payment_id=payment_id)
        row = self._maybe(_READ, payment_id=payment_id)
        if row is None:
            return None
        payment = self._locked_payment(row)
        self._movements[payment_id] = [
            {**booked, "time": datetime.fromisoformat(booked["time"])} for booked in row["booked"]
        ]
        if row[f"{_OPENED}operation_id"] is not None:
            self._locked_operation({name: row[f"{_OPENED}{name}"] for name in _OPENED_COLUMNS})
        leads_to = payment.operation_id or payment_id
        following = self.derived_id("op", leads_to, "next", "0")
        if following not in row["taken_ids"]:
            self._free_ids.add(following)
        return payment
