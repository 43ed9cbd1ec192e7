"""Payment intents. They are always read with everything that depends on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

import structlog

from payment_service.adapters.stripe.client import path_to
from payment_service.adapters.stripe.disputes import Disputes
from payment_service.adapters.stripe.fields import Json, metadata_of, part, text, text_or_empty
from payment_service.adapters.stripe.money_movements import MoneyMovements
from payment_service.adapters.stripe.views import (
    fraud_warning_of,
    observation_of,
    searched_since,
)
from payment_service.domain.ports.stripe import Done, NewIntent, Outcome, Refused
from payment_service.domain.processor_errors import CARDS_NOT_ENABLED, misconfigured
from payment_service.domain.snapshot import FraudWarning, PaymentSnapshot

if TYPE_CHECKING:  # They take long to import.
    from stripe import params as sent
    from stripe.params import radar

log = structlog.get_logger(__name__)

#: Everything that a transition needs to know of a captured charge comes with the intent.
EXPAND: Final = [
    "latest_charge.balance_transaction",
    "latest_charge.transfer.balance_transaction",
    "latest_charge.transfer.destination_payment.balance_transaction",
    "latest_charge.application_fee.balance_transaction",
    "latest_charge.review",
]


class PaymentIntents(MoneyMovements, Disputes):
    """Creates, captures, cancels and reads payment intents. Amounts are minor units.

    It extends the resources that a snapshot of an intent consists of.
    """

    async def create_intent(self, key: str, new: NewIntent) -> Outcome[PaymentSnapshot]:
        """Creates an intent. The client confirms it later.

        Stripe drops from the allowed methods what the platform's settings do not offer, without an
        error. An intent without cards can be paid by nobody, so it counts as refused.
        """
        params: sent.PaymentIntentCreateParams = {
            "amount": new.minor_units,
            "currency": new.currency.lower(),
            # Never Stripe's default `automatic_async`: its answer has no balance transaction yet.
            "capture_method": "manual" if new.manual_capture else "automatic",
            # Otherwise Stripe also offers methods that are delayed or that redirect. Before this
            # API version the parameter was `payment_method_types`.
            "allowed_payment_method_types": ["card"],
            "transfer_group": new.metadata["payment_id"],
            "metadata": dict(new.metadata),
        }
        if new.extended_authorization:
            params["payment_method_options"] = {
                "card": {"request_extended_authorization": "if_available"}
            }
        if new.destination_account_id:
            params["transfer_data"] = {"destination": new.destination_account_id}
        if new.application_fee:  # Stripe refuses a fee of zero.
            params["application_fee_amount"] = new.application_fee
        if new.description:
            params["description"] = new.description
        outcome = await self._calls.mutation(
            lambda: self._post("/v1/payment_intents", params, key), observation_of
        )
        if isinstance(outcome, Done) and not outcome.value.accepts_cards:
            log.error("stripe_misconfigured", code=CARDS_NOT_ENABLED, request_id="")
            return Refused(CARDS_NOT_ENABLED)
        return outcome

    async def capture(
        self,
        key: str,
        payment_intent_id: str,
        minor_units: int,
        application_fee: int | None,
        metadata: Mapping[str, str],
    ) -> Outcome[PaymentSnapshot]:
        """Captures a part or all of the authorized amount. Stripe releases the remainder.

        ``application_fee`` None means that the intent was created without one.
        """
        params: sent.PaymentIntentCaptureParams = {
            "amount_to_capture": minor_units,
            "metadata": dict(metadata),
            "expand": EXPAND,
        }
        if application_fee is not None:
            params["application_fee_amount"] = application_fee
        path = path_to("v1", "payment_intents", payment_intent_id, "capture")
        return await self._calls.mutation(lambda: self._post(path, params, key), observation_of)

    async def cancel(self, key: str, payment_intent_id: str) -> Outcome[PaymentSnapshot]:
        """Cancels an uncaptured intent, which releases the authorization."""
        params: sent.PaymentIntentCancelParams = {
            # Never `fraudulent`: Stripe would block the card.
            "cancellation_reason": "requested_by_customer",
            "expand": EXPAND,
        }
        path = path_to("v1", "payment_intents", payment_intent_id, "cancel")
        return await self._calls.mutation(lambda: self._post(path, params, key), observation_of)

    async def observe(self, payment_intent_id: str) -> PaymentSnapshot | None:
        """Returns the intent with charge, transfers, refunds, reversals and disputes, or None."""
        path = path_to("v1", "payment_intents", payment_intent_id)
        intent = await self._calls.read(lambda: self._get(path, {"expand": EXPAND}))
        return None if intent is None else await self._with_dependents(intent)

    async def find_intent(self, operation_id: str, created: datetime) -> PaymentSnapshot | None:
        """Returns the intent that the operation of this time created, or None.

        Intents cannot be searched by metadata at once after their creation, so those that were
        created since about that time are listed. One without cards is none, as in
        ``create_intent``.
        """
        for intent in await self._listed_intents({"gte": searched_since(created)}):
            if metadata_of(intent).get("operation_id") == operation_id:
                found = await self.observe(text(intent, "id"))
                return found if found is not None and found.accepts_cards else None
        return None

    async def intents_since(self, since: datetime) -> Sequence[tuple[str, Mapping[str, str]]]:
        """Returns the intents that were created since then, the oldest first, with metadata."""
        intents = await self._listed_intents({"gte": int(since.timestamp())})
        return [(text(intent, "id"), metadata_of(intent)) for intent in reversed(intents)]

    async def _listed_intents(self, created: sent.PaymentIntentListParamsCreated) -> list[Json]:
        params: sent.PaymentIntentListParams = {"created": created, "limit": 100}
        return await self._calls.read_all(
            lambda after: self._get("/v1/payment_intents", {**params, **after})
        )

    async def fraud_warnings(self, payment_intent_id: str) -> Sequence[FraudWarning]:
        """Returns the early fraud warnings about an intent, the oldest first."""
        params: radar.EarlyFraudWarningListParams = {
            "payment_intent": payment_intent_id,
            "limit": 100,
        }
        listed = await self._calls.read_all(
            lambda after: self._get("/v1/radar/early_fraud_warnings", {**params, **after})
        )
        return [fraud_warning_of(warning) for warning in reversed(listed)]

    async def client_secret(self, payment_intent_id: str) -> str:
        """Returns the secret with which the client's browser confirms the intent.

        It is read whenever it is needed, so it is stored nowhere.
        """
        path = path_to("v1", "payment_intents", payment_intent_id)
        intent = await self._calls.read(lambda: self._get(path))
        secret = text_or_empty(intent, "client_secret")
        if not secret:
            raise misconfigured("resource_missing")
        return secret

    async def _with_dependents(self, intent: Json) -> PaymentSnapshot:
        """Returns the intent with everything that Stripe lists apart from it."""
        if text(intent, "status") != "succeeded":
            return observation_of(intent)
        charge = part(intent, "latest_charge")
        # Stripe leaves out attributes that a charge on the platform does not have.
        transfer = part(charge, "transfer")
        return observation_of(
            intent,
            refunds=await self._refunds(intent),
            reversals=() if transfer is None else await self._reversals(transfer),
            fee_refunds=await self._fee_refunds(charge),
            separate_transfers=()
            if part(intent, "transfer_data")
            else await self._separate_transfers(intent),
            disputes=await self._disputes(intent),
        )
