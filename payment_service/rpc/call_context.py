"""What servicers share: the caller, and the registry that shields running calls."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

import structlog
from grpc import aio

from payment_service.domain.errors import Unavailable
from payment_service.domain.ports.records import Cause

T = TypeVar("T")


log = structlog.get_logger(__name__)


#: Until callers are authenticated, all of them are this one.
LOCAL_CALLER: Final = "local"


_MAX_REQUEST_ID: Final = 64


Context = aio.ServicerContext[Any, Any]


class CallRegistry:
    """Runs operations to their end whatever becomes of their callers.

    In grpc.aio a caller's cancel and its deadline both cancel the handler. The whole operation, its
    claim included, runs as a task of its own; the caller learns the result by its key. Shutdown
    waits for what is left (:meth:`drain`).
    """

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()  # Strong references: the loop holds weak ones.
        self._closing = False

    async def run(self, operation: Coroutine[Any, Any, T]) -> T:
        if self._closing:
            operation.close()
            raise Unavailable(
                "SHUTTING_DOWN", "the service is shutting down; ask again with the same key"
            )
        task = asyncio.create_task(operation)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Seen: the caller got it, or has left and will ask again.

    def close(self) -> None:
        """Take no more."""
        self._closing = True

    async def drain(self, seconds: float) -> int:
        """Wait for what is under way; how many were left unfinished (the sweep takes those)."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        return len(self._tasks)


def cause_of(context: Context, rpc: str) -> Cause:
    """Who calls, for the audit trail. The request id is the caller's, or made here."""
    request_id = ""
    for name, value in context.invocation_metadata() or ():
        if name == "x-request-id" and isinstance(value, str):
            request_id = value[:_MAX_REQUEST_ID]
    return Cause(LOCAL_CALLER, rpc, request_id or secrets.token_hex(8))
