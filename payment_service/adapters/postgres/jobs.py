"""What the background jobs work on next, and when a replica may start a job.

Each query returns candidates only: the job locks the payment and checks the rule again in Python.
Several conditions repeat a rule of the domain in SQL; each says which.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Final

from payment_service.adapters.postgres.statements import Statements, TransactionStatements
from payment_service.domain.ports.records import JobKind

#: Repeats `plans.check_destination`: a destination charge whose expert has another account now.
_DESTINATION_REPLACED: Final = (
    "(charge_model = 'DESTINATION' AND destination_account_id <> stripe_account_id)"
)

#: The payments on which one of their deadlines has passed, with the time since when it is ``due``.
#: An alert is due once. An action is due again after ``:again``, except a capture that can never
#: succeed because the destination account was replaced. Repeats `deadlines.deadline_due`.
_PASSED: Final = (
    "SELECT payment_id, CASE WHEN deadline_time IS NULL OR deadline_time < {act_time} "
    "THEN {act_time} WHEN (on_deadline IN ('CAPTURE', 'REFUND'){promotes}) "
    "AND NOT (on_deadline = 'CAPTURE' AND charge_model = 'DESTINATION' AND EXISTS (SELECT FROM "
    "former_accounts WHERE stripe_account_id = destination_account_id)) "
    "THEN deadline_time + :again END AS due FROM payments "
    "WHERE held > 0 AND ((state = 'IN_ESCROW' AND operation_id = '') "
    # A parked repayment that cannot take effect any more is pre-empted by the deadline's action.
    # Repeats `make_way.plan_preemption`.
    "OR (state = 'REFUNDING' AND client_payable > 0 AND EXISTS (SELECT FROM operations "
    "WHERE operations.operation_id = payments.operation_id AND purpose = 'REPAYMENT' "
    "AND operations.state = 'PARKED' AND unsure_until IS NULL))) AND {passed}"
)
#: The same for both deadlines: the end of the hold at Stripe, and our own release date.
_DUE: Final = " UNION ALL ".join(
    (
        _PASSED.format(
            act_time="escrow_expire_time - :margin",
            promotes=" OR (on_deadline = 'PROMOTE' AND charged = 0)",
            passed="escrow_expire_time <= now() + :margin",
        ),
        # A promotion concerns only the authorization of the card.
        _PASSED.format(
            act_time="release_due_time", promotes="", passed="release_due_time <= now()"
        ),
    )
)


class _Queue(Statements):
    """The candidates of one job as a fair queue."""

    def _in_turn(self, work: JobKind, candidates: str, limit: int, **values: Any) -> Sequence[Any]:
        """Returns the candidates that do not pause after a turn, in the order of a queue.

        ``candidates`` is a query with a ``payment_id`` and the time since when it is ``due``. A
        payment that has had a turn is queued as if it had become due when its pause ended.
        """
        return self._all(
            f"WITH found AS ({candidates}) SELECT found.* FROM found LEFT JOIN job_backoff "
            "ON job_backoff.work = :work AND job_backoff.payment_id = found.payment_id "
            "WHERE next_time IS NULL OR next_time <= now() "
            "ORDER BY greatest(due, next_time), found.payment_id LIMIT :limit",
            work=work.value,
            limit=limit,
            **values,
        )

    def _ids_in_turn(self, work: JobKind, candidates: str, limit: int, **values: Any) -> list[str]:
        """Returns the payment ids of :meth:`_in_turn`."""
        return [row["payment_id"] for row in self._in_turn(work, candidates, limit, **values)]


class JobWrites(_Queue, TransactionStatements):
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

    def take_turn(self, work: JobKind, payment_id: str, first: float, most: float) -> bool:
        """Returns True for one replica only. This job then leaves the payment alone for a while.

        The pause is ``first`` seconds, and doubles with every turn up to ``most`` seconds. Turns
        whose pause ended an hour ago are deleted.
        """
        self._do(
            "DELETE FROM job_backoff WHERE (work, payment_id) IN "
            "(SELECT work, payment_id FROM job_backoff "
            "WHERE next_time < now() - interval '1 hour' LIMIT 100 FOR UPDATE SKIP LOCKED)"
        )
        taken = self._do(
            "INSERT INTO job_backoff (work, payment_id, pause, next_time) "
            "VALUES (:work, :payment_id, :first, now() + :first) "
            "ON CONFLICT (work, payment_id) DO UPDATE "
            "SET pause = least(job_backoff.pause * 2, :most), "
            "next_time = now() + least(job_backoff.pause * 2, :most) "
            "WHERE job_backoff.next_time <= now()",
            work=work.value,
            payment_id=payment_id,
            first=timedelta(seconds=first),
            most=timedelta(seconds=most),
        )
        return taken == 1

    def payments_at_deadline(self, margin: float, again: float, limit: int) -> Sequence[str]:
        """Returns payments in escrow whose deadline must be acted on now, the longest due first.

        ``margin`` is how long before the end of the hold its action is due; ``again`` is after how
        long an action is tried again (seconds). The SQL repeats the whole of
        `deadlines.deadline_due`: if it returned payments that are not due, they would stay at the
        head of the queue, and the payments behind them would never be reached.
        """
        return self._ids_in_turn(
            JobKind.DEADLINES,
            f"SELECT payment_id, min(due) AS due FROM ({_DUE}) AS passed "
            "WHERE due <= now() GROUP BY payment_id",
            limit,
            margin=timedelta(seconds=margin),
            again=timedelta(seconds=again),
        )


class JobReads(_Queue):
    """Finds work for background jobs, outside transactions."""

    def payments_near_deadline(self, ahead: float, limit: int) -> Sequence[str]:
        """Returns payments whose deadline is less than ``ahead`` seconds away, not warned of yet.

        Repeats `deadlines.deadline_near`.
        """
        near = (
            "({time} BETWEEN now() AND now() + :ahead "
            "AND (warn_time IS NULL OR warn_time < {time}))"
        )
        return self._ids_in_turn(
            JobKind.WARNINGS,
            "SELECT payment_id, least(release_due_time, escrow_expire_time) - :ahead AS due "
            "FROM payments WHERE held > 0 "
            "AND state IN ('IN_ESCROW', 'CAPTURING', 'REFUNDING') AND "
            f"({near.format(time='release_due_time')} OR {near.format(time='escrow_expire_time')})",
            limit,
            ahead=timedelta(seconds=ahead),
        )

    def payments_past_window(self, limit: int) -> Sequence[str]:
        """Returns unpaid payments past their payment window, without an open operation."""
        return self._ids_in_turn(
            JobKind.PAYMENT_WINDOW,
            "SELECT payment_id, payment_expire_time AS due FROM payments "
            "WHERE state IN ('PENDING', 'FAILED') "
            "AND payment_expire_time < now() AND operation_id = ''",
            limit,
        )

    def holds_past_expiry(self, limit: int) -> Sequence[str]:
        """Returns payments whose card authorization must have expired without an event."""
        return self._ids_in_turn(
            JobKind.LAPSED_HOLDS,
            "SELECT payment_id, escrow_expire_time AS due FROM payments "
            "WHERE held > 0 AND charged = 0 AND state IN ('IN_ESCROW', 'CAPTURING') "
            "AND escrow_expire_time < now()",
            limit,
        )

    def payments_waiting_for_experts(self, limit: int) -> Sequence[tuple[str, str]]:
        """Returns (payment id, operation id) of parked captures whose expert can be paid now.

        A capture is tried at once if the expert's account was the reason or has changed since. If
        Stripe refused although the account looked ready, the capture is tried after a minute. A
        destination charge to a replaced account is never tried; `plans.check_destination` refuses
        it as well.
        """
        found = self._in_turn(
            JobKind.WAITING_CAPTURES,
            "SELECT payment_id, payments.operation_id, payments.update_time AS due "
            "FROM payments JOIN experts USING (expert_id) "
            "WHERE waiting_for = 'expert' AND transfers_active AND NOT deauthorized "
            "AND NOT starts_with(disabled_reason, 'rejected.') AND frozen = 'NONE' "
            f"AND NOT {_DESTINATION_REPLACED} "
            "AND (waiting_reason NOT IN ('', 'EXPERT_REFUSED') "
            "OR experts.update_time > payments.update_time "
            "OR payments.update_time < now() - interval '1 minute')",
            limit,
        )
        return [(row["payment_id"], row["operation_id"]) for row in found]

    def payments_with_stale_waiting_reason(self, limit: int) -> Sequence[str]:
        """Returns captures that wait for their expert, and whose stored reason is out of date.

        Repeats `plans.reason_to_wait`, except for captures that can continue now.
        """
        return self._ids_in_turn(
            JobKind.WAITING_REASONS,
            "SELECT payment_id, payments.update_time AS due "
            "FROM payments JOIN experts USING (expert_id) "
            "WHERE waiting_for = 'expert' AND waiting_reason <> "
            f"CASE WHEN {_DESTINATION_REPLACED} THEN 'DESTINATION_ACCOUNT_REPLACED' "
            "WHEN deauthorized THEN 'EXPERT_DEAUTHORIZED' "
            "WHEN starts_with(disabled_reason, 'rejected.') THEN 'EXPERT_REJECTED' "
            "WHEN transfers_active THEN waiting_reason "
            "WHEN NOT details_submitted THEN 'EXPERT_ONBOARDING' "
            "WHEN cardinality(requirements_due) > 0 OR (disabled_reason <> '' "
            "AND position('pending_verification' IN disabled_reason) = 0) "
            "THEN 'EXPERT_RESTRICTED' ELSE 'EXPERT_PENDING_VERIFICATION' END",
            limit,
        )

    def payments_with_unsettled_losses(self, limit: int) -> Sequence[str]:
        """Returns payments with a lost dispute that is not booked completely and can be booked now.

        Repeats `Dispute.unsettled`. A loss waits while the payment has an open operation. A parked
        operation that can have no effect (`Operation.is_without_effect`) is abandoned for it, but
        never a reversal: the client already has the money that the reversal takes from the expert.
        """
        return self._ids_in_turn(
            JobKind.LOST_DISPUTES,
            "SELECT DISTINCT payment_id, payments.update_time AS due "
            "FROM disputes JOIN payments USING (payment_id) "
            "WHERE outcome IN ('LOST', 'PREVENTED') "
            "AND withdrawn > reinstated + disputes.lost "
            "AND (payments.operation_id = '' OR EXISTS "
            "(SELECT 1 FROM operations WHERE operations.operation_id = payments.operation_id "
            "AND operations.state = 'PARKED' AND kind <> 'reverse_transfer' "
            "AND (unsure_until IS NULL OR unsure_until <= now())))",
            limit,
        )
