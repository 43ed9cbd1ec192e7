"""Callers that act for a user: they see and move what is that user's, and leave their trace."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

import pytest
import pytest_asyncio

from marketplace.payments.v1 import (
    disputes_pb2,
    events_pb2,
    experts_pb2,
    payments_pb2,
)
from payment_service.domain.caller import Role
from tests.support.errors import refusal
from tests.support.identity import BelievingAuthenticator, Metadata, as_caller
from tests.support.requests import capture_request, new_key, new_name, refund_request
from tests.support.running import running_world
from tests.support.steps.disputes import disputed
from tests.support.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

_SERVICES: Final = (Role.GIG_SERVICE, Role.USER_SERVICE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(module_database_url: str) -> AsyncIterator[World]:
    authenticator = BelievingAuthenticator()
    async with running_world(module_database_url, authenticator=authenticator) as world:
        yield world


def acting(user: str, name: str = "gig-service") -> Metadata:
    return as_caller(*_SERVICES, act_for=user, name=name)


GIG: Final = as_caller(Role.GIG_SERVICE, name="gig-service")


# ---- what a party sees ----


async def test_both_parties_see_their_payment_and_its_events(world: World) -> None:
    client = new_name("client")
    payment = await world.escrowed(client_id=client)
    payment_id = payment.payment_id
    for party in (client, payment.expert_id):
        me = acting(party)
        got = await world.payments.GetPayment(
            payments_pb2.GetPaymentRequest(payment_id=payment_id), metadata=me
        )
        assert got.payment.payment_id == payment_id
        status = await world.payments.GetPaymentStatus(
            payments_pb2.GetPaymentStatusRequest(payment_id=payment_id), metadata=me
        )
        assert status.state == payments_pb2.PAYMENT_STATE_IN_ESCROW
        events = await world.events.ListPaymentEvents(
            events_pb2.ListPaymentEventsRequest(payment_id=payment_id), metadata=me
        )
        assert events.chain_intact
        assert [event.sequence for event in events.events][:2] == [1, 2]


async def test_a_user_does_not_see_what_staff_wrote(world: World) -> None:
    client = new_name("client")
    payment = await world.escrowed(client_id=client)
    capture = capture_request(payment.payment_id, notes="watch this client")
    await world.payments.CapturePayment(capture, metadata=GIG)
    refund = refund_request(payment.payment_id, 100, reason="not as agreed")
    await world.payments.RefundPayment(refund, metadata=acting(client))
    staff = as_caller(Role.OPERATOR, name="olga")
    for party in (client, payment.expert_id):
        assert "not as agreed" in (texts := await _texts(world, payment, acting(party)))
        assert "watch this client" not in texts
    assert {"not as agreed", "watch this client"} <= await _texts(world, payment, staff)


async def _texts(world: World, payment: payments_pb2.Payment, metadata: Metadata) -> set[str]:
    """The texts of the payment's events, which the list and the feed show alike."""
    listed = await world.events.ListPaymentEvents(
        events_pb2.ListPaymentEventsRequest(payment_id=payment.payment_id), metadata=metadata
    )
    assert listed.chain_intact
    stream = world.events.WatchEvents(events_pb2.WatchEventsRequest(), metadata=metadata)
    watched: list[events_pb2.PaymentEvent] = []
    while len(watched) < len(listed.events):
        event = (await take(stream, 1))[0].event
        if event.payment_id == payment.payment_id:
            watched.append(event)
    stream.cancel()
    assert watched == list(listed.events)
    return {text for event in listed.events for text in event.texts.values()}


