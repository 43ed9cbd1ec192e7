"""What somebody can do who also makes every hash, digest and posting right again.

Nothing in the database contradicts such a change. Only heads that have left the house tell of it.
Each function gets one payment and returns the first event, by payment or list, that the
verification must name; nothing if this payment does not have what the kind needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, Final, TypeAlias

from payment_service.adapters.postgres import rows
from payment_service.domain.audit_trail import (
    canonical,
    chain_hash,
    postings_digest,
    row_digest,
    schedule_digest,
)
from payment_service.domain.ledger import Posting
from payment_service.domain.schedule import SCHEDULE_COLUMNS
from tests.reliability.intruder import Intruder

Rewriting: TypeAlias = Callable[[Intruder, str], Mapping[str, int]]

#: Every table that has rows of a payment.
_OF_PAYMENT: Final = (
    "feed feed_pending texts postings movements events operations idempotency_keys payments"
).split()


def rehash(at: Intruder, payment_id: str, bodies: Mapping[int, str]) -> None:
    """Puts these bodies into the events, and makes the chain and its head right again."""
    former = b""
    for sequence, kind, time, body, _ in at.events(payment_id):
        changed = bodies.get(sequence, body)
        former = chain_hash(former, payment_id, sequence, kind, time, changed)
        at.sql(
            "UPDATE events SET body = %s, hash = %s WHERE payment_id = %s AND sequence = %s",
            *(changed, former, payment_id, sequence),
        )
    at.edit_payment(payment_id, "head_hash = %s", former)


def body_of(at: Intruder, payment_id: str, sequence: int) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(at.events(payment_id)[sequence - 1][3])
    return body


def row_of(at: Intruder, payment_id: str) -> dict[str, Any]:
    columns = [*rows.PAYMENT_COLUMNS, *SCHEDULE_COLUMNS]
    [values] = at.sql(
        f"SELECT {', '.join(columns)} FROM payments WHERE payment_id = %s",  # noqa: S608
        payment_id,
    )
    return dict(zip(columns, values, strict=True))


def leave_the_row(at: Intruder, payment_id: str) -> None:
    """Makes the last event say that it has left the row as it is now."""
    row, last = row_of(at, payment_id), len(at.events(payment_id))
    body = body_of(at, payment_id, last)
    body["digests"]["after"] = row_digest(rows.payment_of(row), body["digests"]["writer"])
    body["digests"]["schedule"] = schedule_digest(rows.schedule_of(row))
    rehash(at, payment_id, {last: canonical(body)})


def another_caller_did_it(at: Intruder, payment_id: str) -> Mapping[str, int]:
    sequence = at.event(payment_id)
    body = body_of(at, payment_id, sequence)
    body["by"]["caller"] = "somebody-else"
    rehash(at, payment_id, {sequence: canonical(body)})
    return {payment_id: sequence}


def every_event_tells_of_another_amount(at: Intruder, payment_id: str) -> Mapping[str, int]:
    bodies = {}
    for sequence, _, _, body, _ in at.events(payment_id):
        told = json.loads(body)
        told["amounts"]["amount"] += 700
        bodies[sequence] = canonical(told)
    rehash(at, payment_id, bodies)
    return {payment_id: 1}


def more_money_moved(at: Intruder, payment_id: str) -> Mapping[str, int]:
    """Two lines grow, of accounts that no row repeats, and the digest of the postings follows."""
    pairs = at.sql(
        "SELECT sequence, currency FROM postings WHERE payment_id = %s AND "
        "(account LIKE 'stripe:connected:%%' OR account LIKE 'expert_funds:%%') "
        "AND currency = (SELECT currency FROM payments WHERE payment_id = %s) "
        "GROUP BY 1, 2 HAVING count(*) FILTER (WHERE account LIKE 'stripe:%%') > 0 "
        "AND count(*) FILTER (WHERE account NOT LIKE 'stripe:%%') > 0 ORDER BY 1",
        *(payment_id, payment_id),
    )
    if not pairs:
        return {}
    sequence, currency = at.chance.choice(pairs)
    for prefix, change in (("stripe:connected:", 3), ("expert_funds:", -3)):
        at.sql(
            "UPDATE postings SET minor_units = minor_units + %s WHERE posting_id = "
            "(SELECT min(posting_id) FROM postings WHERE payment_id = %s AND sequence = %s "
            "AND currency = %s AND account LIKE %s AND minor_units <> %s)",
            *(change, payment_id, sequence, currency, f"{prefix}%", -change),
        )
    lines = at.sql(
        "SELECT account, minor_units, currency, kind, balance_transaction_id FROM postings "
        "WHERE payment_id = %s AND sequence = %s",
        *(payment_id, sequence),
    )
    body = body_of(at, payment_id, sequence)
    body["digests"]["postings"] = postings_digest(Posting(*line) for line in lines)
    rehash(at, payment_id, {sequence: canonical(body)})
    return {payment_id: sequence}


def another_gig_was_paid(at: Intruder, payment_id: str) -> Mapping[str, int]:
    at.edit_payment(payment_id, "gig_id = 'another'")
    leave_the_row(at, payment_id)
    return {payment_id: len(at.events(payment_id))}


def the_last_event_never_was(at: Intruder, payment_id: str) -> Mapping[str, int]:
    """With everything that belongs to it, and with the event before made the last one."""
    last = len(at.events(payment_id))
    if last < 2:
        return {}
    for table in ("feed", "texts", "postings", "events"):
        at.sql(f"DELETE FROM {table} WHERE payment_id = %s AND sequence = %s", payment_id, last)  # noqa: S608
    at.edit_payment(payment_id, "version = version - 1")
    leave_the_row(at, payment_id)
    # The event before says now that it has left the row.
    return {payment_id: last - 1}


def the_payment_never_was(at: Intruder, payment_id: str) -> Mapping[str, int]:
    at.sql("DELETE FROM disputes WHERE payment_id = %s", payment_id)
    for table in _OF_PAYMENT:
        at.sql(f"DELETE FROM {table} WHERE payment_id = %s", payment_id)  # noqa: S608
    return {payment_id: 1}


def the_payment_never_was_and_the_feed_has_no_gap(
    at: Intruder, payment_id: str
) -> Mapping[str, int]:
    the_payment_never_was(at, payment_id)
    at.sql(
        "CREATE TEMP TABLE closed AS SELECT row_number() OVER (ORDER BY position) AS position, "
        "payment_id, sequence FROM feed"
    )
    at.sql("DELETE FROM feed; INSERT INTO feed TABLE closed; DROP TABLE closed")
    return {payment_id: 1}


def two_payments_happened_in_another_order(at: Intruder, payment_id: str) -> Mapping[str, int]:
    found = at.sql(
        "SELECT a.position, a.payment_id, a.sequence, b.position, b.payment_id, b.sequence "
        "FROM feed a JOIN feed b ON b.position = a.position + 1 "
        "WHERE a.payment_id = %s AND b.payment_id <> a.payment_id ORDER BY 1",
        payment_id,
    )
    if not found:
        return {}
    place, one, first, other_place, other, second = at.chance.choice(found)
    at.sql("DELETE FROM feed WHERE position IN (%s, %s)", place, other_place)
    for position, whose, sequence in ((place, other, second), (other_place, one, first)):
        at.sql("INSERT INTO feed VALUES (%s, %s, %s)", position, whose, sequence)
    return {one: first, other: second}


def an_expert_was_told_something_else(at: Intruder, payment_id: str) -> Mapping[str, int]:
    events = at.sql(
        "SELECT e.expert_id, e.sequence, e.body FROM expert_events e JOIN payments p "
        "USING (expert_id) WHERE p.payment_id = %s ORDER BY 2",
        payment_id,
    )
    expert_id, sequence, body = at.chance.choice(events)
    at.sql(
        "UPDATE expert_events SET body = %s WHERE expert_id = %s AND sequence = %s",
        *(json.dumps({**json.loads(body), "by": "nobody"}), expert_id, sequence),
    )
    return {f"expert:{expert_id}": sequence}


def an_experts_event_is_gone(at: Intruder, payment_id: str) -> Mapping[str, int]:
    [(expert_id, sequence)] = at.sql(
        "SELECT e.expert_id, min(e.sequence) FROM expert_events e JOIN payments p "
        "USING (expert_id) WHERE p.payment_id = %s GROUP BY 1",
        payment_id,
    )
    at.sql("DELETE FROM expert_events WHERE expert_id = %s AND sequence = %s", expert_id, sequence)
    return {f"expert:{expert_id}": sequence}


def the_time_was_another(at: Intruder, payment_id: str) -> Mapping[str, int]:
    """Of the first event and its postings."""
    [(time,)] = at.sql(
        "SELECT time - interval '1 hour' FROM events WHERE payment_id = %s AND sequence = 1",
        payment_id,
    )
    assert isinstance(time, datetime)
    for table in ("events", "postings"):
        at.sql(
            f"UPDATE {table} SET time = %s WHERE payment_id = %s AND sequence = 1",  # noqa: S608
            *(time, payment_id),
        )
    rehash(at, payment_id, {})
    return {payment_id: 1}


REWRITINGS: Final[tuple[Rewriting, ...]] = (
    another_caller_did_it,
    every_event_tells_of_another_amount,
    more_money_moved,
    another_gig_was_paid,
    the_last_event_never_was,
    the_payment_never_was,
    the_payment_never_was_and_the_feed_has_no_gap,
    two_payments_happened_in_another_order,
    an_expert_was_told_something_else,
    an_experts_event_is_gone,
    the_time_was_another,
)
#: Of these the service itself notices nothing: everything that it can compare agrees.
UNNOTICED: Final[frozenset[str]] = frozenset(
    rewriting.__name__
    for rewriting in (
        another_caller_did_it,
        every_event_tells_of_another_amount,
        more_money_moved,
        another_gig_was_paid,
        the_payment_never_was,
        the_payment_never_was_and_the_feed_has_no_gap,
        two_payments_happened_in_another_order,
        an_expert_was_told_something_else,
        an_experts_event_is_gone,
        the_time_was_another,
    )
)
