"""Makes due now what comes due in minutes or hours, so that a run need not last so long.

Only times of the service's schedules are moved, and always as if time had passed.
"""

import contextlib

import psycopg2

from dev.postgres import EmbeddedPostgres

#: Near to the end of an authorization deadlines act on it.
_DEADLINES = (
    "UPDATE payments SET escrow_expire_time = now() + interval '1 hour', "
    "first_deadline_time = now() + interval '1 hour', deadline_due_time = now() "
    "WHERE state = 'IN_ESCROW' AND charged = 0 AND on_deadline = 'PROMOTE' "
    "AND escrow_expire_time > now() + interval '1 day'"
)
#: Accounts that are not ready, or for which a capture waits, are read every few minutes at most.
_ACCOUNTS = (
    "UPDATE experts SET check_due_time = now() WHERE check_due_time > now() AND (status <> 'READY' "
    "OR EXISTS (SELECT FROM payments WHERE payments.expert_id = experts.expert_id "
    "AND waiting_for = 'expert'))"
)
#: A debt is looked at every hour at most.
_DEBTS = "UPDATE debt_checks SET next_time = now(), pause = interval '0' WHERE next_time > now()"


def deadlines(postgres: EmbeddedPostgres) -> int:
    """Returns how many authorizations end soon now."""
    return _move(postgres, _DEADLINES)


def account_checks(postgres: EmbeddedPostgres) -> int:
    """Returns how many accounts are read now although Stripe has told nothing."""
    return _move(postgres, _ACCOUNTS)


def debt_checks(postgres: EmbeddedPostgres) -> int:
    """Returns how many experts' debts are looked at now."""
    return _move(postgres, _DEBTS)


def _move(postgres: EmbeddedPostgres, sql: str) -> int:
    """Runs a statement as superuser, without triggers. Returns the number of rows."""
    options = "-c session_replication_role=replica -c lock_timeout=500ms"
    moved = 0
    with (
        contextlib.suppress(psycopg2.Error),
        contextlib.closing(psycopg2.connect(postgres.admin_url(), options=options)) as connection,
        connection,
        connection.cursor() as cursor,
    ):
        cursor.execute(sql)
        moved = cursor.rowcount
    return moved
