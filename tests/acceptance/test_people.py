"""What people do in a browser: pay with a card, pass 3D Secure, become an expert, come back."""

import re

from dev import probes
from marketplace.payments.v1 import experts_pb2, payments_pb2
from tests.acceptance.browser import look, submit
from tests.acceptance.conftest import APP, World

IN_ESCROW = payments_pb2.PAYMENT_STATE_IN_ESCROW
DECLINED = "4000000000000002"
THREE_D_SECURE = "4000002760003184"
READY = "You can be paid"


def test_a_card_that_works(world: World, expert: str) -> None:
    made = world.initiated(expert, 12_345, "EUR")
    page = look(f"{world.stack.simulator_url}/_pages/pay?client_secret={made.client_secret}")
    assert page.status == 200
    assert "123.45" in page.text
    assert "4242 4242 4242 4242" in page.text
    paid = world.pay(made.client_secret, "4242 4242 4242 4242")
    assert "Authorized" in paid.text
    payment = world.await_state(made.payment.payment_id, IN_ESCROW)
    assert payment.held_amount.minor_units == 12_345
    assert payment.HasField("escrow_expire_time")


def test_a_declined_card_and_then_another(world: World, expert: str) -> None:
    made = world.initiated(expert)
    assert "declined" in world.pay(made.client_secret, DECLINED).text
    failed = world.await_state(made.payment.payment_id, payments_pb2.PAYMENT_STATE_FAILED)
    assert failed.last_failure.code == "card_declined"
    world.pay(made.client_secret)
    paid = world.await_state(made.payment.payment_id, IN_ESCROW)
    assert not paid.HasField("last_failure")


def test_3d_secure_passed(world: World, expert: str) -> None:
    made = world.initiated(expert)
    challenge = world.pay(made.client_secret, THREE_D_SECURE)
    assert challenge.status == 303
    asked = look(challenge.location)
    assert "Complete authentication" in asked.text
    back = submit(challenge.location, outcome="approve")
    assert back.status == 303
    assert "redirect_status=succeeded" in back.location
    assert "Authorized" in look(back.location).text
    world.await_state(made.payment.payment_id, IN_ESCROW)


def test_3d_secure_failed(world: World, expert: str) -> None:
    made = world.initiated(expert)
    challenge = world.pay(made.client_secret, THREE_D_SECURE)
    back = submit(challenge.location, outcome="fail")
    assert "redirect_status=failed" in back.location
    failed = world.await_state(made.payment.payment_id, payments_pb2.PAYMENT_STATE_FAILED)
    assert failed.last_failure.code == "payment_intent_authentication_failure"


def test_the_button_of_the_onboarding_page(world: World) -> None:
    created = world.new_expert()
    landing = finish_form(created.onboarding_url)
    assert landing.startswith(f"{world.stack.gateway_url}/onboarding/return?token=")
    page = look(landing)
    assert page.status == 200
    assert READY in page.text
    assert created.expert.expert_id not in page.text
    assert created.expert.stripe_account_id not in page.text


def finish_form(onboarding_url: str) -> str:
    """Open Stripe's form and press its button; where that leads to."""
    form = look(onboarding_url)
    assert form.status == 200
    assert re.search(r"<form[^>]*method=.post", form.text)
    done = submit(onboarding_url)
    assert done.status in (302, 303)
    return done.location


def test_coming_back_before_the_form_is_finished(world: World) -> None:
    created = world.new_expert()
    left = submit(created.onboarding_url, outcome="unfinished")
    page = look(left.location)
    assert page.status == 200
    assert "not complete yet" in page.text
    # The page leads to a new form, and that one to the end.
    renewed = page.press("Continue with Stripe")
    assert renewed.status == 303
    assert is_form(world, renewed.location)
    assert READY in look(finish_form(renewed.location)).text


def test_refresh_leads_to_a_new_form(world: World) -> None:
    landing = finish_form(world.new_expert().onboarding_url)
    refresh = landing.replace("/onboarding/return", "/onboarding/refresh")
    tokens = world.query("SELECT token_hash, expire_time FROM onboarding_tokens ORDER BY 1")
    page = look(refresh)  # A link preview does the same, and changes nothing.
    assert page.status == 200
    assert look(refresh, method="HEAD").status == 200
    renewed = page.press("Continue with Stripe")
    assert renewed.status == 303
    assert is_form(world, renewed.location)
    assert look(renewed.location).status == 200
    assert world.query("SELECT token_hash, expire_time FROM onboarding_tokens ORDER BY 1") == tokens


def is_form(world: World, url: str) -> bool:
    return url.startswith(f"{world.stack.simulator_url}/_pages/onboarding/")


def test_an_unknown_or_broken_link(world: World) -> None:
    for page in ("return", "refresh"):
        for query in ("?token=" + "A" * 43, "?token=short", "?token=", "", "?token=a&token=b"):
            answer = look(f"{world.stack.gateway_url}/onboarding/{page}{query}")
            assert answer.status == 404
            assert "no longer valid" in answer.text


def test_an_expired_link(world: World) -> None:
    landing = finish_form(world.new_expert().onboarding_url)
    assert look(landing).status == 200
    world.query("UPDATE onboarding_tokens SET expire_time = now() - interval '1 second'")
    for url in (landing, landing.replace("return", "refresh")):
        assert look(url).status == 404


def test_back_to_the_app_once_ready(world: World) -> None:
    landing = finish_form(world.new_expert(continue_url=f"{APP}/welcome?a=1").onboarding_url)
    answer = look(landing)
    assert (answer.status, answer.location) == (303, f"{APP}/welcome?a=1")


def test_back_to_the_app_is_offered_before(world: World) -> None:
    left = submit(
        world.new_expert(continue_url=f"{APP}/welcome").onboarding_url, outcome="unfinished"
    )
    assert look(left.location).link("Back to the app") == f"{APP}/welcome"


def test_the_dashboard_of_an_expert(world: World, expert: str) -> None:
    request = experts_pb2.CreateDashboardLinkRequest(expert_id=expert)
    page = look(world.experts.CreateDashboardLink(request).url)
    assert page.status == 200
    assert "Express dashboard" in page.text


def test_gateway_answers_what_it_is(world: World) -> None:
    gateway = world.stack.gateway_url
    health = look(f"{gateway}/health", {"Origin": APP})
    assert health.status == 200
    assert health.headers["Access-Control-Allow-Origin"] == APP
    assert '"core": "serving"' in health.text.lower()
    stranger = look(f"{gateway}/health", {"Origin": "https://evil.example"})
    assert stranger.headers["Access-Control-Allow-Origin"] is None
    test = look(f"{gateway}/api/v1/webhooks/test")
    assert test.status == 200
    assert "/api/v1/webhooks/stripe/connect" in test.text
    assert probes.answers(world.stack.settings.gateway_port, "/live")
    assert look(f"{gateway}/api/v1/webhooks/stripe").status == 405
    assert look(f"{gateway}/nothing").status == 404
