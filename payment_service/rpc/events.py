"""EventService: a payment's audit trail, and the feed of all payments' events."""

from __future__ import annotations

import asyncio

from marketplace.payments.v1 import events_pb2, events_pb2_grpc
from payment_service.application.app import App
from payment_service.application.read_events import read_events
from payment_service.application.watch_events import watch_events
from payment_service.domain.ports.records import FeedCursor
from payment_service.rpc import pagination
from payment_service.rpc.call_context import Context, acting_for
from payment_service.rpc.fields import RequestFields
from payment_service.rpc.messages.events import event_message


class EventServicer(events_pb2_grpc.EventServiceServicer):
    def __init__(self, app: App) -> None:
        self._app = app

    async def ListPaymentEvents(
        self, request: events_pb2.ListPaymentEventsRequest, context: Context
    ) -> events_pb2.ListPaymentEventsResponse:
        fields = RequestFields()
        payment_id = fields.our_id("payment_id", request.payment_id)
        page_size = fields.page_size(request.page_size)
        fields.check()
        keyset = pagination.read_page_token("events", payment_id, request.page_token, 1)
        after = pagination.token_number(keyset[0]) if keyset else 0
        found, broken = await read_events(self._app, payment_id, acting_for(), after, page_size + 1)
        page, token = pagination.page_of(
            found, page_size, "events", payment_id, lambda event: [str(event.sequence)]
        )
        return events_pb2.ListPaymentEventsResponse(
            events=[event_message(event, acting_for()) for event in page],
            next_page_token=token,
            chain_intact=not broken,
            first_broken_sequence=broken,
        )

    async def WatchEvents(  # type: ignore[override]  # it writes to the context
        self, request: events_pb2.WatchEventsRequest, context: Context
    ) -> None:
        """Writes in a task of its own, so that the end does not wait for the next event."""
        fields = RequestFields()
        after = fields.cursor("after_cursor", request.after_cursor)
        fields.check()
        feed = self._app.feed
        with feed.watched():
            writing = asyncio.create_task(self._write(after, context))
            ending = asyncio.create_task(feed.ending.wait())
            try:
                await asyncio.wait({writing, ending}, return_when=asyncio.FIRST_COMPLETED)
                feed.check()
                await writing
            finally:
                writing.cancel()
                ending.cancel()

    async def _write(self, after: FeedCursor, context: Context) -> None:
        async for batch in watch_events(self._app, after, acting_for()):
            for fed in batch:
                await context.write(
                    events_pb2.WatchEventsResponse(
                        event=event_message(fed.event, acting_for()),
                        cursor=pagination.cursor_of(fed.mark),
                    )
                )
