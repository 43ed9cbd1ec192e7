"""Tokens over real sockets: who is let in, who is not and why, and keys that change meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from base64 import urlsafe_b64encode
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest
from aiohttp import web
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from grpc import aio
from jwt.algorithms import OKPAlgorithm, RSAAlgorithm

from payment_service.access import authenticator_of
from payment_service.adapters.identity import jwks
from payment_service.adapters.identity.files import WrongFile
from payment_service.config import WrongSettings
from payment_service.domain.errors import Refusal
from tests.support.access import OWN_CONNECTION, ask, door, refusal_of
from tests.support.certificates import put
from tests.support.issuer import Signer, key_set, token_settings


@pytest.fixture
def keys_file(tmp_path: Path) -> Path:
    return tmp_path / "jwks.json"


@contextlib.asynccontextmanager
async def called(source: object, reports: list[tuple[str, str]]) -> AsyncIterator[aio.Channel]:
    async with (
        door(token_settings(source), reports) as address,
        aio.insecure_channel(address, OWN_CONNECTION) as channel,
    ):
        yield channel


async def refused(channel: aio.Channel, *authorization: str) -> tuple[str, str, Mapping[str, str]]:
    with pytest.raises(aio.AioRpcError) as caught:
        await ask(channel, *authorization)
    for header in authorization:
        if len(header) > 20:
            assert header[-20:] not in str(caught.value.details()), "the token is echoed"
    return refusal_of(caught.value)


@pytest.mark.parametrize("algorithm", ["EdDSA", "ES256", "RS256"])
async def test_a_signed_token_says_who_calls(keys_file: Path, algorithm: str) -> None:
    signer = Signer("one", algorithm)
    put(keys_file, key_set(signer))
    async with called(keys_file, []) as channel:
        token = signer.token(roles=["GIG_SERVICE", "A_ROLE_OF_TOMORROW"], act_for="client-1")
        for scheme in ("Bearer", "bearer"):
            told = await ask(channel, f"{scheme} {token}")
            assert told == ["gig-service", ["GIG_SERVICE"], "client-1"]


Forged = Callable[[Signer], str]


def _unsigned(signer: Signer) -> str:
    claims = signer.token().split(".")[1]
    header = urlsafe_b64encode(json.dumps({"alg": "none", "kid": "one"}).encode()).decode()
    return f"{header.rstrip('=')}.{claims}."


def _confused(signer: Signer) -> str:
    """Signs by HMAC with the public key as the secret, which every caller knows."""
    claims = signer.token().split(".")[1]
    header = urlsafe_b64encode(json.dumps({"alg": "HS256", "kid": "one"}).encode()).decode()
    signed = f"{header.rstrip('=')}.{claims}"
    secret = signer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hmac.new(secret, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{urlsafe_b64encode(digest).decode().rstrip('=')}"


def _tampered(signer: Signer) -> str:
    header, _, signature = signer.token().split(".")
    claims = signer.token(roles=["OPERATOR"]).split(".")[1]
    return f"{header}.{claims}.{signature}"


def _of_another_algorithm(signer: Signer) -> str:
    return Signer("one", "RS256").token()


def _at(signer: Signer, begins: int, ends: int, **more: Any) -> str:
    now = int(time.time())
    return signer.token(iat=now + begins, exp=now + ends, **more)


#: What is wrong with the token, how it is made, and the fault that the error must name.
FORGED: dict[str, tuple[Forged, str]] = {
    "expired": (lambda s: _at(s, -700, -100), "expired"),
    "of the future by iat": (lambda s: _at(s, 100, 700), "not_yet_valid"),
    "of the future by nbf": (lambda s: s.token(nbf=int(time.time()) + 100), "not_yet_valid"),
    "another audience": (lambda s: s.token(aud="billing"), "audience"),
    "another issuer": (lambda s: s.token(iss="https://evil.example.com"), "issuer"),
    "no exp": (lambda s: s.token(without=("exp",)), "claim"),
    "no iat": (lambda s: s.token(without=("iat",)), "claim"),
    "no aud": (lambda s: s.token(without=("aud",)), "claim"),
    "no iss": (lambda s: s.token(without=("iss",)), "claim"),
    "no sub": (lambda s: s.token(without=("sub",)), "claim"),
    "exp is a text": (lambda s: s.token(exp="never"), "claim"),
    "exp is not finite": (lambda s: s.token(exp=float("inf")), "claim"),
    "exp is true": (lambda s: s.token(exp=True), "expired"),
    "lives for ten years": (lambda s: _at(s, 0, 315_360_000), "lifetime"),
    "ends before it begins": (lambda s: _at(s, 5, 1), "lifetime"),
    "alg none": (_unsigned, "algorithm"),
    "HS256 with the public key": (_confused, "algorithm"),
    "a kid of another algorithm": (_of_another_algorithm, "algorithm"),
    "claims of another token": (_tampered, "signature"),
    "another key with the same kid": (lambda _: Signer("one").token(), "signature"),
    "an unknown kid": (lambda _: Signer("two").token(), "key"),
    "no kid": (lambda s: s.token(header={"kid": ""}), "key"),
    "jku": (lambda s: s.token(header={"jku": "https://evil.example.com/jwks"}), "header"),
    "x5u": (lambda s: s.token(header={"x5u": "https://evil.example.com/cert"}), "header"),
    "jwk": (lambda s: s.token(header={"jwk": Signer("one").public}), "header"),
    "crit": (lambda s: s.token(header={"crit": ["x"], "x": 1}), "malformed"),
    "typ": (lambda s: s.token(header={"typ": "secevent+jwt"}), "header"),
    "the name of nobody": (lambda s: s.token(sub="local"), "claim"),
    "the name of the service": (lambda s: s.token(sub="payment_service"), "claim"),
    "a name with a line break": (lambda s: s.token(sub="gig\nservice"), "claim"),
    "no roles": (lambda s: s.token(without=("roles",)), "claim"),
    "roles are a text": (lambda s: s.token(roles="OPERATOR"), "claim"),
    "unknown roles only": (lambda s: s.token(roles=["ADMIN"]), "claim"),
    "act_for is empty": (lambda s: s.token(act_for=""), "claim"),
    "act_for is a list": (lambda s: s.token(act_for=["client-1"]), "claim"),
    "no token at all": (lambda _: "abc", "malformed"),
    "rubbish": (lambda _: "a.b.c", "malformed"),
}


@pytest.mark.parametrize("name", FORGED)
async def test_a_wrong_token_is_refused_with_its_fault(keys_file: Path, name: str) -> None:
    signer = Signer("one")
    put(keys_file, key_set(signer))
    make, fault = FORGED[name]
    async with called(keys_file, []) as channel:
        told = await refused(channel, f"Bearer {make(signer)}")
    assert told == ("UNAUTHENTICATED", "UNAUTHENTICATED", {"fault": fault})


async def test_a_call_brings_exactly_one_token(keys_file: Path) -> None:
    signer = Signer("one")
    put(keys_file, key_set(signer))
    async with called(keys_file, []) as channel:
        good = f"Bearer {signer.token()}"
        faults = [
            (await refused(channel))[2],
            (await refused(channel, good, good))[2],
            (await refused(channel, f"Basic {signer.token()}"))[2],
            (await refused(channel, f"{good} {signer.token()}"))[2],
            (await refused(channel, f"Bearer {signer.token(padding='x' * 4000)}"))[2],
        ]
        assert [fault["fault"] for fault in faults] == [
            "missing",
            "several",
            "malformed",
            "malformed",
            "too_long",
        ]
        # What gRPC itself does not accept does not reach us, and does not harm the connection.
        with pytest.raises(aio.AioRpcError) as caught:
            await ask(channel, f"Bearer {signer.token(padding='x' * 12000)}")
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await ask(channel, good)


async def test_keys_are_rotated_under_traffic(keys_file: Path) -> None:
    """New key into the set, new tokens, old key out of the set: no call fails on the way."""
    old, new = Signer("old"), Signer("new", "ES256")
    put(keys_file, key_set(old))
    reports: list[tuple[str, str]] = []
    async with called(keys_file, reports) as channel:
        token, calls, ending = old.token(), 0, asyncio.Event()

        async def keep_calling() -> None:
            nonlocal calls
            while not ending.is_set():
                assert (await ask(channel, f"Bearer {token}"))[0] == "gig-service"
                calls += 1

        traffic = asyncio.create_task(keep_calling())
        for step in (key_set(new, old), None, key_set(new)):
            await asyncio.sleep(0.1)
            if step is None:
                token = new.token()
            else:
                put(keys_file, step)
        await asyncio.sleep(1.2)
        ending.set()
        await traffic
        assert calls > 20
        # The key that has left takes along the tokens that were accepted before.
        assert (await refused(channel, f"Bearer {old.token()}"))[2] == {"fault": "key"}
    assert reports == []


async def test_a_token_ends_with_its_key(keys_file: Path) -> None:
    old, new = Signer("old"), Signer("new")
    put(keys_file, key_set(old))
    async with called(keys_file, []) as channel:
        token = old.token()
        assert await ask(channel, f"Bearer {token}")
        put(keys_file, key_set(new))
        assert await ask(channel, f"Bearer {new.token()}")
        assert (await refused(channel, f"Bearer {token}"))[2] == {"fault": "key"}


async def test_a_remembered_token_ends_when_it_expires(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payment_service.adapters.identity.tokens.LEEWAY_SECONDS", 0)
    signer = Signer("one")
    put(keys_file, key_set(signer))
    async with called(keys_file, []) as channel:
        token = _at(signer, -10, 2)
        assert await ask(channel, f"Bearer {token}")
        await asyncio.sleep(2.1)
        assert (await refused(channel, f"Bearer {token}"))[2] == {"fault": "expired"}


async def test_a_wrong_file_changes_nothing_and_is_reported(
    keys_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("payment_service.adapters.identity.files._PATIENCE_SECONDS", 0.0)
    signer = Signer("one")
    put(keys_file, key_set(signer))
    reports: list[tuple[str, str]] = []
    async with called(keys_file, reports) as channel:
        for wrong in (b"{", b'{"keys": []}', key_set(signer, signer)):
            put(keys_file, wrong)
            assert (await refused(channel, f"Bearer {Signer('x').token()}"))[2] == {"fault": "key"}
            assert await ask(channel, f"Bearer {signer.token()}")
        keys_file.unlink()  # noqa: ASYNC240 - at once
        assert (await refused(channel, f"Bearer {Signer('x').token()}"))[2] == {"fault": "key"}
        assert await ask(channel, f"Bearer {signer.token()}")
    assert [source for source, _ in reports] == ["AUTH_JWKS"] * 4
    assert [word in fault for word, (_, fault) in zip(
        ("JSON", "no key", "two keys", "FileNotFoundError"), reports, strict=True
    )] == [True] * 4  # fmt: skip


def test_a_start_without_keys_is_refused_with_the_fix(keys_file: Path) -> None:
    with pytest.raises(WrongSettings, match=r"AUTH_JWKS: .*jwks\.json cannot be read"):
        authenticator_of(token_settings(keys_file))


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"[]", "not a JSON Web Key Set"),
        (b'{"keys": [5]}', "not a JSON Web Key Set"),
        (json.dumps({"keys": [{"kty": "oct", "kid": "a", "k": "c2VjcmV0"}]}).encode(), "private"),
        (json.dumps({"keys": [{"kty": "EC", "crv": "P-384", "kid": "a"}]}).encode(), "no key"),
        (
            json.dumps({"keys": [{"kty": "RSA", "kid": "a", "n": "AQAB", "e": "AQAB"}]}).encode(),
            "cannot be read",
        ),
        (b'{"keys": [{"kty": "RSA", "kid": "a", "n": 5, "e": []}]}', "cannot be read"),
        (b'{"keys": [{"kty": "EC", "crv": "P-256", "kid": "a", "x": 5}]}', "cannot be read"),
        (b'{"keys": [{"kty": ["EC"], "crv": {}, "kid": "a", "key_ops": 5}]}', "no key"),
        (b"[" * 100_000, "not JSON"),
    ],
)
def test_a_wrong_key_set_is_refused(content: bytes, fault: str) -> None:
    with pytest.raises(WrongFile, match=fault):
        jwks.parse_key_set(content)


def test_a_private_key_does_not_belong_into_a_set() -> None:
    signer = Signer("one")
    private = {**json.loads(OKPAlgorithm.to_jwk(signer.key)), "kid": "one"}
    with pytest.raises(WrongFile, match="private"):
        jwks.parse_key_set(json.dumps({"keys": [private]}).encode())


def test_a_short_rsa_key_is_refused() -> None:
    key = rsa.generate_private_key(65537, 1024)  # noqa: S505 - that is the point
    short = {**json.loads(RSAAlgorithm.to_jwk(key.public_key())), "kid": "one"}
    short.pop("key_ops", None)
    with pytest.raises(WrongFile, match="RSA key below 2048 bits"):
        jwks.parse_key_set(json.dumps({"keys": [short]}).encode())


def test_keys_for_other_uses_are_left_out() -> None:
    signer, other = Signer("one"), Signer("two")
    other.public["use"] = "enc"
    assert set(jwks.parse_key_set(key_set(signer, other))) == {"one"}


class Issuer:
    """An address with a key set that can be down, be wrong, and count who asks."""

    def __init__(self) -> None:
        self.content, self.status, self.asked = b"", 200, 0
        self.address = ""
        self._port = 0
        self._runner: web.AppRunner | None = None

    async def answer(self, request: web.Request) -> web.Response:
        self.asked += 1
        return web.Response(body=self.content, status=self.status)

    async def start(self) -> None:
        app = web.Application()
        app.router.add_get("/jwks.json", self.answer)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self._port)
        await site.start()
        self._port = self._runner.addresses[0][1]
        self.address = f"http://127.0.0.1:{self._port}/jwks.json"

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()


@pytest.fixture
async def issuer() -> AsyncIterator[Issuer]:
    made = Issuer()
    await made.start()
    yield made
    await made.stop()


async def test_an_unknown_key_is_fetched_at_a_bounded_rate(issuer: Issuer) -> None:
    first, second = Signer("first"), Signer("second")
    issuer.content = key_set(first)
    async with called(issuer.address, []) as channel:
        assert await ask(channel, f"Bearer {first.token()}")
        issuer.content = key_set(first, second)
        # All who wait share one request.
        tokens = [second.token(n=n) for n in range(20)]
        assert await asyncio.gather(*(ask(channel, f"Bearer {token}") for token in tokens))
        assert issuer.asked == 2
        for number in range(30):
            token = Signer(f"invented-{number}").token()
            assert (await refused(channel, f"Bearer {token}"))[2] == {"fault": "key"}
        assert issuer.asked <= 4
        assert await ask(channel, f"Bearer {first.token()}")


async def test_the_last_keys_serve_while_their_address_is_down(issuer: Issuer) -> None:
    known, unknown = Signer("known"), Signer("unknown")
    issuer.content = key_set(known)
    reports: list[tuple[str, str]] = []
    async with called(issuer.address, reports) as channel:
        assert await ask(channel, f"Bearer {known.token()}")
        await issuer.stop()
        # Nobody can say whether this key is new or invented: the caller may try again.
        code, reason, _ = await refused(channel, f"Bearer {unknown.token()}")
        assert (code, reason) == ("UNAVAILABLE", "AUTHENTICATION_UNAVAILABLE")
        assert await ask(channel, f"Bearer {known.token()}")
        assert [source for source, _ in reports] == ["AUTH_JWKS"]
        await issuer.start()
        issuer.content = key_set(known, unknown)
        assert await ask(channel, f"Bearer {unknown.token()}")


@pytest.mark.parametrize("fault", ["down", "500", "not JSON", "redirect", "huge"])
async def test_an_address_without_keys_at_the_start_lets_nobody_in(
    issuer: Issuer, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jwks, "_FIRST_PAUSE", 0.05)
    signer = Signer("one")
    issuer.content = key_set(signer)
    match fault:
        case "down":
            await issuer.stop()
        case "500" | "redirect":
            issuer.status = 500 if fault == "500" else 302
        case "not JSON":
            issuer.content = b"<html>"
        case "huge":
            issuer.content = b" " * 300_000 + issuer.content
    authenticator = authenticator_of(token_settings(issuer.address))
    metadata = [("authorization", f"Bearer {signer.token()}")]
    assert not await authenticator.ready()
    with pytest.raises(Refusal) as caught:
        await authenticator.authenticate(metadata, {})
    assert caught.value.reason == "AUTHENTICATION_UNAVAILABLE"
    # It is asked for its health every second, and so comes up by itself.
    issuer.content, issuer.status = key_set(signer), 200
    if fault == "down":
        await issuer.start()
    await asyncio.sleep(0.1)
    assert await authenticator.ready()
    assert (await authenticator.authenticate(metadata, {})).name == "gig-service"


async def test_a_known_token_costs_little(keys_file: Path) -> None:
    signer = Signer("one", "RS256")
    put(keys_file, key_set(signer))
    authenticator = authenticator_of(token_settings(keys_file))
    metadata = [("user-agent", "x"), ("authorization", f"Bearer {signer.token()}")]
    await authenticator.authenticate(metadata, {})
    began = time.perf_counter()
    for _ in range(1000):
        await authenticator.authenticate(metadata, {})
    # About five microseconds each; the bound is wide because machines are busy.
    assert time.perf_counter() - began < 0.5
