"""Stripe over its own SDK: the only module that imports ``stripe``.

The retry loop is ours, so the SDK's is off; every mutation carries a key that was stored before.
What an exception means is decided in one place, :func:`outcome_of`: only a 400 or 402 is Stripe's
final no; everything that is not a definite answer is *unknown*.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

import aiohttp
import stripe
import structlog
from aiohttp import ClientTimeout, TCPConnector
from stripe.params import AccountCreateParams

from payment_service.adapters.stripe_views import (
    account_of,
    fee_refund_of,
    observation_of,
    refund_of,
    reversal_of,
)
from payment_service.domain.errors import (
    Exhausted,
    Precondition,
    Unavailable,
    processor_unavailable,
)
from payment_service.domain.experts import Account
from payment_service.domain.observation import Observation, Refund, Reversal
from payment_service.domain.ports import (
    Done,
    Misconfigured,
    NewAccount,
    NewIntent,
    NotSent,
    Outcome,
    Refused,
    Unknown,
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
_READ_TRIES: Final = 3
_SEARCH_MARGIN: Final = timedelta(minutes=10)


def outcome_of(error: BaseException) -> Refused | NotSent | Unknown | Misconfigured:
    """What an exception says about the effect of the call."""
    if not isinstance(error, stripe.StripeError):
        # AIOHTTPClient lets errors of the body escape after the 200: the effect may be done.
        return Unknown(type(error).__name__)
    if isinstance(error, stripe.APIConnectionError):
        if _never_connected(error):
            return NotSent("unreachable")
        return Unknown("connection")
    status, code = error.http_status, _code(error)
    request_id = error.request_id or ""
    if status == 429:
        return NotSent(code or "rate_limit", rate_limited=code != "lock_timeout")
    if isinstance(error, stripe.IdempotencyError) or status in (401, 404):
        return Misconfigured(code or f"http_{status}", request_id)
    if status == 403:
        if code == "account_invalid":  # The expert has cut the account off: final, and theirs.
            return Refused(code, "", request_id)
        return Misconfigured(code or "http_403", request_id)
    if status in (400, 402):
        decline_code = getattr(error.error, "decline_code", None) if error.error else None
        return Refused(code, decline_code or "", request_id)
    headers = {name.lower(): value for name, value in (error.headers or {}).items()}
    replayed = headers.get("idempotent-replayed") == "true"
    return Unknown(f"http_{status}", replayed=replayed)


def _code(error: stripe.StripeError) -> str:
    return (error.error.code if error.error else None) or error.code or ""


def _never_connected(error: BaseException) -> bool:
    """Whether the connection itself failed, so that nothing can have been sent."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError):
            return True
        cause = cause.__cause__ or cause.__context__
    return False


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
        # A connector of our own replaces Stripe's CA bundle, so it is handed on.
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

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]  # Stripe's, untyped

    # ---- mutations: a stored key each, never an exception ----

    async def create_intent(self, key: str, new: NewIntent) -> Outcome[Observation]:
        params: stripe.params.PaymentIntentCreateParams = {
            "amount": new.minor_units,
            "currency": new.currency.lower(),
            "capture_method": "manual",
            # Without it Stripe chooses methods that are delayed or redirect. Until the API version
            # before this one the parameter was `payment_method_types`.
            "allowed_payment_method_types": ["card"],
            "payment_method_options": {"card": {"request_extended_authorization": "if_available"}},
            "transfer_data": {"destination": new.destination_account_id},
            "transfer_group": new.metadata["payment_id"],
            "metadata": dict(new.metadata),
            "expand": EXPAND,
        }
        if new.application_fee:  # Stripe refuses a fee of zero.
            params["application_fee_amount"] = new.application_fee
        if new.description:
            params["description"] = new.description
        return await self._observed(
            self._client.v1.payment_intents.create_async(params, {"idempotency_key": key})
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
        return await self._observed(
            self._client.v1.payment_intents.capture_async(
                payment_intent_id, params, {"idempotency_key": key}
            )
        )

    async def cancel(self, key: str, payment_intent_id: str) -> Outcome[Observation]:
        return await self._observed(
            self._client.v1.payment_intents.cancel_async(
                payment_intent_id,
                # Stripe's `fraudulent` is never sent: it block-lists the card.
                {"cancellation_reason": "requested_by_customer", "expand": EXPAND},
                {"idempotency_key": key},
            )
        )

    async def refund(
        self, key: str, payment_intent_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Refund]:
        """The client's leg alone: never ``reverse_transfer``, never ``refund_application_fee``."""
        outcome = await _mutation(
            self._client.v1.refunds.create_async(
                {
                    "payment_intent": payment_intent_id,
                    "amount": minor_units,
                    "metadata": dict(metadata),
                    "expand": ["balance_transaction", "failure_balance_transaction"],
                },
                {"idempotency_key": key},
            )
        )
        return _converted(outcome, refund_of)

    async def reverse_transfer(
        self, key: str, transfer_id: str, minor_units: int, metadata: Mapping[str, str]
    ) -> Outcome[Reversal]:
        """The expert's leg alone."""
        outcome = await _mutation(
            self._client.v1.transfers.reversals.create_async(
                transfer_id,
                {
                    "amount": minor_units,
                    "metadata": dict(metadata),
                    "expand": ["balance_transaction"],
                },
                {"idempotency_key": key},
            )
        )
        return _converted(outcome, reversal_of)

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
        outcome = await _mutation(
            self._client.v1.accounts.create_async(params, {"idempotency_key": key})
        )
        return _converted(outcome, account_of)

    # ---- reads: None for what Stripe does not know ----

    async def observe(self, payment_intent_id: str) -> Observation | None:
        intent = await _read(
            lambda: self._client.v1.payment_intents.retrieve_async(
                payment_intent_id, {"expand": EXPAND}
            )
        )
        return None if intent is None else await self._with_money_back(intent)

    async def find_intent(self, operation_id: str, created: datetime) -> Observation | None:
        """The intent that an operation made, by its metadata, among those of that time."""
        since, until = _around(created)
        intents: list[stripe.PaymentIntent] = await _read_all(
            lambda: self._client.v1.payment_intents.list_async(
                {"created": {"gte": since, "lte": until}, "limit": 100}
            )
        )
        for intent in intents:
            if observation_of(intent).metadata.get("operation_id") == operation_id:
                return await self.observe(intent.id)
        return None

    async def client_secret(self, payment_intent_id: str) -> str:
        """Read again each time it is needed, so that it is stored nowhere."""
        intent = await _read(
            lambda: self._client.v1.payment_intents.retrieve_async(payment_intent_id)
        )
        if intent is None or not intent.client_secret:
            raise _misconfigured("resource_missing")
        return intent.client_secret

    async def account(self, stripe_account_id: str) -> Account | None:
        """None also when the expert has cut the account off: Stripe then says 403."""
        try:
            account = await _read(
                lambda: self._client.v1.accounts.retrieve_async(stripe_account_id)
            )
        except Precondition as refusal:
            if refusal.facts.get("stripe_code") == "account_invalid":
                return None
            raise
        return None if account is None else account_of(account)

    async def find_account(self, operation_id: str, created: datetime) -> Account | None:
        """Accounts cannot be listed by metadata: among those of that time, the one that matches."""
        since, until = _around(created)
        accounts: list[stripe.Account] = await _read_all(
            lambda: self._client.v1.accounts.list_async(
                {"created": {"gte": since, "lte": until}, "limit": 100}
            )
        )
        found = (account_of(account) for account in accounts)
        return next((account for account in found if account.operation_id == operation_id), None)

    async def onboarding_link(
        self, stripe_account_id: str, refresh_url: str, return_url: str
    ) -> str:
        """Single use, five minutes. Not a stored operation: a link too many harms nobody."""
        link = await _read(
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
            raise _misconfigured("resource_missing")
        return link.url

    async def dashboard_link(self, stripe_account_id: str) -> str:
        link = await _read(
            lambda: self._client.v1.accounts.login_links.create_async(stripe_account_id)
        )
        if link is None:
            raise _misconfigured("resource_missing")
        return link.url

    # ---- helpers ----

    async def _observed(self, call: Awaitable[stripe.PaymentIntent]) -> Outcome[Observation]:
        return _converted(await _mutation(call), observation_of)

    async def _with_money_back(self, intent: stripe.PaymentIntent) -> Observation:
        """The intent with its refunds, reversals and fee refunds, as far as it has any."""
        if intent.status != "succeeded":
            return observation_of(intent)
        refunds = await _read_all(
            lambda: self._client.v1.refunds.list_async(
                {
                    "payment_intent": intent.id,
                    "limit": 100,
                    "expand": ["data.balance_transaction", "data.failure_balance_transaction"],
                }
            )
        )
        charge = intent.latest_charge
        transfer = None if isinstance(charge, str) or charge is None else charge.transfer
        fee = None if isinstance(charge, str) or charge is None else charge.application_fee
        reversals: list[stripe.TransferReversal] = []
        if isinstance(transfer, stripe.Transfer) and transfer.amount_reversed:
            transfer_id = transfer.id
            reversals = await _read_all(
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
        fee_refunds: list[stripe.ApplicationFeeRefund] = []
        if isinstance(fee, stripe.ApplicationFee) and fee.amount_refunded:
            fee_id = fee.id
            fee_refunds = await _read_all(
                lambda: self._client.v1.application_fees.refunds.list_async(
                    fee_id, {"limit": 100, "expand": ["data.balance_transaction"]}
                )
            )
        return observation_of(
            intent,
            # Oldest first, as they happened: Stripe lists newest first.
            refunds=tuple(refund_of(refund) for refund in reversed(refunds)),
            reversals=tuple(reversal_of(reversal) for reversal in reversed(reversals)),
            fee_refunds=tuple(fee_refund_of(refund) for refund in reversed(fee_refunds)),
        )


async def _mutation(call: Awaitable[T]) -> Outcome[T]:
    """One call, one outcome. A cancelled task is not an outcome and goes on being cancelled."""
    try:
        return Done(await call)
    except Exception as error:  # noqa: BLE001 - every exception is judged, none is lost
        outcome = outcome_of(error)
        level = log.warning if isinstance(outcome, Unknown | Misconfigured) else log.info
        level("stripe_call_failed", error=type(error).__name__, outcome=repr(outcome))
        return outcome


def _converted(outcome: Outcome[S], convert: Callable[[S], T]) -> Outcome[T]:
    """The SDK's object as ours; an answer that cannot be read is an unknown outcome."""
    if not isinstance(outcome, Done):
        return outcome
    try:
        return Done(convert(outcome.value))
    except Exception as error:  # noqa: BLE001 - the effect is done, only its account is unreadable
        log.error("stripe_answer_unreadable", error=type(error).__name__)
        return Unknown("unreadable")


async def _read(make: Callable[[], Awaitable[T]]) -> T | None:
    """A read, tried a few times; None for what Stripe does not know. Raises :class:`Refusal`."""
    for tried in range(1, _READ_TRIES + 1):
        try:
            return await make()
        except Exception as error:  # noqa: BLE001 - judged below
            outcome = outcome_of(error)
            if isinstance(error, stripe.InvalidRequestError) and error.http_status == 404:
                return None
            if isinstance(outcome, Refused):
                raise _refused(outcome) from None
            if isinstance(outcome, Misconfigured):
                log.error("stripe_misconfigured", code=outcome.code, request_id=outcome.request_id)
                raise _misconfigured(outcome.code, outcome.request_id) from None
            log.warning("stripe_read_failed", error=type(error).__name__, tried=tried)
            if tried == _READ_TRIES:
                if isinstance(outcome, NotSent) and outcome.rate_limited:
                    raise _rate_limited() from None
                raise processor_unavailable() from None
            await asyncio.sleep(0.1 * 3 ** (tried - 1))
    raise AssertionError("the loop returns or raises")


async def _read_all(make: Callable[[], Awaitable[Any]]) -> list[Any]:
    """Every page of a list, oldest last."""
    page: Any = await _read(make)
    if page is None:
        return []
    found = list(page.data)
    while page.has_more:
        page = await _read(page.next_page_async)
        found += page.data
    return found


def _around(created: datetime) -> tuple[int, int]:
    """A span of time wide enough for clocks that disagree, and for a day of resending."""
    until = created + timedelta(days=1) + _SEARCH_MARGIN
    return int((created - _SEARCH_MARGIN).timestamp()), int(until.timestamp())


def _refused(refused: Refused) -> Precondition:
    return Precondition(
        "REFUSED_BY_PROCESSOR",
        f"Stripe refused for good: {refused.code or 'no reason given'}",
        {"stripe_code": refused.code, "stripe_request_id": refused.request_id},
    )


def _misconfigured(code: str, request_id: str = "") -> Unavailable:
    return Unavailable(
        "PROCESSOR_MISCONFIGURED",
        "Stripe refuses this service's own credentials or requests; an operator is told",
        {"stripe_code": code, "stripe_request_id": request_id},
    )


def _rate_limited() -> Exhausted:
    return Exhausted(
        "PROCESSOR_RATE_LIMITED", "Stripe's rate limit is reached; ask again with the same key"
    )
