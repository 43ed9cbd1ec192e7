"""The one statement that records a transition: the payment's row, its event, and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

from payment_service.adapters.postgres import rows, texts
from payment_service.adapters.postgres.debts import HASTEN_DEBT_CHECK, START_DEBT_CHECK
from payment_service.adapters.postgres.rows import PAYMENT_COLUMNS
from payment_service.domain.ledger import expert_debt, stripe_connected
from payment_service.domain.payment import Payment
from payment_service.domain.schedule import SCHEDULE_COLUMNS
from payment_service.domain.state_machine import EventKind, Transition

#: A transition may have changed these. The description never changes, except that it is erased.
_MAY_CHANGE: Final = [name for name in PAYMENT_COLUMNS if name not in ("payment_id", "description")]

_EVENT: Final = (
    "INSERT INTO events (payment_id, sequence, kind, time, body, hash) "
    "SELECT payment_id, :version, :kind, :update_time, :body, :head_hash FROM changed "
    "RETURNING payment_id, sequence"
)
#: If the payment has another version than the caller read, the whole statement fails: so nobody has
#: to wait for its answer.
_OR_FAIL: Final = (
    "SELECT CASE count(*) WHEN 1 THEN 1 ELSE refuse_concurrent_change() END FROM recorded"
)


def _insert(values: Mapping[str, Any]) -> str:
    """Returns the insert of a payment. What is left out is NULL."""
    names = [*PAYMENT_COLUMNS, *SCHEDULE_COLUMNS, "head_hash"]
    written = [name for name in names if values[name] is not None]
    return (
        f"INSERT INTO payments ({', '.join(written)}) "
        f"VALUES ({', '.join(f':{name}' for name in written)}) RETURNING payment_id"
    )


def _update(before: Payment, after: Payment, values: Mapping[str, Any]) -> str:
    """Returns the update of the columns in which the two differ, and of the schedule.

    Of one version there is one row, so the others need not be written: PostgreSQL reads, converts
    and compares every value of a statement, and a trigger examines those of the quote. The schedule
    may differ from the stored one although the payment does not: it follows from the policy, too.
    """
    changed = [name for name in _MAY_CHANGE if getattr(after, name) != getattr(before, name)]
    written = [
        f"{name} = NULL" if values[name] is None else f"{name} = :{name}"
        for name in (*changed, *SCHEDULE_COLUMNS, "head_hash")
    ]
    return (
        f"UPDATE payments SET {', '.join(written)} "
        "WHERE payment_id = :payment_id AND version = :version_before RETURNING payment_id"
    )


@lru_cache(maxsize=512)
def _whole(change: str, also: str, *, posts: bool, has_texts: bool) -> str:
    """Returns the statement that records a transition: only with the parts that it needs."""
    parts = [f"changed AS ({change})", f"recorded AS ({_EVENT})"]
    if also:
        parts.append(f"also AS ({also})")
    if posts:
        parts.append(rows.posted("payment_id"))
    if has_texts:
        parts.append(texts.kept("payment_id"))
    return f"WITH {', '.join(parts)} {_OR_FAIL}"


def recording(transition: Transition, values: Mapping[str, Any], *, has_texts: bool) -> str:
    """Returns the statement for a transition. ``values`` are those of the payment's row."""
    before, after = transition.before, transition.after
    return _whole(
        _update(before, after, values) if before else _insert(values),
        _due_for_debt(transition) if before else "",
        posts=bool(transition.postings),
        has_texts=has_texts,
    )


def _due_for_debt(transition: Transition) -> str:
    """Returns what makes the collection of the expert's debt due, or "".

    It is due if there is more of it, or money for it.
    """
    expert_id = transition.after.expert_id
    debits = {line.account for line in transition.postings if line.minor_units > 0}
    if expert_debt(expert_id) in debits or transition.kind is EventKind.EXPERT_DEBT_RECORDED:
        return START_DEBT_CHECK
    return HASTEN_DEBT_CHECK if stripe_connected(expert_id) in debits else ""
