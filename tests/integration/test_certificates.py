"""TLS over real sockets: certificates that say who calls, and that change under traffic."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from grpc import aio
from grpc_health.v1 import health_pb2

from payment_service.access import authenticator_of, grpc_credentials
from payment_service.adapters.identity import files
from payment_service.adapters.identity.callers import parse_callers
from payment_service.adapters.identity.files import WrongFile
from payment_service.config import WrongSettings
from tests.support.access import OWN_CONNECTION, ask, door, refusal_of
from tests.support.certificates import SERVER, Authority, put
from tests.support.site import CALLERS, GIG, USER, Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(files, "_LOOK_SECONDS", 0.0)
    monkeypatch.setattr(files, "_PATIENCE_SECONDS", 0.0)
    return Site(tmp_path)


@contextlib.asynccontextmanager
async def calling(site: Site, address: str, *names: str, **how: Any) -> AsyncIterator[aio.Channel]:
    credentials = site.credentials(*names, **how)
    async with aio.secure_channel(address, credentials, OWN_CONNECTION) as channel:
        yield channel


async def refused(channel: aio.Channel) -> tuple[str, str, Any]:
    with pytest.raises(aio.AioRpcError) as caught:
        await ask(channel)
    return refusal_of(caught.value)


async def test_the_name_in_a_certificate_says_who_calls(site: Site) -> None:
    async with door(site.settings(), site.reports) as address:
        async with calling(site, address, GIG) as channel:
            assert await ask(channel) == ["gig-service", ["GIG_SERVICE"], ""]
            # A header cannot say anything else.
            assert await ask(channel, "Bearer abc") == ["gig-service", ["GIG_SERVICE"], ""]
        async with calling(site, address, USER, "dns:other.internal") as channel:
            assert await ask(channel) == ["user-service", ["USER_SERVICE"], "client-1"]


@pytest.mark.parametrize(
    "names",
    [
        ["spiffe://example.org/ns/shop/sa/stranger"],
        ["spiffe://example.org/ns/shop/sa/gig/"],
        # A DNS name that looks like the URI, and a URI that looks like the DNS name.
        [f"dns:{GIG}"],
        ["uri:users.internal"],
        # One certificate is not two callers.
        [GIG, USER],
    ],
)
async def test_a_name_that_nobody_has_is_refused(site: Site, names: list[str]) -> None:
    async with (
        door(site.settings(), site.reports) as address,
        calling(site, address, *names) as channel,
    ):
        code, reason, facts = await refused(channel)
        assert (code, reason, facts) == (
            "UNAUTHENTICATED",
            "UNAUTHENTICATED",
            {"fault": "identity"},
        )


async def test_no_call_comes_in_without_a_certificate_of_the_authority(site: Site) -> None:
    stranger = Authority("authority")
    async with door(site.settings(), site.reports) as address:
        for names, how in (
            ((), {}),
            ((GIG,), {"authority": stranger}),
            ((GIG,), {"days": -1}),
        ):
            async with calling(site, address, *names, **how) as channel:
                assert (await refused(channel))[0] == "UNAVAILABLE"
        async with aio.insecure_channel(address, OWN_CONNECTION) as channel:
            assert (await refused(channel))[0] == "UNAVAILABLE"
        async with calling(site, address, GIG) as channel:
            assert await ask(channel)


async def test_health_needs_a_certificate_and_no_name(site: Site) -> None:
    async with (
        door(site.settings(), site.reports) as address,
        calling(site, address, "dns:probe.internal") as channel,
    ):
        check: Any = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = await check(health_pb2.HealthCheckRequest(), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def served_serial(address: str, site: Site) -> int:
    """Returns the serial number of the certificate that a new connection sees."""
    host, _, port = address.rpartition(":")
    context = ssl.create_default_context(cadata=site.authority.pem.decode())
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        context.wrap_socket(plain) as secured,
    ):
        shown = secured.getpeercert()
        assert shown is not None
        return int(str(shown["serialNumber"]), 16)


async def test_certificates_are_rotated_under_traffic(site: Site) -> None:
    """Open connections go on, new ones get the new certificate, and no call fails."""
    settings = site.settings(grpc_tls_client_ca_file=None, auth="off", auth_callers_file=None)
    async with door(settings, site.reports) as address:
        calls, ending = 0, asyncio.Event()

        async def keep_calling(anew: bool) -> None:
            nonlocal calls
            while not ending.is_set():
                async with calling(site, address) as channel:
                    for _ in range(1 if anew else 20):
                        assert await ask(channel)
                        calls += 1

        traffic = [asyncio.create_task(keep_calling(anew)) for anew in (True, True, False)]
        serials = [await asyncio.to_thread(served_serial, address, site)]
        for _ in range(4):
            await asyncio.sleep(0.15)
            certificate, key = site.authority.issue(*SERVER)
            # Not at once, as by a copying script: in between the files do not belong together.
            put(site.directory / "server-key.pem", key)
            await asyncio.sleep(0.1)
            put(site.directory / "server.pem", certificate)
            serials.append(await asyncio.to_thread(served_serial, address, site))
        ending.set()
        await asyncio.gather(*traffic)
    assert len(set(serials)) == 5
    assert calls > 50


async def test_the_authority_of_callers_is_rotated(site: Site) -> None:
    old, new = site.authority, Authority("new")
    async with door(site.settings(), site.reports) as address:
        async with calling(site, address, GIG, authority=new) as channel:
            assert (await refused(channel))[0] == "UNAVAILABLE"
        put(site.directory / "ca.pem", old.pem + new.pem)
        for authority in (old, new):
            async with calling(site, address, GIG, authority=authority) as channel:
                assert await ask(channel)
        put(site.directory / "ca.pem", new.pem)
        async with calling(site, address, GIG, authority=new) as channel:
            assert await ask(channel)
        async with calling(site, address, GIG, authority=old) as channel:
            assert (await refused(channel))[0] == "UNAVAILABLE"


@pytest.mark.parametrize("wrong", ["another key", "rubbish", "nothing", "expired"])
async def test_wrong_files_do_not_replace_good_ones(site: Site, wrong: str) -> None:
    async with door(site.settings(), site.reports) as address:
        certificate, key = site.directory / "server.pem", site.directory / "server-key.pem"
        match wrong:
            case "another key":
                put(key, site.authority.issue(*SERVER)[1])
            case "rubbish":
                put(certificate, b"-----BEGIN CERTIFICATE-----\nrubbish")
            case "nothing":
                put(certificate, b"")
            case "expired":
                site.authority.write(site.directory, "server", *SERVER, days=-1)
        async with calling(site, address, GIG) as channel:
            assert await ask(channel)
    assert {source for source, _ in site.reports} == {"GRPC_TLS_CERTIFICATE_FILE"}
    assert "PRIVATE" not in str(site.reports)


async def test_callers_are_added_and_removed_without_a_restart(site: Site) -> None:
    async with (
        door(site.settings(), site.reports) as address,
        calling(site, address, GIG) as channel,
    ):
        assert await ask(channel)
        site.put_callers(CALLERS[1:])
        assert (await refused(channel))[2] == {"fault": "identity"}
        site.put_callers([{**CALLERS[0], "roles": ["FINANCE"]}])
        assert await ask(channel) == ["gig-service", ["FINANCE"], ""]
        site.put_callers([{**CALLERS[0], "roles": ["EMPEROR"]}])
        assert await ask(channel) == ["gig-service", ["FINANCE"], ""]
    assert site.reports[0][0] == "AUTH_CALLERS_FILE"
    assert "entry 1 has the unknown role 'EMPEROR'" in site.reports[0][1]


@pytest.mark.parametrize(
    ("entry", "fault"),
    [
        ({"identity": "gig.internal"}, "needs an identity"),
        ({"identity": "spiffe://example.org/*"}, "wildcard"),
        ({"identity": ""}, "needs an identity"),
        ({"name": ""}, "needs a name"),
        ({"name": "gig service"}, "needs a name"),
        ({"name": "local"}, "uses for others"),
        ({"roles": []}, "needs a list of roles"),
        ({"roles": "GIG_SERVICE"}, "needs a list of roles"),
        ({"roles": [["GIG_SERVICE"]]}, "unknown role"),
        ({"act_for": 5}, "act_for"),
        ({"role": "GIG_SERVICE"}, "unknown field 'role'"),
    ],
)
def test_each_entry_of_the_callers_is_checked(entry: dict[str, object], fault: str) -> None:
    content = json.dumps({"callers": [CALLERS[1], {**CALLERS[0], **entry}]}).encode()
    with pytest.raises(WrongFile, match=f"entry 2 .*{fault}"):
        parse_callers(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"callers": []}', b'{"callers": [1]}'])
def test_a_file_that_is_no_list_of_callers_is_refused(content: bytes) -> None:
    with pytest.raises(WrongFile):
        parse_callers(content)


def test_an_identity_belongs_to_one_caller() -> None:
    content = json.dumps({"callers": [CALLERS[0], {**CALLERS[0], "name": "other"}]}).encode()
    with pytest.raises(WrongFile, match="entry 2 has an identity that another entry has"):
        parse_callers(content)


def test_a_start_with_wrong_files_is_refused_with_the_fix(site: Site) -> None:
    settings = site.settings()
    put(site.directory / "server-key.pem", site.authority.issue(*SERVER)[1])
    with pytest.raises(WrongSettings, match=r"server-key\.pem is not the key of"):
        grpc_credentials(settings)
    (site.directory / "callers.json").unlink()
    with pytest.raises(WrongSettings, match=r"AUTH_CALLERS_FILE: .* cannot be read"):
        authenticator_of(settings)


def test_the_end_of_the_certificate_is_known(site: Site) -> None:
    ends: list[float] = []
    assert grpc_credentials(site.settings(), in_use=ends.append)
    assert ends[0] == pytest.approx(time.time() + 24 * 3600, abs=60)
