"""What is parked for an operator, and what must go on all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from marketplace.payments.v1 import money_pb2, operations_pb2, payments_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.requests import capture_request, money, new_key, refund_request
from tests.support.steps.dashboard import bounce, late_arrival
from tests.support.steps.disputes import LOST, WON, contest, decide, dispute_where, settled
from tests.support.steps.faults import HASTY, lost_answer
from tests.support.steps.operators import owed_after_a_bounce, parked, repaid, resume
from tests.support.steps.payments import event_kinds, in_days, owed, waiting_capture
from tests.support.world import (
    CAPTURED,
    CAPTURING,
    IN_ESCROW,
    REFUNDED,
    REFUNDING,
    Payment,
    World,
    until,
)

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD


# ---- a lost dispute ----


async def test_a_parked_transfer_is_preempted_by_a_lost_dispute(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/transfers$", "status", status=401)
    request = capture_request(held.payment_id, 4_000)
    refused = await refusal(world.payments.CapturePayment(request))
    assert refused.reason == "PROCESSOR_MISCONFIGURED"
    now = await world.get(held.payment_id)
    assert (now.state, now.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_OPERATOR)
    dispute_id = await contest(world, held)
    await decide(world, dispute_id, "lose")
    after = await settled(world, held.payment_id, dispute_id, LOST)
    assert (after.state, after.lost_amount.minor_units) == (REFUNDED, 10_000)
    reported = await refusal(world.payments.CapturePayment(request))
    assert (reported.code, reported.reason) == ("FAILED_PRECONDITION", "PAYMENT_DISPUTED")
    assert not await world.stripe.effects("transferred")


@pytest.mark.parametrize("part", [6_000, 10_000])
async def test_a_parked_refund_is_preempted_by_a_lost_dispute(world: World, part: int) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/refunds$", "status", status=401)
    request = refund_request(held.payment_id, 2_000)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    dispute_id = await contest(world, held, amount=part)
    await decide(world, dispute_id, "lose")
    after = await settled(world, held.payment_id, dispute_id, LOST)
    assert (after.held_amount.minor_units, after.lost_amount.minor_units) == (10_000 - part, part)
    assert (await refusal(world.payments.RefundPayment(request))).reason == "PAYMENT_DISPUTED"
    assert not await world.stripe.effects("refunded")


@pytest.mark.parametrize(("part", "left"), [(5_000, 5_000), (10_000, 0)])
async def test_the_remainder_of_a_capture_is_preempted_and_the_expert_stays_paid(
    world: World, part: int, left: int
) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/refunds$", "status", status=401)
    request = capture_request(held.payment_id, 3_000, final=True)
    assert (await refusal(world.payments.CapturePayment(request))).code == "UNAVAILABLE"
    dispute_id = await contest(world, held, amount=part)
    await decide(world, dispute_id, "lose")
    after = await settled(world, held.payment_id, dispute_id, LOST)
    assert after.held_amount.minor_units + after.net_amount.minor_units == left
    # Paid once, and the answer says so: a caller that is refused would pay again.
    answer = (await world.payments.CapturePayment(request)).payment
    assert answer.captured_amount.minor_units == 3_000
    reported = {kind_of(one) for one in await world.discrepancies(held.payment_id)}
    assert ("remainder_not_returned" in reported) is (left == 5_000)


async def test_a_request_that_may_still_reach_stripe_is_not_abandoned(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={**HASTY, "arrival_seconds": 8.0})
    payment, operation_id = await lost_answer(world)
    dispute_id = await contest(world, payment)
    await decide(world, dispute_id, "lose")
    await dispute_where(world, dispute_id, lambda dispute: dispute.outcome == LOST)
    await asyncio.sleep(2.5)  # The job for lost disputes runs twice.
    assert await parked(world, payment.payment_id) == operation_id
    # The sync after the minute finds it.
    await late_arrival(world, payment, operation_id)
    after = await settled(world, payment.payment_id, dispute_id, LOST)
    assert (after.captured_amount.minor_units, after.net_amount.minor_units) == (4_000, 0)
    assert after.lost_amount.minor_units == 10_000
    assert not [
        one for one in await world.discrepancies() if kind_of(one) == "out_of_band_transfer"
    ]


async def test_a_request_without_effect_for_a_minute_is_abandoned(start_world: StartWorld) -> None:
    world = await start_world(policy=HASTY)
    payment, _ = await lost_answer(world)
    dispute_id = await contest(world, payment)
    await decide(world, dispute_id, "lose")
    after = await settled(world, payment.payment_id, dispute_id, LOST)
    assert (after.captured_amount.minor_units, after.lost_amount.minor_units) == (0, 10_000)
    assert not await world.stripe.effects("transferred")


@pytest.mark.parametrize("word", ["lose", "win"])
async def test_a_request_that_stripe_does_not_show_is_not_resent_during_a_dispute(
    world: World, word: str
) -> None:
    """It is parked: a loss ends it, and an operator resumes it if the dispute is won."""
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/transfers$", "status", times=None, status=429)
    request = capture_request(held.payment_id, 4_000)
    assert (await refusal(world.payments.CapturePayment(request))).reason == (
        "PROCESSOR_RATE_LIMITED"
    )
    dispute_id = await contest(world, held)
    operation_id = await parked(world, held.payment_id)
    await world.stripe.clear_faults()
    await decide(world, dispute_id, word)
    after = await settled(world, held.payment_id, dispute_id, LOST if word == "lose" else WON)
    assert not await world.stripe.effects("transferred")
    if word == "lose":
        assert (await refusal(world.payments.CapturePayment(request))).reason == "PAYMENT_DISPUTED"
        assert (after.state, after.lost_held_amount.minor_units) == (REFUNDED, 10_000)
    else:
        assert (after.state, after.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_OPERATOR)
        await resume(world, operation_id)
        after = await world.in_state(held.payment_id, IN_ESCROW)
        assert after.captured_amount.minor_units == 4_000
    await check_books(world)


# ---- resuming what is contested ----


async def test_resuming_a_disputed_payment_syncs_and_sends_nothing(start_world: StartWorld) -> None:
    world = await start_world(policy=HASTY)
    payment, operation_id = await lost_answer(world)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    sent = len(await world.stripe.requests("/transfers"))
    await resume(world, operation_id)

    async def looked() -> bool:
        return bool(
            world.sql(
                "SELECT 1 FROM operations WHERE operation_id = %s AND state = 'PARKED' "
                "AND last_error LIKE '%%disputed%%'",
                operation_id,
            )
        )

    await until(looked, "parked again")
    assert len(await world.stripe.requests("/transfers")) == sent
    await decide(world, dispute_id, "win")
    await settled(world, payment.payment_id, dispute_id, WON)
    # It is sent now, since nothing is contested any more.
    await resume(world, operation_id)
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert after.captured_amount.minor_units == 4_000
    await check_books(world)


async def test_resuming_a_disputed_payment_finds_the_finished_effect(
    start_world: StartWorld,
) -> None:
    quiet = {"poll_seconds": 3600.0, "account_poll_seconds": 3600.0}
    world = await start_world(policy=HASTY | quiet)
    payment, operation_id = await lost_answer(world)
    dispute_id = await contest(world, payment)
    await dispute_where(world, dispute_id)
    await world.stripe.control("POST", "/webhooks", {"paused": True})
    await late_arrival(world, payment, operation_id)
    refused = await refusal(resume(world, operation_id))
    # The sync that comes first has found it.
    assert (refused.reason, refused.facts["state"]) == ("WRONG_STATE", "SUCCEEDED")
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert after.captured_amount.minor_units == 4_000
    assert "captured" in await event_kinds(world, payment.payment_id)


# ---- a repayment that is parked, or can never be made ----


async def test_escrow_is_not_locked_by_a_repayment_that_cannot_be_made(world: World) -> None:
    payment = await owed_after_a_bounce(world)
    # The client's card is closed: Stripe refuses each try.
    await world.stripe.fault(
        "/refunds$", "status", times=None, status=400, code="expired_or_canceled_card"
    )
    for attempt in (2, 3):
        await resume(world, await parked(world, payment.payment_id))

        async def again(attempt: int = attempt) -> bool:
            return bool(
                world.sql(
                    "SELECT 1 FROM operations WHERE payment_id = %s AND state = 'PARKED' "
                    "AND last_error LIKE 'expired_or_canceled_card%%' AND attempt = %s",
                    payment.payment_id,
                    attempt,
                )
            )

        await until(again, "parked again")
    # The gig is done; 8,000 are held for the expert.
    after = await world.capture(payment.payment_id)
    assert (after.state, after.waiting_for) == (REFUNDING, payments_pb2.WAITING_FOR_OPERATOR)
    assert after.captured_amount.minor_units == 8_000
    assert owed(world, payment.payment_id) == 2_000
    # Of what was paid out some goes back, to another card by now.
    await world.stripe.clear_faults()
    assert (await world.refund(payment.payment_id, 1_000)).net_amount.minor_units == 7_000
    await repaid(world, payment.payment_id, CAPTURED)
    made = [effect["amount"] for effect in await world.stripe.effects("refunded")]
    assert made == [2_000, 1_000, 2_000]


async def test_a_parked_repayment_is_preempted_and_made_once_later(world: World) -> None:
    payment = await owed_after_a_bounce(world)
    before = await parked(world, payment.payment_id)
    for part, left in ((3_000, 5_000), (1_000, 4_000)):
        after = await world.capture(payment.payment_id, part)
        assert (after.state, after.held_amount.minor_units) == (REFUNDING, left)
    after = await world.refund(payment.payment_id)
    assert (after.held_amount.minor_units, after.net_amount.minor_units) == (0, 4_000)
    assert owed(world, payment.payment_id) == 2_000
    # Each that gave way is over; resuming it sends nothing.
    assert (await refusal(resume(world, before))).reason == "WRONG_STATE"
    await repaid(world, payment.payment_id, CAPTURED)
    made = [effect["amount"] for effect in await world.stripe.effects("refunded")]
    assert made == [2_000, 4_000, 2_000]


async def test_a_refused_capture_leaves_the_repayment_as_it_was(world: World) -> None:
    payment = await owed_after_a_bounce(world)
    before = await parked(world, payment.payment_id)
    for call in (
        world.payments.CapturePayment(capture_request(payment.payment_id, 8_001)),
        world.payments.RefundPayment(refund_request(payment.payment_id, 8_001)),
    ):
        assert (await refusal(call)).reason == "AMOUNT_TOO_LARGE"
    shown = await world.payments.CapturePayment(
        capture_request(payment.payment_id, 3_000, validate_only=True)
    )
    assert shown.preview.payment.held_amount.minor_units == 5_000
    assert await parked(world, payment.payment_id) == before
    assert (await event_kinds(world, payment.payment_id))[-1] == "repayment_due"
    # And one that Stripe refuses leaves it payable, under another operation.
    await world.stripe.fault("/transfers$", "status", status=400, code="no_such_thing")
    refused = await refusal(world.payments.CapturePayment(capture_request(payment.payment_id)))
    assert refused.reason == "REFUSED_BY_PROCESSOR"
    assert await parked(world, payment.payment_id) != before
    await repaid(world, payment.payment_id, IN_ESCROW)


@pytest.mark.parametrize("pause", [0.0, 0.02, 0.2])
async def test_resuming_a_repayment_while_capturing_pays_each_once(
    world: World, pause: float
) -> None:
    payment = await owed_after_a_bounce(world)
    operation_id = await parked(world, payment.payment_id)

    async def capture() -> None:
        await asyncio.sleep(pause)
        request = capture_request(payment.payment_id, 3_000)
        await world.until_answered("CapturePayment", request)

    await asyncio.gather(capture(), resume(world, operation_id), return_exceptions=True)
    await world.settle_down()
    if owed(world, payment.payment_id):
        await repaid(world, payment.payment_id, IN_ESCROW)
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert (after.held_amount.minor_units, after.captured_amount.minor_units) == (5_000, 3_000)
    assert [one["amount"] for one in await world.stripe.effects("refunded")] == [2_000, 2_000]
    assert len(await world.stripe.effects("transferred")) == 1
    await check_books(world)


async def test_a_repayment_of_unknown_outcome_is_synced_first(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy=HASTY)
    payment = await owed_after_a_bounce(world)
    await world.stripe.fault("/refunds$", "status", times=None, status=503)
    await resume(world, await parked(world, payment.payment_id))

    async def unsure() -> bool:
        return bool(world.sql("SELECT 1 FROM operations WHERE unsure_until IS NOT NULL"))

    await until(unsure, "the repayment parked without an answer")
    refused = await refusal(world.payments.CapturePayment(capture_request(payment.payment_id)))
    assert (refused.code, refused.reason) == ("ABORTED", "OPERATION_IN_PROGRESS")
    await world.stripe.clear_faults()
    await repaid(world, payment.payment_id, IN_ESCROW)
    assert (await world.capture(payment.payment_id)).state == CAPTURED


async def test_a_repayment_of_which_stripe_shows_nothing_blocks_nothing_any_more(
    start_world: StartWorld,
) -> None:
    """It was parked without an answer, and Stripe stays unavailable for refunds."""
    world = await start_world(policy={**HASTY, "quiet_seconds": 1.0})
    payment = await owed_after_a_bounce(world)
    await world.stripe.fault("/refunds$", "status", times=None, status=503)
    operation_id = await parked(world, payment.payment_id)
    await resume(world, operation_id)

    async def settled_by_cheque() -> bool:
        asked = settle_request(payment, money(500)).SerializeToString()
        reply = await world.raw("OperationsService/SettleClientPayable", asked)
        assert reply.refused is None or reply.refused.reason == "OPERATION_IN_PROGRESS"
        return reply.refused is None

    await until(settled_by_cheque, "settled by cheque")
    assert (await world.capture(payment.payment_id)).captured_amount.minor_units == 8_000
    assert owed(world, payment.payment_id) == 1_500
    assert await parked(world, payment.payment_id) != operation_id
    assert [one["amount"] for one in await world.stripe.effects("refunded")] == [2_000]
    await check_books(world)


@pytest.mark.parametrize("on_deadline", ["CAPTURE", "REFUND", "ALERT"])
async def test_deadlines_apply_to_the_rest_of_the_held_amount(
    world: World, as_superuser: Callable[..., int], on_deadline: str
) -> None:
    payment = await owed_after_a_bounce(
        world,
        on_deadline=payments_pb2.OnDeadline.Value(f"ON_DEADLINE_{on_deadline}"),
        expected_completion_time=in_days(30),
    )
    due = "UPDATE payments SET release_due_time = now() + interval '%s' WHERE payment_id = %%s"

    async def reported(kind: str) -> bool:
        return kind in await event_kinds(world, payment.payment_id)

    as_superuser(world, due % "1 hour", payment.payment_id)
    await until(lambda: reported("deadline_near"), "the warning")
    as_superuser(world, due % "-1 second", payment.payment_id)
    done = {"CAPTURE": "captured", "REFUND": "client_refunded", "ALERT": "deadline_passed"}
    count = 2 if on_deadline == "REFUND" else 1

    async def acted() -> bool:
        return (await event_kinds(world, payment.payment_id)).count(done[on_deadline]) == count

    await until(acted, "the deadline")
    await world.settle_down()
    after = await world.in_state(payment.payment_id, REFUNDING)
    assert after.held_amount.minor_units == (8_000 if on_deadline == "ALERT" else 0)
    assert owed(world, payment.payment_id) == 2_000


async def test_the_client_payable_after_a_partial_loss_locks_nothing(world: World) -> None:
    payment = await owed_after_a_bounce(world)
    dispute_id = await contest(world, payment, amount=1_500)
    await decide(world, dispute_id, "lose")
    await settled(world, payment.payment_id, dispute_id, LOST)
    assert owed(world, payment.payment_id) == 500
    after = await world.capture(payment.payment_id)
    assert after.captured_amount.minor_units == 8_000
    assert owed(world, payment.payment_id) == 500
    await check_books(world)


# ---- client payable, settled outside of Stripe ----


def settle_request(
    payment: Payment, amount: money_pb2.Money | None = None
) -> operations_pb2.SettleClientPayableRequest:
    return operations_pb2.SettleClientPayableRequest(
        payment_id=payment.payment_id,
        amount=amount,
        reason="paid by cheque",
        idempotency_key=new_key(),
    )


async def test_client_payable_paid_by_cheque_is_settled(world: World) -> None:
    payment = await owed_after_a_bounce(world)
    before = await parked(world, payment.payment_id)
    asked = settle_request(payment, money(500))
    method = "OperationsService/SettleClientPayable"
    first = await world.raw(method, asked.SerializeToString())
    answer = operations_pb2.SettleClientPayableResponse.FromString(first.body)
    assert (answer.settled_amount.minor_units, answer.client_payable.minor_units) == (500, 1_500)
    assert (answer.payment.state, answer.payment.waiting_for) == (
        REFUNDING,
        payments_pb2.WAITING_FOR_OPERATOR,
    )
    assert (await refusal(resume(world, before))).reason == "WRONG_STATE"
    rest = await world.operations.SettleClientPayable(settle_request(payment))
    assert (rest.settled_amount.minor_units, rest.client_payable.minor_units) == (1_500, 0)
    assert (rest.payment.state, rest.payment.waiting_for) == (
        IN_ESCROW,
        payments_pb2.WAITING_FOR_UNSPECIFIED,
    )
    # The same key gives the same bytes, whatever has happened since.
    assert (await world.raw(method, asked.SerializeToString())).body == first.body
    assert owed(world, payment.payment_id) == 0
    assert balance(world, "settled_out_of_band") == -2_000
    reported = world.sql(
        "SELECT (body::jsonb -> 'facts' ->> 'amount')::int, text FROM events "
        "JOIN texts USING (payment_id, sequence) WHERE kind = 'payment.client_payable_settled' "
        "ORDER BY sequence"
    )
    assert reported == [(500, "paid by cheque"), (1_500, "paid by cheque")]
    assert (await world.capture(payment.payment_id)).state == CAPTURED
    assert [one["amount"] for one in await world.stripe.effects("refunded")] == [2_000]
    await check_books(world)
    report = await world.operations.RunReconciliation(
        operations_pb2.RunReconciliationRequest(payment_id=payment.payment_id)
    )
    assert not [invariant for invariant in report.invariants if invariant.violations]


async def test_no_more_is_settled_than_the_client_payable(world: World) -> None:
    payment = await owed_after_a_bounce(world)
    operation_id = await parked(world, payment.payment_id)
    asked = settle_request(payment, money(2_001))
    for _ in range(2):
        refused = await refusal(world.operations.SettleClientPayable(asked))
        assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "AMOUNT_TOO_LARGE")
        assert (refused.facts["requested"], refused.facts["available"]) == ("2001", "2000")
    other = await refusal(
        world.operations.SettleClientPayable(settle_request(payment, money(1, "EUR")))
    )
    assert (other.code, list(other.fields)) == ("INVALID_ARGUMENT", ["amount.currency_code"])
    assert await parked(world, payment.payment_id) == operation_id
    nothing = await world.captured()
    refused = await refusal(world.operations.SettleClientPayable(settle_request(nothing)))
    assert (refused.reason, refused.facts["available"]) == ("AMOUNT_TOO_LARGE", "0")
    assert balance(world, "settled_out_of_band") == 0


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.3])
async def test_settling_while_resuming_pays_the_client_in_one_way(
    world: World, pause: float
) -> None:
    payment = await owed_after_a_bounce(world)
    operation_id = await parked(world, payment.payment_id)

    async def settle() -> str:
        await asyncio.sleep(pause)
        asked = settle_request(payment).SerializeToString()
        reply = await world.raw("OperationsService/SettleClientPayable", asked)
        return reply.refused.reason if reply.refused else "settled"

    how, _ = await asyncio.gather(settle(), resume(world, operation_id), return_exceptions=True)
    # Or it is on its way, or has arrived.
    assert how in ("settled", "OPERATION_IN_PROGRESS", "AMOUNT_TOO_LARGE")
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert after.held_amount.minor_units == 8_000
    assert owed(world, payment.payment_id) == 0
    assert len(await world.stripe.effects("refunded")) == (1 if how == "settled" else 2)
    await check_books(world)


async def test_settling_does_not_wait_for_a_capture_that_waits_for_its_expert(
    world: World,
) -> None:
    payment, account = await waiting_capture(world, 2_000, 3_000)
    await bounce(world, payment.payment_id)
    answer = await world.operations.SettleClientPayable(settle_request(payment))
    assert (answer.payment.state, answer.payment.waiting_for) == (
        CAPTURING,
        payments_pb2.WAITING_FOR_EXPERT,
    )
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert after.held_amount.minor_units == 5_000
    assert owed(world, payment.payment_id) == 0
    await check_books(world)
