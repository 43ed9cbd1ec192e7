"""What waits for a person, and why."""

import asyncio

from aiohttp import web

from console.sections import Section, gathered
from console.site import SESSION, SITE, may
from marketplace.payments.v1 import (
    adjustments_pb2,
    disputes_pb2,
    operations_pb2,
)

_LATER = 2**62


async def show(request: web.Request) -> web.StreamResponse:
    """Shows parked operations, discrepancies, disputes, proposals and parked webhook events."""
    site, session = request.app[SITE], request[SESSION]
    core = site.core(session)
    operations, discrepancies, disputes, adjustments, webhooks = await asyncio.gather(
        gathered(
            core,
            core.stubs.operations.ListOperations,
            operations_pb2.ListOperationsRequest(state=operations_pb2.OPERATION_STATE_PARKED),
            "operations",
        ),
        gathered(
            core,
            core.stubs.operations.ListDiscrepancies,
            operations_pb2.ListDiscrepanciesRequest(open_only=True),
            "discrepancies",
        ),
        gathered(
            core,
            core.stubs.disputes.ListDisputes,
            disputes_pb2.ListDisputesRequest(open_only=True),
            "disputes",
        ),
        gathered(
            core,
            core.stubs.operations.ListAdjustments,
            adjustments_pb2.ListAdjustmentsRequest(state=adjustments_pb2.ADJUSTMENT_STATE_PROPOSED),
            "adjustments",
        ),
        gathered(
            core,
            core.stubs.operations.ListWebhookEvents,
            operations_pb2.ListWebhookEventsRequest(
                state=operations_pb2.WEBHOOK_EVENT_STATE_PARKED
            ),
            "events",
        )
        if may(session, "OperationsService/ListWebhookEvents")
        else _nothing(),
    )
    disputes.entries.sort(key=lambda one: one.evidence_due_time.seconds or _LATER)
    adjustments.entries.sort(key=lambda one: one.expire_time.seconds)
    return site.page(
        request,
        "waiting.html",
        title="What waits for a person",
        operations=operations,
        discrepancies=discrepancies,
        disputes=disputes,
        adjustments=adjustments,
        webhooks=webhooks,
    )


async def _nothing() -> Section:
    return Section()
