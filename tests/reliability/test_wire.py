"""Bytes by chance against every RPC: every answer is one of the contract, and nothing grows."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from pathlib import Path

import pytest
from grpc import aio

from payment_service.application.side_by_side import at_most
from tests.reliability import proving
from tests.reliability.system import SURVIVOR, System
from tests.support.contract import METHODS, path_of
from tests.support.errors import Refused
from tests.support.valid_requests import valid_requests
from tests.support.world import World

_MESSAGES = proving.by_profile(4_000, 100_000)
_AT_ONCE = 24
_WARM_UP = proving.by_profile(1_000, 10_000)
_DEADLINE_SECONDS = 20.0
_MEGABYTES = 50
#: How long a stream is read before its caller leaves.
_STREAM_SECONDS = 0.05
_LONG = proving.by_profile(180, 1_800)


def mutated(good: bytes, other: bytes, chance: random.Random) -> bytes:
    """Changes a message once or a few times, as a broken or hostile client would."""
    data = bytearray(good)
    for _ in range(chance.choice((1, 1, 1, 2, 4))):
        at, to = sorted(chance.randrange(len(data) + 1) for _ in range(2))
        match chance.randrange(10):
            case 0 if data:
                data[at % len(data)] ^= 1 << chance.randrange(8)
            case 1 if data:
                data[at % len(data)] = chance.choice((0, 0x7F, 0x80, 0xFF))
            case 2:
                del data[at:to]
            case 3:
                data[at:at] = chance.randbytes(chance.choice((1, 4, 40)))
            case 4:
                data[at:at] = data[at:to]
            case 5:
                data[at:] = other[at:]
            case 6:
                del data[at:]
            case 7:  # A length or a number of ten bytes.
                data[at:at] = b"\xff" * 9 + b"\x01"
            case 8:  # A field that nobody knows, or of another type.
                data += bytes([chance.randrange(1, 128)]) + chance.randbytes(3)
            case _:  # Groups within groups.
                data[at:at] = b"\x0b" * chance.choice((3, 150, 2_000))
    return bytes(data)


class Fuzzer:
    """Sends the messages, and counts what comes back."""

    def __init__(self, world: World, requests: dict[str, bytes]) -> None:
        self.codes: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.slowest = 0.0
        self._world = world
        self._requests = requests
        self._all = list(requests.values())

    async def send(self, number: int) -> None:
        chance = random.Random(f"{proving.SEED} {number}")
        method = METHODS[number % len(METHODS)]
        good = self._requests[method.name]
        message = mutated(good, chance.choice(self._all), chance)
        path = path_of(method)
        began = time.monotonic()
        code, reason = await self._call(path, message, streams=method.server_streaming)
        self.slowest = max(self.slowest, time.monotonic() - began)
        self.codes[code] += 1
        if code in ("UNKNOWN", "INTERNAL", "DEADLINE_EXCEEDED") or reason == "UNEXPECTED":
            self.wrong.append(f"{number} {method.name} {code} {reason}: {message[:80].hex()}")

    async def _call(self, path: str, message: bytes, *, streams: bool) -> tuple[str, str]:
        channel = self._world.channel
        try:
            if streams:
                stream: aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
                call = stream(message, timeout=_DEADLINE_SECONDS)
                try:
                    async with asyncio.timeout(_STREAM_SECONDS):
                        async for _ in call:
                            pass
                except TimeoutError:
                    call.cancel()
                return "OK", ""
            ask: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            await ask(message, timeout=_DEADLINE_SECONDS)
        except aio.AioRpcError as error:
            if not error.trailing_metadata():
                return error.code().name, "from gRPC itself"
            refused = Refused.of(error)
            return refused.code, refused.reason
        return "OK", ""


def _resident_megabytes(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * 4096 / 1e6


@pytest.mark.timeout(_LONG)
def test_any_bytes_get_an_answer_of_the_contract(system: System) -> None:
    async def run() -> None:
        async with system.worlds() as worlds:
            world = worlds[SURVIVOR]
            requests = await valid_requests(world)
            fuzzer = Fuzzer(
                world, {name: one.SerializeToString() for name, one in requests.items()}
            )
            pid = system.survivor.pid
            await at_most(_AT_ONCE, fuzzer.send, range(_WARM_UP))
            before = _resident_megabytes(pid)
            for first in range(_WARM_UP, _MESSAGES, 1_000):
                await at_most(_AT_ONCE, fuzzer.send, range(first, min(first + 1_000, _MESSAGES)))
                proving.progress(f"wire: {sum(fuzzer.codes.values())} of {_MESSAGES}")
            grown = _resident_megabytes(pid) - before
            assert (await world.raw("LedgerService/ListBalances", b"")).code == "OK"
        assert fuzzer.wrong == []
        assert sum(fuzzer.codes.values()) == _MESSAGES
        assert fuzzer.codes["INVALID_ARGUMENT"] > _MESSAGES / 4
        assert fuzzer.codes["OK"] > _MESSAGES / 100, "nothing came through the parser"
        assert grown <= _MEGABYTES
        proving.figure(
            "H",
            f"wire: {_MESSAGES} mutated messages to {len(METHODS)} RPCs: 0 UNKNOWN, 0 INTERNAL, "
            f"memory {grown:+.0f} MB, slowest {fuzzer.slowest:.1f} s",
        )

    asyncio.run(run())