async def test_a_list_is_the_users_own_whatever_it_asks_for(world: World) -> None:
    bob, eve = new_name("client"), new_name("client")
    expert = await world.expert()
    bobs = await world.initiate(expert, client_id=bob)
    await world.initiate(expert, client_id=eve)

    async def listed(me: Metadata, **fields: Any) -> list[str]:
        request = payments_pb2.ListPaymentsRequest(**fields)
        answer = await world.payments.ListPayments(request, metadata=me)
        return [payment.client_id for payment in answer.payments]

    assert await listed(acting(bob)) == [bob]
    assert await listed(acting(bob), user_id=bob) == [bob]
    # Of the expert's payments, those with this client.
    assert await listed(acting(bob), user_id=expert) == [bob]
    assert await listed(acting(bob), user_id=eve) == []
    assert await listed(acting(expert)) == [eve, bob]
    assert bobs.payment.client_id == bob
    # Who acts for itself names the user, as ever.
    refused = await refusal(listed(GIG))
    assert refused.fields == {"user_id": "is required"}


async def test_a_page_token_of_one_user_is_no_other_users(world: World) -> None:
    expert = await world.expert()
    bob = new_name("client")
    for _ in range(2):
        await world.initiate(expert, client_id=bob)
    request = payments_pb2.ListPaymentsRequest(user_id=expert, page_size=1)
    page = await world.payments.ListPayments(request, metadata=acting(bob))
    assert page.next_page_token
    request.page_token = page.next_page_token
    refused = await refusal(world.payments.ListPayments(request, metadata=acting("eve")))
    assert (refused.reason, refused.facts["field"]) == ("INVALID_FIELD", "page_token")


async def test_parties_see_the_dispute_and_others_see_none(world: World) -> None:
    client, expert = new_name("client"), await world.expert()
    payment_id, dispute_id = await disputed(world, expert_id=expert, client_id=client)
    everything = disputes_pb2.ListDisputesRequest()
    for party, seen in ((client, [dispute_id]), (expert, [dispute_id]), ("eve", [])):
        answer = await world.disputes.ListDisputes(everything, metadata=acting(party))
        assert [one.dispute_id for one in answer.disputes] == seen
    one = disputes_pb2.GetDisputeRequest(dispute_id=dispute_id)
    for party in (client, expert):
        found = (await world.disputes.GetDispute(one, metadata=acting(party))).dispute
        assert found.payment_id == payment_id


async def test_an_expert_sees_the_own_account_and_no_other_expert(world: World) -> None:
    ann, ben = await world.expert(), await world.expert()
    rpcs = (
        (world.experts.GetExpert, experts_pb2.GetExpertRequest),
        (world.experts.ListPayouts, experts_pb2.ListPayoutsRequest),
        (world.experts.GetExpertBalance, experts_pb2.GetExpertBalanceRequest),
        (world.experts.CreateDashboardLink, experts_pb2.CreateDashboardLinkRequest),
        (world.experts.RefreshOnboarding, experts_pb2.RefreshOnboardingRequest),
    )
    await world.settle_down()
    before = world.counts()
    for rpc, request in rpcs:
        refused = await refusal(rpc(request(expert_id=ben), metadata=acting(ann)))  # type: ignore[arg-type]
        assert refused.reason == "EXPERT_NOT_FOUND"
    assert world.counts() == before
    for rpc, request in rpcs:
        await rpc(request(expert_id=ann), metadata=acting(ann))  # type: ignore[arg-type]


# ---- what a party moves ----


async def test_who_did_what_for_whom_stands_in_the_trail(world: World) -> None:
    client = new_name("client")
    payment = await world.escrowed(client_id=client)
    answer = await world.payments.CapturePayment(
        capture_request(payment.payment_id),
        metadata=(*acting(client), ("x-request-id", "request-7")),
    )
    assert answer.payment.state == payments_pb2.PAYMENT_STATE_CAPTURED
    listed = await world.events.ListPaymentEvents(
        events_pb2.ListPaymentEventsRequest(payment_id=payment.payment_id)
    )
    assert listed.chain_intact
    [started] = [event for event in listed.events if event.kind == "payment.capture_started"]
    assert started.cause == events_pb2.EventCause(
        caller="gig-service", act_for=client, rpc="CapturePayment", request_id="request-7"
    )
    # It is in the bytes that the hash is of.
    assert json.loads(started.body_json)["by"]["act_for"] == client
    [initiated] = [event for event in listed.events if event.kind == "payment.initiated"]
    assert (initiated.cause.caller, initiated.cause.act_for) == ("local", "")


