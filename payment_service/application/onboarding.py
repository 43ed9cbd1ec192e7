"""The ways into Stripe's pages: onboarding and dashboard links, the landing pages' tokens."""

from __future__ import annotations

import secrets
from urllib.parse import urlencode, urlsplit

from payment_service.application.core import Core, hashed
from payment_service.application.refresh_expert import refresh_expert
from payment_service.domain.errors import NotFound, Precondition, expert_not_found, invalid_field
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.ports import Cause, Policy, Transaction


async def create_dashboard_link(core: Core, expert_id: str, cause: Cause) -> str:
    """A link to the expert's Express dashboard; there is none before onboarding is complete."""
    expert = await refresh_expert(core, expert_id, cause)
    expert.check_onboarded()
    return await core.stripe.dashboard_link(expert.account.stripe_account_id)


async def refresh_onboarding(core: Core, expert_id: str, onward_url: str) -> str:
    """A new onboarding link: Stripe's are used once and live five minutes."""
    expert = await core.database.read(lambda reader: reader.expert(expert_id))
    if expert is None:
        raise expert_not_found(expert_id)
    return await mint_onboarding_link(core, expert, onward_url)


async def mint_onboarding_link(core: Core, expert: Expert, onward_url: str) -> str:
    """A link whose way back leads over the gateway's landing pages.

    The token in their addresses is unguessable, lives for days (Stripe's link lives for minutes),
    stands for this expert alone, and is stored as a hash.
    """
    if expert.status in (
        ExpertStatus.CREATING,
        ExpertStatus.REJECTED,
        ExpertStatus.DEAUTHORIZED,
    ):
        raise Precondition(
            "ONBOARDING_INCOMPLETE",
            f"there is no account to be onboarded: {expert.status}",
            {"expert_id": expert.expert_id, "status": expert.status.value},
        )
    policy = core.policy
    token = secrets.token_urlsafe(32)
    await core.database.transact(
        add_landing_token, hashed(token), expert.expert_id, onward_url, policy.landing_token_life
    )
    return await core.stripe.onboarding_link(
        expert.account.stripe_account_id,
        refresh_url=_landing_url(policy, "refresh", token),
        return_url=_landing_url(policy, "return", token),
    )


def add_landing_token(
    tx: Transaction, token_hash: bytes, expert_id: str, onward_url: str, seconds: float
) -> None:
    tx.add_landing_token(token_hash, expert_id, onward_url, seconds)


async def get_onboarding(core: Core, token: str, cause: Cause) -> tuple[Expert, str]:
    """The expert behind a landing page, freshly asked about, and where the browser may go on to."""
    expert_id, onward_url = await _landing(core, token)
    return await refresh_expert(core, expert_id, cause), onward_url


async def renew_onboarding(core: Core, token: str) -> str:
    """A new link for a browser that came back with a used or expired one."""
    expert_id, onward_url = await _landing(core, token)
    expert = await core.database.read(lambda reader: reader.expert(expert_id))
    if expert is None:
        raise expert_not_found(expert_id)
    if expert.status in (ExpertStatus.REJECTED, ExpertStatus.DEAUTHORIZED):
        return ""  # The landing page says why.
    return await mint_onboarding_link(core, expert, onward_url)


async def _landing(core: Core, token: str) -> tuple[str, str]:
    found = await core.database.read(lambda reader: reader.landing(hashed(token)))
    if found is None:
        raise NotFound("LANDING_TOKEN_NOT_FOUND", "this link is unknown or has expired")
    return found


def _landing_url(policy: Policy, page: str, token: str) -> str:
    return f"{policy.gateway_public_url}/onboarding/{page}?{urlencode({'token': token})}"


def check_onward_url(policy: Policy, onward_url: str) -> str:
    """Refuse to send a browser anywhere but to a site of ``ALLOWED_ORIGINS``."""
    if not onward_url:
        return ""
    try:
        parts = urlsplit(onward_url)
        port = parts.port
    except ValueError:
        raise invalid_field("onward_url", "is not an address") from None
    host = f"{parts.hostname or ''}{f':{port}' if port else ''}"
    origin = f"{parts.scheme}://{host}"
    plain = not parts.username and not parts.password and "\\" not in onward_url
    if not plain or origin not in policy.allowed_origins:
        raise invalid_field("onward_url", "is not on a site of ALLOWED_ORIGINS")
    return onward_url
