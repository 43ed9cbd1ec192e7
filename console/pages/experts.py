"""Experts: what Stripe asks of them, what they have, and what they owe."""

import asyncio
from typing import Final

from aiohttp import web

from console.core import Core
from console.sections import Answered, attempt
from console.site import SESSION, SITE
from console.subjects import link
from marketplace.payments.v1 import experts_pb2

#: A page reads a balance for each, for which the service asks Stripe.
_PAGE_SIZE: Final = 20
_AT_ONCE: Final = 4


async def show_all(request: web.Request) -> web.StreamResponse:
    """Shows experts by status, with their balances and debts."""
    site, session = request.app[SITE], request[SESSION]
    core = site.core(session)
    status = request.query.get("status", "")
    statuses = list(experts_pb2.ExpertStatus.keys())[1:]
    asked = experts_pb2.ListExpertsRequest(
        page_size=_PAGE_SIZE,
        page_token=request.query.get("page", ""),
        statuses=[experts_pb2.ExpertStatus.Value(status)] if status in statuses else [],
    )
    answer = await core.ask(core.stubs.experts.ListExperts, asked)
    gate = asyncio.Semaphore(_AT_ONCE)
    balances = await asyncio.gather(
        *(_balance(core, one.expert_id, gate) for one in answer.experts)
    )
    token = answer.next_page_token
    return site.page(
        request,
        "experts.html",
        title="Experts",
        rows=list(zip(answer.experts, balances, strict=True)),
        statuses=statuses,
        chosen=status,
        next_page=link("/experts", status=status, page=token) if token else "",
    )


async def show(request: web.Request) -> web.StreamResponse:
    """Shows one expert."""
    site, session = request.app[SITE], request[SESSION]
    core = site.core(session)
    expert_id = request.query.get("id", "")
    asked = experts_pb2.GetExpertRequest(expert_id=expert_id)
    expert = (await core.ask(core.stubs.experts.GetExpert, asked)).expert
    balance = await _balance(core, expert_id, asyncio.Semaphore())
    payouts = await attempt(
        core,
        core.stubs.experts.ListPayouts,
        experts_pb2.ListPayoutsRequest(expert_id=expert_id, page_size=20),
    )
    return site.page(
        request,
        "expert.html",
        title=f"Expert {expert_id}",
        expert=expert,
        balance=balance,
        payouts=payouts,
    )


async def _balance(core: Core, expert_id: str, gate: asyncio.Semaphore) -> Answered:
    async with gate:
        asked = experts_pb2.GetExpertBalanceRequest(expert_id=expert_id)
        return await attempt(core, core.stubs.experts.GetExpertBalance, asked)
