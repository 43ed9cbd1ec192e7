"""Refunds, transfers and reversals: the objects that move money after the charge."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import stripe

from payment_service.adapters.stripe.client import StripeResource
from payment_service.adapters.stripe.views import (
    fee_refund_of,
    refund_of,
    reversal_of,
    transfer_of,
)
from payment_service.domain.ports.stripe import NewTransfer, Outcome
from payment_service.domain.snapshot import FeeRefund, Refund, Reversal, Transfer

_TRANSFER_EXPAND: Final = ["balance_transaction", "destination_payment.balance_transaction"]


class MoneyMovements(StripeResource):
    """Creates and lists refunds, transfers and reversals. Amounts are minor units."""

    async def refund(
        self, key: str, payment_intent_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Refund]:
        """Refunds the client only, without ``reverse_transfer`` and ``refund_application_fee``."""
        return await self._calls.mutation(
            lambda: self._client.v1.refunds.create_async(
                {
                    "payment_intent": payment_intent_id,
                    "amount": minor_units,
                    "metadata": dict(metadata),
                    "expand": ["balance_transaction", "failure_balance_transaction"],
                },
                {"idempotency_key": key},
            ),
            refund_of,
        )

    async def transfer(self, key: str, new: NewTransfer) -> Outcome[Transfer]:
        """Transfers money of a charge on the platform to the expert's account.

        ``source_transaction`` lets Stripe accept it before the funds of the charge have settled.
        """
        return await self._calls.mutation(
            lambda: self._client.v1.transfers.create_async(
                {
                    "amount": new.minor_units,
                    "currency": new.currency.lower(),
                    "destination": new.destination_account_id,
                    "source_transaction": new.charge_id,
                    "transfer_group": new.metadata["payment_id"],
                    "metadata": dict(new.metadata),
                    "expand": _TRANSFER_EXPAND,
                },
                {"idempotency_key": key},
            ),
            transfer_of,
        )

    async def reverse_transfer(
        self, key: str, transfer_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Reversal]:
        """Takes money of a transfer back from the expert only."""
        return await self._calls.mutation(
            lambda: self._client.v1.transfers.reversals.create_async(
                transfer_id,
                {
                    "amount": minor_units,
                    "metadata": dict(metadata),
                    "expand": ["balance_transaction"],
                },
                {"idempotency_key": key},
            ),
            reversal_of,
        )

    async def _refunds(self, intent: stripe.PaymentIntent) -> tuple[Refund, ...]:
        """Returns the intent's refunds, the oldest first (Stripe lists the newest first)."""
        listed: list[stripe.Refund] = await self._calls.read_all(
            lambda: self._client.v1.refunds.list_async(
                {
                    "payment_intent": intent.id,
                    "limit": 100,
                    "expand": ["data.balance_transaction", "data.failure_balance_transaction"],
                }
            )
        )
        return tuple(refund_of(refund) for refund in reversed(listed))

    async def _fee_refunds(self, charge: stripe.Charge | None) -> tuple[FeeRefund, ...]:
        """Returns the refunds of the charge's application fee, the oldest first."""
        fee = None if charge is None else charge.application_fee
        if not isinstance(fee, stripe.ApplicationFee) or not fee.amount_refunded:
            return ()
        fee_id = fee.id
        listed: list[stripe.ApplicationFeeRefund] = await self._calls.read_all(
            lambda: self._client.v1.application_fees.refunds.list_async(
                fee_id, {"limit": 100, "expand": ["data.balance_transaction"]}
            )
        )
        return tuple(fee_refund_of(refund) for refund in reversed(listed))

    async def _separate_transfers(self, intent: stripe.PaymentIntent) -> tuple[Transfer, ...]:
        """Returns the transfers of a charge on the platform, the oldest first.

        All of them carry the intent's ``transfer_group``. A second intent of one payment has the
        same one, so a transfer that draws on another charge is left out.
        """
        group, latest = intent.transfer_group, intent.latest_charge
        if not group:
            return ()
        charge_id = latest if latest is None or isinstance(latest, str) else latest.id
        listed: list[stripe.Transfer] = await self._calls.read_all(
            lambda: self._client.v1.transfers.list_async(
                {
                    "transfer_group": group,
                    "limit": 100,
                    "expand": [f"data.{name}" for name in _TRANSFER_EXPAND],
                }
            )
        )
        return tuple(
            [
                transfer_of(transfer, await self._reversals(transfer))
                for transfer in reversed(listed)
                if transfer.source_transaction in (None, charge_id)
            ]
        )

    async def _reversals(self, transfer: stripe.Transfer) -> tuple[Reversal, ...]:
        """Returns the reversals of a transfer, the oldest first."""
        shown = getattr(transfer, "reversals", None)
        # One that is not done yet may count in the amount only later.
        if not transfer.amount_reversed and not (shown and shown.data):
            return ()
        transfer_id = transfer.id
        listed: list[stripe.TransferReversal] = await self._calls.read_all(
            lambda: self._client.v1.transfers.reversals.list_async(
                transfer_id,
                {
                    "limit": 100,
                    "expand": [
                        "data.balance_transaction",
                        "data.destination_payment_refund.balance_transaction",
                    ],
                },
            )
        )
        return tuple(reversal_of(reversal) for reversal in reversed(listed))
