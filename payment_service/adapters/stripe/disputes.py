"""Disputes: reading them, and the two ways to answer one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import stripe

from payment_service.adapters.stripe.client import StripeResource
from payment_service.adapters.stripe.views import EVIDENCE_OPERATION, dispute_of
from payment_service.domain.ports.stripe import Outcome
from payment_service.domain.snapshot import DisputeSnapshot


class Disputes(StripeResource):
    """Lists and answers disputes."""

    async def submit_evidence(
        self,
        key: str,
        dispute_id: str,
        evidence: Mapping[str, str],
        *,
        submit: bool,
        operation_id: str,
    ) -> Outcome[DisputeSnapshot]:
        """Stores evidence. ``submit`` also sends it to the bank, which cannot be undone.

        ``evidence`` has Stripe's own names. The operation's id is stored in the metadata, so that a
        later read shows whether the operation has taken effect.
        """
        params: stripe.params.DisputeUpdateParams = {
            "submit": submit,
            "metadata": {EVIDENCE_OPERATION: operation_id},
        }
        if evidence:
            params["evidence"] = cast("stripe.params.DisputeUpdateParamsEvidence", dict(evidence))
        return await self._calls.mutation(
            lambda: self._client.v1.disputes.update_async(
                dispute_id, params, {"idempotency_key": key}
            ),
            dispute_of,
        )

    async def accept_dispute(self, key: str, dispute_id: str) -> Outcome[DisputeSnapshot]:
        """Accepts the dispute, which loses it. Stripe calls this "close"."""
        return await self._calls.mutation(
            lambda: self._client.v1.disputes.close_async(dispute_id, {}, {"idempotency_key": key}),
            dispute_of,
        )

    async def _disputes(self, intent: stripe.PaymentIntent) -> tuple[DisputeSnapshot, ...]:
        """Returns the intent's disputes, the oldest first, with their balance transactions."""
        if not getattr(intent.latest_charge, "disputed", False):
            return ()
        listed: list[stripe.Dispute] = await self._calls.read_all(
            lambda: self._client.v1.disputes.list_async({"payment_intent": intent.id, "limit": 100})
        )
        return tuple(dispute_of(dispute) for dispute in reversed(listed))
