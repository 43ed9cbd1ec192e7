"""What is kept for a time only is deleted after it, and nothing before."""

from __future__ import annotations

import pytest

from payment_service.application.jobs import prune as pruning
from payment_service.application.jobs.prune import prune, prune_some
from tests.support.errors import refusal
from tests.support.requests import refund_request
from tests.support.steps.disputes import disputed, evidence_request
from tests.support.steps.payments import PLATFORM
from tests.support.stripe import ingestion, new_event
from tests.support.world import World


async def _prune(world: World) -> None:
    """Runs the job now, although it has run a moment ago."""
    world.sql("DELETE FROM jobs WHERE name = 'prune'")
    assert world.service is not None
    await prune(world.service.app)


async def _stored_event(world: World, state: str, days: int) -> str:
    event = new_event("customer.created", {"id": "cus_1", "object": "customer"})
    await world.webhooks.IngestEvent(ingestion(event))
    world.sql(
        "UPDATE webhook_events SET state = %s, next_try_time = NULL, "
        "receive_time = now() - %s * interval '1 day' WHERE event_id = %s",
        state,
        days,
        event["id"],
    )
    return str(event["id"])


async def test_events_that_are_done_are_deleted_once_stripe_lists_them_no_more(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pruning, "_BATCH", 2)
    old = [await _stored_event(world, "IGNORED", 36) for _ in range(3)]
    old.append(await _stored_event(world, "APPLIED", 36))
    kept = [
        await _stored_event(world, "PARKED", 400),
        await _stored_event(world, "APPLIED", 34),
        await _stored_event(world, "IGNORED", 34),
    ]
    await _prune(world)
    found = {name for (name,) in world.sql("SELECT event_id FROM webhook_events")}
    assert not found.intersection(old)
    assert found.issuperset(kept)


async def test_an_event_that_waits_is_never_deleted(world: World) -> None:
    assert world.service is not None
    await _stored_event(world, "IGNORED", 1)
    with world.session() as cursor:
        cursor.execute("SELECT count(*) FROM webhook_events WHERE state = 'IGNORED'")
        assert cursor.fetchone() == (1,)
    world.sql(
        "UPDATE webhook_events SET state = 'WAITING', next_try_time = now() + interval '1 day', "
        "receive_time = now() - interval '900 days'"
    )
    await world.service.app.database.transact(prune_some, world.service.app.policy)
    assert world.sql("SELECT state FROM webhook_events") == [("WAITING",)]


async def test_a_key_without_its_answer_is_refused_and_not_executed_again(world: World) -> None:
    paid = await world.captured()
    request = refund_request(paid.payment_id, 1_000)
    fresh = refund_request(paid.payment_id, 1_000)
    await world.payments.RefundPayment(request)
    answer = await world.payments.RefundPayment(fresh)
    world.sql(
        "UPDATE idempotency_keys SET settle_time = now() - interval '401 days' WHERE key = %s",
        request.idempotency_key,
    )
    await _prune(world)
    effects = len(await world.stripe.effects())
    refused = await refusal(world.payments.RefundPayment(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "ANSWER_NOT_KEPT")
    assert refused.facts == {"idempotency_key": request.idempotency_key}
    assert await world.payments.RefundPayment(fresh) == answer
    assert len(await world.stripe.effects()) == effects
    assert (await world.get(paid.payment_id)).refunded_amount.minor_units == 2_000


async def test_expired_onboarding_tokens_are_deleted(world: World) -> None:
    old, new = await world.expert(ready=False), await world.expert(ready=False)
    world.sql(
        "UPDATE onboarding_tokens SET expire_time = now() - interval '1 second' "
        "WHERE expert_id = %s",
        old,
    )
    await _prune(world)
    assert set(world.sql("SELECT DISTINCT expert_id FROM onboarding_tokens")) == {(new,)}


async def test_a_settled_operation_keeps_no_words(world: World) -> None:
    held = await world.escrowed(description="w-description")
    await world.capture(held.payment_id, notes="w-notes")
    _, dispute_id = await disputed(world)
    await world.refund(held.payment_id, 100, reason="w-reason")
    await world.disputes.SubmitEvidence(evidence_request(dispute_id, "w-evidence"))
    on_platform = await world.escrowed(escrow_mode=PLATFORM)
    await world.capture(on_platform.payment_id, notes="w-notes")
    other = await world.escrowed()
    await world.refund(other.payment_id, reason="w-reason")
    rows = world.sql("SELECT kind, state, payload::text FROM operations")
    assert {kind for kind, _, _ in rows}.issuperset(
        "create_intent capture transfer refund cancel create_account submit_evidence".split()
    )
    for kind, state, payload in rows:
        assert state == "SUCCEEDED", kind
        assert "w-" not in payload, kind
        assert "Ann Expert" not in payload
        assert "@example.com" not in payload
