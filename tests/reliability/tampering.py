"""What somebody with the superuser's password can do to the books, one kind a function.

Each gets SQL with triggers and foreign keys off, and one payment to work on. It returns the
payments that the verification must name, or none if this one does not have what the kind needs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Final, TypeAlias

from payment_service.domain.audit_trail import chain_hash
from tests.reliability.intruder import Intruder

Kind: TypeAlias = Callable[[Intruder, str], Sequence[str]]

#: Columns of a payment, and what each may become within the schema's CHECKs.
_COLUMNS: Final = {
    "client_id": "'somebody'",
    "expert_id": "'somebody'",
    "gig_id": "'another'",
    "description": "description || ' and more'",
    "escrow_mode": "'ANOTHER'",
    "destination_account_id": "'acct_another'",
    "currency": "'CHF'",
    "commission_basis_points": "commission_basis_points + 1",
    "processor_fee": "coalesce(processor_fee, 0) + 1",
    "charge_id": "'ch_another'",
    "transfer_id": "'tr_another'",
    "payment_intent_id": "'pi_' || payment_id",
    "operation_id": "'op_another'",
    "waiting_for": "CASE waiting_for WHEN 'operator' THEN '' ELSE 'operator' END",
    "failure": '\'{"code": "c", "decline_code": "", "message": "", '
    '"time": "2026-01-01T00:00:00+00:00"}\'',
    "create_time": "create_time - interval '1 hour'",
    "update_time": "update_time - interval '30 days'",
    "escrow_time": "coalesce(escrow_time, now()) + interval '1 second'",
    "capture_time": "coalesce(capture_time, now()) + interval '1 second'",
    "escrow_expire_time": "coalesce(escrow_expire_time, now()) + interval '1 day'",
    "payment_expire_time": "payment_expire_time + interval '1 day'",
    "first_deadline_time": "coalesce(first_deadline_time, now()) + interval '1 day'",
    "warn_due_time": "coalesce(warn_due_time, now()) + interval '1 day'",
    "deadline_due_time": "coalesce(deadline_due_time, now()) + interval '1 day'",
    "expire_due_time": "coalesce(expire_due_time, now()) + interval '1 day'",
    "hold_check_due_time": "coalesce(hold_check_due_time, now()) + interval '1 day'",
    "capture_retry_due_time": "coalesce(capture_retry_due_time, now()) + interval '1 day'",
}


# ---- events ----


def event_says_another_amount(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_event(payment_id, """body = replace(body, '"held":', '"held":1')""")


def event_names_another_caller(at: Intruder, payment_id: str) -> Sequence[str]:
    """With its own hash made right, so that only its neighbours know."""
    sequence = at.event(payment_id)
    former = b""
    for number, kind, time, body, stored in at.events(payment_id):
        if number == sequence:
            changed = body.replace('"caller":"', '"caller":"somebody-')
            head = chain_hash(former, payment_id, number, kind, time, changed)
            at.sql(
                "UPDATE events SET body = %s, hash = %s WHERE payment_id = %s AND sequence = %s",
                changed,
                head,
                payment_id,
                number,
            )
        former = bytes(stored)
    return [payment_id]


def event_is_of_another_kind(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_event(payment_id, "kind = kind || '_elsewhere'")


def event_is_of_another_time(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_event(payment_id, "time = time + %s", timedelta(microseconds=1))


def event_has_another_hash(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_event(payment_id, "hash = sha256(hash)")


def event_is_gone(at: Intruder, payment_id: str) -> Sequence[str]:
    at.sql(
        "DELETE FROM events WHERE payment_id = %s AND sequence = %s",
        payment_id,
        at.event(payment_id),
    )
    return [payment_id]


def event_is_gone_and_the_rest_moves_up(at: Intruder, payment_id: str) -> Sequence[str]:
    """Without a gap, and with the version of so many events."""
    sequence = at.event(payment_id)
    at.sql("DELETE FROM events WHERE payment_id = %s AND sequence = %s", payment_id, sequence)
    for (later,) in at.sql(
        "SELECT sequence FROM events WHERE payment_id = %s AND sequence > %s ORDER BY 1",
        payment_id,
        sequence,
    ):
        at.sql(
            "UPDATE events SET sequence = sequence - 1 WHERE payment_id = %s AND sequence = %s",
            payment_id,
            later,
        )
    if not at.events(payment_id):
        return at.edit_payment(payment_id, "description = 'nothing happened'")
    return at.edit_payment(payment_id, "version = version - 1")


def the_last_events_are_cut_off(at: Intruder, payment_id: str) -> Sequence[str]:
    """With their postings, and with the version and the head put back to fit."""
    events = at.events(payment_id)
    if len(events) < 2:
        return []
    left = at.chance.randrange(1, len(events))
    for table in ("events", "postings"):
        at.sql(f"DELETE FROM {table} WHERE payment_id = %s AND sequence > %s", payment_id, left)  # noqa: S608
    change = "version = %s, head_hash = %s"
    return at.edit_payment(payment_id, change, left, events[left - 1][4])


def two_events_change_places(at: Intruder, payment_id: str) -> Sequence[str]:
    events = at.events(payment_id)
    if len(events) < 2:
        return []
    one, other = at.chance.sample([event[0] for event in events], 2)
    for old, new in ((one, -1), (other, one), (-1, other)):
        at.sql(
            "UPDATE events SET sequence = %s WHERE payment_id = %s AND sequence = %s",
            new,
            payment_id,
            old,
        )
    return [payment_id]


def an_event_is_invented(at: Intruder, payment_id: str) -> Sequence[str]:
    """Rightly chained, and the payment's row says that it is the last one."""
    sequence, kind, time, body, head = at.events(payment_id)[-1]
    forged = chain_hash(bytes(head), payment_id, sequence + 1, kind, time, body)
    at.sql(
        "INSERT INTO events (payment_id, sequence, kind, time, body, hash) "
        "VALUES (%s, %s, %s, %s, %s, %s)",
        *(payment_id, sequence + 1, kind, time, body, forged),
    )
    return at.edit_payment(payment_id, "version = version + 1, head_hash = %s", forged)


