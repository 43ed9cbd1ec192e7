"""The log of deliveries: what each endpoint gets, in which order, and how it went.

A payment's events go to an endpoint one after another. Nothing else waits for anything: not one
payment for another, and not one endpoint for another.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from payment_service.relay.cloud_events import Outgoing
from payment_service.relay.endpoints import Endpoint
from payment_service.relay.store import Sql

#: The first pause after a failure; each further one is twice as long.
_FIRST_PAUSE: Final = 5.0
_LONGEST_PAUSE: Final = 3600.0
#: After this many failures in a row the endpoint counts as down, and is tried with one delivery at
#: a time, after pauses of its own.
DOWN: Final = 5
_LONGEST_DOWN_PAUSE: Final = 300.0
_LONGEST_WISH: Final = 3600.0

#: What an endpoint answers to say that it is gone for good.
GONE: Final = "STATUS_410"
DELIVERED: Final = "DELIVERED"

_COLUMNS: Final = "id, endpoint, event_id, payment_id, kind, state, attempts, outcome, attempt_time"


@dataclass(frozen=True)
class Due:
    """A delivery that may be tried now."""

    id: int
    event_id: str
    payment_id: str
    body: str


@dataclass(frozen=True)
class Outcome:
    """How a try went. ``word`` is DELIVERED, or says what failed; it holds nothing of others'."""

    word: str
    #: The seconds that the endpoint asked to wait for.
    wish: float = 0.0

    @property
    def is_delivered(self) -> bool:
        """Returns whether the endpoint has the event."""
        return self.word == DELIVERED


@dataclass(frozen=True)
class Verdict:
    """What a failure has led to, besides another try."""

    parked: bool = False
    disabled: bool = False


@dataclass(frozen=True)
class LogLine:
    """A delivery as the log shows it."""

    id: int
    endpoint: str
    event_id: str
    payment_id: str
    kind: str
    state: str
    attempts: int
    outcome: str
    attempt_time: datetime | None


@dataclass(frozen=True)
class Backlog:
    """What an endpoint has not got."""

    endpoint: str
    waiting: int
    parked: int
    oldest_seconds: float
    disabled: bool


def introduce(sql: Sql, endpoint: str) -> None:
    """Makes an endpoint known, if it is new."""
    sql.do("INSERT INTO endpoints (name) VALUES (%s) ON CONFLICT DO NOTHING", endpoint)


def enqueue(sql: Sql, event: Outgoing, endpoints: Sequence[Endpoint]) -> None:
    """Records a delivery for every endpoint that wants the event."""
    for endpoint in endpoints:
        if endpoint.wants(event.kind, event.record_time):
            sql.do(
                "INSERT INTO deliveries (endpoint, event_id, payment_id, kind, body, record_time) "
                "VALUES (%s, %s, %s, %s, %s, %s) ON CONFLICT DO NOTHING",
                *(endpoint.name, event.id, event.payment_id),
                *(event.kind, event.body, event.record_time),
            )


def due(sql: Sql, endpoint: str, busy: Collection[str], places: int) -> list[Due]:
    """Returns deliveries to try now: at most the oldest one of each payment that is not busy."""
    [is_open, failures] = sql.one(
        "SELECT disabled_time IS NULL AND due_time <= now(), failures FROM endpoints "
        "WHERE name = %s",
        endpoint,
    )
    places = min(places, 1 - len(busy)) if failures >= DOWN else places
    if not is_open or places <= 0:
        return []
    found = sql.all(
        "SELECT id, event_id, payment_id, body FROM deliveries AS mine "
        "WHERE endpoint = %s AND state = 'WAITING' AND due_time <= now() "
        "AND payment_id <> ALL (%s) AND NOT EXISTS (SELECT FROM deliveries AS older "
        "WHERE older.endpoint = mine.endpoint AND older.payment_id = mine.payment_id "
        "AND older.state = 'WAITING' AND older.id < mine.id) ORDER BY due_time, id LIMIT %s",
        *(endpoint, list(busy), places),
    )
    return [Due(*row) for row in found]


