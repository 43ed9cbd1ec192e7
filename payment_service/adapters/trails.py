"""Everything that is stored of a payment, in one statement, so that all of it is of one moment."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from sqlalchemy import RowMapping

from payment_service.adapters.rows import payment_of
from payment_service.domain.followed import Movement
from payment_service.domain.ledger import Posting
from payment_service.domain.ports import StoredEvent, Trail

#: A page by keyset over the payments that changed since a time, or one payment alone.
TRAILS: Final = """
SELECT p.*,
    (SELECT json_agg(json_build_array(e.sequence, e.kind, e.time, e.body, encode(e.hash, 'hex'))
        ORDER BY e.sequence) FROM events e WHERE e.payment_id = p.payment_id) AS events,
    (SELECT json_agg(json_build_array(l.sequence, l.time, l.account, l.minor_units, l.currency,
        l.kind, l.balance_transaction_id) ORDER BY l.posting_id)
        FROM postings l WHERE l.payment_id = p.payment_id) AS postings,
    (SELECT json_agg(json_build_array(m.movement_id, m.kind, m.minor_units))
        FROM movements m WHERE m.payment_id = p.payment_id) AS movements
FROM payments p
WHERE p.update_time >= :since AND (:payment_id = '' OR p.payment_id = :payment_id)
    AND (p.update_time, p.payment_id) > (:after_time, :after_id)
ORDER BY p.update_time, p.payment_id LIMIT :limit
"""


def trail_of(row: RowMapping) -> Trail:
    payment = payment_of(row)
    return Trail(
        payment,
        bytes(row["head_hash"]),
        [
            StoredEvent(
                payment.payment_id,
                sequence,
                kind,
                datetime.fromisoformat(time),
                body,
                bytes.fromhex(hashed),
            )
            for sequence, kind, time, body, hashed in row["events"] or ()
        ],
        [
            (sequence, datetime.fromisoformat(time), Posting(*line))
            for sequence, time, *line in row["postings"] or ()
        ],
        [Movement(*movement) for movement in row["movements"] or ()],
    )
