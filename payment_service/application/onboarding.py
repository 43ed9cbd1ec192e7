"""The ways into Stripe's pages: onboarding and dashboard links, the landing pages' tokens."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final
from urllib.parse import urlencode, urlsplit

from payment_service.application.app import App
from payment_service.application.get_expert import known_expert
from payment_service.application.sync.account import sync_expert
from payment_service.domain.errors import NotFound, Precondition, invalid_field
from payment_service.domain.experts import Expert, ExpertStatus
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.records import Cause

#: It is stored, and what is longer fits into no browser's address bar.
_MAX_ADDRESS: Final = 2_000


async def create_dashboard_link(app: App, expert_id: str, cause: Cause) -> str:
    """A link to the expert's Express dashboard; there is none before onboarding is complete."""
    await known_expert(app, expert_id, cause.act_for)
    expert = await sync_expert(app, expert_id, cause)
    expert.check_onboarded()
    url = await app.stripe.dashboard_link(expert.account.stripe_account_id)
    if url is None:  # The account has revoked our access meanwhile.
        raise _no_account(await sync_expert(app, expert_id, cause))
    return url


async def refresh_onboarding(app: App, expert_id: str, continue_url: str, cause: Cause) -> str:
    """A new onboarding link: Stripe's are used once and live five minutes."""
    expert = await known_expert(app, expert_id, cause.act_for)
    return await mint_onboarding_link(app, expert, continue_url, cause)


async def mint_onboarding_link(app: App, expert: Expert, continue_url: str, cause: Cause) -> str:
    """A link whose way back leads over the gateway's landing pages.

    The token in their addresses is unguessable, lives for days (Stripe's link lives for minutes),
    stands for this expert alone, and is stored as a hash.
    """
    if expert.status in (
        ExpertStatus.CREATING,
        ExpertStatus.REJECTED,
        ExpertStatus.DEAUTHORIZED,
    ):
        raise _no_account(expert)
    policy = app.policy
    token = secrets.token_urlsafe(32)
    await app.database.transact(
        add_onboarding_token,
        hash_token(token),
        expert.expert_id,
        continue_url,
        policy.landing_token_life,
    )
    url = await app.stripe.onboarding_link(
        expert.account.stripe_account_id,
        refresh_url=_landing_url(policy, "refresh", token),
        return_url=_landing_url(policy, "return", token),
    )
    if url is None:  # The account has revoked our access, and we did not know it.
        raise _no_account(await sync_expert(app, expert.expert_id, cause))
    return url


def _no_account(expert: Expert) -> Precondition:
    """The refusal of a link to an account that there is not, not yet or not any more."""
    return Precondition(
        "ONBOARDING_INCOMPLETE",
        f"there is no account to be onboarded: {expert.status}",
        {"expert_id": expert.expert_id, "status": expert.status.value},
    )


def add_onboarding_token(
    tx: Transaction, token_hash: bytes, expert_id: str, continue_url: str, seconds: float
) -> None:
    tx.add_onboarding_token(token_hash, expert_id, continue_url, seconds)


async def get_onboarding_status(app: App, token: str, cause: Cause) -> tuple[Expert, str]:
    """Returns the expert of a landing page, synced now, and where the browser may continue."""
    expert_id, continue_url = await _landing(app, token)
    return await sync_expert(app, expert_id, cause), continue_url


async def create_onboarding_link(app: App, token: str, cause: Cause) -> str:
    """A new link for a browser that came back with a used or expired one.

    Empty if Stripe's form has nothing to ask for, or the account is lost: the landing page says
    why. A link would only lead back to that page.
    """
    expert_id, continue_url = await _landing(app, token)
    expert = await sync_expert(app, expert_id, cause)
    if expert.is_lost or expert.is_paused:
        return ""
    return await mint_onboarding_link(app, expert, continue_url, cause)


async def _landing(app: App, token: str) -> tuple[str, str]:
    found = await app.database.read(lambda reader: reader.landing(hash_token(token)))
    if found is None:
        raise NotFound("ONBOARDING_TOKEN_NOT_FOUND", "this link is unknown or has expired")
    return found


def _landing_url(policy: Policy, page: str, token: str) -> str:
    return f"{policy.gateway_public_url}/onboarding/{page}?{urlencode({'token': token})}"


def check_continue_url(policy: Policy, continue_url: str) -> str:
    """Refuse to send a browser anywhere but to a site of ``ALLOWED_ORIGINS``."""
    if not continue_url:
        return ""
    if len(continue_url) > _MAX_ADDRESS:
        raise invalid_field("continue_url", f"must be at most {_MAX_ADDRESS} characters")
    try:
        parts = urlsplit(continue_url)
        port = parts.port
    except ValueError:
        raise invalid_field("continue_url", "is not an address") from None
    host = f"{parts.hostname or ''}{f':{port}' if port else ''}"
    origin = f"{parts.scheme}://{host}"
    plain = not parts.username and not parts.password and "\\" not in continue_url
    if not plain or origin not in policy.allowed_origins:
        raise invalid_field("continue_url", "is not on a site of ALLOWED_ORIGINS")
    return continue_url


def hash_token(secret: str) -> bytes:
    """How a secret that only its bearer needs to know is stored."""
    return hashlib.sha256(secret.encode()).digest()
