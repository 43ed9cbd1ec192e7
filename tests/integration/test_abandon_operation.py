"""An operator abandons a parked operation: nothing is sent, and every answer is true."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from marketplace.payments.v1 import experts_pb2, operations_pb2, payments_pb2
from payment_service.application.abandon_operation import abandon, check_abandonable
from payment_service.application.jobs.collect_debts import Collection, begin_collection
from payment_service.application.sync.apply_snapshot import SyncResult
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Refusal
from payment_service.domain.ports.records import Cause
from payment_service.domain.sync.changes import Discrepancy
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import refusal
from tests.support.flights import effects_of, flights
from tests.support.kinds import operation_kind_of
from tests.support.requests import capture_request, refund_request
from tests.support.steps.dashboard import (
    captured_payment,
    days_pass,
    late_arrival,
    refund_out_of_band,
    reverse,
    transfer_out_of_band,
)
from tests.support.steps.disputes import (
    LOST,
    OPEN,
    acceptance_request,
    contest,
    decide,
    dispute_where,
    disputed,
    evidence_request,
    settled,
)
from tests.support.steps.faults import HASTY, fail_stripe, lost_answer
from tests.support.steps.operators import (
    discrepancy_kinds,
    owed_after_a_bounce,
    parked,
    repaid,
    repayments,
    resume,
    write_off,
)
from tests.support.steps.payments import (
    amounts_at_stripe,
    answer,
    balances_of,
    kept_back,
    owed,
    waiting_capture,
)
from tests.support.world import CANCELED, CAPTURED, CAPTURING, IN_ESCROW, REFUNDED, World, until

PLATFORM = payments_pb2.ESCROW_MODE_PLATFORM_HOLD
REASON = "paid by bank transfer, ticket 4711"


async def abandon_by_rpc(
    world: World, operation_id: str, reason: str = REASON
) -> operations_pb2.Operation:
    request = operations_pb2.AbandonOperationRequest(operation_id=operation_id, reason=reason)
    return (await world.operations.AbandonOperation(request)).operation


async def is_explained(world: World, payment_id: str, operation_id: str) -> str:
    """Returns the kind of the one event that says why it was abandoned, and by whom."""
    [(kind, facts, by)] = world.sql(
        "SELECT kind, body::jsonb -> 'facts', body::jsonb -> 'by' FROM events "
        "JOIN texts USING (payment_id, sequence) WHERE payment_id = %s AND text = %s",
        payment_id,
        REASON,
    )
    assert facts["operation_id"] == operation_id
    assert (by["caller"], by["rpc"]) == ("local", "AbandonOperation")
    return str(kind)


# ---- what it comes to ----


async def test_a_transfer_that_was_made_otherwise_holds_up_its_payment_no_more(
    world: World,
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/transfers$", 401)
    request = capture_request(payment.payment_id, 8_000, final=True)
    assert (await refusal(world.payments.CapturePayment(request))).code == "UNAVAILABLE"
    operation_id = await parked(world, payment.payment_id)
    await transfer_out_of_band(world, payment, 1_000)
    await world.settle_down()
    waiting = await world.get(payment.payment_id)
    assert (waiting.state, waiting.waiting_for) == (CAPTURING, payments_pb2.WAITING_FOR_OPERATOR)
    ended = await abandon_by_rpc(world, operation_id)
    assert (ended.state, ended.last_error) == (operations_pb2.OPERATION_STATE_REFUSED, "abandoned")
    after = await world.get(payment.payment_id)
    assert (after.state, after.waiting_for, after.held_amount.minor_units) == (
        IN_ESCROW,
        payments_pb2.WAITING_FOR_UNSPECIFIED,
        10_000,
    )
    assert not after.HasField("last_failure")
    assert (
        await is_explained(world, payment.payment_id, operation_id) == "payment.capture_abandoned"
    )
    assert await answer(world, "CapturePayment", request) == "ABANDONED_BY_OPERATOR"
    refused = await refusal(world.payments.CapturePayment(request))
    assert refused.code == "FAILED_PRECONDITION"
    assert refused.facts == {"payment_id": payment.payment_id, "operation_id": operation_id}
    assert REASON not in refused.sentence
    # Neither once more, nor by resuming it.
    for call in (abandon_by_rpc(world, operation_id), resume(world, operation_id)):
        again = await refusal(call)
        assert (again.reason, again.facts["state"]) == ("WRONG_STATE", "REFUSED")
    assert await amounts_at_stripe(world, "transferred", payment) == [1_000]
    assert await discrepancy_kinds(world, payment) == ["out_of_band_transfer"]
    await check_books(world)
    # A caller that still wants one captures or refunds again.
    await world.capture(payment.payment_id, 3_000)
    await world.refund(payment.payment_id, 2_000)
    assert await amounts_at_stripe(world, "transferred", payment) == [1_000, 2_700]
    assert await amounts_at_stripe(world, "refunded", payment) == [2_000]
    await check_books(world)


async def test_each_kind_of_operation_leaves_its_payment_as_it_was(world: World) -> None:
    found = await flights(world)
    for flight in found:
        await world.stripe.fault(flight.path, "status", status=401, match=dict(flight.match))
        assert (await refusal(getattr(world.payments, flight.method)(flight.request))).reason == (
            "PROCESSOR_MISCONFIGURED"
        )
    await world.stripe.clear_faults()
    parked_now = world.sql(
        "SELECT kind, operation_id, payment_id FROM operations WHERE state = 'PARKED'"
    )
    expected = {
        "create_intent": (CANCELED, "creation_refused", {}),
        "capture": (IN_ESCROW, "capture_abandoned", {"authorized": 1}),
        "cancel": (IN_ESCROW, "cancel_refused", {"authorized": 1}),
        "refund": (CAPTURED, "refund_refused", {"captured": 1}),
        "reverse_transfer": (CAPTURED, "expert_debt_recorded", {"captured": 1, "refunded": 1}),
    }
    assert sorted(kind for kind, _, _ in parked_now) == sorted(expected)
    for kind, operation_id, payment_id in parked_now:
        assert operation_kind_of(await abandon_by_rpc(world, operation_id)) == kind
        state, event, effects = expected[kind]
        after = await world.get(payment_id)
        assert (after.state, after.waiting_for) == (state, payments_pb2.WAITING_FOR_UNSPECIFIED)
        assert await is_explained(world, payment_id, operation_id) == f"payment.{event}"
        made = await effects_of(world, after.payment_intent_id or payment_id)
        assert effects.items() <= made.items()
        # What it was to do.
        undone = {
            "create_intent": "intent_created",
            "capture": "captured",
            "cancel": "canceled",
            "refund": "refunded",
            "reverse_transfer": "reversed",
        }
        assert not made[undone[kind]]
    for flight in found:
        # Of a refund whose reversal is missing the client has the money.
        essential = flight.path.endswith("/reversals$")
        expected_answer = "OK" if essential else "ABANDONED_BY_OPERATOR"
        assert await answer(world, flight.method, flight.request) == expected_answer
    await check_books(world)


async def test_an_abandoned_debt_is_not_collected_by_an_older_list(world: World) -> None:
    """The collection listed the payment while its reversal was parked, and begins afterwards."""
    payment = await captured_payment(world)
    await days_pass(world)
    await fail_stripe(world, "/reversals$", 401)
    request = refund_request(payment.payment_id)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    operation_id = await parked(world, payment.payment_id)
    assert world.service is not None
    app = world.service.app
    before = await app.database.read(lambda reader: reader.payment(payment.payment_id))
    snapshot = await app.stripe.observe(payment.payment_intent_id)
    assert before is not None
    assert snapshot is not None
    listed = Collection(before, snapshot.transfers[0], 9_000)
    await abandon_by_rpc(world, operation_id)
    assert await app.database.transact(begin_collection, app.policy, listed) is None
    assert balances_of(world, payment) == (9_000, 0)


async def test_an_abandoned_reversal_becomes_debt_and_is_offset_later(world: World) -> None:
    payment = await captured_payment(world)
    await days_pass(world)
    await fail_stripe(world, "/reversals$", 401)
    request = refund_request(payment.payment_id)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    operation_id = await parked(world, payment.payment_id)
    await abandon_by_rpc(world, operation_id)
    assert (await world.get(payment.payment_id)).state == REFUNDED
    assert (
        await is_explained(world, payment.payment_id, operation_id)
        == "payment.expert_debt_recorded"
    )
    assert await answer(world, "RefundPayment", request) == "OK"
    assert balances_of(world, payment) == (9_000, 0)
    # What is reversed out of band later is written off, and a capture offsets the remainder: once.
    await reverse(world, payment, 4_000)
    await write_off(world, payment, 4_000)
    assert balances_of(world, payment) == (5_000, 0)
    assert await kept_back(world, payment, 10_000) == 5_000
    assert await kept_back(world, payment, 10_000) == 0
    assert await amounts_at_stripe(world, "reversed", payment) == [4_000]


async def test_a_reversal_takes_the_later_ones_with_it(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.capture(payment.payment_id, 4_000)
    await world.capture(payment.payment_id, 6_000)
    await days_pass(world)
    await fail_stripe(world, "/reversals$", 401)
    request = refund_request(payment.payment_id)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    await abandon_by_rpc(world, await parked(world, payment.payment_id))
    assert await answer(world, "RefundPayment", request) == "OK"
    assert balances_of(world, payment) == (9_000, 0)
    assert await amounts_at_stripe(world, "reversed", payment) == []
    await check_books(world)


async def test_a_reversal_after_a_lost_dispute_answers_no_caller(world: World) -> None:
    payment = await captured_payment(world)
    await days_pass(world)
    await fail_stripe(world, "/reversals$", 401)
    dispute_id = await contest(world, payment)
    await decide(world, dispute_id, "lose")
    operation_id = await parked(world, payment.payment_id)
    await abandon_by_rpc(world, operation_id)
    assert (await settled(world, payment.payment_id, dispute_id, LOST)).state == REFUNDED
    assert balances_of(world, payment)[0] == 9_000
    await check_books(world)


async def test_a_refund_that_is_not_wanted_any_more(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/refunds$", 401)
    request = refund_request(payment.payment_id, 4_000)
    assert (await refusal(world.payments.RefundPayment(request))).code == "UNAVAILABLE"
    operation_id = await parked(world, payment.payment_id)
    await abandon_by_rpc(world, operation_id)
    after = await world.get(payment.payment_id)
    assert (after.state, after.held_amount.minor_units) == (IN_ESCROW, 10_000)
    assert after.last_failure.code == "abandoned"
    assert await is_explained(world, payment.payment_id, operation_id) == "payment.refund_refused"
    assert await answer(world, "RefundPayment", request) == "ABANDONED_BY_OPERATOR"
    # A later one, out of band, is another one.
    await refund_out_of_band(world, payment, 1_000)
    assert (await world.get(payment.payment_id)).held_amount.minor_units == 9_000
    assert await amounts_at_stripe(world, "refunded", payment) == [1_000]
    await check_books(world)


async def test_the_remainder_of_a_final_capture_stays_in_escrow_and_is_reported(
    world: World,
) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/refunds$", 401)
    request = capture_request(payment.payment_id, 6_000, final=True)
    assert (await refusal(world.payments.CapturePayment(request))).code == "UNAVAILABLE"
    await abandon_by_rpc(world, await parked(world, payment.payment_id))
    # The expert is paid, once, and its caller's answer says so.
    assert await answer(world, "CapturePayment", request) == "OK"
    after = await world.get(payment.payment_id)
    assert (after.state, after.held_amount.minor_units) == (IN_ESCROW, 4_000)
    assert await discrepancy_kinds(world, payment) == ["remainder_not_returned"]
    assert await amounts_at_stripe(world, "refunded", payment) == []
    await check_books(world)
    await world.refund(payment.payment_id)
    assert await amounts_at_stripe(world, "refunded", payment) == [4_000]
    assert await amounts_at_stripe(world, "transferred", payment) == [5_400]
    await check_books(world)


async def test_the_answer_of_a_waiting_capture_stays(world: World) -> None:
    payment, account = await waiting_capture(world, 2_000, 3_000)
    [(operation_id,)] = world.sql("SELECT operation_id FROM operations WHERE state = 'PARKED'")
    [before] = world.sql(
        "SELECT ok, answer FROM idempotency_keys WHERE operation_id = %s", operation_id
    )
    await abandon_by_rpc(world, operation_id)
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert (after.held_amount.minor_units, after.waiting_for) == (
        8_000,
        payments_pb2.WAITING_FOR_UNSPECIFIED,
    )
    now = world.sql("SELECT ok, answer FROM idempotency_keys WHERE operation_id = %s", operation_id)
    assert [(ok, bytes(body)) for ok, body in now] == [(True, bytes(before[1]))]
    # The account is well again, and nothing goes to it.
    await world.stripe.control("POST", f"/accounts/{account}/restore")
    await asyncio.sleep(2.5)  # Two rounds of the loop that sends waiting captures on.
    assert await amounts_at_stripe(world, "transferred", payment) == []
    await check_books(world)


async def test_another_repayment_is_parked_at_once(world: World) -> None:
    payment, _ = await waiting_capture(world, 2_000, 3_000)
    refund = world.sql("SELECT movement_id FROM movements WHERE kind = 'refund'")[0][0]
    await world.stripe.control("POST", f"/refunds/{refund}/fail")

    async def booked() -> bool:
        return owed(world, payment.payment_id) == 2_000

    await until(booked, "the bounce on the books")
    [(operation_id,)] = world.sql("SELECT operation_id FROM operations WHERE state = 'PARKED'")
    await abandon_by_rpc(world, operation_id)
    assert [state for _, _, state in repayments(world, payment.payment_id)] == ["PARKED"]
    await repaid(world, payment.payment_id, IN_ESCROW)


# ---- what is not abandoned ----


async def test_a_request_that_may_still_reach_stripe_is_abandoned_later(
    start_world: StartWorld,
) -> None:
    world = await start_world(policy={**HASTY, "arrival_seconds": 4.0})
    payment, operation_id = await lost_answer(world)
    refused = await refusal(abandon_by_rpc(world, operation_id))
    assert (refused.code, refused.reason) == ("ABORTED", "OPERATION_IN_PROGRESS")
    [(unsure_until,)] = world.sql(
        "SELECT unsure_until FROM operations WHERE operation_id = %s", operation_id
    )
    assert refused.facts == {
        "payment_id": payment.payment_id,
        "state": "PARKED",
        "unsure_until": unsure_until.isoformat(),
    }
    assert (await world.get(payment.payment_id)).state == CAPTURING

    async def given_up() -> bool:
        reply = await world.raw(
            "OperationsService/AbandonOperation",
            operations_pb2.AbandonOperationRequest(
                operation_id=operation_id, reason=REASON
            ).SerializeToString(),
        )
        assert reply.refused is None or reply.refused.reason == "OPERATION_IN_PROGRESS"
        return reply.refused is None

    await until(given_up, "given up after that time")
    [(is_over,)] = world.sql("SELECT now() >= %s", unsure_until)
    assert is_over
    assert (await world.get(payment.payment_id)).state == IN_ESCROW
    assert await amounts_at_stripe(world, "transferred", payment) == []
    await check_books(world)


async def test_an_effect_found_at_stripe_is_recorded_by_the_sync(start_world: StartWorld) -> None:
    quiet = {"poll_seconds": 3600.0, "account_poll_seconds": 3600.0, "quiet_seconds": 3600.0}
    world = await start_world(policy=HASTY | quiet)
    payment, operation_id = await lost_answer(world)

    async def sure() -> bool:
        return bool(
            world.sql(
                "SELECT 1 FROM operations WHERE state = 'PARKED' "
                "AND (unsure_until IS NULL OR unsure_until <= now())"
            )
        )

    await until(sure, "the end of the minute")
    await world.pause_webhooks()
    await late_arrival(world, payment, operation_id)
    refused = await refusal(abandon_by_rpc(world, operation_id))
    assert (refused.reason, refused.facts["state"]) == ("WRONG_STATE", "SUCCEEDED")
    after = await world.in_state(payment.payment_id, IN_ESCROW)
    assert after.captured_amount.minor_units == 4_000
    assert await amounts_at_stripe(world, "transferred", payment) == [3_600]
    assert await discrepancy_kinds(world, payment) == []
    await check_books(world)


async def test_an_intent_that_stripe_made_after_all_is_found(world: World) -> None:
    expert = await world.expert()
    await world.stripe.fault("/payment_intents$", "status", status=401, match={"method": "POST"})
    request = world.initiation(expert, 2_000)
    assert (await refusal(world.payments.InitiatePayment(request))).code == "UNAVAILABLE"
    [(operation_id, payment_id)] = world.sql(
        "SELECT operation_id, payment_id FROM operations WHERE state = 'PARKED'"
    )
    await world.pause_webhooks()
    names = {"metadata[operation_id]": operation_id, "metadata[payment_id]": payment_id}
    made = await world.stripe.api(
        "POST",
        "/payment_intents",
        amount=2_000,
        currency="usd",
        capture_method="manual",
        **names,
    )
    assert made.get("id"), made
    refused = await refusal(abandon_by_rpc(world, operation_id))
    assert (refused.reason, refused.facts["state"]) == ("WRONG_STATE", "SUCCEEDED")
    assert (await world.get(payment_id)).payment_intent_id == made["id"]
    assert await answer(world, "InitiatePayment", request) == "OK"


async def test_nothing_is_abandoned_while_stripe_cannot_be_read(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/transfers$", 401)
    await refusal(world.payments.CapturePayment(capture_request(payment.payment_id)))
    operation_id = await parked(world, payment.payment_id)
    for status, reason in ((401, "PROCESSOR_MISCONFIGURED"), (503, "PROCESSOR_UNAVAILABLE")):
        await world.stripe.fault(
            "/payment_intents/", "status", times=None, status=status, match={"method": "GET"}
        )
        refused = await refusal(abandon_by_rpc(world, operation_id))
        assert (refused.code, refused.reason) == ("UNAVAILABLE", reason)
        await world.stripe.clear_faults()
    assert await parked(world, payment.payment_id) == operation_id


async def test_client_payable_is_settled_and_not_abandoned(world: World) -> None:
    payment = await owed_after_a_bounce(world)
    operation_id = await parked(world, payment.payment_id)
    refused = await refusal(abandon_by_rpc(world, operation_id))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "OPERATION_NOT_ABANDONABLE")
    assert refused.facts == {
        "operation_id": operation_id,
        "kind": "refund",
        "instead": "SettleClientPayable",
    }
    assert owed(world, payment.payment_id) == 2_000
    await repaid(world, payment.payment_id, IN_ESCROW)


async def parked_account(world: World) -> str:
    """The operation of an account that Stripe refused to create."""
    await world.stripe.fault("/accounts$", "status", status=401)
    with pytest.raises(Exception, match="UNAVAILABLE"):
        await world.expert("ann")
    [(operation_id,)] = world.sql("SELECT operation_id FROM operations WHERE state = 'PARKED'")
    return str(operation_id)


async def test_an_account_that_is_to_be_made_is_resumed(world: World) -> None:
    await resume(world, await parked_account(world))
    await until(lambda: has_account(world), "the account")


async def test_an_account_that_is_abandoned_can_be_created_with_other_data(world: World) -> None:
    operation_id = await parked_account(world)
    request = experts_pb2.CreateExpertAccountRequest(
        expert_id="ann", name="Ann", email="ann@example.org", country="CA"
    )
    refused = await refusal(world.experts.CreateExpertAccount(request))
    assert refused.reason == "EXPERT_ALREADY_EXISTS"
    ended = await abandon_by_rpc(world, operation_id)
    assert ended.state == operations_pb2.OPERATION_STATE_REFUSED
    again = await refusal(abandon_by_rpc(world, operation_id))
    assert (again.reason, again.facts["state"]) == ("WRONG_STATE", "REFUSED")
    created = await world.experts.CreateExpertAccount(request)
    assert (created.expert.country, created.expert.email) == ("CA", "ann@example.org")
    assert len(await world.stripe.effects("account_created")) == 1


async def test_an_account_that_stripe_has_is_not_abandoned(start_world: StartWorld) -> None:
    world = await start_world(loops=False)
    await world.stripe.fault("/accounts$", "reset", "after")
    with pytest.raises(Exception, match="UNAVAILABLE"):
        await world.expert("ann")
    [(operation_id,)] = world.sql(
        "UPDATE operations SET state = 'PARKED', lease_until = NULL RETURNING operation_id"
    )
    refused = await refusal(abandon_by_rpc(world, operation_id))
    assert (refused.reason, refused.facts["state"]) == ("WRONG_STATE", "SUCCEEDED")
    assert await has_account(world)


async def has_account(world: World) -> bool:
    return bool(world.sql("SELECT 1 FROM experts WHERE stripe_account_id <> ''"))


async def test_what_does_not_exist_or_says_nothing(world: World) -> None:
    unknown = await refusal(abandon_by_rpc(world, "op_" + "0" * 32))
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "OPERATION_NOT_FOUND")
    silent = await refusal(abandon_by_rpc(world, "", ""))
    assert (silent.code, set(silent.fields)) == ("INVALID_ARGUMENT", {"operation_id", "reason"})


# ---- answers to a dispute ----


@pytest.mark.parametrize("accepts", [True, False], ids=["acceptance", "evidence"])
async def test_an_answer_that_is_not_wanted_any_more_makes_way_for_another(
    world: World, accepts: bool
) -> None:
    payment_id, dispute_id = await disputed(world)
    await world.stripe.fault("/disputes/", "status", status=401, match={"method": "POST"})
    call: Any
    request: Any
    if accepts:
        call, request = world.disputes.AcceptDispute, acceptance_request(dispute_id)
    else:
        call, request = world.disputes.SubmitEvidence, evidence_request(dispute_id)
    assert (await refusal(call(request))).code == "UNAVAILABLE"
    [(operation_id,)] = world.sql("SELECT operation_id FROM operations WHERE state = 'PARKED'")
    await abandon_by_rpc(world, operation_id)
    assert await is_explained(world, payment_id, operation_id) == "payment.dispute_answer_refused"
    refused = await refusal(call(request))
    assert (refused.reason, refused.facts["dispute_id"]) == ("ABANDONED_BY_OPERATOR", dispute_id)
    assert (await dispute_where(world, dispute_id)).outcome == OPEN
    other = await world.disputes.SubmitEvidence(evidence_request(dispute_id, "winning_evidence"))
    assert other.dispute.submission_count == 1
    assert len(await world.stripe.effects("evidence_submitted")) == 1
    assert not await world.stripe.effects("dispute_closed")
    await check_books(world)


# ---- who comes at the same time ----


@pytest.mark.parametrize("pause", [0.0, 0.01, 0.03])
async def test_abandoning_during_a_resume_has_one_winner(world: World, pause: float) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/transfers$", 401)
    request = capture_request(payment.payment_id, 4_000)
    await refusal(world.payments.CapturePayment(request))
    operation_id = await parked(world, payment.payment_id)

    async def ends() -> str:
        await asyncio.sleep(pause)
        asked = operations_pb2.AbandonOperationRequest(operation_id=operation_id, reason=REASON)
        reply = await world.raw("OperationsService/AbandonOperation", asked.SerializeToString())
        return reply.refused.reason if reply.refused else "OK"

    async def resumes() -> str:
        asked = operations_pb2.ResumeOperationRequest(operation_id=operation_id)
        reply = await world.raw("OperationsService/ResumeOperation", asked.SerializeToString())
        return reply.refused.reason if reply.refused else "OK"

    done = await asyncio.gather(ends(), resumes())
    assert sorted(done) == ["OK", "WRONG_STATE"]
    ended = done[0] == "OK"
    expected = "ABANDONED_BY_OPERATOR" if ended else "OK"
    assert await answer(world, "CapturePayment", request) == expected
    assert await amounts_at_stripe(world, "transferred", payment) == ([] if ended else [3_600])
    await check_books(world)


async def test_of_two_who_give_it_up_one_does(world: World) -> None:
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/refunds$", 401)
    await refusal(world.payments.RefundPayment(refund_request(payment.payment_id)))
    operation_id = await parked(world, payment.payment_id)
    asked = operations_pb2.AbandonOperationRequest(operation_id=operation_id, reason=REASON)
    replies = await asyncio.gather(
        *(
            world.raw("OperationsService/AbandonOperation", asked.SerializeToString())
            for _ in range(4)
        )
    )
    assert sorted(reply.refused.reason if reply.refused else "" for reply in replies) == [
        "",
        *["WRONG_STATE"] * 3,
    ]
    await is_explained(world, payment.payment_id, operation_id)
    await check_books(world)


async def test_one_that_was_resumed_and_parked_again_meanwhile_is_another_matter(
    start_world: StartWorld,
) -> None:
    """The sync after the check does not cover a request that was sent since the check."""
    world = await start_world(policy=HASTY)
    assert world.service is not None
    app = world.service.app
    payment = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await fail_stripe(world, "/transfers$", 401)
    await refusal(world.payments.CapturePayment(capture_request(payment.payment_id)))
    operation_id = await parked(world, payment.payment_id)
    known = await app.database.transact(check_abandonable, operation_id)
    await fail_stripe(world, "/transfers$", 401)
    await resume(world, operation_id)
    await world.settle_down()
    assert await parked(world, payment.payment_id) == operation_id
    world.sql("UPDATE operations SET unsure_until = NULL WHERE operation_id = %s", operation_id)

    async def ended(synced: SyncResult) -> str:
        cause = Cause("local", "AbandonOperation")
        with pytest.raises(Refusal) as refused:
            await app.database.transact(abandon, app, known, synced, REASON, cause)
        return refused.value.reason

    assert await ended(SyncResult()) == "OPERATION_IN_PROGRESS"
    # Nor after a sync that was stale, saw it without its lines, or saw an object that does not fit.
    known = await app.database.transact(check_abandonable, operation_id)
    assert await ended(SyncResult(stale=True)) == "OPERATION_IN_PROGRESS"
    assert await ended(SyncResult(operation_deferred=True)) == "OPERATION_IN_PROGRESS"
    for kind in ("intent_mismatch", "charge_missing", "state_mismatch", "amount_mismatch"):
        found = (Discrepancy(payment.payment_id, DiscrepancyKind(kind), "seen"),)
        assert await ended(SyncResult(discrepancies=found)) == "DISCREPANCY"
    assert await parked(world, payment.payment_id) == operation_id
    await abandon_by_rpc(world, operation_id)
    assert (await world.get(payment.payment_id)).state == IN_ESCROW
    assert balance(world, "losses") == 0
    await check_books(world)


async def test_a_loss_that_waited_for_a_reversal_is_written_off(world: World) -> None:
    """A parked reversal is not pre-empted: the client already has what it is to return."""
    payment = await captured_payment(world)
    await days_pass(world)
    await fail_stripe(world, "/reversals$", 401)
    await refusal(world.payments.RefundPayment(refund_request(payment.payment_id, 4_000)))
    operation_id = await parked(world, payment.payment_id)
    dispute_id = await contest(world, payment, amount=6_000)
    await decide(world, dispute_id, "lose")
    await dispute_where(world, dispute_id, lambda dispute: dispute.outcome == LOST)
    await world.settle_down()
    assert await parked(world, payment.payment_id) == operation_id
    await abandon_by_rpc(world, operation_id)
    after = await settled(world, payment.payment_id, dispute_id, LOST)
    assert after.lost_amount.minor_units == 6_000
    assert after.net_amount.minor_units == 0
    # 3,600 of the abandoned reversal; of the loss, what Stripe reversed.
    assert balances_of(world, payment)[0] == 3_600
    await check_books(world)
