"""Refunds, transfers and reversals: the objects that move money after the charge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from payment_service.adapters.stripe.client import StripeResource, path_to
from payment_service.adapters.stripe.fields import (
    Json,
    id_in,
    number,
    part,
    parts,
    text,
    text_or_empty,
)
from payment_service.adapters.stripe.views import (
    fee_refund_of,
    refund_of,
    reversal_of,
    transfer_of,
)
from payment_service.domain.ports.stripe import NewTransfer, Outcome
from payment_service.domain.snapshot import FeeRefund, Refund, Reversal, Transfer

if TYPE_CHECKING:  # They take long to import.
    from stripe import params as sent

_TRANSFER_EXPAND: Final = ["balance_transaction", "destination_payment.balance_transaction"]


class MoneyMovements(StripeResource):
    """Creates and lists refunds, transfers and reversals. Amounts are minor units."""

    async def refund(
        self, key: str, payment_intent_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Refund]:
        """Refunds the client only, without ``reverse_transfer`` and ``refund_application_fee``."""
        params: sent.RefundCreateParams = {
            "payment_intent": payment_intent_id,
            "amount": minor_units,
            "metadata": dict(metadata),
            "expand": ["balance_transaction", "failure_balance_transaction"],
        }
        return await self._calls.mutation(lambda: self._post("/v1/refunds", params, key), refund_of)

    async def transfer(self, key: str, new: NewTransfer) -> Outcome[Transfer]:
        """Transfers money of a charge on the platform to the expert's account.

        ``source_transaction`` lets Stripe accept it before the funds of the charge have settled.
        """
        params: sent.TransferCreateParams = {
            "amount": new.minor_units,
            "currency": new.currency.lower(),
            "destination": new.destination_account_id,
            "source_transaction": new.charge_id,
            "transfer_group": new.metadata["payment_id"],
            "metadata": dict(new.metadata),
            "expand": _TRANSFER_EXPAND,
        }
        return await self._calls.mutation(
            lambda: self._post("/v1/transfers", params, key), transfer_of
        )

    async def reverse_transfer(
        self, key: str, transfer_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Reversal]:
        """Takes money of a transfer back from the expert only."""
        params: sent.TransferReversalCreateParams = {
            "amount": minor_units,
            "metadata": dict(metadata),
            "expand": ["balance_transaction"],
        }
        path = path_to("v1", "transfers", transfer_id, "reversals")
        return await self._calls.mutation(lambda: self._post(path, params, key), reversal_of)

    async def _refunds(self, intent: Json) -> tuple[Refund, ...]:
        """Returns the intent's refunds, the oldest first (Stripe lists the newest first)."""
        params: sent.RefundListParams = {
            "payment_intent": text(intent, "id"),
            "limit": 100,
            "expand": ["data.balance_transaction", "data.failure_balance_transaction"],
        }
        listed = await self._calls.read_all(
            lambda after: self._get("/v1/refunds", {**params, **after})
        )
        return tuple(refund_of(refund) for refund in reversed(listed))

    async def _fee_refunds(self, charge: Json | None) -> tuple[FeeRefund, ...]:
        """Returns the refunds of the charge's application fee, the oldest first."""
        fee = part(charge, "application_fee")
        if fee is None or not number(fee, "amount_refunded"):
            return ()
        path = path_to("v1", "application_fees", text(fee, "id"), "refunds")
        params: sent.ApplicationFeeRefundListParams = {
            "limit": 100,
            "expand": ["data.balance_transaction"],
        }
        listed = await self._calls.read_all(lambda after: self._get(path, {**params, **after}))
        return tuple(fee_refund_of(refund) for refund in reversed(listed))

    async def _separate_transfers(self, intent: Json) -> tuple[Transfer, ...]:
        """Returns the transfers of a charge on the platform, the oldest first.

        All of them carry the intent's ``transfer_group``. A second intent of one payment has the
        same one, so a transfer that draws on another charge is left out.
        """
        group, charge_id = text_or_empty(intent, "transfer_group"), id_in(intent, "latest_charge")
        if not group:
            return ()
        params: sent.TransferListParams = {
            "transfer_group": group,
            "limit": 100,
            "expand": [f"data.{name}" for name in _TRANSFER_EXPAND],
        }
        listed = await self._calls.read_all(
            lambda after: self._get("/v1/transfers", {**params, **after})
        )
        return tuple(
            [
                transfer_of(transfer, await self._reversals(transfer))
                for transfer in reversed(listed)
                if id_in(transfer, "source_transaction") in ("", charge_id)
            ]
        )

    async def _reversals(self, transfer: Json) -> tuple[Reversal, ...]:
        """Returns the reversals of a transfer, the oldest first."""
        # One that is not done yet may count in the amount only later.
        shown = parts(part(transfer, "reversals"), "data")
        if not number(transfer, "amount_reversed") and not shown:
            return ()
        path = path_to("v1", "transfers", text(transfer, "id"), "reversals")
        params: sent.TransferReversalListParams = {
            "limit": 100,
            "expand": [
                "data.balance_transaction",
                "data.destination_payment_refund.balance_transaction",
            ],
        }
        listed = await self._calls.read_all(lambda after: self._get(path, {**params, **after}))
        return tuple(reversal_of(reversal) for reversal in reversed(listed))
