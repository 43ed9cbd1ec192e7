"""Webhooks that nobody at Stripe has sent: forged, expired, from the future, mutated."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import hmac
import json
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

import aiohttp
import pytest

from payment_service.application.side_by_side import at_most
from tests.reliability import proving
from tests.reliability.system import System
from tests.support.service import CONNECT_SECRET, PLATFORM_SECRET

_FORGERIES = proving.by_profile(400, 20_000)
_LONG = proving.by_profile(240, 3600)

_PLATFORM: Final = ""
_CONNECT: Final = "/connect"


@dataclass(frozen=True)
class Delivery:
    """What is sent, and to which of the two addresses."""

    body: bytes
    signatures: tuple[str, ...] = ()
    more: tuple[tuple[str, str], ...] = ()
    path: str = _PLATFORM

    @property
    def headers(self) -> list[tuple[str, str]]:
        return [("Stripe-Signature", one) for one in self.signatures] + list(self.more)


def _event(number: int, **changes: object) -> bytes:
    event = {
        "id": f"evt_forged{number}",
        "object": "event",
        "type": "payment_intent.succeeded",
        "created": int(time.time()),
        "livemode": False,
        "data": {"object": {"id": f"pi_forged{number}", "object": "payment_intent", "name": "Zoë"}},
    }
    return json.dumps({**event, **changes}).encode()


def _hex(body: bytes, moment: int, secret: str = PLATFORM_SECRET) -> str:
    return hmac.new(secret.encode(), b"%d." % moment + body, hashlib.sha256).hexdigest()


def _signed(body: bytes, secret: str = PLATFORM_SECRET, age: float = 0) -> str:
    """The header for bytes that need not be text."""
    moment = int(time.time() - age)
    return f"t={moment},v1={_hex(body, moment, secret)}"


def _mutated(body: bytes, chance: random.Random) -> bytes:
    at = chance.randrange(len(body))
    return body[:at] + bytes([body[at] ^ (1 << chance.randrange(7))]) + body[at + 1 :]


def _wrong_secrets(body: bytes, chance: random.Random) -> Iterator[tuple[str, Delivery]]:
    def by_forger(forged: bytes) -> Delivery:
        return Delivery(forged, (_signed(forged, f"whsec_{chance.random()}"),))

    yield "wrong secret", by_forger(body)
    yield "no JSON", by_forger(b"{" * 9)
    yield "deep JSON", by_forger(b"[" * 50_000)
    yield "empty", by_forger(b"")
    yield "empty secret", Delivery(body, (_signed(body, ""),))
    yield "the connect secret", Delivery(body, (_signed(body, CONNECT_SECRET),))
    yield "the platform secret", Delivery(body, (_signed(body),), path=_CONNECT)
    yield "secret in another case", Delivery(body, (_signed(body, PLATFORM_SECRET.upper()),))
    wrong = ",".join(f"v1={chance.randbytes(32).hex()}" for _ in range(12))
    several = f"{_signed(body, 'whsec_a')},{wrong}"
    yield "several wrong v1", Delivery(body, (several,))
    yield "a hundred v1", Delivery(body, (_signed(body, "x") + ",v1=00" * 100,))


def _wrong_times(body: bytes, chance: random.Random) -> Iterator[tuple[str, Delivery]]:
    moment = int(time.time())
    right = _hex(body, moment)
    for name, age in (
        ("expired", chance.randrange(302, 10**6)),
        ("from the future", -chance.randrange(63, 10**6)),
        ("minutes ahead", -chance.randrange(63, 600)),
        ("from the far future", -(10**11)),
    ):
        yield name, Delivery(body, (_signed(body, age=age),))
    for name, header in (
        ("time exchanged", f"t={moment - 1},v1={right}"),
        ("time respelled", f"t=0{moment},v1={right}"),
        ("time with a plus", f"t=+{moment},v1={right}"),
        ("time with a point", f"t={moment}.0,v1={right}"),
        ("time with a grouping", f"t={moment // 1000}_{moment % 1000:03d},v1={right}"),
        ("negative time", f"t=-{moment},v1={right}"),
        ("two times", f"t=1,t={moment},v1={right}"),
        ("the same time twice", f"t={moment},t={moment},v1={right}"),
        ("no time", f"v1={right}"),
        ("empty time", f"t=,v1={right}"),
    ):
        yield name, Delivery(body, (header,))


def _wrong_spellings(body: bytes, chance: random.Random) -> Iterator[tuple[str, Delivery]]:
    """Of a signature that would be right."""
    moment = int(time.time())
    right = _hex(body, moment)
    cut = chance.randrange(1, 64)
    for name, header in (
        ("empty signature", ""),
        ("v0 alone", f"t={moment},v0={right}"),
        ("v2 alone", f"t={moment},v2={right}"),
        ("V1 in upper case", f"t={moment},V1={right}"),
        ("T in upper case", f"T={moment},v1={right}"),
        ("hex in upper case", f"t={moment},v1={right.upper()}"),
        ("spaces at the equals sign", f"t = {moment}, v1 = {right}"),
        ("a space in the value", f"t={moment},v1= {right}"),
        ("a tab in the value", f"t={moment},v1=\t{right}"),
        ("semicolons", f"t={moment};v1={right}"),
        ("quoted", f't="{moment}",v1="{right}"'),
        ("with 0x", f"t={moment},v1=0x{right}"),
        ("cut off", f"t={moment},v1={right[:cut]}"),
        ("longer", f"t={moment},v1={right}{right[:cut]}"),
        ("empty v1", f"t={moment},v1="),
        ("not ASCII", f"t={moment},v1={right}\xe9"),
        ("beyond the bound", f"t={moment},v1={right}" + ",v0=a" * 1_000),
    ):
        yield name, Delivery(body, (header,))
    signed = _signed(body)
    yield "no signature", Delivery(body)
    yield "two headers", Delivery(body, (signed, signed))
    yield "a wrong header before", Delivery(body, ("t=1,v1=00", signed))
    yield "a wrong header behind", Delivery(body, (signed, "t=1,v1=00"))
    yield "under another name", Delivery(body, more=(("X-Stripe-Signature", signed),))
    yield "as authorization", Delivery(body, more=(("Authorization", signed),))


def _wrong_bodies(body: bytes, chance: random.Random) -> Iterator[tuple[str, Delivery]]:
    """Beside the signature of the right one."""
    signed = _signed(body)
    event = json.loads(body)
    for name, changed in (
        ("mutated", _mutated(body, chance)),
        ("truncated", body[: chance.randrange(len(body))]),
        ("one byte short", body[:-1]),
        ("a line behind", body + b"\n"),
        ("a NUL behind", body + b"\0"),
        ("a space before", b" " + body),
        ("a byte order mark before", b"\xef\xbb\xbf" + body),
        ("re-encoded without spaces", json.dumps(event, separators=(",", ":")).encode()),
        ("re-encoded with other escapes", json.dumps(event, ensure_ascii=False).encode()),
        ("re-encoded in another order", json.dumps(dict(reversed(event.items()))).encode()),
        ("re-encoded as UTF-16", body.decode().encode("utf-16")),
        ("twice", body + body),
        ("another id", _event(chance.randrange(10**6, 10**7))),
    ):
        yield name, Delivery(changed, (signed,))
    packed = gzip.compress(body)
    encoding = (("Content-Encoding", "gzip"),)
    yield "compressed", Delivery(packed, (signed,), encoding)
    yield "compressed and signed", Delivery(packed, (_signed(packed),), encoding)


_FAMILIES: Final[tuple[Callable[[bytes, random.Random], Iterator[tuple[str, Delivery]]], ...]] = (
    _wrong_secrets,
    _wrong_times,
    _wrong_spellings,
    _wrong_bodies,
)


def _forgery(number: int, chance: random.Random) -> tuple[str, Delivery]:
    """A delivery that must not be taken, and what is wrong with it."""
    body = _event(number)
    kinds = [kind for family in _FAMILIES for kind in family(body, chance)]
    return kinds[number % len(kinds)]


@pytest.mark.timeout(_LONG)
def test_no_forged_delivery_is_taken(system: System) -> None:
    async def run() -> None:
        chance = random.Random(proving.SEED + 3)
        statuses: Counter[tuple[str, int]] = Counter()
        async with system.worlds() as worlds, aiohttp.ClientSession() as http:
            world = worlds[0]
            url = f"{world.gateway_url}/api/v1/webhooks/stripe"

            async def one(number: int) -> None:
                name, sent = _forgery(number, chance)
                async with http.post(
                    url + sent.path, data=sent.body, headers=sent.headers
                ) as answer:
                    statuses[name, answer.status] += 1

            for first in range(0, _FORGERIES, 1_000):
                await at_most(16, one, range(first, min(first + 1_000, _FORGERIES)))
                proving.progress(f"forgeries: {sum(statuses.values())} of {_FORGERIES}")
            taken = world.sql(
                "SELECT event_id FROM webhook_events WHERE event_id LIKE 'evt_forged%%'"
            )
            good = _event(10**9, type="some.event")
            # As many as a rolled secret leaves, and the header's own whitespace.
            for header in (_signed(good), f"{_signed(good)}, v1=00", _signed(good, age=-30)):
                async with http.post(
                    url, data=good, headers={"Stripe-Signature": header}
                ) as answer:
                    assert answer.status == 200, "not even the good one is taken"
        assert not taken
        assert {status for _, status in statuses} <= {400, 413, 415}, statuses
        assert sum(statuses.values()) == _FORGERIES
        kinds = len({name for name, _ in statuses})
        proving.figure(
            "G", f"forged: {_FORGERIES} deliveries of {kinds} kinds: 0 accepted, 0 answered 5xx"
        )

    asyncio.run(run())
