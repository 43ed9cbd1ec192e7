"""The checkout page in a real browser, with the simulator's stand-in for Stripe.js."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from dev.ports import first_free_port
from dev.settings import ROOT
from marketplace.payments.v1 import payments_pb2
from tests.acceptance.browser import look, post
from tests.acceptance.conftest import new_name
from tests.examples.conftest import Program, Town
from tests.support.chromium import needs_chromium, open_chromium

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
support_ui = pytest.importorskip("selenium.webdriver.support.ui")
exceptions = pytest.importorskip("selenium.common.exceptions")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    needs_chromium,
]
VISA, DECLINED, SECURE = "4242424242424242", "4000000000000002", "4000002760003184"
PAID = "Paid. Your money is held until the gig is done."


class Client:
    """A client of the platform, at a browser."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url
        self.gig = new_name("gig")

    def open(self) -> None:
        self.driver.get(f"{self.url}/gigs/{self.gig}")
        self.wait_for_button()

    def wait_for_button(self) -> None:
        self.wait(lambda: self.one("#pay").is_displayed() and self.one("#pay").is_enabled())

    def pay(self, number: str, expiry: str = "12/34") -> None:
        self.driver.switch_to.frame(self.one("iframe"))
        for field, entered in (("number", number), ("expiry", expiry), ("cvc", "123")):
            self.one(f"#{field}").clear()
            self.one(f"#{field}").send_keys(entered)
        self.driver.switch_to.default_content()
        self.one("#pay").click()

    def wait_for(self, words: str) -> None:
        self.wait(lambda: words in self.one("body").text)

    def wait(self, true: Any) -> None:
        ignored = (Exception,)  # a page that is left has no elements
        support_ui.WebDriverWait(self.driver, 60, ignored_exceptions=ignored).until(
            lambda _: true()
        )

    def one(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def faults(self) -> list[str]:
        """What the browser complains of: a script that fails, a rule of the policy, a lost file."""
        entries = self.driver.get_log("browser")
        # It logs by itself that a declined card is answered by 402, and that there is no icon.
        expected = ("status of 402", "/favicon.ico")
        said = [one["message"] for one in entries]
        return [words for words in said if not any(part in words for part in expected)]


@pytest.fixture(scope="module")
def server(town: Town, expert: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = first_free_port(1)
    program: Program = town.start(
        "gig-service",
        [sys.executable, "-m", "examples.checkout.server"],
        ROOT,
        PORT=str(port),
        CHECKOUT_EXPERT=expert,
        DATABASE=str(tmp_path_factory.mktemp("checkout") / "gigs.sqlite"),
        STRIPE_JS=f"{town.world.stack.simulator_url}/_pages/stripe.js",
        PYTHONUNBUFFERED="1",
    )
    url = f"http://127.0.0.1:{port}"
    try:
        program.wait_for("Running on")
        yield url
    finally:
        program.end()
    said = "\n".join(program.lines)
    assert "_secret_" not in said
    assert VISA not in said


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    opened = open_chromium(
        "--no-proxy-server", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    )
    try:
        yield opened
    finally:
        opened.quit()


@pytest.fixture
def client(driver: Any, server: str) -> Client:
    driver.get_log("browser")
    return Client(driver, server)


def state_of(town: Town, client: Client) -> str:
    """Returns the state of the gig's payment, as the service says it."""
    asked = payments_pb2.ListPaymentsRequest(user_id="bob", gig_id=client.gig)
    [payment] = town.world.payments.ListPayments(asked).payments
    return payments_pb2.PaymentState.Name(payment.state).removeprefix("PAYMENT_STATE_")


def test_a_client_pays_after_a_card_that_was_declined(town: Town, client: Client) -> None:
    client.open()
    client.pay("")
    client.wait_for("Your card number is incomplete.")
    client.pay(DECLINED)
    client.wait_for("Your card was declined.")
    client.wait_for_button()
    # The fields belong to the frame of another origin: the page has none, and cannot look inside.
    reach = "return [document.querySelectorAll('input').length, frames[0].frameElement]"
    with pytest.raises(Exception, match="cross-origin"):
        client.driver.execute_script(reach)
    assert client.driver.execute_script("return document.querySelectorAll('input').length") == 0
    client.pay(VISA)
    client.wait_for(PAID)
    assert "secret" not in client.driver.current_url
    assert client.faults() == []
    assert state_of(town, client) == "IN_ESCROW"
    # The page opened again offers no second payment.
    client.driver.get(f"{client.url}/gigs/{client.gig}")
    client.wait_for(PAID)
    assert not client.one("#form").is_displayed()


@pytest.mark.parametrize("passes", [True, False])
def test_a_bank_asks_its_customer(town: Town, client: Client, passes: bool) -> None:
    client.open()
    client.pay(SECURE)
    client.wait_for("Your bank asks")
    client.one(f"button[value={'approve' if passes else 'fail'}]").click()
    if passes:
        client.wait_for(PAID)
        assert state_of(town, client) == "IN_ESCROW"
    else:
        client.wait_for("Please try another card.")
        client.wait_for_button()
        assert state_of(town, client) == "FAILED"
        # The news of the second attempt is late: the page does not show the first one's end again.
        town.world.control("webhooks", {"paused": True})
        client.pay(VISA)
        client.wait_for("Your payment is being confirmed.")
        town.world.control("webhooks", {"paused": False})
        client.wait_for(PAID)
    assert client.faults() == []


def test_other_sites_cannot_use_the_page(server: str, town: Town) -> None:
    page = look(f"{server}/gigs/logo")
    rules = dict(rule.split(" ", 1) for rule in page.headers["Content-Security-Policy"].split("; "))
    simulator = town.world.stack.simulator_url
    assert rules["default-src"] == "'none'"
    assert rules["script-src"] == f"'self' {simulator}"
    assert rules["frame-ancestors"] == "'none'"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    # A form of another site can send a POST, but not the header that the page sends.
    assert post(f"{server}/api/gigs/{new_name('gig')}/payment", b"", {}).status == 403
    assert look(f"{server}/api/gigs/nobody/payment").status == 404


def test_the_policy_for_stripe_itself_names_stripe(town: Town) -> None:
    asked = "from examples.checkout.server import HEADERS; print(HEADERS)"
    done = town.run(
        "gig-service",
        [sys.executable, "-c", asked],
        ROOT,
        STRIPE_JS="https://js.stripe.com/endive/stripe.js",
    )
    assert "script-src 'self' https://js.stripe.com https://*.js.stripe.com;" in done.stdout
    assert "https://hooks.stripe.com;" in done.stdout
    assert "connect-src 'self' https://api.stripe.com;" in done.stdout
    assert "127.0.0.1" not in done.stdout
    assert "unsafe" not in done.stdout
