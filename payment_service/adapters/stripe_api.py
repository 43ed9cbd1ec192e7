"""Stripe over its own SDK, behind the port of ``domain/ports.py``.

Every mutation carries a key that was stored before. What a failure means is decided in one place,
``stripe_calls.outcome_of``.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar, cast

import stripe
import structlog
from aiohttp import ClientTimeout, TCPConnector
from stripe import RequestOptions
from stripe.params import AccountCreateParams, BalanceTransactionListParams

from payment_service.adapters.breaker import Breaker
from payment_service.adapters.stripe_calls import Calls, misconfigured
from payment_service.adapters.stripe_views import (
    EVIDENCE_OPERATION,
    account_balances_of,
    account_of,
    balance_entry_of,
    dispute_of,
    fee_refund_of,
    fraud_warning_of,
    metadata_of,
    observation_of,
    payout_of,
    refund_of,
    reversal_of,
    transfer_of,
)
from payment_service.domain.envelope import OddEvent, envelope_of
from payment_service.domain.errors import (
    Precondition,
)
from payment_service.domain.experts import Account
from payment_service.domain.observation import (
    FraudWarning,
    Observation,
    Refund,
    Reversal,
    ShownDispute,
    Transfer,
)
from payment_service.domain.payouts import AccountBalance, SeenPayout
from payment_service.domain.ports import (
    BalanceEntry,
    InboxEvent,
    NewAccount,
    NewIntent,
    NewTransfer,
    Outcome,
)

S = TypeVar("S")
T = TypeVar("T")
log = structlog.get_logger(__name__)

#: The API version that this code was written against; the SDK's own, so that its types are true.
API_VERSION: Final = "2026-10-28.endive"
#: Everything that a transition needs of a captured charge comes with the intent itself.
EXPAND: Final = [
    "latest_charge.balance_transaction",
    "latest_charge.transfer.balance_transaction",
    "latest_charge.transfer.destination_payment.balance_transaction",
    "latest_charge.application_fee.balance_transaction",
]
_TRANSFER_LINES: Final = ["balance_transaction", "destination_payment.balance_transaction"]
#: How long the platform's payout schedule is not asked for again.
_BELIEVED_SECONDS: Final = 600.0
#: Ten pages a round, well within Stripe's limit on reads.
_EVENTS_AT_ONCE: Final = 1000
_SEARCH_MARGIN: Final = timedelta(minutes=10)


class StripeApi:
    """The Stripe port over HTTP. Made on a running event loop; close it on the same one."""

    def __init__(
        self,
        secret_key: str,
        *,
        api_base: str | None = None,
        timeout_seconds: float = 15.0,
        connections: int = 256,
    ) -> None:
        self._manual_until = 0.0
        # A connector of our own replaces Stripe's CA bundle, so it is handed on.
        self._calls = Calls(Breaker(connections))
        context = ssl.create_default_context(cafile=stripe.ca_bundle_path)
        self._http = stripe.AIOHTTPClient(
            timeout=ClientTimeout(total=timeout_seconds, sock_connect=3),
            # Below Stripe's own keep-alive, or a reused connection may be reset under a POST.
            connector=TCPConnector(limit=connections, ssl=context, keepalive_timeout=15),
        )
        self._client = stripe.StripeClient(
            secret_key,
            stripe_version=API_VERSION,
            max_network_retries=0,
            base_addresses={"api": api_base} if api_base else None,
            http_client=self._http,
        )

    @property
    def is_away(self) -> bool:
        """Stripe has not answered lately: a call would be refused at once."""
        return self._calls.breaker.is_open

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]  # Stripe's, untyped

    # ---- mutations: a stored key each, never an exception ----

    async def create_intent(self, key: str, new: NewIntent) -> Outcome[Observation]:
        params: stripe.params.PaymentIntentCreateParams = {
            "amount": new.minor_units,
            "currency": new.currency.lower(),
            # Never Stripe's default, `automatic_async`: it shows no balance transaction at first.
            "capture_method": "manual" if new.manual_capture else "automatic",
            # Without it Stripe chooses methods that are delayed or redirect. Until the API version
            # before this one the parameter was `payment_method_types`.
            "allowed_payment_method_types": ["card"],
            "payment_method_options": {"card": {"request_extended_authorization": "if_available"}},
            "transfer_group": new.metadata["payment_id"],
            "metadata": dict(new.metadata),
            "expand": EXPAND,
        }
        if new.destination_account_id:
            params["transfer_data"] = {"destination": new.destination_account_id}
        if new.application_fee:  # Stripe refuses a fee of zero.
            params["application_fee_amount"] = new.application_fee
        if new.description:
            params["description"] = new.description
        return await self._calls.mutation(
            lambda: self._client.v1.payment_intents.create_async(params, {"idempotency_key": key}),
            observation_of,
        )

    async def capture(
        self,
        key: str,
        payment_intent_id: str,
        minor_units: int,
        application_fee: int | None,
        metadata: Mapping[str, str],
    ) -> Outcome[Observation]:
        """``application_fee`` None means that the intent was created without one."""
        params: stripe.params.PaymentIntentCaptureParams = {
            "amount_to_capture": minor_units,
            "metadata": dict(metadata),
            "expand": EXPAND,
        }
        if application_fee is not None:
            params["application_fee_amount"] = application_fee
        return await self._calls.mutation(
            lambda: self._client.v1.payment_intents.capture_async(
                payment_intent_id, params, {"idempotency_key": key}
            ),
            observation_of,
        )

    async def cancel(self, key: str, payment_intent_id: str) -> Outcome[Observation]:
        return await self._calls.mutation(
            lambda: self._client.v1.payment_intents.cancel_async(
                payment_intent_id,
                # Stripe's `fraudulent` is never sent: it block-lists the card.
                {"cancellation_reason": "requested_by_customer", "expand": EXPAND},
                {"idempotency_key": key},
            ),
            observation_of,
        )

    async def refund(
        self, key: str, payment_intent_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Refund]:
        """The client's leg alone: never ``reverse_transfer``, never ``refund_application_fee``."""
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
        """From a charge on the platform to the expert, before or after its funds have settled."""
        return await self._calls.mutation(
            lambda: self._client.v1.transfers.create_async(
                {
                    "amount": new.minor_units,
                    "currency": new.currency.lower(),
                    "destination": new.destination_account_id,
                    "source_transaction": new.charge_id,
                    "transfer_group": new.metadata["payment_id"],
                    "metadata": dict(new.metadata),
                    "expand": _TRANSFER_LINES,
                },
                {"idempotency_key": key},
            ),
            transfer_of,
        )

    async def reverse_transfer(
        self, key: str, transfer_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Reversal]:
        """The expert's leg alone."""
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

    async def create_account(self, key: str, new: NewAccount) -> Outcome[Account]:
        params: AccountCreateParams = {
            # Express, as Stripe spells it today: the platform answers for losses and fees, Stripe
            # collects what it must know.
            "controller": {
                "losses": {"payments": "application"},
                "fees": {"payer": "application"},
                "requirement_collection": "stripe",
                "stripe_dashboard": {"type": "express"},
            },
            "country": new.country,
            "email": new.email,
            "business_type": new.business_type.value,
            "business_profile": {"name": new.name},
            "capabilities": {
                "card_payments": {"requested": True},
                "transfers": {"requested": True},
            },
            "metadata": dict(new.metadata),
        }
        return await self._calls.mutation(
            lambda: self._client.v1.accounts.create_async(params, {"idempotency_key": key}),
            account_of,
        )

    async def submit_evidence(
        self,
        key: str,
        dispute_id: str,
        evidence: Mapping[str, str],
        *,
        submit: bool,
        operation_id: str,
    ) -> Outcome[ShownDispute]:
        """``evidence`` by Stripe's own names; ``submit`` hands it to the bank, for good.

        The operation's id goes into the metadata, so that its effect can be told at sight.
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

    async def accept_dispute(self, key: str, dispute_id: str) -> Outcome[ShownDispute]:
        """Stripe calls it closing: the dispute is lost."""
        return await self._calls.mutation(
            lambda: self._client.v1.disputes.close_async(dispute_id, {}, {"idempotency_key": key}),
            dispute_of,
        )

    # ---- reads: None for what Stripe does not know ----

    async def observe(self, payment_intent_id: str) -> Observation | None:
        intent = await self._calls.read(
            lambda: self._client.v1.payment_intents.retrieve_async(
                payment_intent_id, {"expand": EXPAND}
            )
        )
        return None if intent is None else await self._with_money_back(intent)

    async def find_intent(self, operation_id: str, created: datetime) -> Observation | None:
        """The intent that an operation made, by its metadata, among those of that time."""
        since, until = _around(created)
        intents: list[stripe.PaymentIntent] = await self._calls.read_all(
            lambda: self._client.v1.payment_intents.list_async(
                {"created": {"gte": since, "lte": until}, "limit": 100}
            )
        )
        for intent in intents:
            if metadata_of(intent.metadata).get("operation_id") == operation_id:
                return await self.observe(intent.id)
        return None

    async def fraud_warnings(self, payment_intent_id: str) -> Sequence[FraudWarning]:
        """Oldest first."""
        listed: list[stripe.radar.EarlyFraudWarning] = await self._calls.read_all(
            lambda: self._client.v1.radar.early_fraud_warnings.list_async(
                {"payment_intent": payment_intent_id, "limit": 100}
            )
        )
        return [fraud_warning_of(warning) for warning in reversed(listed)]

    async def client_secret(self, payment_intent_id: str) -> str:
        """Read again each time it is needed, so that it is stored nowhere."""
        intent = await self._calls.read(
            lambda: self._client.v1.payment_intents.retrieve_async(payment_intent_id)
        )
        if intent is None or not intent.client_secret:
            raise misconfigured("resource_missing")
        return intent.client_secret

    async def account(self, stripe_account_id: str) -> Account | None:
        account = await self._read_of_account(
            lambda: self._client.v1.accounts.retrieve_async(stripe_account_id)
        )
        return None if account is None else account_of(account)

    async def payout(self, stripe_account_id: str, payout_id: str) -> SeenPayout | None:
        payout = await self._read_of_account(
            lambda: self._client.v1.payouts.retrieve_async(
                payout_id,
                {"expand": ["balance_transaction", "failure_balance_transaction"]},
                {"stripe_account": stripe_account_id},
            )
        )
        return None if payout is None else payout_of(payout)

    async def account_balance(self, stripe_account_id: str) -> Sequence[AccountBalance] | None:
        options: RequestOptions = {"stripe_account": stripe_account_id} if stripe_account_id else {}
        balance = await self._read_of_account(
            lambda: self._client.v1.balance.retrieve_async({}, options)
        )
        return None if balance is None else account_balances_of(balance)

    async def platform_pays_out_by_hand(self) -> bool:
        """Whether the platform's payouts are manual; a yes is believed for ten minutes."""
        if time.monotonic() < self._manual_until:
            return True
        own = await self._calls.read(self._client.v1.accounts.retrieve_current_async)
        payouts = own.settings.payouts if own is not None and own.settings else None
        manual = payouts is not None and payouts.schedule.interval == "manual"
        if manual:
            self._manual_until = time.monotonic() + _BELIEVED_SECONDS
        return manual

    async def _read_of_account(self, make: Callable[[], Awaitable[T]]) -> T | None:
        return await self._unless_cut_off(self._calls.read(make))

    async def _unless_cut_off(self, read: Awaitable[T]) -> T | None:
        """None when the expert has cut the account off: Stripe then says 403."""
        try:
            return await read
        except Precondition as refusal:
            if refusal.facts.get("stripe_code") == "account_invalid":
                return None
            raise

    async def find_account(self, operation_id: str, created: datetime) -> Account | None:
        """Accounts cannot be listed by metadata: among those of that time, the one that matches."""
        since, until = _around(created)
        accounts: list[stripe.Account] = await self._calls.read_all(
            lambda: self._client.v1.accounts.list_async(
                {"created": {"gte": since, "lte": until}, "limit": 100}
            )
        )
        for account in accounts:
            if metadata_of(account.metadata).get("operation_id") == operation_id:
                return account_of(account)
        return None

    async def balance_entries(
        self, stripe_account_id: str, since: datetime
    ) -> Sequence[BalanceEntry] | None:
        """The balance transactions of the platform, or of an account, created since then."""
        params: BalanceTransactionListParams = {
            "created": {"gte": int(since.timestamp())},
            "limit": 100,
            "expand": ["data.source"],
        }
        options: RequestOptions = {"stripe_account": stripe_account_id} if stripe_account_id else {}
        found: list[stripe.BalanceTransaction] | None = await self._unless_cut_off(
            self._calls.read_all(
                lambda: self._client.v1.balance_transactions.list_async(params, options)
            )
        )
        if found is None:
            return None
        return [balance_entry_of(transaction) for transaction in found]

    async def events(
        self, stripe_account_id: str, after_event_id: str, since: datetime
    ) -> Sequence[InboxEvent]:
        """The events after a known one, oldest first; without it, those since a time.

        At most so many: whoever is behind reads on from the last of them. Read without the SDK's
        objects, whose making would hold up everything else when there are many.
        """
        listed: list[dict[str, Any]] = []
        if after_event_id:
            after, more = after_event_id, True
            while more and len(listed) < _EVENTS_AT_ONCE:
                page = await self._events_page(stripe_account_id, ending_before=after)
                if page is None:  # Stripe keeps events for thirty days: begin anew by time.
                    return await self.events(stripe_account_id, "", since)
                # Newest first, and with `ending_before` the page next to the known event.
                listed += reversed(page["data"])
                more = page["has_more"] and bool(page["data"])
                after = listed[-1]["id"] if listed else after
        else:
            created = {"gte": int(since.timestamp())}
            page = await self._events_page(stripe_account_id, created=created)
            while page is not None and page["data"]:
                listed += page["data"]
                if not page["has_more"]:
                    break
                page = await self._events_page(
                    stripe_account_id, created=created, starting_after=listed[-1]["id"]
                )
            listed.reverse()
        envelopes = [_envelope(stripe_account_id, event) for event in listed]
        return [envelope for envelope in envelopes if envelope is not None]

    async def _events_page(self, stripe_account_id: str, **params: Any) -> dict[str, Any] | None:
        if stripe_account_id:
            params["stripe_account"] = stripe_account_id
        response = await self._calls.read(
            lambda: self._client.raw_request_async("get", "/v1/events", limit=100, **params)
        )
        return None if response is None else dict(response.data)

    async def onboarding_link(
        self, stripe_account_id: str, refresh_url: str, return_url: str
    ) -> str:
        """Single use, five minutes. Not a stored operation: a link too many harms nobody."""
        link = await self._calls.read(
            lambda: self._client.v1.account_links.create_async(
                {
                    "account": stripe_account_id,
                    "type": "account_onboarding",
                    "refresh_url": refresh_url,
                    "return_url": return_url,
                    "collection_options": {"fields": "eventually_due"},
                }
            )
        )
        if link is None:
            raise misconfigured("resource_missing")
        return link.url

    async def dashboard_link(self, stripe_account_id: str) -> str:
        link = await self._calls.read(
            lambda: self._client.v1.accounts.login_links.create_async(stripe_account_id)
        )
        if link is None:
            raise misconfigured("resource_missing")
        return link.url

    # ---- helpers ----

    async def _with_money_back(self, intent: stripe.PaymentIntent) -> Observation:
        """The intent with its refunds, reversals and fee refunds, as far as it has any."""
        if intent.status != "succeeded":
            return observation_of(intent)
        refunds = await self._calls.read_all(
            lambda: self._client.v1.refunds.list_async(
                {
                    "payment_intent": intent.id,
                    "limit": 100,
                    "expand": ["data.balance_transaction", "data.failure_balance_transaction"],
                }
            )
        )
        charge = intent.latest_charge
        # Stripe leaves out what a charge on the platform does not have.
        transfer = getattr(charge, "transfer", None)
        fee = None if isinstance(charge, str) or charge is None else charge.application_fee
        reversals = await self._reversals(transfer) if isinstance(transfer, stripe.Transfer) else ()
        fee_refunds: list[stripe.ApplicationFeeRefund] = []
        if isinstance(fee, stripe.ApplicationFee) and fee.amount_refunded:
            fee_id = fee.id
            fee_refunds = await self._calls.read_all(
                lambda: self._client.v1.application_fees.refunds.list_async(
                    fee_id, {"limit": 100, "expand": ["data.balance_transaction"]}
                )
            )
        return observation_of(
            intent,
            # Oldest first, as they happened: Stripe lists newest first.
            # What Stripe calls the refund of an authorization's uncaptured rest moved no money.
            refunds=tuple(
                refund_of(refund)
                for refund in reversed(refunds)
                if refund.reason != "expired_uncaptured_charge"
            ),
            reversals=reversals,
            separate_transfers=()
            if getattr(intent, "transfer_data", None)
            else await self._separate_transfers(intent.transfer_group or ""),
            fee_refunds=tuple(fee_refund_of(refund) for refund in reversed(fee_refunds)),
            disputes=await self._disputes(intent),
        )

    async def _disputes(self, intent: stripe.PaymentIntent) -> tuple[ShownDispute, ...]:
        """Oldest first; their balance transactions come with them."""
        if not getattr(intent.latest_charge, "disputed", False):
            return ()
        listed: list[stripe.Dispute] = await self._calls.read_all(
            lambda: self._client.v1.disputes.list_async({"payment_intent": intent.id, "limit": 100})
        )
        return tuple(dispute_of(dispute) for dispute in reversed(listed))

    async def _separate_transfers(self, group: str) -> tuple[Transfer, ...]:
        """Those of a charge on the platform, oldest first, by the label that all of them carry."""
        if not group:
            return ()
        listed: list[stripe.Transfer] = await self._calls.read_all(
            lambda: self._client.v1.transfers.list_async(
                {
                    "transfer_group": group,
                    "limit": 100,
                    "expand": [f"data.{name}" for name in _TRANSFER_LINES],
                }
            )
        )
        return tuple(
            [
                transfer_of(transfer, await self._reversals(transfer))
                for transfer in reversed(listed)
            ]
        )

    async def _reversals(self, transfer: stripe.Transfer) -> tuple[Reversal, ...]:
        """Oldest first."""
        if not transfer.amount_reversed:
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


def _envelope(stripe_account_id: str, event: dict[str, Any]) -> InboxEvent | None:
    """One listed event's envelope; None for what is no event as Stripe sends them."""
    endpoint = "connect" if stripe_account_id else "platform"
    try:
        return envelope_of(endpoint, event, account_id=stripe_account_id)
    except OddEvent as odd:
        log.warning("odd_event", fault=str(odd))
        return None


def _around(created: datetime) -> tuple[int, int]:
    """A span of time wide enough for clocks that disagree, and for a day of resending."""
    until = created + timedelta(days=1) + _SEARCH_MARGIN
    return int((created - _SEARCH_MARGIN).timestamp()), int(until.timestamp())