def an_event_goes_to_another_payment(at: Intruder, payment_id: str) -> Sequence[str]:
    other = at.another(payment_id)
    at.sql(
        "UPDATE events SET payment_id = %s, sequence = 1000 "
        "WHERE payment_id = %s AND sequence = %s",
        *(other, payment_id, at.event(payment_id)),
    )
    return [payment_id, other]


def all_events_are_truncated(at: Intruder, payment_id: str) -> Sequence[str]:
    at.sql("TRUNCATE events CASCADE")
    return [str(id_) for (id_,) in at.sql("SELECT payment_id FROM payments")]


# ---- postings ----


def two_lines_grow(at: Intruder, payment_id: str) -> Sequence[str]:
    """By as much on either side, so that they still sum to zero."""
    lines = at.lines(payment_id)
    if not lines:
        return []
    _, sequence, currency = at.chance.choice(lines)
    at.sql(
        "UPDATE postings SET minor_units = minor_units + sign(minor_units)::bigint * 3 "
        "WHERE posting_id IN ("
        "SELECT (array_agg(posting_id ORDER BY posting_id))[1] FROM postings WHERE payment_id = %s "
        "AND sequence = %s AND currency = %s GROUP BY minor_units > 0)",
        *(payment_id, sequence, currency),
    )
    return [payment_id]


def lines_of_an_event_are_gone(at: Intruder, payment_id: str) -> Sequence[str]:
    lines = at.lines(payment_id)
    if not lines:
        return []
    sequence = at.chance.choice(lines)[1]
    at.sql("DELETE FROM postings WHERE payment_id = %s AND sequence = %s", payment_id, sequence)
    return [payment_id]


