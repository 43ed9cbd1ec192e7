"""What the background jobs work on next, and when a replica may start a job.

Each query returns candidates only, by a column that was computed in Python when the row was
written. The job locks the payment and decides by the rule of the domain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Final

from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.ports.records import JobKind

#: The column of the schedule by which a job selects its payments (`domain.schedule`).
_DUE_COLUMNS: Final[Mapping[JobKind, str]] = {
    JobKind.ACT_ON_DEADLINES: "deadline_due_time",
    JobKind.WARN_OF_DEADLINES: "warn_due_time",
    JobKind.EXPIRE_UNPAID: "expire_due_time",
    JobKind.SYNC_EXPIRED_AUTHORIZATIONS: "hold_check_due_time",
}

#: Captures that wait for their expert and may be tried again, and since when they are due.
WAITING_FOR_EXPERTS: Final = (
    "SELECT payment_id, payments.update_time AS due "
    "FROM payments JOIN experts USING (expert_id) "
    "WHERE waiting_for = 'expert' AND status = 'READY' AND "
    "(capture_retry_due_time <= now() OR (capture_retry_due_time IS NOT NULL "
    "AND experts.update_time > payments.update_time))"
)
#: Captures that wait for their expert for a reason that may be out of date.
STALE_WAITING_REASONS: Final = (
    "SELECT payment_id, payments.update_time AS due "
    "FROM payments JOIN experts USING (expert_id) "
    "WHERE waiting_for = 'expert' AND waiting_reason <> 'DESTINATION_ACCOUNT_REPLACED' "
    "AND ((status <> 'READY' AND waiting_reason <> 'EXPERT_' || status) "
    "OR experts.update_time > payments.update_time)"
)
#: Payments with a lost dispute that is not booked completely.
UNSETTLED_LOSSES: Final = (
    "SELECT DISTINCT payment_id, payments.update_time AS due "
    "FROM disputes JOIN payments USING (payment_id) WHERE unsettled > 0"
)


def due_candidates(job: JobKind) -> str:
    """Returns the query of the payments whose time for this job has come."""
    column = _DUE_COLUMNS[job]
    return f"SELECT payment_id, {column} AS due FROM payments WHERE {column} <= now()"


def without_pause(job: JobKind, candidates: str) -> str:
    """Returns the query of those candidates that do not pause after a turn of this job.

    ``candidates`` is a query with a ``payment_id`` and the time since when it is ``due``.
    """
    return (
        f"SELECT found.payment_id FROM ({candidates}) AS found "
        f"LEFT JOIN job_backoff ON job_backoff.job = '{job.value}' "
        "AND job_backoff.payment_id = found.payment_id "
        "WHERE next_time IS NULL OR next_time <= now()"
    )


class JobWrites(TransactionStatements):
    """Distributes the work of background jobs among replicas."""

    def lease_job(self, name: str, seconds: float) -> bool:
        """Returns True for one replica only, once in ``seconds``."""
        made = self._do(
            "INSERT INTO jobs (name, next_time) VALUES (:name, now() + :pause) "
            "ON CONFLICT (name) DO UPDATE SET next_time = excluded.next_time "
            "WHERE jobs.next_time <= now()",
            name=name,
            pause=timedelta(seconds=seconds),
        )
        return made == 1

    def extend_comparison(self, since: datetime, until: datetime) -> None:
        """Stores that a run has compared everything from ``since`` to ``until``.

        A run that leaves a gap after the last one does not move the end forward.
        """
        self._do(
            "INSERT INTO comparisons (account, compared_until) VALUES ('', :until) "
            "ON CONFLICT (account) DO UPDATE SET compared_until = excluded.compared_until "
            "WHERE comparisons.compared_until BETWEEN :since AND :until",
            since=since,
            until=until,
        )

    def keep_comparison(self, account: str, since: datetime) -> None:
        """Stores that an account is compared up to ``since`` only, or even less far."""
        self._do(
            "INSERT INTO comparisons (account, compared_until) VALUES (:account, :since) "
            "ON CONFLICT (account) DO NOTHING",
            account=account,
            since=since,
        )

    def close_comparison(self, account: str) -> None:
        """Stores that an account is compared as far as all others."""
        self._do("DELETE FROM comparisons WHERE account = :account", account=account)

    def take_turn(self, job: JobKind, payment_id: str, first: float, most: float) -> bool:
        """Returns True for one replica only. This job then leaves the payment alone for a while.

        The pause is ``first`` seconds, and doubles with every turn up to ``most`` seconds. Turns
        whose pause ended an hour ago are deleted.
        """
        self._do(
            "DELETE FROM job_backoff WHERE (job, payment_id) IN "
            "(SELECT job, payment_id FROM job_backoff "
            "WHERE next_time < now() - interval '1 hour' LIMIT 100 FOR UPDATE SKIP LOCKED)"
        )
        taken = self._do(
            "INSERT INTO job_backoff (job, payment_id, pause, next_time) "
            "VALUES (:job, :payment_id, :first, now() + :first) "
            "ON CONFLICT (job, payment_id) DO UPDATE "
            "SET pause = least(job_backoff.pause * 2, :most), "
            "next_time = now() + least(job_backoff.pause * 2, :most) "
            "WHERE job_backoff.next_time <= now()",
            job=job.value,
            payment_id=payment_id,
            first=timedelta(seconds=first),
            most=timedelta(seconds=most),
        )
        return taken == 1


class JobReads(Statements):
    """Finds candidates for background jobs, outside transactions."""

    def payments_due(self, job: JobKind, limit: int) -> Sequence[str]:
        """Returns the payments whose time for this job has come, by their stored schedule."""
        return self._in_turn(job, due_candidates(job), limit)

    def payments_waiting_for_experts(self, limit: int) -> Sequence[str]:
        """Returns captures that wait for their expert and may be tried again now.

        They are due by their schedule, or their expert has changed, and the account can be paid.
        `schedule.may_retry_capture` decides.
        """
        return self._in_turn(JobKind.RETRY_WAITING_CAPTURES, WAITING_FOR_EXPERTS, limit)

    def payments_with_stale_waiting_reason(self, limit: int) -> Sequence[str]:
        """Returns captures that wait for their expert for a reason that may be out of date.

        `guards.reason_to_wait` decides. A replaced destination is the last reason of a payment.
        """
        return self._in_turn(JobKind.UPDATE_WAITING_REASONS, STALE_WAITING_REASONS, limit)

    def payments_with_unsettled_losses(self, limit: int) -> Sequence[str]:
        """Returns payments with a lost dispute that is not booked completely.

        `schedule.may_book_loss` decides whether it can be booked now.
        """
        return self._in_turn(JobKind.WRITE_OFF_LOST_DISPUTES, UNSETTLED_LOSSES, limit)

    def _in_turn(self, job: JobKind, candidates: str, limit: int) -> list[str]:
        """Returns the candidates that do not pause after a turn, in the order of a queue.

        A payment that has had a turn is queued as if it had become due when its pause ended.
        """
        found = self._all(
            f"{without_pause(job, candidates)} "
            "ORDER BY greatest(due, next_time), found.payment_id LIMIT :limit",
            limit=limit,
        )
        return [row["payment_id"] for row in found]
