"""One payment: its money, its operations, its story, and what can be done."""

import asyncio
from typing import Any

from aiohttp import web

from console.actions import offered
from console.core import Core
from console.picture import draw
from console.refusals import Explained
from console.sections import attempt, gathered
from console.site import SESSION, SITE
from console.subjects import link
from marketplace.payments.v1 import (
    disputes_pb2,
    events_pb2,
    explain_pb2,
    ledger_pb2,
    operations_pb2,
    payments_pb2,
)

_STATES = (
    operations_pb2.OPERATION_STATE_UNSPECIFIED,
    operations_pb2.OPERATION_STATE_SUCCEEDED,
    operations_pb2.OPERATION_STATE_REFUSED,
)


async def show(request: web.Request) -> web.StreamResponse:
    """Shows the payment. A part that cannot be read says so, and the others are shown."""
    site, session = request.app[SITE], request[SESSION]
    core = site.core(session)
    payment_id = request.query.get("id", "")
    found = payments_pb2.GetPaymentRequest(payment_id=payment_id)
    payment = (await core.ask(core.stubs.payments.GetPayment, found)).payment
    operations, events, discrepancies, disputes, postings, story = await asyncio.gather(
        _operations(core, payment_id),
        attempt(
            core,
            core.stubs.events.ListPaymentEvents,
            events_pb2.ListPaymentEventsRequest(
                payment_id=payment_id, page_size=200, page_token=request.query.get("events", "")
            ),
        ),
        gathered(
            core,
            core.stubs.operations.ListDiscrepancies,
            operations_pb2.ListDiscrepanciesRequest(payment_id=payment_id, open_only=True),
            "discrepancies",
        ),
        gathered(
            core,
            core.stubs.disputes.ListDisputes,
            disputes_pb2.ListDisputesRequest(payment_id=payment_id),
            "disputes",
        ),
        attempt(
            core,
            core.stubs.ledger.ListPostings,
            ledger_pb2.ListPostingsRequest(payment_id=payment_id),
        ),
        attempt(
            core,
            core.stubs.operations.ExplainPayment,
            explain_pb2.ExplainPaymentRequest(id=payment_id, page_size=1),
        ),
    )
    token = events.answer.next_page_token if events.answer is not None else ""
    return site.page(
        request,
        "payment.html",
        title=f"Payment {payment_id}",
        payment=payment,
        picture=draw(payment),
        actions=offered(payment),
        operations=operations,
        events=events,
        more_events=link("/payment", id=payment_id, events=token) if token else "",
        discrepancies=discrepancies,
        disputes=disputes,
        postings=postings,
        story=story,
    )


async def _operations(core: Core, payment_id: str) -> tuple[list[Any], list[Explained]]:
    """Returns the operations in every state, oldest first, and what could not be read."""
    parts = await asyncio.gather(
        *(
            gathered(
                core,
                core.stubs.operations.ListOperations,
                operations_pb2.ListOperationsRequest(payment_id=payment_id, state=state),
                "operations",
            )
            for state in _STATES
        )
    )
    known = {one.operation_id: one for part in parts for one in part.entries}
    ordered = sorted(
        known.values(), key=lambda one: (one.create_time.seconds, one.create_time.nanos)
    )
    return ordered, [part.refusal for part in parts if part.refusal is not None][:1]
