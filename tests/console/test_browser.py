"""The pages in a real browser: at the width of a desk and of a phone, and with the keyboard alone.

CONSOLE_SCREENSHOTS=docs/images writes what the browser shows into that folder.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.console.conftest import NewOperator
from tests.support.chromium import needs_chromium, open_chromium
from tests.support.issuer import Signer
from tests.support.steps.dashboard import bounce
from tests.support.steps.operators import parked
from tests.support.steps.payments import PLATFORM
from tests.support.world import IN_ESCROW, REFUNDING, World

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
support_ui = pytest.importorskip("selenium.webdriver.support.ui")
exceptions = pytest.importorskip("selenium.common.exceptions")

pytestmark = [
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.slow,
    needs_chromium,
]

#: The least contrast of text that people can read (WCAG AA).
CONTRAST = 4.5
WIDTHS = {"desk": (1280, 900), "phone": (390, 844)}

#: Returns texts whose contrast with what is behind them is too low.
_UNREADABLE = """
const light = (c) => { const [r, g, b] = c.map((v) => { v /= 255;
  return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
const parse = (text) => { const n = text.match(/[0-9.]+/g).map(Number);
  return n.length > 3 && n[3] === 0 ? null : n.slice(0, 3); };
const ground = (node) => { for (; node; node = node.parentElement) {
  const c = parse(getComputedStyle(node).backgroundColor); if (c) return c; }
  return [255, 255, 255]; };
const found = [];
for (const node of document.querySelectorAll("main *, header *")) {
  const own = [...node.childNodes].some((c) => c.nodeType === 3 && c.textContent.trim());
  if (!own || !node.getClientRects().length || node.matches(":disabled, title, svg *")) continue;
  const a = light(parse(getComputedStyle(node).color)), b = light(ground(node));
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < arguments[0]) found.push(node.textContent.trim().slice(0, 40) + " " + ratio);
}
return found;
"""
#: Returns what can be pressed or filled in and has no name, or is too small for a finger.
_UNUSABLE = """
return [...document.querySelectorAll("button, input:not([type=hidden]), textarea, select, nav a")]
  .filter((node) => { const box = node.getBoundingClientRect();
    const name = node.textContent.trim() || (node.labels && node.labels.length);
    return !name || (!node.matches("[type=checkbox]") && box.height < 32); })
  .map((node) => node.outerHTML.slice(0, 120));
"""


class Browser:
    """Chromium, driven as a person would."""

    def __init__(self, driver: Any, url: str) -> None:
        self.driver, self.url = driver, url

    def size(self, width: int, height: int, scheme: str = "light") -> None:
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )
        self.driver.execute_cdp_cmd(
            "Emulation.setEmulatedMedia",
            {"features": [{"name": "prefers-color-scheme", "value": scheme}]},
        )

    def open(self, path: str) -> None:
        self.driver.get(f"{self.url}{path}")

    def text(self) -> str:
        return str(self.driver.find_element("css selector", "body").text)

    def keys(self, *keys: str) -> None:
        for key in keys:
            self.driver.switch_to.active_element.send_keys(key)

    def tab_to(self, words: str) -> None:
        """Goes on by Tab until the focus is on what has these words or this id."""
        for _ in range(60):
            self.keys("\ue004")
            now = self.driver.switch_to.active_element
            if words in (now.text, now.get_attribute("id")):
                style = "return getComputedStyle(arguments[0]).outlineStyle"
                assert self.driver.execute_script(style, now) != "none", "the focus is not seen"
                return
        raise AssertionError(f"no Tab leads to {words!r}: {self.text()}")

    def wait_for(self, words: str) -> None:
        """Waits until the page has these words: nothing else waits for a page that a key opens."""
        passing = (exceptions.StaleElementReferenceException, exceptions.NoSuchElementException)
        waiting = support_ui.WebDriverWait(self.driver, 20, ignored_exceptions=passing)
        waiting.until(lambda _: words in self.text())

    def check(self) -> None:
        """Fails if something does not fit, cannot be read or cannot be pressed."""
        page = self.driver.current_url
        wide, seen = self.driver.execute_script(
            "return [document.documentElement.scrollWidth, innerWidth]"
        )
        assert wide <= seen, f"{page} is {wide} wide at {seen}"
        assert self.driver.execute_script(_UNREADABLE, CONTRAST) == [], page
        assert self.driver.execute_script(_UNUSABLE) == [], page
        entries = self.driver.get_log("browser")
        # A page that answers 4xx is logged by the browser itself.
        faults = [one["message"] for one in entries if "status of 4" not in one["message"]]
        assert faults == [], page

    def keep(self, name: str) -> None:
        """Keeps a picture of the page for docs/console.md, if that was asked for."""
        folder = os.environ.get("CONSOLE_SCREENSHOTS")
        if folder:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(Path(folder) / f"console-{name}.png"))


@pytest.fixture(scope="module")
def new_browser(console_url: str) -> Iterator[Callable[[], Browser]]:
    with contextlib.ExitStack() as stack:

        def start() -> Browser:
            driver = open_chromium(
                "--hide-scrollbars", "--no-proxy-server", "--force-device-scale-factor=1"
            )
            stack.callback(driver.quit)
            return Browser(driver, console_url)

        yield start


async def test_an_operator_works_with_the_keyboard_at_both_widths(
    shared: World, new_browser: Callable[[], Browser], signer: Signer
) -> None:
    held = await shared.escrowed(
        escrow_mode=PLATFORM, description='A website with "<b>quotes</b>"', client_id="client-7"
    )
    owed = await shared.escrowed(escrow_mode=PLATFORM)
    await shared.refund(owed.payment_id, 2_000)
    await bounce(shared, owed.payment_id)
    await shared.in_state(owed.payment_id, REFUNDING)
    await parked(shared, owed.payment_id)
    token = signer.token(sub="ann", roles=["OPERATOR"])

    def work() -> None:
        browser = new_browser()
        browser.size(*WIDTHS["desk"])
        browser.open("/")
        assert browser.driver.title.startswith("Sign in")
        browser.check()
        # The field has the focus, so a token is pasted at once.
        browser.keys(token)
        browser.tab_to("Sign in")
        browser.keys("\ue007")
        browser.wait_for("Find a payment")
        browser.keys(held.payment_id, "\ue007")
        browser.wait_for('A website with "<b>quotes</b>"')
        for name, size in WIDTHS.items():
            browser.size(*size)
            for path in (
                f"/payment?id={held.payment_id}",
                f"/payment?id={owed.payment_id}",
                "/waiting",
                "/experts",
                f"/expert?id={held.expert_id}",
                "/balances",
                "/?q=client-7",
                "/?q=pay_missing",
                f"/act?action=refund&id={held.payment_id}",
            ):
                browser.open(path)
                browser.check()
                browser.size(*size, "dark")
                browser.check()
                browser.size(*size)
            browser.open(f"/payment?id={owed.payment_id}")
            browser.keep(f"payment-{name}")
            browser.open("/waiting")
            browser.keep(f"waiting-{name}")

        browser.open(f"/payment?id={held.payment_id}")
        browser.tab_to("Capture the payment")
        browser.keys("\ue007")
        browser.wait_for("Show what will happen")
        browser.tab_to("amount")
        browser.keys("40.50")
        browser.tab_to("reason")
        browser.keys("The first half is done")
        browser.tab_to("Show what will happen")
        browser.keys("\ue007")
        browser.wait_for("Pay expert: 36.45 USD")
        browser.check()
        browser.keep("confirm-phone")
        browser.tab_to("Capture the payment")
        browser.keys("\ue007")
        browser.wait_for("Done. The payment is in escrow now.")
        browser.check()
        browser.open(f"/act?action=refund&id={held.payment_id}")
        browser.tab_to("amount")
        browser.keys("10")
        browser.tab_to("reason")
        browser.keys("Agreed with the client")
        browser.tab_to("Show what will happen")
        browser.keys("\ue007")
        browser.wait_for("Do nothing")
        button = browser.driver.find_element("css selector", "button.final")
        webdriver.ActionChains(browser.driver).double_click(button).perform()
        browser.wait_for("Done. The payment is in escrow now.")

    await asyncio.to_thread(work)
    after = await shared.get(held.payment_id)
    assert (after.state, after.captured_amount.minor_units) == (IN_ESCROW, 4_050)
    assert after.returned_amount.minor_units == 1_000


async def test_another_site_can_link_and_neither_act_nor_frame(
    shared: World, new_browser: Callable[[], Browser], new_operator: NewOperator, signer: Signer
) -> None:
    """With a browser's own rules: the cookie stays at home, and the frame stays empty."""
    held = await shared.escrowed()
    ann = await new_operator("OPERATOR")
    form = (await ann.confirm_page("refund", held.payment_id, reason="x")).form("/act/do")
    fields = "".join(f'<input name="{name}" value="{value}">' for name, value in form.items())
    token = signer.token(sub="ann", roles=["OPERATOR"])

    def attack() -> None:
        browser = new_browser()
        browser.open("/")
        browser.keys(token, "\ue004", "\ue007")
        browser.wait_for("Find a payment")
        # A link of a chat or of an alarm leads to the page, although the cookie is strict.
        browser.driver.get(f"data:text/html,<a href='{browser.url}/waiting'>alarm</a>")
        browser.driver.find_element("css selector", "a").click()
        browser.wait_for("What waits for a person")
        evil = f'<form method="post" action="{browser.url}/act/do">{fields}</form>'
        browser.driver.get("data:text/html," + evil.replace("#", "%23"))
        browser.driver.execute_script("document.forms[0].submit()")
        browser.wait_for("came from another site, so nothing was done")
        browser.driver.get(f"data:text/html,<iframe src='{browser.url}/waiting'></iframe>")
        browser.driver.switch_to.frame(0)
        assert "What waits" not in browser.text()

    await asyncio.to_thread(attack)
    assert (await shared.get(held.payment_id)).state == IN_ESCROW
