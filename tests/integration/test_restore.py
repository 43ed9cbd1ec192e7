"""The database comes back older than Stripe, and the callers repeat their calls: one effect each.

The restored book knows neither the call nor its operation. Stripe knows the key, which is derived
from what the caller keeps.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dev.postgres import EmbeddedPostgres
from marketplace.payments.v1 import experts_pb2, operations_pb2, payments_pb2
from payment_service.application.recover_after_restore import (
    RESTORE,
    Recovered,
    recover_after_restore,
)
from payment_service.application.sync.lost_payments import recover_payment
from payment_service.application.sync.payment import sync_payment
from tests.integration.conftest import StartWorld
from tests.support.books import check_books
from tests.support.kinds import kind_of
from tests.support.requests import capture_request, refund_request
from tests.support.restore import back_up
from tests.support.world import CANCELED, IN_ESCROW, World, until

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD


async def _check_books(world: World) -> None:
    """The jobs may read Stripe only now: before, every call met the restored book as it was."""
    assert world.service is not None
    world.service.start_loops()
    await check_books(world)
    assert not await world.discrepancies()


async def test_a_repeated_capture_pays_once(world: World, postgres: EmbeddedPostgres) -> None:
    held = await world.escrowed(escrow_mode=PLATFORM)
    backup = await back_up(postgres, world)
    call = capture_request(held.payment_id, 4_000)
    first = await world.bytes_of("CapturePayment", call)
    await backup.restore(world)
    again = await world.bytes_of("CapturePayment", call)
    assert (first.code, again.code) == ("OK", "OK")
    transfers = await world.stripe.api("GET", "/transfers", transfer_group=held.payment_id)
    assert [one["amount"] for one in transfers["data"]] == [3_600]
    await _check_books(world)


async def test_a_repeated_refund_pays_back_once(world: World, postgres: EmbeddedPostgres) -> None:
    paid = await world.captured()
    backup = await back_up(postgres, world)
    call = refund_request(paid.payment_id, 3_000)
    assert (await world.bytes_of("RefundPayment", call)).code == "OK"
    await backup.restore(world)
    assert (await world.bytes_of("RefundPayment", call)).code == "OK"
    refunds = await world.stripe.api("GET", "/refunds", payment_intent=paid.payment_intent_id)
    assert [one["amount"] for one in refunds["data"]] == [3_000]
    transfers = await world.stripe.api("GET", "/transfers", transfer_group=paid.payment_id)
    assert [one["amount_reversed"] for one in transfers["data"]] == [2_700]
    await _check_books(world)


async def test_a_repeated_initiation_makes_one_intent(
    world: World, postgres: EmbeddedPostgres
) -> None:
    expert = await world.expert()
    backup = await back_up(postgres, world)
    call = world.initiation(expert, 4_200)
    first = await world.payments.InitiatePayment(call)
    await backup.restore(world)
    again = await world.payments.InitiatePayment(call)
    assert again.payment.payment_id == first.payment.payment_id
    assert again.payment.payment_intent_id == first.payment.payment_intent_id
    assert again.client_secret == first.client_secret


async def test_a_repeated_creation_makes_one_account(
    world: World, postgres: EmbeddedPostgres
) -> None:
    backup = await back_up(postgres, world)
    call = experts_pb2.CreateExpertAccountRequest(
        expert_id="ann", name="Ann Expert", email="ann@example.com"
    )
    first = await world.experts.CreateExpertAccount(call)
    await backup.restore(world)
    again = await world.experts.CreateExpertAccount(call)
    assert again.expert.stripe_account_id == first.expert.stripe_account_id


@pytest.mark.parametrize("notes", ["", "done"])
async def test_a_sync_recovers_what_this_service_did(
    world: World, postgres: EmbeddedPostgres, notes: str
) -> None:
    """The webhooks of the lost calls come first, and the callers' repetitions afterwards."""
    held = await world.escrowed(escrow_mode=PLATFORM)
    backup = await back_up(postgres, world)
    capture = capture_request(held.payment_id, 4_000, notes=notes)
    refund = refund_request(held.payment_id, 7_000)
    for method, call in (("CapturePayment", capture), ("RefundPayment", refund)):
        assert (await world.bytes_of(method, call)).code == "OK"
    await backup.restore(world, loops=True)
    await world.operations.RunReconciliation(
        operations_pb2.RunReconciliationRequest(payment_id=held.payment_id)
    )
    recovered = await world.get(held.payment_id)
    assert (recovered.captured_amount.minor_units, recovered.held_amount.minor_units) == (4_000, 0)
    assert not await world.discrepancies(held.payment_id)
    effects = len(await world.stripe.effects())
    for method, call in (("CapturePayment", capture), ("RefundPayment", refund)):
        # The reversal that Stripe refused is asked for again, and refused again.
        assert (await world.until_answered(method, call)).code == "OK"
    assert len(await world.stripe.effects()) == effects
    await check_books(world)


