"""An account that is gone is known as such wherever Stripe says so, and a capture waits for it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marketplace.payments.v1 import experts_pb2, payments_pb2
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request
from tests.support.steps.experts import (
    deauthorize,
    replace,
    replacement,
    transferred_to,
    waiting_for,
)
from tests.support.steps.payments import PLATFORM, PROMOTE
from tests.support.world import CANCELED, CAPTURED, CAPTURING, World, until

DEAUTHORIZED = experts_pb2.EXPERT_STATUS_DEAUTHORIZED
READY = experts_pb2.EXPERT_STATUS_READY
WAITS = payments_pb2.WAITING_REASON_EXPERT_DEAUTHORIZED
MODES = pytest.mark.parametrize(
    "fields",
    [{}, {"escrow_mode": PLATFORM}, {"on_deadline": PROMOTE}],
    ids=["destination", "held", "authorized"],
)


async def cut_off(world: World, expert: str) -> str:
    """The account revokes our access, and no event says so. Returns its id."""
    await world.pause_webhooks()
    account = world.account_of(expert)
    await world.stripe.control("POST", f"/accounts/{account}/deauthorize")
    return account


def status(world: World, expert: str) -> str:
    [(known,)] = world.sql("SELECT status FROM experts WHERE expert_id = %s", expert)
    return str(known)


async def preview(world: World, payment_id: str) -> payments_pb2.Preview:
    request = capture_request(payment_id, validate_only=True)
    return (await world.payments.CapturePayment(request)).preview


@MODES
@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
async def test_a_capture_waits_for_an_account_that_was_cut_off_before(
    world: World, fields: dict[str, Any], known: bool
) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    await (deauthorize if known else cut_off)(world, expert)
    payment = await world.capture(held.payment_id)
    assert (payment.state, payment.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_EXPERT)
    assert payment.waiting_reason == WAITS
    assert status(world, expert) == "DEAUTHORIZED"
    if not fields:
        assert (await world.refund(held.payment_id)).state == CANCELED
        return
    account = await replace(world, expert)
    paid = await world.in_state(held.payment_id, CAPTURED)
    assert await transferred_to(world, paid) == [account]
    await check_books(world)


@MODES
async def test_a_preview_says_that_the_capture_would_wait(
    world: World, fields: dict[str, Any]
) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, **fields)
    await deauthorize(world, expert)
    shown = await preview(world, held.payment_id)
    assert (shown.payment.state, shown.payment.waiting_reason) == (CAPTURING, WAITS)
    charged = [payments_pb2.LEG_KIND_CHARGE_CARD] if "on_deadline" in fields else []
    assert [leg.kind for leg in shown.legs] == charged
    done = await world.capture(held.payment_id)
    assert done.waiting_reason == shown.payment.waiting_reason
    assert done.held_amount == shown.payment.held_amount
    assert done.escrow_mode == shown.payment.escrow_mode


@pytest.mark.parametrize(
    "error",
    [
        {"code": "account_country_invalid_address"},
        {"code": "resource_missing", "param": "destination"},
        {
            "message": "Funds can't be sent to accounts located in GB because it's restricted "
            "outside of your platform's region."
        },
    ],
    ids=["address", "missing", "region"],
)
async def test_any_refusal_about_the_destination_waits(world: World, error: dict[str, Any]) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/transfers$", "status", status=400, **error)
    payment = await world.capture(held.payment_id)
    assert payment.waiting_reason == payments_pb2.WAITING_REASON_EXPERT_REFUSED


async def test_a_missing_charge_is_no_fault_of_the_expert(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault(
        "/transfers$",
        "status",
        status=400,
        code="resource_missing",
        param="source_transaction",
    )
    refused = await refusal(world.payments.CapturePayment(capture_request(held.payment_id)))
    assert refused.reason == "REFUSED_BY_PROCESSOR"


async def test_a_payment_to_an_account_that_is_gone_names_its_status(world: World) -> None:
    expert = await world.expert()
    await cut_off(world, expert)
    refused = await refusal(world.initiate(expert))
    assert (refused.reason, refused.facts["status"]) == ("EXPERT_NOT_READY", "DEAUTHORIZED")
    assert status(world, expert) == "DEAUTHORIZED"


async def test_every_read_of_an_account_notices_that_it_is_cut_off(world: World) -> None:
    expert = await world.expert()

    async def balance() -> None:
        request = experts_pb2.GetExpertBalanceRequest(expert_id=expert)
        refused = await refusal(world.experts.GetExpertBalance(request))
        assert (refused.reason, refused.facts["status"]) == ("EXPERT_NOT_READY", "DEAUTHORIZED")

    async def link() -> None:
        request = experts_pb2.RefreshOnboardingRequest(expert_id=expert)
        refused = await refusal(world.experts.RefreshOnboarding(request))
        assert refused.reason == "ONBOARDING_INCOMPLETE"
        assert refused.facts["status"] == "DEAUTHORIZED"

    async def listed_events() -> None:
        # Events of an account are only listed while it has a payment that is not finished.
        world.sql("UPDATE event_cursors SET next_time = now() WHERE scope = %s", account)
        await until(noticed, "the account is known as cut off")

    async def noticed() -> bool:
        return status(world, expert) == "DEAUTHORIZED"

    await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    await world.settle_down()
    for look in (balance, link, listed_events):
        account = await cut_off(world, expert)
        assert status(world, expert) == "READY"
        await look()
        assert status(world, expert) == "DEAUTHORIZED", look.__name__
        await world.stripe.control("POST", f"/accounts/{account}/reauthorize")
        await world.expert_status(expert, READY)


async def test_two_captures_of_one_lost_account_both_wait(world: World) -> None:
    expert = await world.expert()
    first = await world.escrowed(expert, 10_000, escrow_mode=PLATFORM)
    second = await world.escrowed(expert, 5_000, escrow_mode=PLATFORM)
    await cut_off(world, expert)
    ids = (first.payment_id, second.payment_id)
    await asyncio.gather(*(world.capture(one) for one in ids))
    for one in ids:
        await waiting_for(world, one, "EXPERT_DEAUTHORIZED")
    await replace(world, expert)
    for one in ids:
        await world.in_state(one, CAPTURED)
    await check_books(world)


# ---- another account with other data ----


async def test_a_wrong_country_is_corrected_by_another_account(world: World) -> None:
    expert = await world.expert(country="DE")
    former = world.account_of(expert)
    other = await replace(
        world,
        expert,
        country="us",
        email="right@example.com",
        business_type=experts_pb2.BUSINESS_TYPE_COMPANY,
        replace_working_account=True,
        former_account_id=former,
    )
    known = await world.expert_status(expert, READY)
    assert (known.stripe_account_id, known.country, known.email, known.business_type) == (
        other,
        "US",
        "right@example.com",
        experts_pb2.BUSINESS_TYPE_COMPANY,
    )
    shown = await world.stripe.api("GET", f"/accounts/{other}")
    assert (shown["country"], shown["email"], shown["business_type"]) == (
        "US",
        "right@example.com",
        "company",
    )
    initiated = await world.initiate(expert)
    assert initiated.payment.charge_model == payments_pb2.CHARGE_MODEL_DESTINATION


async def test_a_wrong_address_is_corrected_before_onboarding(world: World) -> None:
    expert = await world.expert(ready=False)
    former = world.account_of(expert)
    other = await replace(
        world,
        expert,
        ready=False,
        email="right@example.com",
        replace_working_account=True,
        former_account_id=former,
    )
    shown = await world.stripe.api("GET", f"/accounts/{other}")
    assert (shown["country"], shown["email"], shown["business_type"]) == (
        "US",
        "right@example.com",
        "individual",
    )


async def test_what_stripe_does_not_accept_leaves_the_expert_as_it_was(world: World) -> None:
    expert = await world.expert()
    account = await deauthorize(world, expert)
    request = replacement(expert, country="JP")
    refused = await refusal(world.experts.ReplaceExpertAccount(request))
    assert refused.reason == "COUNTRY_UNSUPPORTED"
    for field, value in (("country", "USA"), ("email", "nobody"), ("business_type", 99)):
        wrong = replacement(expert, **{field: value})
        assert set((await refusal(world.experts.ReplaceExpertAccount(wrong))).fields) == {field}
    await world.stripe.fault("/accounts$", "status", status=400, code="email_invalid")
    request = replacement(expert, email="odd@example.com", country="GB")
    refused = await refusal(world.experts.ReplaceExpertAccount(request))
    assert refused.reason == "REFUSED_BY_PROCESSOR"
    known = await world.expert_status(expert, DEAUTHORIZED)
    assert (known.stripe_account_id, known.country) == (account, "US")
    assert known.email == f"{expert}@example.com"
