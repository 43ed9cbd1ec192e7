"""Each thing that can be wrong at the platform's Stripe account is one finding, with its remedy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from payment_service.domain.platform_check import (
    CARDS,
    CONNECT,
    CONNECT_ENDPOINTS,
    CONNECT_PATH,
    ENDPOINTS,
    PLATFORM_PATH,
    THIN_ENDPOINT,
    Endpoint,
    Needs,
    PlatformFacts,
    Verdict,
    examine,
)

GATEWAY = "https://pay.example.com"
NEEDS = Needs(
    livemode=False,
    country="US",
    settlement_currencies=frozenset({"USD"}),
    api_version="2026-10-28.endive",
    gateway_public_url=GATEWAY,
    accounts_v2=True,
)
PLATFORM_ENDPOINT = Endpoint(
    url=GATEWAY + PLATFORM_PATH, status="enabled", api_version="2026-10-28.endive", events=["*"]
)
CONNECT_ENDPOINT = replace(PLATFORM_ENDPOINT, url=GATEWAY + CONNECT_PATH)
RIGHT = PlatformFacts(
    account_id="acct_1Platform",
    livemode=False,
    country="US",
    charges_enabled=True,
    card_payments="active",
    settlement_currencies=frozenset({"USD", "EUR"}),
    payout_interval="manual",
    clock_skew=0.2,
    endpoints=[PLATFORM_ENDPOINT, CONNECT_ENDPOINT],
    thin_endpoints=[CONNECT_ENDPOINT],
    cards_offered=True,
)


def test_a_platform_that_is_set_up_has_nothing_to_change() -> None:
    findings = examine(RIGHT, NEEDS)
    assert {finding.verdict for finding in findings} == {Verdict.OK}
    assert not any(finding.remedy for finding in findings)
    assert len({finding.subject for finding in findings}) == len(findings) == 11


def _with_platform_endpoint(**changes: Any) -> dict[str, Any]:
    return {"endpoints": [replace(PLATFORM_ENDPOINT, **changes), CONNECT_ENDPOINT]}


@pytest.mark.parametrize(
    ("changes", "subject", "verdict", "remedy"),
    [
        ({"livemode": True}, "account", Verdict.FAULT, "STRIPE_SECRET_KEY"),
        ({"clock_skew": 400.0}, "clock", Verdict.FAULT, "NTP"),
        ({"clock_skew": -60.0}, "clock", Verdict.WARNING, "NTP"),
        ({"country": "DE"}, "country", Verdict.FAULT, "PLATFORM_COUNTRY=DE"),
        ({"charges_enabled": False}, "charges", Verdict.FAULT, "Business"),
        ({"card_payments": "pending"}, "charges", Verdict.FAULT, "Business"),
        ({"cards_offered": False}, CARDS, Verdict.FAULT, "Payment methods"),
        ({"settlement_currencies": frozenset({"EUR"})}, "currencies", Verdict.FAULT, "bank"),
        ({"payout_interval": "daily"}, "payouts", Verdict.FAULT, "manual"),
        ({"endpoints": [CONNECT_ENDPOINT]}, ENDPOINTS, Verdict.FAULT, GATEWAY + PLATFORM_PATH),
        ({"endpoints": [PLATFORM_ENDPOINT]}, CONNECT_ENDPOINTS, Verdict.FAULT, CONNECT_PATH),
        (_with_platform_endpoint(status="disabled"), ENDPOINTS, Verdict.FAULT, "enable"),
        (_with_platform_endpoint(events=["charge.failed"]), ENDPOINTS, Verdict.FAULT, "refund"),
        (
            _with_platform_endpoint(url="https://old.example.com" + PLATFORM_PATH),
            ENDPOINTS,
            Verdict.WARNING,
            GATEWAY,
        ),
        *(
            (
                _with_platform_endpoint(api_version=version),
                ENDPOINTS,
                verdict,
                "2026-10-28.endive: before 2024-10-28 Stripe sends no events of refunds",
            )
            for version, verdict in [
                ("2024-09-30.acacia", Verdict.FAULT),
                ("2024-10-28.acacia", Verdict.WARNING),
                ("", Verdict.WARNING),
            ]
        ),
        (
            {"endpoints": [PLATFORM_ENDPOINT, replace(CONNECT_ENDPOINT, api_version="2024-04-10")]},
            CONNECT_ENDPOINTS,
            Verdict.WARNING,
            "only ids",
        ),
        ({"thin_endpoints": []}, THIN_ENDPOINT, Verdict.WARNING, "Thin"),
        (
            {"thin_endpoints": [replace(CONNECT_ENDPOINT, events=["v2.core.account.updated"])]},
            THIN_ENDPOINT,
            Verdict.WARNING,
            "v2.core.account.closed",
        ),
        ({"unread": ((CONNECT, "400: sign up"),)}, CONNECT, Verdict.FAULT, "Connect"),
        ({"unread": ((ENDPOINTS, "403: no"),)}, ENDPOINTS, Verdict.FAULT, "permission"),
    ],
)
def test_a_fault_is_named_with_its_remedy(
    changes: dict[str, Any], subject: str, verdict: Verdict, remedy: str
) -> None:
    findings = examine(replace(RIGHT, **changes), NEEDS)
    [found] = [finding for finding in findings if finding.verdict is not Verdict.OK]
    assert (found.subject, found.verdict) == (subject, verdict)
    assert remedy in found.remedy
