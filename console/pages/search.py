"""Finds payments by an id that a person has."""

from typing import Final

from aiohttp import web

from console.core import Core, Refused
from console.site import SESSION, SITE
from console.subjects import link, pages
from marketplace.payments.v1 import disputes_pb2, operations_pb2, payments_pb2

_LONGEST_ID: Final = 255
#: Ids that no RPC finds a payment by.
_OF_STRIPE: Final = ("pi_", "ch_", "py_", "re_", "tr_", "trr_", "fr_", "txn_", "evt_")


async def show(request: web.Request) -> web.StreamResponse:
    """Shows the form and what was found; one payment is shown at once."""
    site, session = request.app[SITE], request[SESSION]
    core = site.core(session)
    sought = request.query.get("q", "").strip()[:_LONGEST_ID]
    gig = request.query.get("gig", "").strip()[:_LONGEST_ID]
    if sought and not gig:
        payment_id = await _payment_of(core, sought)
        if payment_id:
            raise web.HTTPSeeOther(link("/payment", id=payment_id))
    answer = payments_pb2.ListPaymentsResponse()
    fault = ""
    if sought.startswith(_OF_STRIPE):
        fault = (
            "The service cannot look a payment up by this id of Stripe's. Search with the "
            "payment's id: Stripe shows it in the metadata of the PaymentIntent."
        )
    elif gig and not sought:
        fault = (
            "Write the client or the expert too: gigs are searched for within a user's payments."
        )
    elif sought:
        asked = payments_pb2.ListPaymentsRequest(
            user_id=sought, gig_id=gig, page_token=request.query.get("page", "")
        )
        answer = await core.ask(core.stubs.payments.ListPayments, asked)
    return site.page(
        request,
        "search.html",
        title="Find a payment",
        sought=sought,
        fault=fault,
        gig=gig,
        payments=answer.payments,
        next_page=link("/", q=sought, gig=gig, page=answer.next_page_token)
        if answer.next_page_token
        else "",
    )


async def _payment_of(core: Core, sought: str) -> str:
    """Returns the payment that an id names, or nothing if it names none by itself."""
    if sought.startswith("pay_"):
        asked = payments_pb2.GetPaymentRequest(payment_id=sought)
        return (await core.ask(core.stubs.payments.GetPayment, asked)).payment.payment_id
    if sought.startswith(("dp_", "du_")):
        dispute = disputes_pb2.GetDisputeRequest(dispute_id=sought)
        return (await core.ask(core.stubs.disputes.GetDispute, dispute)).dispute.payment_id
    if sought.startswith("op_"):
        request = operations_pb2.ListOperationsRequest()
        method = core.stubs.operations.ListOperations
        async for one in pages(core, method, request, "operations"):
            if one.operation_id == sought:
                return str(one.payment_id)
        raise Refused("NOT_FOUND", "OPERATION_NOT_FOUND", f"No operation {sought} is open.")
    return ""
