"""The balances of the ledger, by currency."""

from collections import defaultdict

from aiohttp import web

from console.site import SESSION, SITE
from console.subjects import link
from marketplace.payments.v1 import ledger_pb2


async def show(request: web.Request) -> web.StreamResponse:
    """Shows the accounts that have a balance, and the sum of each currency."""
    site, session = request.app[SITE], request[SESSION]
    core = site.core(session)
    prefix = request.query.get("prefix", "").strip()[:255]
    asked = ledger_pb2.ListBalancesRequest(
        account_prefix=prefix, page_size=200, page_token=request.query.get("page", "")
    )
    answer = await core.ask(core.stubs.ledger.ListBalances, asked)
    currencies: dict[str, list[ledger_pb2.LedgerBalance]] = defaultdict(list)
    for one in answer.balances:
        currencies[one.balance.currency_code].append(one)
    token = answer.next_page_token
    return site.page(
        request,
        "balances.html",
        title="Balances of the ledger",
        prefix=prefix,
        currencies=sorted(currencies.items()),
        totals={total.currency_code: total for total in answer.totals},
        next_page=link("/balances", prefix=prefix, page=token) if token else "",
    )