async def test_a_recovered_refund_that_failed_is_answered_as_one(
    world: World, postgres: EmbeddedPostgres
) -> None:
    """The sync comes first, and the caller's repetition afterwards: the client has nothing."""
    paid = await world.captured()
    backup = await back_up(postgres, world)
    call = refund_request(paid.payment_id, 3_000)
    assert (await world.bytes_of("RefundPayment", call)).code == "OK"
    [made] = (await world.stripe.api("GET", "/refunds", payment_intent=paid.payment_intent_id))[
        "data"
    ]
    await world.stripe.control("POST", f"/refunds/{made['id']}/fail")
    await backup.restore(world)
    assert world.service is not None
    await sync_payment(world.service.app, paid.payment_id, RESTORE)
    assert (await world.get(paid.payment_id)).refunded_amount.minor_units == 0
    reply = await world.bytes_of("RefundPayment", call)
    assert reply.refused is not None
    assert reply.refused.reason == "REFUSED_BY_PROCESSOR"


# ---- payments and accounts that no book knows any more ----


async def test_a_lost_account_of_v2_is_recorded_again(
    start_world: StartWorld, postgres: EmbeddedPostgres
) -> None:
    """The list of v1 does not show it, and no payment names it."""
    world = await start_world(stripe_accounts_api="v2")
    backup = await back_up(postgres, world)
    expert = await world.expert()
    account = world.account_of(expert)
    await backup.restore(world)
    lines = await _recover(world)
    assert f"recovered expert {expert} with the account {account}" in lines
    assert not [line for line in await _recover(world) if line.startswith("recovered expert")]


@pytest.mark.parametrize("mode", [payments_pb2.ESCROW_MODE_CARD_HOLD, PLATFORM])
async def test_a_lost_payment_is_recorded_again(
    world: World, postgres: EmbeddedPostgres, mode: payments_pb2.EscrowMode.ValueType
) -> None:
    """It was initiated, paid and partly refunded after the backup; its expert too is lost."""
    backup = await back_up(postgres, world, loops=True)
    expert = await world.expert(commission_basis_points=1_250)
    initiation = world.initiation(expert, escrow_mode=mode)
    first = await world.payments.InitiatePayment(initiation)
    await world.confirm(first)
    await world.in_state(first.payment.payment_id, IN_ESCROW)
    capture = capture_request(first.payment.payment_id)
    refund = refund_request(first.payment.payment_id, 2_000)
    assert (await world.bytes_of("CapturePayment", capture)).code == "OK"
    await world.until_answered("RefundPayment", refund)
    before = await world.get(first.payment.payment_id)
    await backup.restore(world)
    lines = await _recover(world)
    assert any(f"recovered payment {before.payment_id}" in line for line in lines), lines
    assert any(f"recovered expert {expert}" in line for line in lines), lines
    after = await world.get(before.payment_id)
    for field in ("captured_amount", "commission_amount", "refunded_amount", "mode_reason"):
        if field in payments_pb2.Payment.DESCRIPTOR.fields_by_name:
            assert getattr(after, field) == getattr(before, field), field
    effects = len(await world.stripe.effects())
    again = await world.payments.InitiatePayment(initiation)
    assert again.payment.payment_id == before.payment_id
    for method, call in (("CapturePayment", capture), ("RefundPayment", refund)):
        assert (await world.until_answered(method, call)).code == "OK"
    assert len(await world.stripe.effects()) == effects
    assert not [line for line in await _recover(world) if line.startswith("recovered p")]
    await _check_books(world)


