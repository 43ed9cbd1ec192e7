"""Connections that do what no client does, on loopback and for some seconds: the others work on."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress

import grpc
import pytest
from grpc import aio

from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc
from tests.reliability import proving
from tests.reliability.system import SURVIVOR, System
from tests.support.world import CHANNEL_OPTIONS, World, until

_SECONDS = proving.by_profile(3.0, 8.0)
_ATTACKERS = 2
_STREAMS_A_BURST = 100
_HALF_OPEN = 500
#: The server's own bound is ten seconds; see OPTIONS.
_CLOSED_WITHIN = 15.0
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SETTINGS, _HEADERS, _RST_STREAM = 0x4, 0x1, 0x3
_END_STREAM_AND_HEADERS = 0x5
_CANCEL = (8).to_bytes(4, "big")


def _frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    head = len(payload).to_bytes(3, "big") + bytes([kind, flags])
    return head + stream.to_bytes(4, "big") + payload


def _literal(name: str, value: str) -> bytes:
    """A header as HPACK's literal without indexing."""
    return b"\x00" + b"".join(bytes([len(text)]) + text.encode() for text in (name, value))


def _call(path: str) -> bytes:
    headers = {
        ":method": "POST",
        ":scheme": "http",
        ":path": path,
        ":authority": "a",
        "te": "trailers",
        "content-type": "application/grpc",
    }
    return b"".join(_literal(name, value) for name, value in headers.items())


class RapidReset:
    """Opens streams and resets each at once, as fast as the server takes it."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._host, self._port = host, int(port)
        self.streams = 0
        self.connections = 0

    async def run(self, end: float) -> None:
        while time.monotonic() < end:
            with suppress(OSError):
                await self._connection(end)

    async def _connection(self, end: float) -> None:
        reader, writer = await asyncio.open_connection(self._host, self._port)
        self.connections += 1
        headers = _call("/marketplace.payments.v1.PaymentService/GetPayment")
        draining = asyncio.create_task(_drain(reader))
        try:
            writer.write(_PREFACE + _frame(_SETTINGS, 0, 0))
            stream = 1
            while time.monotonic() < end and not draining.done():
                burst = bytearray()
                for _ in range(_STREAMS_A_BURST):
                    burst += _frame(_HEADERS, _END_STREAM_AND_HEADERS, stream, headers)
                    burst += _frame(_RST_STREAM, 0, stream, _CANCEL)
                    stream += 2
                writer.write(bytes(burst))
                self.streams += _STREAMS_A_BURST
                await writer.drain()
                await asyncio.sleep(0.005)
        finally:
            draining.cancel()
            writer.close()


async def _drain(reader: asyncio.StreamReader) -> None:
    while await reader.read(65_536):
        pass


class Legitimate:
    """A caller with one connection, and one who comes anew each time."""

    def __init__(self, world: World, payment_id: str) -> None:
        self._world = world
        self._request = payments_pb2.GetPaymentRequest(payment_id=payment_id)
        self.seconds: list[float] = []
        self.failures: list[str] = []

    async def call(self, *, anew: bool) -> None:
        began = time.monotonic()
        try:
            if anew:
                async with aio.insecure_channel(self._world.address, CHANNEL_OPTIONS) as channel:
                    stub: payments_pb2_grpc.PaymentServiceAsyncStub = (
                        payments_pb2_grpc.PaymentServiceStub(channel)
                    )
                    await stub.GetPayment(self._request, timeout=10)
            else:
                await self._world.payments.GetPayment(self._request, timeout=10)
        except grpc.RpcError as error:
            self.failures.append(str(error))
        self.seconds.append(time.monotonic() - began)

    async def calls(self, end: float) -> None:
        number = 0
        while time.monotonic() < end:
            await self.call(anew=number % 10 == 0)
            number += 1
            await asyncio.sleep(0.02)


@pytest.mark.timeout(120)
def test_rapid_reset_leaves_other_calls_working(system: System) -> None:
    async def run() -> None:
        async with system.worlds() as worlds:
            world = worlds[SURVIVOR]
            payment = (await world.initiate(await world.expert())).payment.payment_id
            idle, attacked = Legitimate(world, payment), Legitimate(world, payment)
            await idle.calls(time.monotonic() + 1)
            end = time.monotonic() + _SECONDS
            attackers = [RapidReset(world.address) for _ in range(_ATTACKERS)]
            await asyncio.gather(
                attacked.calls(end), *(attacker.run(end) for attacker in attackers)
            )
            afterwards = Legitimate(world, payment)
            await afterwards.calls(time.monotonic() + 1)
        assert attacked.failures == idle.failures == afterwards.failures == []
        streams = sum(attacker.streams for attacker in attackers)
        assert streams > 1_000
        slow = statistics.quantiles(attacked.seconds, n=20)[18]
        assert statistics.median(attacked.seconds) < 1
        assert statistics.median(afterwards.seconds) < max(
            0.1, 10 * statistics.median(idle.seconds)
        )
        proving.figure(
            "N",
            f"rapid reset: {streams} streams in {_SECONDS:.0f} s: {len(attacked.seconds)} calls "
            f"answered, p95 {slow * 1000:.0f} ms",
        )

    asyncio.run(run())


@asynccontextmanager
async def _half_open(address: str, beginnings: Sequence[bytes]) -> AsyncIterator[list[bool]]:
    """Keeps sockets open that begin and say no more. Yields whether each was closed, so far."""
    host, _, port = address.rpartition(":")
    closed = [False] * len(beginnings)
    pairs = []

    async def watch(number: int, reader: asyncio.StreamReader) -> None:
        with suppress(OSError):
            await _drain(reader)
        closed[number] = True

    watches = []
    for number, beginning in enumerate(beginnings):
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(beginning)
        pairs.append(writer)
        watches.append(asyncio.create_task(watch(number, reader)))
    try:
        yield closed
    finally:
        for task in watches:
            task.cancel()
        for writer in pairs:
            writer.close()


@pytest.mark.timeout(120)
def test_half_open_sockets_leave_other_calls_working_and_are_closed(system: System) -> None:
    async def run() -> None:
        async with system.worlds() as worlds:
            world = worlds[SURVIVOR]
            payment = (await world.initiate(await world.expert())).payment.payment_id
            beginnings = [_PREFACE[: number % len(_PREFACE)] for number in range(_HALF_OPEN)]
            async with _half_open(world.address, beginnings) as closed:
                legitimate = Legitimate(world, payment)
                await legitimate.calls(time.monotonic() + _SECONDS)

                async def all_closed() -> bool:
                    return all(closed)

                await until(all_closed, "the end of all half-open sockets", _CLOSED_WITHIN)
        assert legitimate.failures == []
        assert statistics.median(legitimate.seconds) < 0.5
        slow = statistics.quantiles(legitimate.seconds, n=20)[18]
        proving.figure(
            "N", f"{_HALF_OPEN} half-open sockets: all closed, p95 of calls {slow * 1000:.0f} ms"
        )

    asyncio.run(run())
