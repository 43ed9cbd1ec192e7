"""What a simulator is told when it starts, and the switches that may be moved while it runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

# The version that stripe 16.1.0 pins; an answer and an event carry it unless the caller asks
# for another.
API_VERSION = "2026-10-28.endive"


@dataclasses.dataclass(frozen=True)
class WebhookTarget:
    """One endpoint. `platform` gets our own account's events, `connect` connected accounts'.

    Several secrets sign every delivery once each, as Stripe does while a secret is being rolled.
    """

    scope: str
    url: str
    secrets: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """The start-up configuration; `python -m stripe_simulator --help` explains every field."""

    host: str = "127.0.0.1"
    port: int = 12111
    seed: str | None = None
    secret_key: str = "sk_test_simulator"
    publishable_key: str = "pk_test_simulator"
    webhooks: tuple[WebhookTarget, ...] = ()
    state: Path | None = None
    latency_ms: int = 0
    country: str = "US"
    settlement_currencies: tuple[str, ...] = ("usd", "eur", "gbp", "jpy")
    platform_account: str = "acct_1SimulatorPlatform"
    webhook_events: str = "*"
    public_url: str | None = None
    # What a new platform has of its own in each settlement currency, in minor units.
    platform_funds: int = 0


@dataclasses.dataclass
class Settings:
    """Switches of behaviour that the control API moves (`POST /_simulator/settings`).

    Where Stripe's documents and what people observe disagree, the default is what is observed and
    the switch gives the other.
    """

    latency_ms: int = 0
    # Whether the dashboard's payment method settings offer cards.
    card_payments_enabled: bool = True
    # Days of the simulator's clock until a charge's funds are available.
    available_after_days: int = 2
    # Days for which a card's authorization can be captured: 7 for most cards, 5 for some (docs:
    # place a hold on a payment method).
    authorization_days: int = 7
    # Whether Stripe has made the platform eligible for the optional features of card payments, such
    # as extended authorizations. An ordinary account is not, and a request for one is refused.
    extended_authorization_eligible: bool = False
    # Seconds until the pendingRefund and refundFail cards' refunds get their final outcome.
    refund_outcome_seconds: int = 60
    # charge.updated after a manual capture, once the balance transaction is there (unconfirmed).
    charge_updated_on_capture: bool = False
    # Whether a transfer's payment on the connected account gets a balance transaction. It never
    # does where the amount converts to less than one unit of that account's currency.
    transfers_arrive: bool = True
    # What a transfer reversal may take from the connected account. `documented` is `available`
    # for a transfer made on its own (Stripe's page on separate charges and transfers) and `total`,
    # with what is pending, for one that a destination charge made; `unlimited` stands for
    # connected reserves, with which the balance may turn negative.
    reversal_balance: str = "documented"
    # A refund that the platform's available balance cannot bear: `pending` waits until there is
    # money (documented for card refunds), `refused` is a 400 (reported by users of Stripe).
    refund_on_low_balance: str = "pending"
    # Days after which a refund that waits for money fails. Stripe has such a window and does not
    # say how long it is: this is our guess.
    refund_funds_days: int = 30
    # Seconds until the bank decides on submitted evidence whose text says how it shall decide.
    dispute_review_seconds: int = 60
    # Days to answer a dispute, to the end of the last one in UTC (7 to 21 are documented).
    dispute_response_days: int = 16
    # What Stripe takes for a chargeback, in minor units of the settlement currency.
    dispute_fee: int = 1500
    # Whether a won dispute gives that fee back: not since Stripe's price list of June 2025, before
    # it did, and the page on testing still says so.
    dispute_fee_returned: bool = False
    # What countering a chargeback costs besides, in the same minor units; a win gives it back. Not
    # taken in Mexico and Japan: 0 there.
    dispute_countered_fee: int = 1500
    # The payout schedule of new connected accounts: Stripe's default, or `manual`.
    payout_interval: str = "daily"
    # The platform's own schedule as GET /v1/account shows it; nothing is paid out by it here.
    platform_payout_interval: str = "manual"
    # Whether POST /v1/accounts works: a switch in Stripe's Dashboard, off for new platforms.
    accounts_v1_support: bool = False
    # Seconds until the endpoints of v2 know an account that v1 created (documented: up to ten
    # minutes).
    v1_account_in_v2_seconds: int = 600
    # In which form accounts report changes: snapshot events for accounts of v1 and thin ones for
    # accounts of v2 (`by_api`), only one form, both, or none. What a platform gets is observed to
    # differ, so nothing should rest on one of them.
    account_event_form: str = "by_api"
    # What the platform has set up in its dashboard: the events that its endpoints get (separated by
    # commas, `*` is all), and whether the endpoints are enabled.
    webhook_events: str = "*"
    webhook_status: str = "enabled"
    # How long a request waits for an object that another request holds before 429 lock_timeout.
    lock_wait_ms: int = 2000
    # Stripe keeps events for 30 days; what a long load test leaves must fit into memory as well.
    keep_events: int = 100_000
    # Answer 429 when more than so many API calls arrive in one second; 0 is no limit.
    rate_limit_per_second: int = 0

    def move(self, changes: dict[str, Any]) -> None:
        """Set some switches; an unknown name or a value of another type is the caller's mistake."""
        current = dataclasses.asdict(self)
        for name, value in changes.items():
            if name not in current:
                raise ValueError(f"unknown setting {name}; there are {', '.join(current)}")
            if type(value) is not type(current[name]):
                raise ValueError(f"{name} must be a {type(current[name]).__name__}")
            choices = SETTING_CHOICES.get(name)
            if choices is not None and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}")
        for name, value in changes.items():
            setattr(self, name, value)


SETTING_CHOICES = {
    "account_event_form": ("by_api", "snapshot", "thin", "both", "none"),
    "payout_interval": ("daily", "manual"),
    "platform_payout_interval": ("daily", "manual"),
    "refund_on_low_balance": ("pending", "refused"),
    "webhook_status": ("enabled", "disabled"),
    "reversal_balance": ("documented", "total", "available", "unlimited"),
}