async def test_the_webhook_of_a_lost_payment_records_it(
    world: World, postgres: EmbeddedPostgres
) -> None:
    expert = await world.expert()
    backup = await back_up(postgres, world)
    lost = await world.initiate(expert)
    await backup.restore(world, loops=True)
    await world.confirm(lost)

    async def recorded() -> bool:
        return bool(world.sql("SELECT FROM payments WHERE state = 'IN_ESCROW'"))

    await until(recorded, "the payment in escrow")
    assert (await world.get(lost.payment.payment_id)).amount == lost.payment.amount
    await check_books(world)


async def test_an_intent_beside_the_payments_own_is_reported_and_refunded(world: World) -> None:
    """Somebody created it with the marks of a payment that has another intent."""
    payment = await world.escrowed()
    intent = await world.stripe.api("GET", f"/payment_intents/{payment.payment_intent_id}")
    marks = {f"metadata[{name}]": value for name, value in intent["metadata"].items()}
    second = await world.stripe.api(
        "POST", "/payment_intents", amount=10_000, currency="usd", **marks
    )
    assert world.service is not None
    found = await recover_payment(world.service.app, second["id"], RESTORE)
    assert found is not None
    assert found.payment_id != payment.payment_id
    [reported] = await world.discrepancies(found.payment_id)
    assert kind_of(reported) == "intent_without_payment"
    canceled = await world.refund(found.payment_id)
    assert canceled.state == CANCELED
    shown = await world.stripe.api("GET", f"/payment_intents/{second['id']}")
    assert shown["status"] == "canceled"


async def test_the_intents_of_another_installation_are_left_alone(world: World) -> None:
    expert = await world.expert()
    payment = (await world.initiate(expert)).payment
    intent = await world.stripe.api("GET", f"/payment_intents/{payment.payment_intent_id}")
    marks = {**intent["metadata"], "installation_id": "ins_other", "payment_id": "pay_other"}
    foreign = await world.stripe.api(
        "POST",
        "/payment_intents",
        amount=10_000,
        currency="usd",
        **{f"metadata[{name}]": value for name, value in marks.items()},
    )
    assert world.service is not None
    assert await recover_payment(world.service.app, foreign["id"], RESTORE) is None


async def test_a_lost_cancellation_is_answered(world: World, postgres: EmbeddedPostgres) -> None:
    held = await world.escrowed()
    backup = await back_up(postgres, world)
    refund = refund_request(held.payment_id)
    assert (await world.bytes_of("RefundPayment", refund)).code == "OK"
    await backup.restore(world)
    await _recover(world)
    assert (await world.get(held.payment_id)).state == CANCELED
    assert (await world.bytes_of("RefundPayment", refund)).code == "OK"
    await _check_books(world)


async def test_a_key_that_stripe_has_forgotten_does_not_pay_again(
    world: World, postgres: EmbeddedPostgres
) -> None:
    """The backup is two days old: Stripe is read before anything is sent."""
    held = await world.escrowed(escrow_mode=PLATFORM)
    backup = await back_up(postgres, world)
    call = capture_request(held.payment_id, 4_000)
    assert (await world.bytes_of("CapturePayment", call)).code == "OK"
    await backup.restore(world)
    await world.stripe.advance(2 * 86_400)
    world.sql("UPDATE event_cursors SET seen_until = now() - interval '2 days'")
    assert (await world.bytes_of("CapturePayment", call)).code == "OK"
    transfers = await world.stripe.api("GET", "/transfers", transfer_group=held.payment_id)
    assert [one["amount"] for one in transfers["data"]] == [3_600]


async def test_a_key_that_stripe_knows_for_another_request_is_no_refusal(
    world: World, postgres: EmbeddedPostgres
) -> None:
    """The expert's debt, which the lost capture paid, is different in the restored books."""
    held = await world.escrowed(escrow_mode=PLATFORM)
    backup = await back_up(postgres, world, loops=True)
    refund = refund_request(held.payment_id, 3_000)
    capture = capture_request(held.payment_id)
    for method, call in (("RefundPayment", refund), ("CapturePayment", capture)):
        assert (await world.bytes_of(method, call)).code == "OK"
    await backup.restore(world)
    # The capture of the whole was one of 70.00, and is one of 100.00 by the restored books.
    reply = await world.bytes_of("CapturePayment", capture)
    assert world.service is not None
    world.service.start_loops()
    if reply.code != "OK":
        reply = await world.until_answered("CapturePayment", capture)
    transfers = await world.stripe.api("GET", "/transfers", transfer_group=held.payment_id)
    assert [one["amount"] for one in transfers["data"]] == [6_300]

    async def refund_is_known() -> bool:
        return (await world.get(held.payment_id)).returned_amount.minor_units == 3_000

    await until(refund_is_known, "the lost refund on the books")
    await check_books(world)
    payment = await world.get(held.payment_id)
    assert payment.captured_amount.minor_units == 7_000


