"""The feed of all payments' events, watched across disconnects and the end of replicas.

    async for update in watch(channel, after_cursor=last):
        await act_on(update.event, update.cursor)  # keep both in one transaction

One iteration is in order and without gaps or duplicates, however often it reconnects. When the
watcher itself restarts, the cursor decides. Stored together with what was done about its event,
each event is handled exactly once; stored later, at least once. An event is identified by its
payment and sequence.
"""

import asyncio
import random
from collections.abc import AsyncIterator
from typing import Final

import grpc
import grpc.aio

from marketplace.payments.v1 import events_pb2, events_pb2_grpc

#: The replica leaves, is unavailable, or has too many watchers: another one may serve.
_PASSING: Final = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
_FIRST_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
#: A stream that lasted so many seconds was no failure to connect.
_LASTED: Final = 5.0


async def watch(
    channel: grpc.aio.Channel, after_cursor: str = ""
) -> AsyncIterator[events_pb2.WatchEventsResponse]:
    """Yields every event after the cursor, without end; from the beginning if there is none.

    Reconnects with jittered pauses of up to a second. Raises ``grpc.aio.AioRpcError`` for what does
    not pass: INVALID_ARGUMENT for a cursor that is none, FAILED_PRECONDITION for one of another
    feed (``CURSOR_NOT_IN_FEED``). Leaving the iteration, or cancelling it, ends the stream.
    """
    stub = events_pb2_grpc.EventServiceStub(channel)
    loop = asyncio.get_running_loop()
    failures = 0
    while True:
        began = loop.time()
        call = stub.WatchEvents(events_pb2.WatchEventsRequest(after_cursor=after_cursor))
        try:
            async for update in call:
                after_cursor = update.cursor
                failures = 0
                yield update
        except grpc.aio.AioRpcError as error:
            if error.code() not in _PASSING:
                raise
        finally:
            call.cancel()
        failures = 0 if loop.time() - began > _LASTED else failures + 1
        pause = min(_FIRST_PAUSE * 2**failures, _LONGEST_PAUSE)
        await asyncio.sleep(random.uniform(pause / 2, pause))  # noqa: S311 - jitter
