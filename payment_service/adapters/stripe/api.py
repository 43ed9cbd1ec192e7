"""The Stripe port over HTTP, composed of one class for each of Stripe's resources.

Every mutation sends an idempotency key that was stored before. What a failure means is decided in
one place, ``outcomes.outcome_of``.
"""

from __future__ import annotations

from payment_service.adapters.stripe.accounts import Accounts
from payment_service.adapters.stripe.accounts_v2 import AccountsV2
from payment_service.adapters.stripe.balance import Balance
from payment_service.adapters.stripe.events import Events
from payment_service.adapters.stripe.payment_intents import PaymentIntents


class StripeApi(PaymentIntents, Accounts, Balance, Events):
    """The Stripe port, with the connected accounts of v1.

    Create it on a running event loop, and close it on the same one. Mutations return an outcome and
    never raise. Reads return None for what Stripe does not know.
    """

    @property
    def is_unavailable(self) -> bool:
        """Whether Stripe is unavailable: a call would be refused at once, without being sent."""
        return self._calls.breaker.is_open

    @property
    def circuit_is_open(self) -> bool:
        """Whether Stripe has answered nothing since the circuit opened, probes included."""
        return self._calls.breaker.has_opened


class StripeApiV2(AccountsV2, StripeApi):
    """The Stripe port, with the connected accounts of v2."""
