"""Who gets in, and which forms count: tokens, cookies, hosts, origins and roles."""

from __future__ import annotations

import time

import aiohttp
import pytest
from yarl import URL

from console import forms
from console.app import running
from console.settings import Settings
from tests.console.conftest import NewOperator, Operator
from tests.support.issuer import Signer
from tests.support.world import IN_ESCROW, World

pytestmark = pytest.mark.asyncio(loop_scope="module")

PAGES = ["/", "/payment?id=pay_1", "/waiting", "/experts", "/expert?id=e", "/balances"]


async def test_nobody_sees_a_page_without_a_token(new_operator: NewOperator) -> None:
    stranger = await new_operator()
    for path in [*PAGES, "/act?action=capture&id=pay_1"]:
        page = await stranger.get(path)
        assert page.url.partition("?")[0] == f"{stranger.url}/sign-in", path
    page = await stranger.post("/act/do", {"action": "capture"})
    assert page.url == f"{stranger.url}/sign-in"


async def test_a_token_that_the_service_refuses_gets_no_session(
    new_operator: NewOperator, signer: Signer
) -> None:
    stranger = await new_operator()
    forged = Signer("key-1").token(sub="eve", roles=["OPERATOR"])
    for token, sentence in [
        ("", "This is not a token."),
        ("two words", "This is not a token."),
        ("x" * 3000, "which a cookie cannot hold"),
        ("rubbish", "Sign in with a new one."),
        (forged, "Sign in with a new one."),
        (signer.token(sub="a", roles=["OPERATOR"], exp=int(time.time()) - 100), "a new one."),
        (signer.token(sub="gig-service", roles=["GIG_SERVICE"]), "Ask a colleague"),
        (signer.token(sub="a", roles=["OPERATOR"], act_for="client-1"), "a token of your own"),
    ]:
        page = await stranger.sign_in(token)
        assert (page.status, sentence in page.words) == (401, True), page.words
        assert not len(stranger.http.cookie_jar)
        if len(token) > 20:
            assert token not in page.text


async def test_the_cookie_hides_the_token_and_ends_with_it(
    new_operator: NewOperator, signer: Signer
) -> None:
    ann = await new_operator()
    token = signer.token(sub="ann", roles=["OPERATOR"], exp=int(time.time()) + 120)
    async with ann.http.post(
        f"{ann.url}/sign-in",
        data={"token": token},
        headers={"Origin": ann.url},
        allow_redirects=False,
    ) as answer:
        said = answer.headers["Set-Cookie"]
    assert "HttpOnly" in said
    assert "SameSite=Strict" in said
    assert 60 < int(said.partition("Max-Age=")[2].partition(";")[0]) <= 120
    assert token.split(".")[2] not in said
    assert (await ann.get("/")).url == f"{ann.url}/"


async def test_a_sign_in_leads_to_the_page_that_was_sought(
    new_operator: NewOperator, signer: Signer
) -> None:
    ann = await new_operator()
    page = await ann.get("/waiting?a=1&b=2")
    form = page.form("/sign-in")
    assert form == {"next": "/waiting?a=1&b=2"}
    refused = await ann.post("/sign-in", form | {"token": "rubbish"})
    assert refused.form("/sign-in") == form
    token = signer.token(sub="ann", roles=["OPERATOR"])
    assert (await ann.post("/sign-in", form | {"token": token})).url.endswith("/waiting?a=1&b=2")
    for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "/sign-out", ""):
        page = await ann.post("/sign-in", {"token": token, "next": elsewhere})
        assert page.url == f"{ann.url}/"


async def test_a_link_from_another_site_leads_to_itself_first(new_operator: NewOperator) -> None:
    """A browser keeps a strict cookie back when a link of a chat is followed."""
    ann = await new_operator()
    page = await ann.get("/payment?id=pay_1", **{"Sec-Fetch-Site": "cross-site"})
    assert (page.status, 'content="0; url=/payment?id=pay_1"' in page.text) == (200, True)
    evil = await ann.get("//evil.example/x", **{"Sec-Fetch-Site": "cross-site"})
    assert "evil.example" not in evil.text


@pytest.mark.parametrize(
    "odd", ["%00", "%ff%fe", "x" * 5000, "..%2f..", "%0d%0aSet-Cookie:a=b", "{{7777777*3}}"]
)
async def test_odd_ids_are_refused_in_sentences(new_operator: NewOperator, odd: str) -> None:
    ann = await new_operator("OPERATOR")
    for path in (
        "/payment?id=",
        "/expert?id=",
        "/?q=",
        "/?q=a&gig=",
        "/balances?prefix=",
        "/experts?status=",
        "/waiting?done=",
        "/act?action=capture&id=",
        "/act?id=a&action=",
        "/act?action=write_off&id=a&currency=",
        "/experts?page=",
        "/payment?id=a&events=",
    ):
        async with ann.http.get(URL(f"{ann.url}{path}{odd}", encoded=True)) as answer:
            text = await answer.text()
            assert answer.status < 500, (path, text)
            assert "23333331" not in text
            assert "a=b" not in answer.headers.get("Set-Cookie", "")


async def test_signing_out_needs_the_form_and_takes_the_cookie(new_operator: NewOperator) -> None:
    ann = await new_operator("OPERATOR")
    assert (await ann.post("/sign-out", {"form_token": "x"})).status == 403
    await ann.post("/sign-out", (await ann.get("/")).form("/sign-out"))
    assert (await ann.get("/waiting")).url == f"{ann.url}/sign-in?next=/waiting"