def two_lines_are_invented(at: Intruder, payment_id: str) -> Sequence[str]:
    sequence = at.event(payment_id)
    for account, minor_units in (("commission", 500), ("losses", -500)):
        at.sql(
            "INSERT INTO postings (payment_id, sequence, account, currency, minor_units, kind, "
            "balance_transaction_id, time) SELECT payment_id, sequence, %s, 'USD', %s, 'captured', "
            "'', time FROM events WHERE payment_id = %s AND sequence = %s",
            *(account, minor_units, payment_id, sequence),
        )
    return [payment_id]


def lines_go_to_another_event(at: Intruder, payment_id: str) -> Sequence[str]:
    lines, events = at.lines(payment_id), at.events(payment_id)
    if not lines or len(events) < 2:
        return []
    sequence = at.chance.choice(lines)[1]
    other = at.chance.choice([event[0] for event in events if event[0] != sequence])
    at.sql(
        "UPDATE postings SET sequence = %s, "
        "time = (SELECT time FROM events WHERE payment_id = %s AND sequence = %s) "
        "WHERE payment_id = %s AND sequence = %s",
        *(other, payment_id, other, payment_id, sequence),
    )
    return [payment_id]


def a_line_is_on_another_account(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_line(payment_id, "account = 'expert_funds:somebody'")


def a_line_names_another_balance_transaction(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_line(payment_id, "balance_transaction_id = 'txn_another'")


def a_line_is_of_another_kind(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_line(payment_id, "kind = 'adjusted'")


def a_line_is_of_another_time(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_line(payment_id, "time = time - interval '1 day'")


def all_postings_are_truncated(at: Intruder, payment_id: str) -> Sequence[str]:
    had = at.sql("SELECT DISTINCT payment_id FROM postings")
    at.sql("TRUNCATE postings")
    return [str(id_) for (id_,) in had]


# ---- the payment's row ----


def the_row_says_something_else(at: Intruder, payment_id: str) -> Sequence[str]:
    column = at.chance.choice(list(_COLUMNS))
    return at.edit_payment(payment_id, f"{column} = {_COLUMNS[column]}")


def the_amount_is_another(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_payment(payment_id, "amount = amount + 7, expert_amount = expert_amount + 7")


def more_was_captured(at: Intruder, payment_id: str) -> Sequence[str]:
    """Or held, or at least asked for: wherever the schema has room for it."""
    return at.edit_payment(
        payment_id,
        "held = CASE WHEN held > 0 THEN held - 1 ELSE 0 END, "
        "captured = CASE WHEN captured > net_commission + refunded_after_capture THEN captured - 1 "
        "ELSE captured END, payment_expire_time = payment_expire_time + interval '1 second'",
    )


def the_state_is_another(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_payment(
        payment_id,
        "state = CASE WHEN held > 0 THEN 'CAPTURING' WHEN state = 'FAILED' THEN 'PENDING' "
        "ELSE 'FAILED' END",
    )


def the_version_is_another(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_payment(payment_id, "version = version + %s", at.chance.choice((1, 5)))


def the_head_is_another(at: Intruder, payment_id: str) -> Sequence[str]:
    return at.edit_payment(payment_id, "head_hash = sha256(head_hash)")


def the_row_is_gone(at: Intruder, payment_id: str) -> Sequence[str]:
    at.sql("DELETE FROM payments WHERE payment_id = %s", payment_id)
    return [payment_id]


def the_row_and_its_history_are_gone(at: Intruder, payment_id: str) -> Sequence[str]:
    for table in ("payments", "events", "postings", "movements"):
        at.sql(f"DELETE FROM {table} WHERE payment_id = %s", payment_id)  # noqa: S608
    return [payment_id]


# ---- movements ----


def a_movement_is_gone(at: Intruder, payment_id: str) -> Sequence[str]:
    movement_id = at.movement(payment_id)
    at.sql("DELETE FROM movements WHERE movement_id = %s", movement_id)
    return [payment_id] if movement_id else []


def a_movement_is_larger(at: Intruder, payment_id: str) -> Sequence[str]:
    movement_id = at.movement(payment_id)
    at.sql("UPDATE movements SET minor_units = minor_units + 1 WHERE movement_id = %s", movement_id)
    return [payment_id] if movement_id else []


def a_movement_goes_to_another_payment(at: Intruder, payment_id: str) -> Sequence[str]:
    movement_id, other = at.movement(payment_id), at.another(payment_id)
    at.sql("UPDATE movements SET payment_id = %s WHERE movement_id = %s", other, movement_id)
    return [payment_id, other] if movement_id else []


def a_movement_is_invented(at: Intruder, payment_id: str) -> Sequence[str]:
    at.sql(
        "INSERT INTO movements (movement_id, payment_id, kind, minor_units, operation_id, time) "
        "VALUES ('re_invented', %s, 'refund', 100, '', now())",
        payment_id,
    )
    return [payment_id]


def all_movements_are_truncated(at: Intruder, payment_id: str) -> Sequence[str]:
    had = at.sql("SELECT DISTINCT payment_id FROM movements")
    at.sql("TRUNCATE movements")
    return [str(id_) for (id_,) in had]


# ---- the feed ----


def a_text_is_another(at: Intruder, payment_id: str) -> Sequence[str]:
    texts = at.sql("SELECT sequence, name FROM texts WHERE payment_id = %s", payment_id)
    if not texts:
        return []
    at.sql(
        "UPDATE texts SET text = text || '!' WHERE payment_id = %s AND sequence = %s AND name = %s",
        payment_id,
        *at.chance.choice(texts),
    )
    return [payment_id]


def an_event_is_gone_from_the_feed(at: Intruder, payment_id: str) -> Sequence[str]:
    at.sql(
        "DELETE FROM feed WHERE payment_id = %s AND sequence = %s",
        payment_id,
        at.event(payment_id),
    )
    return [payment_id]


def two_places_in_the_feed_are_exchanged(at: Intruder, payment_id: str) -> Sequence[str]:
    events = at.events(payment_id)
    if len(events) < 2:
        return []
    first = at.chance.randrange(1, len(events))
    for old, new in ((first, -1), (first + 1, first), (-1, first + 1)):
        at.sql(
            "UPDATE feed SET sequence = %s WHERE payment_id = %s AND sequence = %s",
            *(new, payment_id, old),
        )
    return [payment_id]


KINDS: Final[Sequence[Kind]] = (
    event_says_another_amount,
    event_names_another_caller,
    event_is_of_another_kind,
    event_is_of_another_time,
    event_has_another_hash,
    event_is_gone,
    event_is_gone_and_the_rest_moves_up,
    the_last_events_are_cut_off,
    two_events_change_places,
    an_event_is_invented,
    an_event_goes_to_another_payment,
    all_events_are_truncated,
    two_lines_grow,
    lines_of_an_event_are_gone,
    two_lines_are_invented,
    lines_go_to_another_event,
    a_line_is_on_another_account,
    a_line_names_another_balance_transaction,
    a_line_is_of_another_kind,
    a_line_is_of_another_time,
    all_postings_are_truncated,
    the_row_says_something_else,
    the_amount_is_another,
    more_was_captured,
    the_state_is_another,
    the_version_is_another,
    the_head_is_another,
    the_row_is_gone,
    the_row_and_its_history_are_gone,
    a_movement_is_gone,
    a_movement_is_larger,
    a_movement_goes_to_another_payment,
    a_movement_is_invented,
    all_movements_are_truncated,
    a_text_is_another,
    an_event_is_gone_from_the_feed,
    two_places_in_the_feed_are_exchanged,
)
