"""Disputes: reading them, and the two ways to answer one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, cast

from payment_service.adapters.stripe.client import StripeResource, path_to
from payment_service.adapters.stripe.fields import Json, flag_or_false, part, text
from payment_service.adapters.stripe.views import EVIDENCE_OPERATION, dispute_of
from payment_service.domain.ports.stripe import Outcome
from payment_service.domain.snapshot import DisputeSnapshot

if TYPE_CHECKING:  # They take long to import.
    from stripe import params as sent


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
        params: sent.DisputeUpdateParams = {
            "submit": submit,
            "metadata": {EVIDENCE_OPERATION: operation_id},
        }
        if evidence:
            params["evidence"] = cast("sent.DisputeUpdateParamsEvidence", dict(evidence))
        path = path_to("v1", "disputes", dispute_id)
        return await self._calls.mutation(lambda: self._post(path, params, key), dispute_of)

    async def accept_dispute(self, key: str, dispute_id: str) -> Outcome[DisputeSnapshot]:
        """Accepts the dispute, which loses it. Stripe calls this "close"."""
        path = path_to("v1", "disputes", dispute_id, "close")
        return await self._calls.mutation(lambda: self._post(path, {}, key), dispute_of)

    async def _disputes(self, intent: Json) -> tuple[DisputeSnapshot, ...]:
        """Returns the intent's disputes, the oldest first, with their balance transactions."""
        charge = part(intent, "latest_charge")
        if charge is None or not flag_or_false(charge, "disputed"):
            return ()
        params: sent.DisputeListParams = {"payment_intent": text(intent, "id"), "limit": 100}
        listed = await self._calls.read_all(
            lambda after: self._get("/v1/disputes", {**params, **after})
        )
        return tuple(dispute_of(dispute) for dispute in reversed(listed))
