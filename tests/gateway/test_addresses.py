"""From which address a webhook comes, and that only Stripe's may, if the operator says so."""

from pathlib import Path

import aiohttp
import pytest

from gateway.addresses import client_address, parse_network
from gateway.settings import Settings, load_settings
from sidecar.settings import RefusedSettings
from tests.gateway.conftest import StartGateway
from tests.gateway.fake_core import FakeCore, event, sign

PATH = "/api/v1/webhooks/stripe"
PROXIES = frozenset(
    network
    for text in ("10.0.0.0/24", "2001:db8:1::/48")
    if (network := parse_network(text)) is not None
)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        # A stranger's words count for nothing.
        ("192.0.2.1", ["198.51.100.1"], "192.0.2.1"),
        ("192.0.2.1", ["198.51.100.1, 10.0.0.1"], "192.0.2.1"),
        # The proxy's word counts, and what stands left of it does not.
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.1, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.1", "192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["198.51.100.1, 10.0.0.9, 192.0.2.1"], "192.0.2.1"),
        # Two proxies, of which both are ours.
        ("10.0.0.1", ["198.51.100.1, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1, 10.0.0.2", "2001:db8:1::5"], "192.0.2.1"),
        # A call from within.
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2"], "10.0.0.2"),
        # What a proxy cannot have written.
        ("10.0.0.1", [""], None),
        ("10.0.0.1", ["192.0.2.1, unknown"], None),
        ("10.0.0.1", ["192.0.2.1,"], None),
        ("10.0.0.1", ["192.0.2.1, fe80::1%eth0"], None),
        ("10.0.0.1", ["192.0.2.01"], None),
        ("10.0.0.1", ["3221225985"], None),
        ("10.0.0.1", ["192.0.2.1:x"], None),
        ("10.0.0.1", ["[192.0.2.1"], None),
        ("10.0.0.1", ["192.0.2.1 198.51.100.1"], None),
        ("", ["192.0.2.1"], None),
        # Spellings.
        ("10.0.0.1", [" 192.0.2.1:4711 "], "192.0.2.1"),
        ("10.0.0.1", ["[2001:db8:2::1]:4711"], "2001:db8:2::1"),
        ("10.0.0.1", ["2001:db8:2::1"], "2001:db8:2::1"),
        ("::ffff:10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1"),
    ],
)
def test_the_client_is_the_nearest_who_is_no_proxy_of_ours(
    peer: str, forwarded: list[str], client: str | None
) -> None:
    found = client_address(peer, forwarded, PROXIES)
    assert (None if found is None else str(found)) == client


async def deliver(
    browser: aiohttp.ClientSession, gateway: str, *forwarded: str, body: bytes | None = None
) -> tuple[int, str]:
    payload = event() if body is None else body
    headers = [("Stripe-Signature", sign(event()))]
    headers += [("X-Forwarded-For", line) for line in forwarded]
    async with browser.post(gateway + PATH, data=payload, headers=headers) as response:
        return response.status, await response.text()


async def test_by_default_any_address_may_deliver(
    gateway: str, browser: aiohttp.ClientSession
) -> None:
    assert (await deliver(browser, gateway, "198.51.100.1"))[0] == 200


async def test_only_the_listed_addresses_may_deliver(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(
        gateway_stripe_addresses="192.0.2.7,198.51.100.0/28", gateway_trusted_proxies="127.0.0.1"
    )
    forged = await deliver(browser, gateway, "192.0.2.7", body=b"another")
    assert forged[0] == 400
    assert core.calls == ["IngestEvent"]
    for forwarded in (
        [],
        ["192.0.2.8"],
        ["198.51.100.16"],
        ["192.0.2.7, 203.0.113.1"],
        ["192.0.2.7", "203.0.113.1"],
        ["nonsense"],
    ):
        # The very answer to a wrong signature.
        assert await deliver(browser, gateway, *forwarded) == forged, forwarded
    assert core.calls == ["IngestEvent"]
    for forwarded in (["192.0.2.7"], ["198.51.100.15"], ["203.0.113.1, 192.0.2.7"]):
        assert (await deliver(browser, gateway, *forwarded))[0] == 200, forwarded
    async with browser.get(f"{gateway}/live") as response:
        assert response.status == 200


async def test_nobody_is_believed_without_trusted_proxies(
    core: FakeCore, start_gateway: StartGateway, browser: aiohttp.ClientSession
) -> None:
    gateway = await start_gateway(gateway_stripe_addresses="192.0.2.7")
    assert (await deliver(browser, gateway, "192.0.2.7"))[0] == 400
    assert core.calls == []
    here = await start_gateway(gateway_stripe_addresses="127.0.0.1")
    assert (await deliver(browser, here, "192.0.2.7"))[0] == 200


async def test_refused_addresses_are_counted_and_logged_without_the_body(
    start_gateway: StartGateway,
    browser: aiohttp.ClientSession,
    capsys: pytest.CaptureFixture[str],
    unused_port: int,
) -> None:
    gateway = await start_gateway(
        gateway_stripe_addresses="192.0.2.7",
        gateway_trusted_proxies="127.0.0.0/8",
        gateway_metrics_port=unused_port,
    )
    await deliver(browser, gateway, "203.0.113.9", body=b"canary")
    async with browser.get(f"http://127.0.0.1:{unused_port}/metrics") as response:
        metrics = await response.text()
    counted = 'gateway_webhooks_total{endpoint="platform",outcome="address_refused"} 1.0'
    assert counted in metrics
    written = "".join(capsys.readouterr())
    assert "client_address=203.0.113.9" in written
    assert "outcome=address_refused" in written
    assert "canary" not in written


async def test_the_list_can_be_a_file(
    start_gateway: StartGateway, browser: aiohttp.ClientSession, tmp_path: Path
) -> None:
    file = tmp_path / "ips_webhooks.txt"
    file.write_text("192.0.2.7\n\n127.0.0.1\r\n")
    gateway = await start_gateway(gateway_stripe_addresses_file=file)
    assert (await deliver(browser, gateway))[0] == 200


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (None, "cannot be read"),
        ("", "is empty"),
        ("192.0.2.7\ncanary\n", "no IP address or range as entry 2"),
        ("192.0.2.7/24\n", "entry 1"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str | None, fault: str) -> None:
    file = tmp_path / "ips_webhooks.txt"
    if text is not None:
        file.write_text(text)
    with pytest.raises(RefusedSettings, match=fault) as refused:
        Settings(gateway_stripe_addresses_file=file).stripe_networks()
    assert "canary" not in str(refused.value)


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"GATEWAY_STRIPE_ADDRESSES": "stripe.com"}, "it must be IP addresses"),
        ({"GATEWAY_STRIPE_ADDRESSES": "192.0.2.7/24"}, "it must be IP addresses"),
        ({"GATEWAY_TRUSTED_PROXIES": "*"}, "it must be IP addresses"),
        ({"GATEWAY_TRUSTED_PROXIES": "10.0.0.1,0.0.0.0/0"}, "is every address"),
        ({"GATEWAY_TRUSTED_PROXIES": "::/0"}, "is every address"),
        (
            {"GATEWAY_STRIPE_ADDRESSES": "192.0.2.7", "GATEWAY_STRIPE_ADDRESSES_FILE": "/x"},
            "say the same: set one",
        ),
        ({"GATEWAY_STRIPE_ADDRESSES_FILE": "/nowhere/x"}, "cannot be read"),
    ],
)
def test_wrong_settings_are_refused(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, str], fault: str
) -> None:
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(RefusedSettings, match=fault):
        load_settings()
