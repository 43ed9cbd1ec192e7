"""A console that other machines reach: https, one name, and a cookie for https alone."""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

import aiohttp
import pytest

from console.app import running
from console.settings import Settings
from sidecar.settings import RefusedSettings
from tests.console.conftest import Operator
from tests.support.certificates import Authority, put
from tests.support.issuer import Signer
from tests.support.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_tokens_come_by_https_under_one_name(
    shared: World, signer: Signer, tmp_path: Path
) -> None:
    authority = Authority()
    certificate, key = authority.write(tmp_path, "console", "dns:localhost", "ip:127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    settings = Settings(
        console_port=port,
        console_public_url=f"https://localhost:{port}",
        console_tls_certificate_file=certificate,
        console_tls_key_file=key,
        core_address=(shared.address,),
    )
    trusted = ssl.create_default_context(cadata=authority.pem.decode())
    async with (
        running(settings),
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusted)) as http,
    ):
        ann = Operator(f"https://localhost:{port}", http)
        token = signer.token(sub="ann", roles=["OPERATOR"])
        async with http.post(
            f"{ann.url}/sign-in",
            data={"token": token},
            headers={"Origin": ann.url},
            allow_redirects=False,
        ) as answer:
            said = answer.headers["Set-Cookie"]
        assert said.startswith("__Host-console=")
        assert "; Secure" in said
        page = await ann.get("/waiting")
        assert (page.status, "What waits for a person" in page.words) == (200, True)
        assert page.headers["Strict-Transport-Security"]
        for host in ("127.0.0.1", f"127.0.0.1:{port}", "localhost", "localhost:1"):
            assert (await ann.get("/waiting", Host=host)).status == 421, host
        plain = await ann.post("/sign-in", {"token": token}, Origin=f"http://localhost:{port}")
        assert plain.status == 403


async def test_a_certificate_without_its_key_is_refused_at_the_start(tmp_path: Path) -> None:
    certificate, _ = Authority().write(tmp_path, "console", "dns:localhost")
    put(tmp_path / "other.pem", b"no key")
    settings = Settings(
        console_port=0,
        console_tls_certificate_file=certificate,
        console_tls_key_file=tmp_path / "other.pem",
    )
    with pytest.raises(RefusedSettings, match="not a PEM certificate with its key"):
        async with running(settings):
            pass