async def test_every_answer_forbids_scripts_frames_and_caches(new_operator: NewOperator) -> None:
    ann = await new_operator("OPERATOR")
    for path in [*PAGES, "/sign-in", "/nothing-here", "/assets/console.css"]:
        page = await ann.get(path)
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "script-src" not in policy
        assert "unsafe" not in policy
        assert page.headers["Cache-Control"] == "no-store"
        assert page.headers["X-Frame-Options"] == "DENY"
        assert "<script" not in page.text
        assert ' style="' not in page.text
        assert " onclick" not in page.text


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "["])
async def test_another_name_that_leads_here_is_refused(
    new_operator: NewOperator, host: str
) -> None:
    ann = await new_operator("OPERATOR")
    assert (await ann.get("/", Host=host)).status in (400, 421)
    assert (await ann.post("/live", {})).status == 405


async def test_a_supervisor_learns_that_it_lives_and_nothing_else(
    new_operator: NewOperator,
) -> None:
    page = await (await new_operator()).get("/live", Host="10.0.0.7:8006")
    assert (page.status, page.text) == (200, "live\n")


async def test_a_form_of_another_site_does_nothing(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed()
    ann = await new_operator("OPERATOR")
    form = (await ann.confirm_page("refund", held.payment_id, reason="Wrong")).form("/act/do")
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1", ""):
        assert (await ann.post("/act/do", form, Origin=origin)).status == 403, origin
    assert (await shared.get(held.payment_id)).state == IN_ESCROW


async def test_a_form_counts_only_for_its_session_and_as_it_was_shown(
    shared: World, new_operator: NewOperator
) -> None:
    held = await shared.escrowed()
    other = await shared.escrowed()
    ann, ben = await new_operator("OPERATOR"), await new_operator("OPERATOR", name="ben")
    first = (await ann.get(f"/act?action=refund&id={held.payment_id}")).form("/act/check")
    form = (await ann.confirm_page("refund", held.payment_id, reason="Wrong")).form("/act/do")
    assert (await ben.post("/act/do", form)).status == 403
    assert (await ben.post("/act/check", first | {"reason": "x"})).status == 403
    for change in (
        {"id": other.payment_id},
        {"action": "capture"},
        {"minor_units": "1"},
        {"key": "another"},
        {"reason": "Right"},
        {"back": "https://evil.example"},
        {"form_token": ""},
        {"form_token": first["form_token"]},
    ):
        page = await ann.post("/act/do", form | change)
        assert (page.status, "Nothing was done" in page.words) == (403, True), change
    assert (await ann.get("/act/do")).status == 405
    for payment in (held, other):
        assert (await shared.get(payment.payment_id)).state == IN_ESCROW


async def test_a_reader_sees_everything_and_can_press_nothing(
    shared: World, new_operator: NewOperator, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = await shared.escrowed()
    reader = await new_operator("OPERATOR_READ_ONLY", name="rea")
    page = await reader.get(f"/payment?id={held.payment_id}")
    assert "read only" in page.words
    assert page.text.count("<button disabled") == 3
    refused = await reader.get(f"/act?action=capture&id={held.payment_id}")
    assert (refused.status, "needs another role" in refused.words) == (403, True)
    # It is the service that decides, also where the console would let it pass.
    monkeypatch.setattr(forms, "may", lambda session, rpc: True)
    tried = await reader.confirm_page("capture", held.payment_id, reason="I want to")
    assert (tried.status, "ROLE_REQUIRED" in tried.words) == (422, True)
    assert (await shared.get(held.payment_id)).state == IN_ESCROW


async def test_finance_settles_and_cannot_capture(shared: World, new_operator: NewOperator) -> None:
    held = await shared.escrowed()
    page = await (await new_operator("FINANCE")).get(f"/payment?id={held.payment_id}")
    # Capture and refund are the operators'; the reconciliation is for both.
    assert page.text.count("<button disabled") == 2


async def test_without_sign_in_a_local_console_works_and_its_forms_are_still_bound(
    shared: World,
) -> None:
    held = await shared.escrowed()
    settings = Settings(console_port=0, core_address=(shared.address,), console_sign_in="off")
    async with (
        running(settings) as url,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as http,
    ):
        ann = Operator(url, http)
        page = await ann.get(f"/payment?id={held.payment_id}")
        assert "no sign-in: development" in page.words
        form = (await ann.confirm_page("refund", held.payment_id, reason="Wrong")).form("/act/do")
        ann.http.cookie_jar.clear()
        assert (await ann.post("/act/do", form)).status == 403
        done = await ann.do("refund", held.payment_id, reason="Wrong")
        assert "The payment is canceled now." in done.words


async def test_an_unreachable_service_is_said_in_a_sentence(shared: World, signer: Signer) -> None:
    settings = Settings(
        console_port=0,
        core_address=("127.0.0.1:1",),
        console_sign_in="off",
        console_call_seconds=1,
    )
    async with running(settings) as url, aiohttp.ClientSession() as http:
        page = await Operator(url, http).get("/payment?id=pay_1")
        assert (page.status, "The service cannot be reached" in page.words) == (503, True)
        assert "127.0.0.1:1" not in page.words
        waiting = await Operator(url, http).get("/waiting")
        assert (waiting.status, "cannot be reached" in waiting.words) == (200, True)
