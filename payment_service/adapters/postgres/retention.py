"""Deletes what nobody needs any more, some rows at a time."""

from __future__ import annotations

from datetime import timedelta

from payment_service.adapters.postgres.statements import TransactionStatements


class RetentionWrites(TransactionStatements):
    """Deletes old rows. Each method deletes at most ``limit`` and returns how many it deleted."""

    def prune_webhook_events(self, seconds: float, limit: int) -> int:
        """Deletes events that came ``seconds`` ago or earlier, if nothing is to be done for them.

        An event that waits or is parked is kept.
        """
        return self._do(
            "DELETE FROM webhook_events WHERE event_id IN (SELECT event_id FROM webhook_events "
            "WHERE state IN ('APPLIED', 'IGNORED') AND receive_time < now() - :age "
            "ORDER BY receive_time LIMIT :limit FOR UPDATE SKIP LOCKED)",
            age=timedelta(seconds=seconds),
            limit=limit,
        )

    def prune_answers(self, seconds: float, limit: int) -> int:
        """Drops answers that were stored ``seconds`` ago or earlier. Their keys stay taken."""
        return self._do(
            "UPDATE idempotency_keys SET answer = NULL, fields = '{}' WHERE claim_id IN "
            "(SELECT claim_id FROM idempotency_keys WHERE answer IS NOT NULL "
            "AND settle_time < now() - :age ORDER BY settle_time LIMIT :limit "
            "FOR UPDATE SKIP LOCKED)",
            age=timedelta(seconds=seconds),
            limit=limit,
        )

    def prune_onboarding_tokens(self, limit: int) -> int:
        """Deletes tokens of onboarding pages that have expired."""
        return self._do(
            "DELETE FROM onboarding_tokens WHERE token_hash IN (SELECT token_hash "
            "FROM onboarding_tokens WHERE expire_time < now() ORDER BY expire_time LIMIT :limit "
            "FOR UPDATE SKIP LOCKED)",
            limit=limit,
        )
