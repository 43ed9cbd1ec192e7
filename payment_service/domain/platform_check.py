"""What must be true of the platform's Stripe account before the first payment.

Stripe's account is read once; here it is compared with what the service needs. Each finding names
the fact and, if something must be changed, where in Stripe's dashboard.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from payment_service.domain.webhook_event import (
    ACCOUNT_EVENTS,
    PAYMENT_EVENTS,
    PAYOUT_EVENTS,
    THIN_ACCOUNT_EVENTS,
)

#: Stripe refuses a webhook's signature, and the service too, after five minutes.
_SKEW_FAULT_SECONDS: Final = 240
_SKEW_WARNING_SECONDS: Final = 30
#: Stripe's version from which on it sends `refund.created` and its kin for every refund.
_REFUND_EVENTS_SINCE: Final = "2024-10-28"
PLATFORM_PATH: Final = "/api/v1/webhooks/stripe"
CONNECT_PATH: Final = "/api/v1/webhooks/stripe/connect"


class Verdict(StrEnum):
    """What a finding means for the first payment."""

    OK = "ok"
    WARNING = "warning"
    FAULT = "fault"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    subject: str
    verdict: Verdict
    said: str
    #: What to do, and where; empty if nothing.
    remedy: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A webhook endpoint as Stripe shows it."""

    url: str
    status: str
    api_version: str
    events: Sequence[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlatformFacts:
    """What Stripe shows of the platform. A text in ``unread`` says why a part could not be read."""

    account_id: str
    livemode: bool
    country: str
    charges_enabled: bool
    card_payments: str
    #: The currencies that Stripe settles: those of the balance, and the default one.
    settlement_currencies: frozenset[str]
    payout_interval: str
    #: Seconds by which this machine's clock is ahead of Stripe's.
    clock_skew: float
    endpoints: Sequence[Endpoint] = ()
    #: The destinations of thin events.
    thin_endpoints: Sequence[Endpoint] = ()
    cards_offered: bool | None = None
    #: By subject: what Stripe said when this part was asked for.
    unread: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What the settings of the service promise."""

    livemode: bool
    country: str
    settlement_currencies: frozenset[str]
    api_version: str
    gateway_public_url: str
    #: Whether experts' accounts are created by Accounts v2.
    accounts_v2: bool


def examine(facts: PlatformFacts, needs: Needs) -> list[Finding]:
    """Returns one finding for each subject, in the order in which a platform is set up."""
    unread = [
        Finding(subject, Verdict.FAULT, f"Stripe refuses to show it: {said}", _UNREAD[subject])
        for subject, said in facts.unread
    ]
    skipped = {subject for subject, _ in facts.unread}
    if ENDPOINTS in skipped:
        skipped.add(CONNECT_ENDPOINTS)
    found = (
        _mode(facts, needs),
        _clock(facts),
        _country(facts, needs),
        _charges(facts),
        _cards(facts),
        _currencies(facts, needs),
        _payouts(facts),
        Finding(CONNECT, Verdict.OK, "accounts can be listed"),
        *_endpoints(facts, needs),
        *([_thin_endpoint(facts, needs)] if needs.accounts_v2 else []),
    )
    return [*(one for one in found if one.subject not in skipped), *unread]


CONNECT: Final = "connect"
ENDPOINTS: Final = "webhooks"
CONNECT_ENDPOINTS: Final = "webhooks of connected accounts"
THIN_ENDPOINT: Final = "thin events of connected accounts"
CARDS: Final = "cards"
_UNREAD: Final = {
    CONNECT: "set up Connect: Dashboard > Connect > Get started, and fill in the platform profile",
    THIN_ENDPOINT: "give the restricted key the permission to read event destinations",
    ENDPOINTS: "give the restricted key the permission to read webhook endpoints",
    CARDS: "give the restricted key the permission to read payment method configurations",
}


def _mode(facts: PlatformFacts, needs: Needs) -> Finding:
    mode = "live" if facts.livemode else "test"
    said = f"{facts.account_id} in {mode} mode"
    if facts.livemode == needs.livemode:
        return Finding("account", Verdict.OK, said)
    return Finding("account", Verdict.FAULT, said, "use a STRIPE_SECRET_KEY of the other mode")


def _clock(facts: PlatformFacts) -> Finding:
    skew = abs(facts.clock_skew)
    said = f"{skew:.0f} s {'ahead of' if facts.clock_skew > 0 else 'behind'} Stripe's"
    if skew > _SKEW_FAULT_SECONDS:
        remedy = "set the machine's clock (NTP): webhook signatures are refused after five minutes"
        return Finding("clock", Verdict.FAULT, said, remedy)
    if skew > _SKEW_WARNING_SECONDS:
        return Finding("clock", Verdict.WARNING, said, "set the machine's clock (NTP)")
    return Finding("clock", Verdict.OK, said)


def _country(facts: PlatformFacts, needs: Needs) -> Finding:
    if facts.country == needs.country:
        return Finding("country", Verdict.OK, facts.country)
    return Finding(
        "country",
        Verdict.FAULT,
        f"Stripe says {facts.country}, PLATFORM_COUNTRY says {needs.country}",
        f"set PLATFORM_COUNTRY={facts.country}: limits and cross-border rules depend on it",
    )


def _charges(facts: PlatformFacts) -> Finding:
    if facts.charges_enabled and facts.card_payments == "active":
        return Finding("charges", Verdict.OK, "enabled, card payments are active")
    return Finding(
        "charges",
        Verdict.FAULT,
        f"charges are {'enabled' if facts.charges_enabled else 'disabled'}, "
        f"card payments are {facts.card_payments or 'not requested'}",
        "complete the account: Dashboard > Settings > Business",
    )


def _cards(facts: PlatformFacts) -> Finding:
    if facts.cards_offered:
        return Finding(CARDS, Verdict.OK, "offered")
    return Finding(
        CARDS,
        Verdict.FAULT,
        "the default payment method configuration does not offer cards",
        "turn cards on: Dashboard > Settings > Payments > Payment methods",
    )


def _currencies(facts: PlatformFacts, needs: Needs) -> Finding:
    missing = sorted(needs.settlement_currencies - facts.settlement_currencies)
    if not missing:
        return Finding("currencies", Verdict.OK, ", ".join(sorted(facts.settlement_currencies)))
    return Finding(
        "currencies",
        Verdict.FAULT,
        f"Stripe has no balance in {', '.join(missing)}",
        "add a bank account in that currency (Dashboard > Settings > Bank accounts and "
        "currencies), or take it out of PLATFORM_SETTLEMENT_CURRENCIES",
    )


def _payouts(facts: PlatformFacts) -> Finding:
    if facts.payout_interval == "manual":
        return Finding("payouts", Verdict.OK, "manual")
    return Finding(
        "payouts",
        Verdict.FAULT,
        f"Stripe pays the platform's balance out ({facts.payout_interval or 'unknown'})",
        "set them to manual (Dashboard > Settings > Payouts): money that is held for experts lies "
        "in the balance",
    )


def _endpoints(facts: PlatformFacts, needs: Needs) -> Iterator[Finding]:
    yield _endpoint(facts, needs, PLATFORM_PATH, "events of your account", PAYMENT_EVENTS)
    yield _endpoint(
        facts, needs, CONNECT_PATH, "events of connected accounts", ACCOUNT_EVENTS | PAYOUT_EVENTS
    )


def _endpoint(
    facts: PlatformFacts, needs: Needs, path: str, whose: str, events: frozenset[str]
) -> Finding:
    """Examines the endpoint that Stripe has for one path of the gateway."""
    subject = ENDPOINTS if path == PLATFORM_PATH else CONNECT_ENDPOINTS
    url = needs.gateway_public_url + path
    found = [endpoint for endpoint in facts.endpoints if endpoint.url.endswith(path)]
    register = f"register {url} for {whose}: Dashboard > Developers > Webhooks"
    if not found:
        return Finding(subject, Verdict.FAULT, "no endpoint has this path", register)
    endpoint = next((one for one in found if one.url == url), found[0])
    if endpoint.status != "enabled":
        return Finding(
            subject,
            Verdict.FAULT,
            f"it is {endpoint.status}",
            "enable it: Dashboard > Developers > Webhooks",
        )
    missing = sorted(events - set(endpoint.events)) if "*" not in endpoint.events else []
    if missing:
        return Finding(
            subject, Verdict.FAULT, f"it lacks {len(missing)} events", f"add {', '.join(missing)}"
        )
    if endpoint.url != url:
        return Finding(
            subject, Verdict.WARNING, f"Stripe sends to {endpoint.url}", f"expected is {url}"
        )
    if endpoint.api_version != needs.api_version:
        lacks_refunds = path == PLATFORM_PATH and "" < endpoint.api_version < _REFUND_EVENTS_SINCE
        return Finding(
            subject,
            Verdict.FAULT if lacks_refunds else Verdict.WARNING,
            f"its version is {endpoint.api_version or 'the default of the account'}",
            f"register it with {needs.api_version}: before {_REFUND_EVENTS_SINCE} Stripe sends no "
            "events of refunds of cards; else only ids are read from events",
        )
    return Finding(subject, Verdict.OK, f"{endpoint.api_version}, {_more_than(endpoint, events)}")


def _more_than(endpoint: Endpoint, events: frozenset[str]) -> str:
    """Says whether Stripe also sends events that cost without telling anything new."""
    if "*" in endpoint.events:
        return "all events; the ones that are acted upon would do"
    more = len(set(endpoint.events) - events)
    return "the events that are acted upon" + (f", and {more} others" if more else "")


def _thin_endpoint(facts: PlatformFacts, needs: Needs) -> Finding:
    """Examines the destination of Accounts v2's events. Without it they are polled, and late."""
    url = needs.gateway_public_url + CONNECT_PATH
    found = [one for one in facts.thin_endpoints if one.url.endswith(CONNECT_PATH)]
    if not found:
        return Finding(
            THIN_ENDPOINT,
            Verdict.WARNING,
            "no destination has them, so changes of accounts are seen late",
            f"add {url} with the payload style Thin for connected accounts: "
            "Dashboard > Developers > Webhooks",
        )
    missing = sorted(THIN_ACCOUNT_EVENTS - set(found[0].events))
    if found[0].status != "enabled":
        said = f"it is {found[0].status}"
        return Finding(
            THIN_ENDPOINT, Verdict.WARNING, said, "enable it: Dashboard > Developers > Webhooks"
        )
    if missing and "*" not in found[0].events:
        said = f"it lacks {len(missing)} events"
        return Finding(THIN_ENDPOINT, Verdict.WARNING, said, f"add {', '.join(missing)}")
    return Finding(THIN_ENDPOINT, Verdict.OK, _more_than(found[0], THIN_ACCOUNT_EVENTS))