async def test_the_user_in_the_trail_cannot_be_changed_later(
    world: World, as_superuser: Callable[..., int]
) -> None:
    client = new_name("client")
    payment = await world.escrowed(client_id=client)
    request = refund_request(payment.payment_id)
    await world.payments.RefundPayment(request, metadata=acting(client))
    as_superuser(
        world,
        "UPDATE events SET body = replace(body, %s, %s) WHERE payment_id = %s",
        f'"act_for":"{client}"',
        '"act_for":"eve"',
        payment.payment_id,
    )
    listed = await world.events.ListPaymentEvents(
        events_pb2.ListPaymentEventsRequest(payment_id=payment.payment_id)
    )
    assert not listed.chain_intact
    broken = listed.events[listed.first_broken_sequence - 1]
    assert broken.cause.act_for == "eve"


async def test_a_client_initiates_and_gets_the_secret_alone(world: World) -> None:
    bob, expert = new_name("client"), await world.expert()
    request = world.initiation(expert, client_id=bob)
    first = await world.payments.InitiatePayment(request, metadata=acting(bob))
    again = await world.payments.InitiatePayment(request, metadata=acting(bob))
    assert first.client_secret
    assert first == again
    for other in (expert, "eve"):
        for only in (False, True):
            request.validate_only = only
            refused = await refusal(world.payments.InitiatePayment(request, metadata=acting(other)))
            assert (refused.code, refused.reason) == ("PERMISSION_DENIED", "OTHER_CLIENT")
            assert refused.facts == {"field": "client_id"}


async def test_a_client_is_not_told_what_stripe_wants_of_the_expert(world: World) -> None:
    bob, expert = new_name("client"), await world.expert(ready=False)
    request = world.initiation(expert, client_id=bob)
    told = await refusal(world.payments.InitiatePayment(request, metadata=GIG))
    assert told.facts["requirements_due"]
    refused = await refusal(world.payments.InitiatePayment(request, metadata=acting(bob)))
    assert (refused.reason, refused.facts) == (
        "EXPERT_NOT_READY",
        {"expert_id": expert, "status": "ONBOARDING"},
    )


# ---- keys ----


async def test_a_stored_answer_belongs_to_the_user_it_was_given_for(world: World) -> None:
    bob, eve = new_name("client"), new_name("client")
    payment = await world.escrowed(client_id=bob)
    request = capture_request(payment.payment_id)
    answer = await world.payments.CapturePayment(request, metadata=acting(bob))
    assert answer == await world.payments.CapturePayment(request, metadata=acting(bob))
    unknown = capture_request("pay_" + "0" * 32, idempotency_key=request.idempotency_key)
    for asked in (request, unknown):
        refused = await refusal(world.payments.CapturePayment(asked, metadata=acting(eve)))
        assert refused.reason == "PAYMENT_NOT_FOUND"
        assert refused.sentence == "there is no payment with this id"
        assert refused.facts == {"payment_id": asked.payment_id}


async def test_nobody_takes_or_learns_another_users_key(world: World) -> None:
    """Eve uses the key first, with other content: Bob's call is made all the same."""
    expert, key = await world.expert(), new_key()
    bob, eve = new_name("client"), new_name("client")
    bobs, eves = [await world.escrowed(expert, client_id=who) for who in (bob, eve)]
    for who, payment in ((eve, eves), (bob, bobs)):
        answer = await world.payments.CapturePayment(
            capture_request(payment.payment_id, idempotency_key=key), metadata=acting(who)
        )
        assert answer.payment.payment_id == payment.payment_id
        assert answer.payment.client_id == who
    rows = world.sql(
        "SELECT caller, act_for, payment_id FROM idempotency_keys WHERE key = %s ORDER BY 2", key
    )
    assert sorted(rows) == sorted(
        [("gig-service", bob, bobs.payment_id), ("gig-service", eve, eves.payment_id)]
    )


