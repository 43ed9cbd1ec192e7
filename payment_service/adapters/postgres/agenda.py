"""Which background jobs have work that is due: one statement for all of them.

A replica that reads the agenda tells the others by NOTIFY, and they wait with their own read. So
many replicas together read it about as often as one would.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from payment_service.adapters.postgres.jobs import (
    STALE_WAITING_REASONS,
    UNSETTLED_LOSSES,
    WAITING_FOR_EXPERTS,
    due_candidates,
    without_pause,
)
from payment_service.adapters.postgres.polling import UNPOLLED_PARKED
from payment_service.adapters.postgres.statements import Statements
from payment_service.domain.ports.records import Agenda, JobKind

#: The NOTIFY channel on which a read of the agenda is announced.
CHANNEL: Final = "payments_agenda"


def _of_payments(job: JobKind, candidates: str) -> str:
    return f"EXISTS ({without_pause(job, candidates)})"


def _at_times(name: str) -> str:
    """Returns the condition of a job that runs at stored times, on one replica."""
    return f"NOT EXISTS (SELECT FROM jobs WHERE name = '{name}' AND next_time > now())"


#: When each job is due. Each condition is answered from an index that has only what is open.
_DUE: Final[Mapping[str, str]] = {
    "apply_waiting": (
        "EXISTS (SELECT FROM webhook_events WHERE state = 'WAITING' AND next_try_time <= now())"
    ),
    "sequence_feed": "EXISTS (SELECT FROM feed_pending)",
    "recover_operations": (
        "EXISTS (SELECT FROM operations WHERE state IN ('STARTED', 'UNKNOWN') "
        "AND greatest(next_try_time, lease_until) <= now())"
    ),
    "poll_events": "EXISTS (SELECT FROM event_cursors WHERE next_time <= now())",
    "update_waiting_reasons": _of_payments(JobKind.UPDATE_WAITING_REASONS, STALE_WAITING_REASONS),
    "retry_waiting_captures": _of_payments(JobKind.RETRY_WAITING_CAPTURES, WAITING_FOR_EXPERTS),
    "write_off_lost_disputes": _of_payments(JobKind.WRITE_OFF_LOST_DISPUTES, UNSETTLED_LOSSES),
    "collect_debts": "EXISTS (SELECT FROM debt_checks WHERE next_time <= now())",
    "poll_stale_payments": (
        f"EXISTS (SELECT FROM payment_polls WHERE next_time <= now()) OR EXISTS ({UNPOLLED_PARKED})"
    ),
    "check_accounts": "EXISTS (SELECT FROM experts WHERE check_due_time <= now())",
    "fold_balances": "EXISTS (SELECT FROM ledger_span WHERE next_time <= now())",
    "reconcile_if_due": _at_times("reconciliation"),
    "prune": _at_times("prune"),
    "export_if_due": _at_times("export_heads"),
    **{
        job.value: _of_payments(job, due_candidates(job))
        for job in (
            JobKind.EXPIRE_UNPAID,
            JobKind.SYNC_EXPIRED_AUTHORIZATIONS,
            JobKind.WARN_OF_DEADLINES,
            JobKind.ACT_ON_DEADLINES,
        )
    },
}
JOBS: Final = frozenset(_DUE)
_AGENDA: Final = (
    f"SELECT {', '.join(f'{condition} AS {name}' for name, condition in _DUE.items())}, "
    "(SELECT coalesce(max(position), 0) FROM feed) AS feed_head, "
    "CASE WHEN :announced THEN pg_notify(:channel, '') END AS announced"
)


class AgendaReads(Statements):
    """Reads what is due."""

    def agenda(self, *, announced: bool) -> Agenda:
        """Returns what is due now, and tells other replicas so if it is ``announced``."""
        row = self._one(_AGENDA, announced=announced, channel=CHANNEL)
        return Agenda(frozenset(name for name in _DUE if row[name]), row["feed_head"])
