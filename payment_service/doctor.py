"""`python -m payment_service doctor`: what is right, and what must be changed where."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.stripe.client import API_VERSION
from payment_service.adapters.stripe.platform import NoAnswer, Platform
from payment_service.config import Settings
from payment_service.config.values import database_address
from payment_service.domain.database_check import examine_role
from payment_service.domain.errors import Refusal
from payment_service.domain.money import MINIMUM_CHARGE
from payment_service.domain.platform_check import Finding, Needs, Verdict
from payment_service.domain.platform_check import examine as examine_platform

_SIGNS: Final = {Verdict.OK: "✓", Verdict.WARNING: "!", Verdict.FAULT: "✗"}


async def examine(
    settings: Settings, say: Callable[[str], None], *, patience: float | None
) -> bool:
    """Prints a line for each finding and returns whether nothing prevents the first payment.

    ``patience`` is for how many seconds a webhook may take: a payment intent is created and
    canceled, and its event awaited. None leaves that out.
    """
    findings = [
        *await _platform_findings(settings, say, patience),
        *await _database_findings(settings, say),
    ]
    faults = sum(finding.verdict is Verdict.FAULT for finding in findings)
    say("ready for the first payment" if not faults else f"{faults} to be changed")
    return not faults


async def _platform_findings(
    settings: Settings, say: Callable[[str], None], patience: float | None
) -> list[Finding]:
    platform = Platform(
        settings.effective_stripe_key,
        api_base=settings.effective_api_base,
        timeout_seconds=settings.stripe_timeout,
        connections=4,
    )
    try:
        needs = _needs(settings)
        facts = await platform.platform_facts(accounts_v2=needs.accounts_v2)
        findings = list(examine_platform(facts, needs))
        for finding in findings:
            say(_line(finding))
        if patience is not None:
            say("… waiting for a webhook to arrive")
            findings.append(await _round_trip(platform, settings, patience))
            say(_line(findings[-1]))
    except NoAnswer as said:
        findings = [Finding("account", Verdict.FAULT, str(said), "check STRIPE_SECRET_KEY")]
        say(_line(findings[0]))
    finally:
        await platform.close()
    return findings


async def _database_findings(settings: Settings, say: Callable[[str], None]) -> list[Finding]:
    """Looks at the role that the service uses. Without DATABASE_URL there is none."""
    if settings.database_url is None:
        return []
    url = settings.require_database_url()
    address = database_address(url)
    database = SqlDatabase(url, write_connections=1, read_connections=1, pooled=settings.is_pooled)
    try:
        findings = list(
            examine_role(
                await database.role(),
                production=settings.environment == "production",
                is_local=address.is_local,
                is_verified=address.is_verified,
            )
        )
    except Refusal:
        remedy = "is the PostgreSQL of DATABASE_URL up, and are its role and password right?"
        findings = [Finding("database", Verdict.FAULT, "it does not answer", remedy)]
    finally:
        await database.close()
    for finding in findings:
        say(_line(finding))
    return findings


def _needs(settings: Settings) -> Needs:
    return Needs(
        livemode=settings.is_live,
        country=settings.platform_country,
        settlement_currencies=frozenset(settings.platform_settlement_currencies),
        api_version=API_VERSION,
        gateway_public_url=settings.gateway_public_url,
        accounts_v2=settings.stripe_accounts_api == "v2",
    )


def _line(finding: Finding) -> str:
    remedy = f"\n    -> {finding.remedy}" if finding.remedy else ""
    return f"{_SIGNS[finding.verdict]} {finding.subject}: {finding.said}{remedy}"


async def _round_trip(platform: Platform, settings: Settings, patience: float) -> Finding:
    """Lets Stripe send one event, and waits until the running service has stored it."""
    subject = "webhook round trip"
    remedy = (
        f"is the gateway reached at {settings.gateway_public_url}, is the payment service running, "
        "and is STRIPE_WEBHOOK_SECRET that endpoint's?"
    )
    currency = settings.platform_settlement_currencies[0]
    event_id = await platform.cause_event(currency, MINIMUM_CHARGE.get(currency, 1_000))
    database = SqlDatabase(
        settings.require_database_url(),
        write_connections=1,
        read_connections=1,
        pooled=settings.is_pooled,
    )
    try:
        began = time.monotonic()
        while (seconds := time.monotonic() - began) < patience:
            event = await database.read(lambda reader: reader.webhook_event(event_id))
            # An event without a digest was read from Stripe's list: no webhook has brought it.
            if event is not None and event.payload_sha256:
                return Finding(subject, Verdict.OK, f"{event_id} arrived after {seconds:.1f} s")
            if event is not None:
                said = "the event came from Stripe's list, not by a webhook"
                return Finding(subject, Verdict.FAULT, said, remedy)
            await asyncio.sleep(0.1)
        said = f"{event_id} did not arrive within {patience:.0f} s"
        return Finding(subject, Verdict.FAULT, said, remedy)
    finally:
        await database.close()