async def test_keys_of_two_callers_are_two_keys(world: World) -> None:
    payment = await world.escrowed(client_id=new_name("client"))
    key = new_key()
    operators = as_caller(Role.OPERATOR, name="ada")
    first = capture_request(payment.payment_id, idempotency_key=key)
    await world.payments.CapturePayment(first, metadata=GIG)
    # The operator's call is a call of its own, and finds the payment captured.
    refused = await refusal(world.payments.CapturePayment(first, metadata=operators))
    assert refused.reason == "WRONG_STATE"
    # The gig service gets its answer again.
    again = await world.payments.CapturePayment(first, metadata=GIG)
    assert again.payment.state == payments_pb2.PAYMENT_STATE_CAPTURED


async def test_what_a_refused_call_tells_nothing_of_the_payment(world: World) -> None:
    """Version, state and amounts are refused with the payment's details: to its parties only."""
    bob = new_name("client")
    payment = await world.escrowed(client_id=bob)
    for fields in ({"expected_version": 99}, {"amount": 99_999_999}, {"validate_only": True}):
        request = capture_request(payment.payment_id, **fields)
        refused = await refusal(world.payments.CapturePayment(request, metadata=acting("eve")))
        assert refused.reason == "PAYMENT_NOT_FOUND"
        assert bob.encode() not in refused.raw
    mismatch = capture_request(payment.payment_id, expected_version=99)
    told = await refusal(world.payments.CapturePayment(mismatch, metadata=acting(bob)))
    assert told.reason == "VERSION_MISMATCH"
    assert bob.encode() in told.raw


# ---- the feed ----


async def take(stream: Any, count: int) -> list[events_pb2.WatchEventsResponse]:
    return [await asyncio.wait_for(stream.read(), 20) for _ in range(count)]


async def test_a_watcher_gets_the_users_events_and_no_others(world: World) -> None:
    bob, expert = new_name("client"), await world.expert()
    await world.initiate(expert, client_id=new_name("client"))
    bobs = await world.initiate(expert, client_id=bob)
    stream = world.events.WatchEvents(events_pb2.WatchEventsRequest(), metadata=acting(bob))
    known = await take(stream, 2)
    assert [one.event.payment_id for one in known] == [bobs.payment.payment_id] * 2

    # It waits; others go on; the next event that comes is Bob's again.
    reading = asyncio.ensure_future(stream.read())
    await world.escrowed(expert, client_id=new_name("client"))
    await world.confirm(bobs)
    told: Any = await asyncio.wait_for(reading, 20)
    stream.cancel()
    assert (told.event.payment_id, told.event.sequence) == (bobs.payment.payment_id, 3)

    # Watched again from the cursor, also by another replica, nothing is lost.
    again = world.events.WatchEvents(
        events_pb2.WatchEventsRequest(after_cursor=known[0].cursor), metadata=acting(bob)
    )
    assert [one.event.sequence for one in await take(again, 2)] == [2, 3]
    again.cancel()

    # The expert has all of these payments.
    theirs = world.events.WatchEvents(events_pb2.WatchEventsRequest(), metadata=acting(expert))
    seen = {one.event.payment_id for one in await take(theirs, 8)}
    theirs.cancel()
    assert len(seen) == 3


async def test_another_users_cursor_is_none(world: World) -> None:
    bobs = await world.initiate(await world.expert(), client_id=new_name("client"))
    bob = world.events.WatchEvents(
        events_pb2.WatchEventsRequest(), metadata=acting(bobs.payment.client_id)
    )
    [told] = await take(bob, 1)
    bob.cancel()
    eve = world.events.WatchEvents(
        events_pb2.WatchEventsRequest(after_cursor=told.cursor), metadata=acting("eve")
    )
    refused = await refusal(eve.read())
    assert refused.reason == "CURSOR_NOT_IN_FEED"
