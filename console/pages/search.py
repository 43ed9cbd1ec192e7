"""Finds payments by any id that a person has."""

from typing import Final

from aiohttp import web

from console.core import Refused
from console.site import SESSION, SITE
from console.subjects import link
from marketplace.payments.v1 import explain_pb2, payments_pb2

_LONGEST_ID: Final = 255


async def show(request: web.Request) -> web.StreamResponse:
    """Shows the form and what was found; one payment is shown at once.

    An id that names more payments than one is also looked up as a user's, whose payments have
    pages.
    """
    site, session = request.app[SITE], request[SESSION]
    core = site.core(session)
    sought = request.query.get("q", "").strip()[:_LONGEST_ID]
    gig = request.query.get("gig", "").strip()[:_LONGEST_ID]
    page = request.query.get("page", "")
    matches: list[explain_pb2.PaymentMatch] = []
    if (sought or gig) and not (sought and gig) and not page:
        asked = explain_pb2.ExplainPaymentRequest(id=sought or gig, page_size=1)
        try:
            found = await core.ask(core.stubs.operations.ExplainPayment, asked)
            matches = list(found.matches)
        except Refused as refused:
            if refused.code != "NOT_FOUND":
                raise
        if len(matches) == 1:
            raise web.HTTPSeeOther(link("/payment", id=matches[0].payment_id))
    answer = payments_pb2.ListPaymentsResponse()
    if sought and (gig or page or matches):
        listed = payments_pb2.ListPaymentsRequest(user_id=sought, gig_id=gig, page_token=page)
        answer = await core.ask(core.stubs.payments.ListPayments, listed)
    known = {one.payment_id for one in answer.payments}
    return site.page(
        request,
        "search.html",
        title="Find a payment",
        sought=sought,
        gig=gig,
        payments=answer.payments,
        matches=[one for one in matches if one.payment_id not in known],
        next_page=link("/", q=sought, gig=gig, page=answer.next_page_token)
        if answer.next_page_token
        else "",
    )