def record(sql: Sql, endpoint: str, delivery: int, outcome: Outcome, patience: float) -> Verdict:
    """Records how a try went. ``patience`` is for how many seconds a delivery is tried."""
    if outcome.is_delivered:
        _succeeded(sql, endpoint, delivery, outcome)
        return Verdict()
    [attempts, failed_for] = sql.one(
        "UPDATE deliveries SET attempts = attempts + 1, attempt_time = now(), outcome = %s, "
        "first_failure_time = coalesce(first_failure_time, now()) WHERE id = %s "
        "RETURNING attempts, extract(epoch FROM now() - first_failure_time)::float8",
        *(outcome.word, delivery),
    )
    [failures, failing_for] = sql.one(
        "UPDATE endpoints SET failures = failures + 1, "
        "failing_since = coalesce(failing_since, now()) WHERE name = %s RETURNING failures, "
        "extract(epoch FROM now() - failing_since)::float8",
        endpoint,
    )
    pause = max(_pause(attempts, _LONGEST_PAUSE), min(outcome.wish, _LONGEST_WISH))
    sql.do(
        "UPDATE deliveries SET due_time = now() + %s * interval '1 second' WHERE id = %s",
        *(pause, delivery),
    )
    if failures >= DOWN:
        sql.do(
            "UPDATE endpoints SET due_time = now() + %s * interval '1 second' WHERE name = %s",
            *(_pause(failures - DOWN + 1, _LONGEST_DOWN_PAUSE), endpoint),
        )
    takes_others = _takes_others(sql, endpoint, delivery)
    if failed_for >= patience and takes_others:
        sql.do("UPDATE deliveries SET state = 'PARKED' WHERE id = %s", delivery)
        return Verdict(parked=True)
    if outcome.word == GONE or (failing_for >= patience and not takes_others):
        disabled = sql.do(
            "UPDATE endpoints SET disabled_time = now(), disabled_why = %s "
            "WHERE name = %s AND disabled_time IS NULL",
            *(outcome.word, endpoint),
        )
        return Verdict(disabled=bool(disabled))
    return Verdict()


def _takes_others(sql: Sql, endpoint: str, delivery: int) -> bool:
    """Returns whether the fault is this delivery's, as far as anybody can tell.

    Either the endpoint took another one since this one failed, or it has refused no other one.
    """
    [found] = sql.one(
        "SELECT coalesce(last_success_time > first_failure_time, false) OR NOT EXISTS "
        "(SELECT FROM deliveries AS other WHERE other.endpoint = name AND other.id <> mine.id "
        "AND other.state <> 'DELIVERED' AND other.attempt_time >= failing_since) "
        "FROM endpoints, deliveries AS mine WHERE name = %s AND mine.id = %s",
        *(endpoint, delivery),
    )
    return bool(found)


def _succeeded(sql: Sql, endpoint: str, delivery: int, outcome: Outcome) -> None:
    sql.do(
        "UPDATE deliveries SET state = 'DELIVERED', attempts = attempts + 1, attempt_time = now(), "
        "outcome = %s WHERE id = %s",
        *(outcome.word, delivery),
    )
    [was_down] = sql.one(
        "SELECT failures >= %s FROM endpoints WHERE name = %s FOR UPDATE", DOWN, endpoint
    )
    sql.do(
        "UPDATE endpoints SET failures = 0, failing_since = NULL, last_success_time = now(), "
        "due_time = now() WHERE name = %s",
        endpoint,
    )
    if was_down:
        sql.do(
            "UPDATE deliveries SET due_time = now() WHERE endpoint = %s AND state = 'WAITING'",
            endpoint,
        )


def log_lines(sql: Sql, endpoint: str, state: str, limit: int) -> list[LogLine]:
    """Returns the newest lines of the log; an empty filter means all."""
    rows = sql.all(
        f"SELECT {_COLUMNS} FROM deliveries WHERE (%s = '' OR endpoint = %s) "  # noqa: S608
        "AND (%s = '' OR state = %s) ORDER BY id DESC LIMIT %s",
        *(endpoint, endpoint, state, state, limit),
    )
    return [LogLine(*row) for row in rows]


def redeliver(sql: Sql, delivery: int) -> bool:
    """Makes a delivery due again, with the same id. Returns whether there is one to deliver."""
    return bool(
        sql.do(
            "UPDATE deliveries SET state = 'WAITING', attempts = 0, due_time = now(), "
            "first_failure_time = NULL, outcome = '' WHERE id = %s",
            delivery,
        )
    )


def enable(sql: Sql, endpoint: str) -> bool:
    """Lets a disabled endpoint be tried again. Returns whether it was disabled."""
    changed = sql.do(
        "UPDATE endpoints SET disabled_time = NULL, disabled_why = '', failures = 0, "
        "failing_since = NULL, due_time = now() WHERE name = %s AND disabled_time IS NOT NULL",
        endpoint,
    )
    if changed:
        sql.do(
            "UPDATE deliveries SET due_time = now() WHERE endpoint = %s AND state = 'WAITING'",
            endpoint,
        )
    return bool(changed)


def backlog(sql: Sql) -> list[Backlog]:
    """Returns what every endpoint has not got."""
    rows = sql.all(
        "SELECT name, count(*) FILTER (WHERE state = 'WAITING'), "
        "count(*) FILTER (WHERE state = 'PARKED'), coalesce(extract(epoch FROM now() - "
        "min(record_time) FILTER (WHERE state = 'WAITING')), 0)::float8, disabled_time IS NOT NULL "
        "FROM endpoints LEFT JOIN deliveries ON endpoint = name AND state <> 'DELIVERED' "
        "GROUP BY name, disabled_time"
    )
    return [Backlog(*row) for row in rows]


def _pause(failures: int, longest: float) -> float:
    pause = min(_FIRST_PAUSE * 2 ** min(failures - 1, 20), longest)
    return random.uniform(pause / 2, pause)  # noqa: S311 - jitter, so that not all come at once
