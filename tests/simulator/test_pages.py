"""The hosted pages, used as a browser without JavaScript would."""

from typing import Any

import pytest

from tests.simulator.conftest import World

INTENT: Any = {"description": "<b>Gig</b>"}


async def page(world: World, method: str, path: str, **form: str) -> tuple[int, str]:
    url = path if path.startswith("http") else world.url + path
    async with world.http.request(method, url, data=form or None) as answer:
        return answer.status, await answer.text()


async def test_pay_page_takes_a_test_card(world: World) -> None:
    intent = await world.intent(2_550, **INTENT)
    status, text = await page(world, "GET", f"/_pages/pay?client_secret={intent.client_secret}")
    assert status == 200
    assert "4242 4242 4242 4242" in text
    assert "$25.50" in text
    assert "&lt;b&gt;Gig&lt;/b&gt;" in text
    assert "<b>Gig" not in text
    assert "<script" not in text
    secret = str(intent.client_secret)
    _, text = await page(
        world, "POST", "/_pages/pay", client_secret=secret, number="4000 0000 0000 0002"
    )
    assert "Your card was declined." in text
    _, text = await page(world, "POST", "/_pages/pay", client_secret=secret, number="42")
    assert "card number is incorrect" in text
    _, text = await page(
        world, "POST", "/_pages/pay", client_secret=secret, number="4242424242424242"
    )
    assert "Authorized" in text
    found = await world.client.v1.payment_intents.retrieve_async(intent.id)
    assert found.status == "requires_capture"


@pytest.mark.parametrize(
    ("outcome", "says", "status"),
    [
        ("approve", "Authorized", "requires_capture"),
        ("fail", "failed authentication", "requires_payment_method"),
    ],
)
async def test_pay_page_with_3d_secure(world: World, outcome: str, says: str, status: str) -> None:
    intent = await world.intent()
    secret = str(intent.client_secret)
    _, text = await page(
        world, "POST", "/_pages/pay", client_secret=secret, number="4000002760003184"
    )
    assert "Complete authentication" in text
    challenge = f"/_pages/three_d_secure/{intent.id}?client_secret={secret}"
    # The browser is sent back to the pay page, which tells the outcome.
    code, text = await page(world, "POST", challenge, outcome=outcome)
    assert (code, says in text) == (200, True)
    found = await world.client.v1.payment_intents.retrieve_async(intent.id)
    assert found.status == status


async def test_other_pages(world: World) -> None:
    paid = await world.paid()
    charge = await world.client.v1.charges.retrieve_async(str(paid.latest_charge))
    status, text = await page(world, "GET", str(charge.receipt_url))
    assert (status, charge.id in text) == (200, True)
    status, text = await page(world, "GET", "/")
    assert (status, paid.id in text) == (200, True)
    for path in (
        "/_pages/pay?client_secret=nobody",
        "/_pages/three_d_secure/pi_none?client_secret=x",
        "/_pages/receipt/ch_none",
        "/_pages/express/none",
    ):
        assert (await page(world, "GET", path))[0] == 404
    wrong = f"/_pages/three_d_secure/{paid.id}?client_secret=x"
    assert (await page(world, "POST", wrong))[0] == 404


async def test_control_confirms_as_the_pay_page_does(world: World) -> None:
    intent = await world.intent()
    path = f"/payment_intents/{intent.id}/confirm"
    shown = await world.control("POST", path, {"payment_method": "pm_card_chargeDeclined"})
    assert shown["status"] == "requires_payment_method"
    shown = await world.control("POST", path, {})
    assert shown["status"] == "requires_capture"


async def test_the_stand_in_for_stripes_script(world: World) -> None:
    """A browser drives it in tests/examples; here is what every page gets."""
    async with world.http.get(f"{world.url}/_pages/stripe.js") as answer:
        assert answer.content_type == "text/javascript"
        assert "window.Stripe" in await answer.text()
    async with world.http.get(f"{world.url}/_pages/elements/payment") as answer:
        text, policy = await answer.text(), answer.headers["Content-Security-Policy"]
    assert "STRIPE SIMULATOR: test cards only" in text
    assert policy.startswith("default-src 'none'; script-src 'self'; connect-src 'self';")
    async with world.http.get(f"{world.url}/_pages/elements/payment.js") as answer:
        assert "payment_intents" in await answer.text()
