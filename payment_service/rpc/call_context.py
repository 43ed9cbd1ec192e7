"""What servicers share: the caller, and the registry that shields calls in progress."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import Callable, Coroutine
from contextvars import ContextVar
from typing import Any, Final, TypeVar

import structlog
from grpc import aio

from payment_service.domain.caller import Caller
from payment_service.domain.errors import Unavailable
from payment_service.domain.ports.records import Cause

T = TypeVar("T")


log = structlog.get_logger(__name__)


#: Who makes the call that this task serves. It is set before the handler runs; gRPC runs each call,
#: streams included, in a task of its own. It has no default: a handler that was reached without
#: :class:`AccessControl` fails.
CALLER: Final[ContextVar[Caller]] = ContextVar("caller")


#: The beginning of a request id that is kept. gRPC lets every byte of a header through, and the
#: audit trail keeps it for ever: PostgreSQL reads no JSON with a NUL, and a line break or a
#: character of control would show its readers something else.
_REQUEST_ID: Final = re.compile(r"[!-~]{1,64}(?=[!-~]*\Z)")
#: The id of the call in progress: the caller's, or a new one. It is in the log and the audit trail.
REQUEST_ID: Final[ContextVar[str]] = ContextVar("request_id")


Context = aio.ServicerContext[Any, Any]


class Place:
    """A place among the calls in progress: free again when the last one that holds it has left."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free = free
        self._holders = 1

    def hold(self) -> None:
        self._holders += 1

    def leave(self) -> None:
        self._holders -= 1
        if not self._holders:
            self._free()


#: The place of the call in progress.
current_place: ContextVar[Place | None] = ContextVar("current_place", default=None)


def caller_name() -> str:
    """Returns who makes the call in progress."""
    return CALLER.get().name


class CallRegistry:
    """Runs operations to their end, even if their callers leave.

    In grpc.aio a caller's cancel and its deadline both cancel the handler. So the whole operation,
    its claim included, runs as a task of its own, and the caller gets the result by its key.
    Shutdown waits for the tasks that are left (:meth:`drain`). A call keeps its place while its
    operation runs: otherwise callers that leave early could start any number of operations.
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
        place = current_place.get()
        if place is not None:
            place.hold()
            task.add_done_callback(lambda _: place.leave())
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # Retrieved, so that asyncio does not log it: the caller gets it.

    def close(self) -> None:
        """Refuses new operations from now on."""
        self._closing = True

    async def drain(self, seconds: float) -> int:
        """Waits for the operations in progress. Returns how many are left for recovery."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)
        return len(self._tasks)


def cause_of(context: Context, rpc: str) -> Cause:
    """Returns who calls, for whom and why, for keys and the audit trail."""
    caller = CALLER.get()
    return Cause(caller.name, rpc, REQUEST_ID.get(), caller.act_for)


def identify(given: str) -> str:
    """Returns the caller's request id, or a new one, and remembers it for this call.

    One that is not of visible ASCII characters is replaced by a new one.
    """
    match = _REQUEST_ID.match(given)
    request_id = match[0] if match else secrets.token_hex(8)
    REQUEST_ID.set(request_id)
    return request_id


def acting_for() -> str:
    """Returns the user for whom the caller acts, or "": the reads' filter."""
    return CALLER.get().act_for
