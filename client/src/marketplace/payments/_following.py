"""Channels that are opened anew when the files of their certificate change.

gRPC reads a client's certificate once, when a channel is made. A certificate that lives for an hour
needs more: these channels stand for the newest one. Used by `marketplace.payments.channel`.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import grpc
import grpc.aio

from marketplace.payments.credentials import Tls, WrongCertificate

C = TypeVar("C")

_LOOK_SECONDS = 1.0
#: How long calls in progress may take on the former connections.
_GRACE_SECONDS = 60.0


class _Newest(Generic[C]):
    """The newest channel. Files that cannot be used leave it as it is."""

    def __init__(
        self,
        tls: Tls,
        make: Callable[[grpc.ChannelCredentials], C],
        retire: Callable[[C], None],
    ) -> None:
        self._tls, self._make, self._retire = tls, make, retire
        self._lock = threading.Lock()
        self._stamp = tls.stamp()
        self.channel = make(tls.channel_credentials())
        self._looked = time.monotonic()

    def get(self) -> C:
        if time.monotonic() - self._looked >= _LOOK_SECONDS:
            with self._lock:
                self._look()
        return self.channel

    def _look(self) -> None:
        self._looked = time.monotonic()
        try:
            stamp = self._tls.stamp()
            if stamp == self._stamp:
                return
            channel = self._make(self._tls.channel_credentials())
        except (OSError, WrongCertificate):
            return  # looked at again a second later
        former, self.channel, self._stamp = self.channel, channel, stamp
        self._retire(former)


class _Method:
    """A method of the newest channel, as a stub keeps it."""

    def __init__(self, newest: _Newest[Any], kind: str, told: tuple[Any, ...], named: Any) -> None:
        self._newest, self._kind, self._told, self._named = newest, kind, told, named
        self._channel: Any = None
        self._method: Any = None

    def _now(self) -> Any:
        channel = self._newest.get()
        if channel is not self._channel:
            method = getattr(channel, self._kind)(*self._told, **self._named)
            self._method, self._channel = method, channel
            return method
        return self._method

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return self._now()(*arguments, **named)

    def with_call(self, *arguments: Any, **named: Any) -> Any:
        return self._now().with_call(*arguments, **named)

    def future(self, *arguments: Any, **named: Any) -> Any:
        return self._now().future(*arguments, **named)


class _Methods:
    """The methods of a channel, which belong to the newest one."""

    _newest: _Newest[Any]

    def unary_unary(self, *told: Any, **named: Any) -> Any:
        return _Method(self._newest, "unary_unary", told, named)

    def unary_stream(self, *told: Any, **named: Any) -> Any:
        return _Method(self._newest, "unary_stream", told, named)

    def stream_unary(self, *told: Any, **named: Any) -> Any:
        return _Method(self._newest, "stream_unary", told, named)

    def stream_stream(self, *told: Any, **named: Any) -> Any:
        return _Method(self._newest, "stream_stream", told, named)


class FollowingChannel(_Methods, grpc.Channel):
    """For callers with threads."""

    def __init__(self, tls: Tls, make: Callable[[grpc.ChannelCredentials], grpc.Channel]) -> None:
        self._retired: list[threading.Timer] = []
        self._newest: _Newest[grpc.Channel] = _Newest(tls, make, self._retire)

    def _retire(self, channel: grpc.Channel) -> None:
        timer = threading.Timer(_GRACE_SECONDS, channel.close)
        timer.daemon = True
        self._retired = [one for one in self._retired if one.is_alive()]
        self._retired.append(timer)
        timer.start()

    def subscribe(self, callback: Any, try_to_connect: bool = False) -> None:
        self._newest.get().subscribe(callback, try_to_connect)

    def unsubscribe(self, callback: Any) -> None:
        self._newest.channel.unsubscribe(callback)

    def close(self) -> None:
        for timer in self._retired:
            timer.cancel()
            timer.function()
        self._newest.channel.close()

    def __enter__(self) -> "FollowingChannel":
        return self

    def __exit__(self, *left: object) -> None:
        self.close()


class AioFollowingChannel(_Methods, grpc.aio.Channel):
    """For callers with asyncio."""

    def __init__(
        self, tls: Tls, make: Callable[[grpc.ChannelCredentials], grpc.aio.Channel]
    ) -> None:
        self._retired: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._newest: _Newest[grpc.aio.Channel] = _Newest(tls, make, self._retire)

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(self._end(channel))
        self._retired[task] = channel
        task.add_done_callback(lambda done: self._retired.pop(done, None))

    async def _end(self, channel: grpc.aio.Channel) -> None:
        # A call that took the channel a moment ago may not have begun yet.
        await asyncio.sleep(_LOOK_SECONDS)
        await channel.close(_GRACE_SECONDS)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._newest.get().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._newest.get().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._newest.get().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        retired = dict(self._retired)
        for task in retired:
            task.cancel()
        await asyncio.gather(*retired, return_exceptions=True)
        for channel in retired.values():
            await channel.close(grace)
        await self._newest.channel.close(grace)

    async def __aenter__(self) -> "AioFollowingChannel":
        return self

    async def __aexit__(self, *left: object) -> None:
        await self.close()