async def test_an_operation_that_was_open_in_the_backup_is_ended_first(
    world: World, postgres: EmbeddedPostgres
) -> None:
    """Its outcome was unknown then; afterwards it was done, and more followed from it."""
    held = await world.escrowed(escrow_mode=PLATFORM)
    assert world.service is not None
    await world.service.stop()
    await world.service.start(loops=False)
    await world.channel.channel_ready()
    await world.stripe.fault("/transfers$", "status", status=503)
    capture = capture_request(held.payment_id, 4_000, final=True)
    assert (await world.bytes_of("CapturePayment", capture)).code == "UNAVAILABLE"
    backup = await back_up(postgres, world)
    # The capture pays 36.00, and refunds the remainder of 60.00 with a second operation.
    assert (await world.until_answered("CapturePayment", capture)).code == "OK"
    refund = refund_request(held.payment_id, 1_000)
    assert (await world.until_answered("RefundPayment", refund)).code == "OK"
    before = await world.get(held.payment_id)
    effects = len(await world.stripe.effects())
    await backup.restore(world)
    lines = await _recover(world)
    assert not [line for line in lines if line.startswith("to decide")], lines
    world.service.start_loops()
    await world.settle_down()  # The reversal that Stripe refused is refused again.
    after = await world.get(held.payment_id)
    for field in ("state", "captured_amount", "refunded_amount", "returned_amount"):
        assert getattr(after, field) == getattr(before, field), (field, lines)
    for method, call in (("CapturePayment", capture), ("RefundPayment", refund)):
        assert (await world.until_answered(method, call)).code == "OK"
    assert len(await world.stripe.effects()) == effects
    await check_books(world)
    assert not await world.discrepancies()


async def test_an_initiation_that_was_open_in_the_backup_finds_its_intent(
    world: World, postgres: EmbeddedPostgres
) -> None:
    expert = await world.expert()
    assert world.service is not None
    await world.service.stop()
    await world.service.start(loops=False)
    await world.channel.channel_ready()
    await world.stripe.fault("/payment_intents$", "status", status=503)
    call = world.initiation(expert)
    assert (await world.bytes_of("InitiatePayment", call)).code == "UNAVAILABLE"
    backup = await back_up(postgres, world)
    reply = await world.until_answered("InitiatePayment", call)
    initiated = payments_pb2.InitiatePaymentResponse.FromString(reply.body)
    await world.confirm(initiated)
    await backup.restore(world)
    await _recover(world)
    assert (await world.get(initiated.payment.payment_id)).state == IN_ESCROW
    assert (await world.until_answered("InitiatePayment", call)).code == "OK"
    await _check_books(world)


async def test_a_lost_account_takes_the_place_of_the_former_one(
    world: World, postgres: EmbeddedPostgres
) -> None:
    """ReplaceExpertAccount was called after the backup."""
    expert = await world.expert()
    backup = await back_up(postgres, world, loops=True)
    replace = experts_pb2.ReplaceExpertAccountRequest(
        expert_id=expert,
        reason="lost",
        former_account_id=world.account_of(expert),
        replace_working_account=True,
        idempotency_key="replace-1",
    )
    first = await world.experts.ReplaceExpertAccount(replace)
    await backup.restore(world)
    await _recover(world)
    assert world.account_of(expert) == first.expert.stripe_account_id
    again = await world.experts.ReplaceExpertAccount(replace)
    assert again.expert.stripe_account_id == first.expert.stripe_account_id
    assert len(await world.stripe.effects("account_created")) == 2


async def _recover(world: World) -> list[str]:
    assert world.service is not None
    since = datetime.now(UTC) - timedelta(hours=1)
    return [line async for line in recover_after_restore(world.service.app, since, Recovered())]
