"""The gateway's credentials for the core: checked at the start, and followed when they change."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gateway.core_channel import open_core_channel
from gateway.settings import Settings, load_settings
from marketplace.payments import credentials
from sidecar.settings import RefusedSettings
from tests.support.access import ask, door
from tests.support.certificates import put
from tests.support.issuer import Signer, key_set, token_settings
from tests.support.site import USER, Site


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setattr(credentials, "_LOOK_SECONDS", 0.0)
    return Site(tmp_path)


def gateway(address: str, **given: Any) -> Settings:
    return Settings(core_address=(address,), **given)


async def test_the_gateway_shows_its_token_over_tls(site: Site) -> None:
    signer = Signer("one")
    keys, token = site.directory / "jwks.json", site.directory / "token"
    put(keys, key_set(signer))
    secured = token_settings(
        keys,
        grpc_tls_certificate_file=site.directory / "server.pem",
        grpc_tls_key_file=site.directory / "server-key.pem",
    )
    async with door(secured, []) as address:
        settings = gateway(
            address, core_token_file=token, core_tls_ca_file=site.directory / "ca.pem"
        )
        channel = open_core_channel(settings)
        put(token, signer.token(sub="gateway", roles=["GATEWAY"]).encode())
        assert await ask(channel) == ["gateway", ["GATEWAY"], ""]
        put(token, signer.token(sub="gateway-2", roles=["GATEWAY"]).encode())
        assert await ask(channel) == ["gateway-2", ["GATEWAY"], ""]
        await channel.close()


async def test_the_gateway_shows_its_certificate(site: Site) -> None:
    certificate, key = site.authority.write(site.directory, "gateway", USER)
    async with door(site.settings(), site.reports) as address:
        settings = gateway(
            address,
            core_tls_ca_file=site.directory / "ca.pem",
            core_tls_certificate_file=certificate,
            core_tls_key_file=key,
        )
        channel = open_core_channel(settings)
        assert (await ask(channel))[0] == "user-service"
        await channel.close()


@pytest.mark.parametrize(
    ("environment", "fix"),
    [
        ({"CORE_TOKEN_FILE": "/t", "CORE_ADDRESS": "payments:50051"}, "set CORE_TLS_CA_FILE, or"),
        ({"CORE_TLS_CA_FILE": "/a", "CORE_TLS_KEY_FILE": "/k"}, "belong together"),
        ({"CORE_TLS_CERTIFICATE_FILE": "/c", "CORE_TLS_KEY_FILE": "/k"}, "needs CORE_TLS_CA_FILE"),
        ({"CORE_TLS_SERVER_NAME": "payments"}, "needs CORE_TLS_CA_FILE"),
        ({"CORE_TLS_CA_FILE": "/a", "CORE_TLS_BY_MESH": "true"}, "exclude each other"),
        ({"CORE_TLS_SERVER_NAME": "a b"}, "the name in the core's certificate"),
    ],
)
def test_a_contradiction_is_refused_with_the_fix(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], fix: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RefusedSettings, match=fix):
        load_settings()


def test_a_token_may_go_through_a_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_TOKEN_FILE", "/t")
    monkeypatch.setenv("CORE_ADDRESS", "payments:50051")
    monkeypatch.setenv("CORE_TLS_BY_MESH", "true")
    assert load_settings().core_tls_by_mesh


@pytest.mark.parametrize("content", [None, b"rubbish"])
def test_a_start_with_a_wrong_file_is_refused_with_one_sentence(
    tmp_path: Path, content: bytes | None
) -> None:
    authority = tmp_path / "ca.pem"
    if content is not None:
        put(authority, content)
    done = subprocess.run(
        [sys.executable, "-m", "gateway"],
        env={**os.environ, "GATEWAY_PORT": "0", "CORE_TLS_CA_FILE": str(authority)},
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("gateway: CORE_TLS_CA_FILE")
    assert str(authority) in done.stderr
    assert "Traceback" not in done.stderr
