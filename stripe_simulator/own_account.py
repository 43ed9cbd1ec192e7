"""What a platform has set up in Stripe's dashboard, as the API shows it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from stripe_simulator.account_shape import (
    CAPABILITIES,
    NO_TERMS,
    bank_account,
    business_profile,
    requirements,
    settings,
)
from stripe_simulator.config import API_VERSION, Config
from stripe_simulator.currencies import COUNTRY_CURRENCIES
from stripe_simulator.events import targets
from stripe_simulator.simulation import Call
from stripe_simulator.store import Row

_CREATED = 1_790_000_000


def webhook_endpoints(call: Call) -> list[Row]:
    """GET /v1/webhook_endpoints. All get the same events, at the pinned version."""
    simulation = call.simulation
    return [
        {
            "id": f"we_{number}Simulator",
            "object": "webhook_endpoint",
            "api_version": API_VERSION,
            "application": "ca_Simulator" if target.scope == "connect" else None,
            "created": _CREATED,
            "description": None,
            "enabled_events": simulation.settings.webhook_events.split(","),
            "livemode": False,
            "metadata": {},
            "status": simulation.settings.webhook_status,
            "url": target.url,
        }
        for number, target in enumerate(targets(simulation), 1)
    ]


def event_destinations(call: Call) -> dict[str, Any]:
    """GET /v2/core/event_destinations: the endpoints once more, as destinations of thin events."""
    settings = call.simulation.settings
    shows_url = "webhook_endpoint.url" in (call.get("include") or [])
    created = datetime.fromtimestamp(_CREATED, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")
    found = [
        {
            "id": f"ed_{number}Simulator",
            "object": "v2.core.event_destination",
            "created": created,
            "description": "",
            "enabled_events": settings.webhook_events.split(","),
            "event_payload": "thin",
            "events_from": ["other_accounts" if target.scope == "connect" else "self"],
            "livemode": False,
            "metadata": {},
            "name": f"{target.scope} thin",
            "snapshot_api_version": None,
            "status": settings.webhook_status,
            "status_details": None,
            "type": "webhook_endpoint",
            "updated": created,
            "webhook_endpoint": {"signing_secret": None, "url": target.url if shows_url else None},
        }
        for number, target in enumerate(targets(call.simulation), 1)
    ]
    return {"data": found, "next_page_url": None, "previous_page_url": None}


def payment_methods(call: Call) -> list[Row]:
    """GET /v1/payment_method_configurations: the default one, with cards as the switch says."""
    value = "on" if call.simulation.settings.card_payments_enabled else "off"
    return [
        {
            "id": "pmc_1Simulator",
            "object": "payment_method_configuration",
            "active": True,
            "application": None,
            "card": {
                "available": value == "on",
                "display_preference": {"overridable": None, "preference": value, "value": value},
            },
            "is_default": True,
            "livemode": False,
            "name": "Default",
            "parent": None,
        }
    ]


def account(config: Config, payout_interval: str) -> Row:
    """Our own account, as GET /v1/account shows it."""
    active = dict.fromkeys(CAPABILITIES, "active")
    owner = {"id": config.platform_account, "country": config.country}
    return {
        "id": config.platform_account,
        "object": "account",
        "business_profile": business_profile({"name": "stripe_simulator platform"}),
        "business_type": "company",
        "capabilities": active,
        "charges_enabled": True,
        "controller": {"type": "account"},
        "country": config.country,
        "created": 0,
        "default_currency": COUNTRY_CURRENCIES.get(config.country, "usd"),
        "details_submitted": True,
        "email": "platform@example.com",
        "external_accounts": {
            "object": "list",
            "data": [
                bank_account(f"ba_1Simulator{currency}", owner, currency)
                for currency in config.settlement_currencies
            ],
            "has_more": False,
            "url": f"/v1/accounts/{config.platform_account}/external_accounts",
        },
        "future_requirements": requirements(),
        "metadata": {},
        "payouts_enabled": True,
        "requirements": requirements(),
        "settings": settings({"payouts": {"schedule": {"interval": payout_interval}}}),
        "tos_acceptance": NO_TERMS,
        "type": "standard",
    }
