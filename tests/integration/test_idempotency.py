"""One key, one effect, one answer: what money.md §6 promises to callers, row by row."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marketplace.payments.v1 import operations_pb2, payments_pb2
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request, money, new_key, refund_request
from tests.support.steps.disputes import frozen
from tests.support.steps.payments import PLATFORM
from tests.support.world import (
    CANCELED,
    CAPTURED,
    CAPTURING,
    IN_ESCROW,
    REFUNDED,
    World,
    until,
)


async def _one_of_each(world: World) -> list[tuple[str, Any]]:
    """Requests of every kind that a key protects, each of which will succeed once."""
    expert = await world.expert()
    held, to_give_up, paid = await asyncio.gather(
        world.escrowed(expert), world.escrowed(expert), world.captured(expert)
    )
    return [
        ("InitiatePayment", world.initiation(expert, 4_200)),
        ("CapturePayment", capture_request(held.payment_id, notes="done")),
        ("RefundPayment", refund_request(to_give_up.payment_id, reason="never begun")),
        ("RefundPayment", refund_request(paid.payment_id, 1_234, reason="a part")),
    ]


# ---- the same key, the same content ----


async def test_the_answer_is_the_same_bytes_also_after_a_restart(world: World) -> None:
    calls = await _one_of_each(world)
    first = [await world.bytes_of(*call) for call in calls]
    assert [reply.code for reply in first] == ["OK"] * len(calls)
    await world.settle_down()
    effects = len(await world.stripe.effects())
    assert [await world.bytes_of(*call) for call in calls] == first
    assert world.service is not None
    await world.service.restart()
    await world.channel.channel_ready()
    assert [await world.bytes_of(*call) for call in calls] == first
    # The secret is in the answer though it is nowhere in the database.
    answer = payments_pb2.InitiatePaymentResponse.FromString(first[0].body)
    assert answer.client_secret
    with world.session() as cursor:
        cursor.execute("SELECT answer, fields::text FROM idempotency_keys")
        assert not any(
            answer.client_secret.encode() in bytes(body) + fields.encode()
            for body, fields in cursor.fetchall()
        )
    # What happened since does not change what was answered.
    await world.confirm(answer)
    await world.in_state(answer.payment.payment_id, IN_ESCROW)
    assert [await world.bytes_of(*call) for call in calls] == first
    assert len(await world.stripe.effects()) == effects + 1
    await check_books(world)


async def test_eight_callers_with_one_key_are_one_effect_and_eight_equal_answers(
    world: World,
) -> None:
    for call in await _one_of_each(world):
        before = len(await world.stripe.effects())
        replies = await asyncio.gather(*(world.bytes_of(*call) for _ in range(8)))
        assert {reply.code for reply in replies} == {"OK"}
        assert len({reply.body for reply in replies}) == 1
        happened = {effect["kind"] for effect in (await world.stripe.effects())[before:]}
        assert len((await world.stripe.effects())[before:]) == len(happened)
    await check_books(world)


async def test_keys_are_scoped_by_rpc(world: World) -> None:
    held = await world.escrowed(idempotency_key="one-key")
    captured = await world.capture(held.payment_id, idempotency_key="one-key")
    refunded = await world.refund(held.payment_id, idempotency_key="one-key")
    assert (captured.state, refunded.state) == (CAPTURED, REFUNDED)
    await check_books(world)


async def test_the_longest_key_and_an_unusual_one(world: World) -> None:
    expert = await world.expert()
    for key in ("k" * 255, "ключ / 鍵 ~!@#$%^&*()"):
        first = await world.initiate(expert, idempotency_key=key)
        assert await world.initiate(expert, idempotency_key=key) == first


# ---- the same key, other content ----

_OTHER_CONTENT: list[tuple[str, dict[str, Any], str]] = [
    ("InitiatePayment", {"client_id": "client-2"}, "client_id"),
    ("InitiatePayment", {"expert_id": "another"}, "expert_id"),
    ("InitiatePayment", {"gig_id": "gig-2"}, "gig_id"),
    ("InitiatePayment", {"amount": money(4_201, "USD")}, "amount.minor_units"),
    ("InitiatePayment", {"amount": money(4_200, "EUR")}, "amount.currency_code"),
    ("InitiatePayment", {"amount": money(4_200)}, "amount.currency_code"),
    ("InitiatePayment", {"description": "Another website"}, "description"),
    ("InitiatePayment", {"description": ""}, "description"),
    ("InitiatePayment", {"escrow_mode": payments_pb2.ESCROW_MODE_CARD_HOLD}, "escrow_mode"),
    ("CapturePayment", {"payment_id": "pay_" + "0" * 32}, "payment_id"),
    ("CapturePayment", {"amount": money(10_000)}, "amount"),
    ("CapturePayment", {"final": True}, "final"),
    ("CapturePayment", {"notes": "Done"}, "notes"),
    ("RefundPayment", {"payment_id": "pay_" + "0" * 32}, "payment_id"),
    ("RefundPayment", {"amount": money(10_000)}, "amount"),
    ("RefundPayment", {"reason": "finished"}, "reason"),
]


async def test_other_content_under_a_used_key_is_refused_names_the_field_and_changes_nothing(
    world: World,
) -> None:
    calls: dict[str, Any] = {}
    for method, request in await _one_of_each(world):
        calls.setdefault(method, request)
        assert (await world.bytes_of(method, request)).code == "OK"
    await world.settle_down()
    rows, effects = world.counts(), len(await world.stripe.effects())
    for method, changes, field in _OTHER_CONTENT:
        changed = type(calls[method])()
        changed.CopyFrom(calls[method])
        changed.MergeFrom(type(changed)(**changes))
        for name, value in changes.items():
            if not value:
                changed.ClearField(name)
        if changes.get("amount") == money(4_200):
            changed.amount.currency_code = ""
        refused = (await world.bytes_of(method, changed)).refused
        assert refused is not None
        assert (refused.code, refused.reason) == ("ALREADY_EXISTS", "IDEMPOTENCY_KEY_REUSED")
        assert refused.facts["field"] == field, (method, changes, refused.facts)
        assert refused.facts["idempotency_key"] == changed.idempotency_key
    assert (world.counts(), len(await world.stripe.effects())) == (rows, effects)


# ---- what is stored, and what is evaluated anew ----


async def test_a_refusal_by_our_own_guard_frees_the_key(world: World) -> None:
    initiated = await world.initiate(await world.expert())
    payment_id = initiated.payment.payment_id
    early = capture_request(payment_id)
    refused = await world.bytes_of("CapturePayment", early)
    assert refused.refused is not None
    assert (refused.code, refused.refused.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    assert refused.refused.facts["state"] == "PENDING"
    await world.confirm(initiated)
    await world.in_state(payment_id, IN_ESCROW)
    captured = await world.bytes_of("CapturePayment", early)
    assert captured.code == "OK"
    assert await world.bytes_of("CapturePayment", early) == captured
    assert len(await world.stripe.effects("captured")) == 1
    await check_books(world)


async def test_a_refused_call_under_its_natural_key_succeeds_once_the_freeze_is_over(
    world: World,
) -> None:
    """A gig has one key for its completion, and a fraud warning must not use it up."""
    held = await world.escrowed()
    dismissal = operations_pb2.DismissFraudWarningRequest(
        payment_id=held.payment_id, reason="checked", idempotency_key=new_key()
    )
    nothing = await refusal(world.operations.DismissFraudWarning(dismissal))
    assert nothing.code == "FAILED_PRECONDITION"
    await world.stripe.control("POST", f"/charges/{held.charge_id}/early_fraud_warning")
    completion = capture_request(held.payment_id, idempotency_key="gig-7-completed")

    async def is_frozen() -> bool:
        return await frozen(world, held.payment_id) == "FRAUD_WARNING"

    await until(is_frozen, "the fraud warning freezes the payment")
    refused = await refusal(world.payments.CapturePayment(completion))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    assert world.sql("SELECT 1 FROM idempotency_keys WHERE key = 'gig-7-completed'") == []
    # The same dismissal, which was refused while there was no warning.
    await world.operations.DismissFraudWarning(dismissal)
    assert (await world.payments.CapturePayment(completion)).payment.state == CAPTURED
    await check_books(world)


async def test_what_is_invalid_or_not_found_is_never_stored(world: World) -> None:
    held = await world.escrowed()
    key = new_key()
    wrong = capture_request(held.payment_id, idempotency_key=key, amount=money(100, "EUR"))
    refused = await refusal(world.payments.CapturePayment(wrong))
    assert (refused.code, list(refused.fields)) == ("INVALID_ARGUMENT", ["amount.currency_code"])
    nowhere = capture_request("pay_" + "0" * 32, idempotency_key=key)
    assert (await refusal(world.payments.CapturePayment(nowhere))).code == "NOT_FOUND"
    mended = await world.capture(held.payment_id, idempotency_key=key)
    assert mended.state == CAPTURED
    early = world.initiation("expert-of-tomorrow")
    assert (await refusal(world.payments.InitiatePayment(early))).reason == "EXPERT_NOT_FOUND"
    await world.expert("expert-of-tomorrow")
    assert (await world.payments.InitiatePayment(early)).client_secret
    await check_books(world)


async def test_another_operation_in_progress_is_aborted_and_not_stored(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.fault("/capture$", "delay", delay_ms=1_000)
    capturing = asyncio.create_task(world.capture(held.payment_id))
    await world.in_state(held.payment_id, CAPTURING)
    request = refund_request(held.payment_id)
    refused = await refusal(world.payments.RefundPayment(request))
    assert (refused.code, refused.reason) == ("ABORTED", "OPERATION_IN_PROGRESS")
    assert refused.facts["state"] == "CAPTURING"
    assert (await capturing).state == CAPTURED
    assert (await world.payments.RefundPayment(request)).payment.state == REFUNDED
    await check_books(world)


async def test_a_key_in_use_waits_for_the_answer(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.fault("/capture$", "delay", delay_ms=700)
    request = capture_request(held.payment_id)
    first = asyncio.create_task(world.bytes_of("CapturePayment", request))
    await world.in_state(held.payment_id, CAPTURING)
    second = await world.bytes_of("CapturePayment", request)
    assert second.code == "OK"
    assert second == await first
    assert len(await world.stripe.effects("captured")) == 1


async def test_a_key_in_use_for_too_long_is_aborted(start_world: StartWorld) -> None:
    world = await start_world(policy={"claim_wait": 0.1})
    held = await world.escrowed()
    await world.stripe.fault("/capture$", "delay", delay_ms=2_000)
    request = capture_request(held.payment_id)
    first = asyncio.create_task(world.bytes_of("CapturePayment", request))
    await world.in_state(held.payment_id, CAPTURING)
    second = await world.bytes_of("CapturePayment", request)
    assert second.refused is not None
    assert (second.code, second.refused.reason) == ("ABORTED", "IDEMPOTENCY_KEY_IN_USE")
    done = await first
    assert done.code == "OK"
    assert await world.bytes_of("CapturePayment", request) == done
    await check_books(world)


async def test_two_workers_with_one_version_pay_a_milestone_once(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    calls = [
        world.bytes_of(
            "CapturePayment",
            capture_request(held.payment_id, 4_000, expected_version=held.version),
        )
        for _ in range(2)
    ]
    replies = await asyncio.gather(*calls)
    assert sorted(reply.code for reply in replies) == ["ABORTED", "OK"]
    assert len(await world.stripe.effects("transferred")) == 1
    await check_books(world)


# ---- what Stripe answers ----


@pytest.mark.parametrize(
    ("status", "code", "reason"),
    [(402, "card_declined", "CARD_DECLINED"), (400, "charge_expired", "REFUSED_BY_PROCESSOR")],
)
async def test_stripes_refusal_of_a_capture_is_final_and_restores_the_state(
    world: World, status: int, code: str, reason: str
) -> None:
    held = await world.escrowed()
    await world.stripe.fault("/capture$", "status", status=status, code=code)
    request = capture_request(held.payment_id)
    refused = await world.bytes_of("CapturePayment", request)
    assert refused.refused is not None
    assert (refused.code, refused.refused.reason) == ("FAILED_PRECONDITION", reason)
    assert refused.refused.facts["stripe_code"] == code
    payment = await world.get(held.payment_id)
    assert (payment.state, payment.last_failure.code) == (IN_ESCROW, code)
    assert await world.bytes_of("CapturePayment", request) == refused
    assert (await world.capture(held.payment_id)).state == CAPTURED
    assert await world.bytes_of("CapturePayment", request) == refused
    await check_books(world)


async def test_a_rate_limit_is_waited_out_or_handed_on_and_acts_once(world: World) -> None:
    short, long = await asyncio.gather(world.escrowed(), world.escrowed())
    await world.stripe.fault("/capture$", "status", times=2, status=429)
    assert (await world.capture(short.payment_id)).state == CAPTURED
    await world.stripe.fault("/capture$", "status", times=4, status=429)
    request = capture_request(long.payment_id)
    refused = await refusal(world.payments.CapturePayment(request))
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "PROCESSOR_RATE_LIMITED")
    assert (await world.until_answered("CapturePayment", request)).code == "OK"
    assert len(await world.stripe.effects("captured")) == 2
    keys = {one["idempotency_key"] for one in await world.stripe.requests("/capture")}
    assert len(keys) == 2  # One for each capture, however often it was sent.
    await check_books(world)


async def test_a_lock_at_stripe_is_no_outcome(world: World) -> None:
    held = await world.escrowed()
    await world.stripe.fault("/cancel$", "status", times=4, status=429, code="lock_timeout")
    request = refund_request(held.payment_id)
    refused = await refusal(world.payments.RefundPayment(request))
    assert (refused.code, refused.reason) == ("ABORTED", "OPERATION_IN_PROGRESS")
    done = await world.until_answered("RefundPayment", request)
    answer = payments_pb2.RefundPaymentResponse.FromString(done.body)
    assert answer.payment.state == CANCELED
    await check_books(world)


async def test_our_own_credentials_being_wrong_is_not_the_callers_failure(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={"claim_wait": 0.1})
    held = await world.escrowed()
    await world.stripe.fault("/capture$", "status", status=401)
    request = capture_request(held.payment_id)
    refused = await refusal(world.payments.CapturePayment(request))
    assert (refused.code, refused.reason) == ("UNAVAILABLE", "PROCESSOR_MISCONFIGURED")
    payment = await world.get(held.payment_id)
    assert (payment.state, payment.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_OPERATOR)
    again = await refusal(world.payments.CapturePayment(request))
    assert again.code == "UNAVAILABLE"
    [(operation_id,)] = world.sql("SELECT operation_id FROM operations WHERE state = 'PARKED'")
    resume = operations_pb2.ResumeOperationRequest(operation_id=operation_id)
    await world.operations.ResumeOperation(resume)
    assert (await world.until_answered("CapturePayment", request)).code == "OK"
    await check_books(world)


async def test_calls_with_one_key_at_once_find_one_claim(world: World) -> None:
    """The claim has two unique indexes, its id and its key: neither may fail the second call."""
    assert world.service is not None
    database = world.service.app.database
    cause = Cause("local", "CapturePayment")

    def claim(tx: Transaction, key: str) -> bool:
        return tx.claim(cause, key, {"field": "value"}).fresh

    for number in range(150):
        calls = (database.transact(claim, f"at-once-{number}") for _ in range(8))
        assert sum(await asyncio.gather(*calls)) == 1


async def test_a_refusal_is_believed_after_a_search_for_what_an_earlier_try_has_made(
    start_world: StartWorld,
) -> None:
    """The first try has made the intent; Stripe has lost its key, and the account a capability."""
    world = await start_world(loops=False)
    await world.pause_webhooks()
    expert = await world.expert()
    await world.stripe.fault("/payment_intents$", "status", "after", status=500)
    request = world.initiation(expert)
    assert (await refusal(world.payments.InitiatePayment(request))).reason == "OUTCOME_UNKNOWN"
    await world.stripe.advance(2 * 86_400)
    await world.stripe.control("POST", f"/accounts/{world.account_of(expert)}/restrict", {})
    world.sql(
        "UPDATE operations SET next_try_time = now() WHERE kind = 'create_intent' RETURNING 1"
    )
    answer = await world.payments.InitiatePayment(request)
    [made] = await world.stripe.effects("intent_created")
    assert answer.payment.payment_intent_id == made["object"]
