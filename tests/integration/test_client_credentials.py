"""The client's channels: tokens and certificates that follow their sources, over real sockets."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio

from marketplace.payments import _following, credentials
from marketplace.payments.channel import connect, connect_sync, is_loopback
from marketplace.payments.credentials import NoToken, Tls, Token, WrongCertificate
from payment_service.adapters.identity import files
from payment_service.config import Settings
from tests.support.access import METHOD, STREAM, ask, door
from tests.support.certificates import put
from tests.support.issuer import Signer, key_set, token_settings
from tests.support.site import GIG, USER, Site


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at with each call."""
    monkeypatch.setattr(files, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(credentials, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(_following, "_LOOK_SECONDS", 0.0)


@pytest.fixture
def signer() -> Signer:
    return Signer("one")


@pytest.fixture
def guarded(tmp_path: Path, signer: Signer) -> Settings:
    """The settings of a server that takes the signer's tokens."""
    put(tmp_path / "jwks.json", key_set(signer))
    return token_settings(tmp_path / "jwks.json")


def ask_sync(channel: grpc.Channel) -> list[Any]:
    method: Any = channel.unary_unary(METHOD)
    told = json.loads(method(b"", timeout=5))
    assert isinstance(told, list)
    return told


async def test_a_token_is_sent_with_calls_and_streams(
    guarded: Settings, signer: Signer, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    put(file, signer.token().encode() + b"\n")
    async with door(guarded, []) as address, connect(address, token=Token(file)) as channel:
        assert (await ask(channel))[0] == "gig-service"
        stream: Any = channel.unary_stream(STREAM)
        told = [json.loads(one)[0] async for one in stream(b"", timeout=5)]
        assert told == ["gig-service"] * 3
        put(file, signer.token(sub="user-service").encode())
        assert (await ask(channel))[0] == "user-service"
        # A token that is written half, or not at all, leaves the last one in use.
        put(file, b"")
        assert (await ask(channel))[0] == "user-service"
        file.unlink()
        assert (await ask(channel))[0] == "user-service"


async def test_threads_send_it_too(guarded: Settings, signer: Signer, tmp_path: Path) -> None:
    file = tmp_path / "token"
    put(file, signer.token().encode())

    def call(address: str) -> None:
        with connect_sync(address, token=Token(file)) as channel:
            assert ask_sync(channel)[0] == "gig-service"
            stream: Any = channel.unary_stream(STREAM)
            assert [json.loads(one)[0] for one in stream(b"", timeout=5)] == ["gig-service"] * 3
        with (
            connect_sync(address, token=Token(tmp_path / "absent")) as channel,
            pytest.raises(grpc.RpcError) as caught,
        ):
            ask_sync(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    async with door(guarded, []) as address:
        await asyncio.to_thread(call, address)


async def test_a_function_is_asked_before_the_token_expires(
    guarded: Settings, signer: Signer
) -> None:
    issued: list[str] = []

    def issue() -> str:
        now = int(time.time())
        issued.append(signer.token(iat=now - 1, exp=now + 3))
        return issued[-1]

    async with door(guarded, []) as address, connect(address, token=Token(issue)) as channel:
        ending, calls = time.monotonic() + 4.5, 0
        while time.monotonic() < ending:
            await asyncio.gather(*(ask(channel) for _ in range(5)))
            calls += 5
            await asyncio.sleep(0.05)
    assert 2 <= len(issued) <= 4
    assert calls > 100


def _failing(error: Exception) -> Callable[[], str]:
    def issue() -> str:
        raise error

    return issue


async def test_without_a_token_the_call_is_unavailable(guarded: Settings, tmp_path: Path) -> None:
    for source in (tmp_path / "absent", _failing(RuntimeError("secret of the issuer"))):
        async with door(guarded, []) as address, connect(address, token=Token(source)) as channel:
            with pytest.raises(aio.AioRpcError) as caught:
                await ask(channel)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            assert "secret" not in str(caught.value.details())


def test_a_failing_function_leaves_the_last_token_until_it_expires(signer: Signer) -> None:
    now = int(time.time())
    answers: list[str | Exception] = [signer.token(iat=now - 60, exp=now + 2), OSError("down")]

    def issue() -> str:
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    token = Token(issue)
    first = token.renewed()
    token._renew_at = 0.0  # as if the time had come
    assert token.at_hand() is None
    assert token.renewed() == first
    assert token.at_hand() == first
    token._renew_at = token._expires = 0.0
    with pytest.raises(NoToken):
        token.renewed()


def test_one_caller_renews_while_the_others_go_on(signer: Signer) -> None:
    asked = threading.Event()
    proceed = threading.Event()
    now = int(time.time())
    issued = [signer.token(iat=now - 60, exp=now + 60)]

    def issue() -> str:
        if asked.is_set():
            return issued[0]
        asked.set()
        proceed.wait(5)
        return issued[0]

    token = Token(issue)
    proceed.set()
    first = token.renewed()
    asked.clear()
    proceed.clear()
    token._renew_at = 0.0
    renewing = threading.Thread(target=token.renewed)
    renewing.start()
    assert asked.wait(5)
    assert token.at_hand() == first
    proceed.set()
    renewing.join(5)


@pytest.mark.parametrize(
    ("target", "local"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.8.8:1", True),
        ("localhost:50051", True),
        ("dns:///localhost:50051", True),
        ("[::1]:50051", True),
        ("ipv4:127.0.0.1:1,127.0.0.1:2", True),
        ("unix:/run/payments.sock", True),
        ("ipv4:127.0.0.1:1,10.0.0.1:2", False),
        ("10.0.0.5:50051", False),
        ("payments:50051", False),
        ("localhost.example.com:50051", False),
        ("127.0.0.1.example.com:50051", False),
        ("dns://127.0.0.1/payments:50051", False),
        ("0.0.0.0:50051", False),
    ],
)
def test_a_token_leaves_this_machine_only_encrypted(target: str, local: bool) -> None:
    assert is_loopback(target) is local
    if not local:
        with pytest.raises(ValueError, match="in plain text"):
            connect_sync(target, token=Token(lambda: "x"))
        connect_sync(target, token=Token(lambda: "x"), encrypted_by_mesh=True).close()


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def own_tls(site: Site, name: str) -> Tls:
    certificate, key = site.authority.write(site.directory, "client", name)
    return Tls(site.directory / "ca.pem", certificate, key)


async def test_a_new_certificate_is_used_without_a_failed_call(site: Site) -> None:
    async with (
        door(site.settings(), site.reports) as address,
        connect(address, tls=own_tls(site, GIG)) as channel,
    ):
        names: list[str] = []
        ending = asyncio.Event()

        async def keep_calling() -> None:
            while not ending.is_set():
                names.append((await ask(channel))[0])

        traffic = asyncio.create_task(keep_calling())
        for name in (USER, GIG, USER):
            await asyncio.sleep(0.1)
            certificate, key = site.authority.issue(name)
            put(site.directory / "client.pem", certificate)
            await asyncio.sleep(0.1)
            put(site.directory / "client-key.pem", key)
        await asyncio.sleep(0.3)
        ending.set()
        await traffic
    changes = [name for name, before in zip(names, ["", *names], strict=False) if name != before]
    assert changes == ["gig-service", "user-service"] * 2


async def test_threads_use_a_new_certificate_too(site: Site) -> None:
    def call(address: str) -> None:
        with connect_sync(address, tls=own_tls(site, GIG)) as channel:
            assert ask_sync(channel)[0] == "gig-service"
            own_tls(site, USER)
            assert ask_sync(channel)[0] == "user-service"

    async with door(site.settings(), site.reports) as address:
        await asyncio.to_thread(call, address)


async def test_a_token_over_tls(guarded: Settings, signer: Signer, site: Site) -> None:
    secured = guarded.model_copy(
        update={
            "grpc_tls_certificate_file": site.directory / "server.pem",
            "grpc_tls_key_file": site.directory / "server-key.pem",
        }
    )
    tls = Tls(site.directory / "ca.pem", server_name="localhost")
    async with (
        door(secured, []) as address,
        connect(address, tls=tls, token=Token(signer.token)) as channel,
    ):
        assert (await ask(channel))[0] == "gig-service"


async def test_a_service_of_another_name_gets_no_token(
    guarded: Settings, signer: Signer, site: Site
) -> None:
    secured = guarded.model_copy(
        update={
            "grpc_tls_certificate_file": site.directory / "server.pem",
            "grpc_tls_key_file": site.directory / "server-key.pem",
        }
    )
    tls = Tls(site.directory / "ca.pem", server_name="payments.internal")
    async with (
        door(secured, []) as address,
        connect(address, tls=tls, token=Token(signer.token)) as channel,
    ):
        with pytest.raises(aio.AioRpcError) as caught:
            await ask(channel)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_files_that_do_not_belong_together_are_refused(site: Site) -> None:
    tls = own_tls(site, GIG)
    assert tls.key is not None
    put(tls.key, site.authority.issue(GIG)[1])
    with pytest.raises(WrongCertificate, match=r"client-key\.pem"):
        connect_sync("127.0.0.1:1", tls=tls)
    with pytest.raises(ValueError, match="belong together"):
        Tls(site.directory / "ca.pem", tls.certificate)
