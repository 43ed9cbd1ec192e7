"""What is said to the client's bank: evidence, acceptance, and their keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from marketplace.payments.v1 import disputes_pb2, operations_pb2, payments_pb2
from tests.integration.conftest import StartWorld
from tests.support.books import balance, check_books
from tests.support.errors import Reply, refusal
from tests.support.kinds import operation_kind_of
from tests.support.requests import capture_request
from tests.support.steps.disputes import (
    CHARGEBACK,
    CLOSED,
    LOST,
    OPEN,
    WON,
    Dispute,
    acceptance_request,
    contest,
    decide,
    dispute_where,
    disputed,
    evidence_request,
    settled,
)
from tests.support.steps.operators import parked, resume
from tests.support.steps.payments import PLATFORM
from tests.support.world import CAPTURED, IN_ESCROW, REFUNDED, World, until

Message = disputes_pb2.SubmitEvidenceRequest | disputes_pb2.AcceptDisputeRequest


async def until_answered(world: World, method: str, request: Message) -> Reply:
    async def probe() -> Reply | None:
        reply = await world.raw(f"DisputeService/{method}", request.SerializeToString())
        return None if reply.code in ("UNAVAILABLE", "ABORTED") else reply

    return await until(probe, f"an answer to {method}")


# ---- evidence ----


@pytest.mark.parametrize(
    ("text", "outcome"), [("winning_evidence", WON), ("losing_evidence", LOST)], ids=["won", "lost"]
)
async def test_evidence_is_staged_then_submitted_once_and_the_bank_decides(
    world: World, text: str, outcome: int
) -> None:
    payment_id, dispute_id = await disputed(world)
    staged = (
        await world.disputes.SubmitEvidence(evidence_request(dispute_id, "later", submit=False))
    ).dispute
    assert (staged.status, staged.has_evidence, staged.submission_count) == (
        "needs_response",
        True,
        0,
    )
    request = evidence_request(dispute_id, text)
    answer = await world.disputes.SubmitEvidence(request)
    assert (answer.dispute.status, answer.dispute.submission_count) == ("under_review", 1)
    assert answer.dispute.operation_id == ""
    assert await world.disputes.SubmitEvidence(request) == answer
    again = await refusal(world.disputes.SubmitEvidence(evidence_request(dispute_id)))
    assert (again.code, again.reason) == ("FAILED_PRECONDITION", "EVIDENCE_ALREADY_SUBMITTED")
    late = await refusal(world.disputes.AcceptDispute(acceptance_request(dispute_id)))
    assert late.reason == "EVIDENCE_ALREADY_SUBMITTED"
    request.evidence.uncategorized_text = "other words"
    reused = await refusal(world.disputes.SubmitEvidence(request))
    assert (reused.code, reused.facts["field"]) == (
        "ALREADY_EXISTS",
        "evidence.uncategorized_text",
    )
    shown = await world.stripe.api("GET", f"/disputes/{dispute_id}")
    assert shown["evidence"]["receipt"] == "file_1234"
    await world.stripe.advance(120)
    payment = await settled(world, payment_id, dispute_id, outcome)
    assert payment.state == (CAPTURED if outcome == WON else REFUNDED)
    assert len(await world.stripe.effects("evidence_submitted")) == 1
    over = await refusal(world.disputes.SubmitEvidence(evidence_request(dispute_id)))
    assert over.reason == "DISPUTE_CLOSED"
    assert not await world.discrepancies()


async def test_evidence_is_submitted_again_after_an_inquiry_is_escalated(
    world: World,
) -> None:
    payment_id, dispute_id = await disputed(world, inquiry=True)
    refused = await refusal(world.disputes.AcceptDispute(acceptance_request(dispute_id)))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "DISPUTE_IS_INQUIRY")
    await world.disputes.SubmitEvidence(evidence_request(dispute_id, "escalate_inquiry_evidence"))
    await world.stripe.advance(120)
    await dispute_where(world, dispute_id, lambda dispute: dispute.stage == CHARGEBACK)
    answer = await world.disputes.SubmitEvidence(evidence_request(dispute_id, "winning_evidence"))
    assert answer.dispute.submission_count == 2
    await world.stripe.advance(120)
    await settled(world, payment_id, dispute_id, WON)


async def test_an_inquiry_with_winning_evidence_is_closed(world: World) -> None:
    payment_id, dispute_id = await disputed(world, inquiry=True)
    await world.disputes.SubmitEvidence(evidence_request(dispute_id, "winning_evidence"))
    await world.stripe.advance(120)
    await settled(world, payment_id, dispute_id, CLOSED)


@pytest.mark.parametrize("fields", [{}, {"escrow_mode": PLATFORM}], ids=["card", "platform"])
async def test_a_preview_shows_what_an_acceptance_would_take(
    world: World, fields: dict[str, Any]
) -> None:
    payment_id, dispute_id = await disputed(world, **fields)
    await world.settle_down()
    before = world.counts()
    request = acceptance_request(dispute_id)
    request.validate_only = True
    shown = await world.disputes.AcceptDispute(request)
    assert shown.dispute.outcome == OPEN
    assert [
        (payments_pb2.LegKind.Name(leg.kind).removeprefix("LEG_KIND_"), leg.amount.minor_units)
        for leg in shown.preview.legs
    ] == [("DISPUTE_LOSS", 10_000), ("RETURN_COMMISSION", 1_000), ("REVERSE_TRANSFER", 9_000)]
    assert world.counts() == before
    # What was shown is what is done, under the same key.
    request.validate_only = False
    assert (await world.disputes.AcceptDispute(request)).dispute.outcome == LOST
    payment = await settled(world, payment_id, dispute_id, LOST)
    expected = shown.preview.payment
    for name in ("state", "freeze", "lost_amount", "net_amount", "net_commission", "held_amount"):
        assert getattr(payment, name) == getattr(expected, name), name
    request = acceptance_request(dispute_id)
    request.validate_only = True
    assert (await refusal(world.disputes.AcceptDispute(request))).reason == "DISPUTE_CLOSED"


async def test_wrong_evidence_is_refused_before_stripe_is_asked(
    world: World, as_superuser: Callable[..., int]
) -> None:
    _, dispute_id = await disputed(world)

    async def refused(request: disputes_pb2.SubmitEvidenceRequest) -> tuple[str, str, list[str]]:
        found = await refusal(world.disputes.SubmitEvidence(request))
        return found.code, found.reason, list(found.fields)

    long = evidence_request(
        dispute_id,
        evidence=disputes_pb2.Evidence(
            uncategorized_text="x" * 20_001, customer_name="y" * 501, service_date="today"
        ),
    )
    faults = ["evidence.customer_name", "evidence.uncategorized_text"]
    assert await refused(long) == ("INVALID_ARGUMENT", "INVALID_FIELD", faults)
    empty = evidence_request(dispute_id, evidence=None)
    assert await refused(empty) == ("INVALID_ARGUMENT", "INVALID_FIELD", ["evidence"])
    unknown = evidence_request("dp_unknown")
    assert await refused(unknown) == ("NOT_FOUND", "DISPUTE_NOT_FOUND", [])
    await world.settle_down()  # A late webhook would put Stripe's own date back.
    as_superuser(world, "UPDATE disputes SET evidence_due_time = now() - interval '1 second'")
    due = evidence_request(dispute_id)
    assert await refused(due) == ("FAILED_PRECONDITION", "EVIDENCE_PAST_DUE", [])
    assert not await world.stripe.requests(f"/disputes/{dispute_id}")


# ---- acceptance ----


async def test_an_accepted_dispute_is_lost_and_the_expert_gives_back(world: World) -> None:
    expert = await world.expert()
    payment_id, dispute_id = await disputed(world, expert_id=expert)
    request = acceptance_request(dispute_id)
    answer = await world.disputes.AcceptDispute(request)
    assert answer.dispute.outcome == LOST
    assert answer.dispute.lost_amount.minor_units == 10_000
    assert await world.disputes.AcceptDispute(request) == answer
    assert (await settled(world, payment_id, dispute_id, LOST)).state == REFUNDED
    assert balance(world, f"stripe:connected:{expert}") == 0
    again = await refusal(world.disputes.AcceptDispute(acceptance_request(dispute_id)))
    assert (again.code, again.reason) == ("FAILED_PRECONDITION", "DISPUTE_CLOSED")
    assert len(await world.stripe.effects("dispute_accepted")) == 1
    assert not await world.discrepancies()


# ---- when Stripe does not answer ----


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(
    "fault", [("reset", {}), ("status", {"status": 500})], ids=["reset", "500"]
)
@pytest.mark.parametrize("accepts", [False, True], ids=["evidence", "acceptance"])
async def test_an_answer_of_unknown_outcome_is_given_once(
    world: World, when: str, fault: tuple[str, dict[str, Any]], *, accepts: bool
) -> None:
    payment_id, dispute_id = await disputed(world)
    action, more = fault
    path = f"/disputes/{dispute_id}{'/close' if accepts else ''}$"
    await world.stripe.fault(path, action, when, **more)
    method = "AcceptDispute" if accepts else "SubmitEvidence"
    request: Message = (
        acceptance_request(dispute_id)
        if accepts
        else evidence_request(dispute_id, "winning_evidence")
    )
    first = await world.raw(f"DisputeService/{method}", request.SerializeToString())
    assert first.code in ("UNAVAILABLE", "OK")
    reply = await until_answered(world, method, request)
    assert reply.code == "OK", reply.refused
    assert await world.stripe.fired() == 1
    effect = "dispute_accepted" if accepts else "evidence_submitted"
    assert len(await world.stripe.effects(effect)) == 1
    await world.stripe.advance(120)
    await settled(world, payment_id, dispute_id, LOST if accepts else WON)
    assert (await until_answered(world, method, request)).body == reply.body


async def test_an_answer_waits_for_nothing_that_is_under_way_on_the_payment(
    start_world: StartWorld,
) -> None:
    """And what was parked because of the dispute can be resumed when the dispute is won."""
    world = await start_world(policy={"arrival_seconds": 6.0})
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/transfers$", "status", "before", times=None, status=503)
    await refusal(world.payments.CapturePayment(capture_request(held.payment_id, 4_000)))
    dispute_id = await contest(world, held)
    await dispute_where(world, dispute_id)
    answer = await world.disputes.SubmitEvidence(evidence_request(dispute_id, "winning_evidence"))
    assert answer.dispute.status == "under_review"
    assert (await world.get(held.payment_id)).state == payments_pb2.PAYMENT_STATE_CAPTURING
    operation_id = await parked(world, held.payment_id)
    await world.stripe.clear_faults()
    await world.stripe.advance(120)
    await settled(world, held.payment_id, dispute_id, WON)
    await resume(world, operation_id)
    payment = await world.in_state(held.payment_id, IN_ESCROW)
    assert payment.captured_amount.minor_units == 4_000


async def test_stripes_refusal_of_an_answer_is_final(world: World) -> None:
    payment_id, dispute_id = await disputed(world)
    await world.stripe.fault(f"/disputes/{dispute_id}$", "status", status=400)
    request = evidence_request(dispute_id)
    refused = await refusal(world.disputes.SubmitEvidence(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "REFUSED_BY_PROCESSOR")
    assert (await refusal(world.disputes.SubmitEvidence(request))).raw == refused.raw
    # A new key is a new try.
    answer = await world.disputes.SubmitEvidence(evidence_request(dispute_id, "winning_evidence"))
    assert answer.dispute.status == "under_review"
    done = operations_pb2.ListOperationsRequest(state=operations_pb2.OPERATION_STATE_REFUSED)
    [operation] = (await world.operations.ListOperations(done)).operations
    assert (operation_kind_of(operation), operation.dispute_id) == ("submit_evidence", dispute_id)
    assert operation.payment_id == payment_id
    await check_books(world)


# ---- reading ----


async def test_disputes_are_listed_by_payment_by_expert_and_by_page(world: World) -> None:
    expert = await world.expert()
    made = [await disputed(world, expert_id=expert) for _ in range(3)]
    other_payment, other = await disputed(world)
    await decide(world, made[0][1], "win")
    await dispute_where(world, made[0][1], lambda dispute: dispute.outcome == WON)

    async def listed(**fields: Any) -> set[str]:
        found: list[Dispute] = []
        token = ""
        while True:
            request = disputes_pb2.ListDisputesRequest(page_size=2, page_token=token, **fields)
            page = await world.disputes.ListDisputes(request)
            assert len(page.disputes) <= 2
            found += page.disputes
            token = page.next_page_token
            if not token:
                assert len({dispute.dispute_id for dispute in found}) == len(found)
                return {dispute.dispute_id for dispute in found}

    ids = {dispute_id for _, dispute_id in made}
    assert await listed() == ids | {other}
    assert await listed(expert_id=expert) == ids
    assert await listed(expert_id=expert, open_only=True) == ids - {made[0][1]}
    assert await listed(payment_id=other_payment) == {other}
    assert await listed(payment_id="pay_unknown") == set()
    request = disputes_pb2.GetDisputeRequest(dispute_id=other)
    shown = (await world.disputes.GetDispute(request)).dispute
    assert (shown.payment_id, shown.outcome) == (other_payment, OPEN)
    missing = disputes_pb2.GetDisputeRequest(dispute_id="dp_unknown")
    refused = await refusal(world.disputes.GetDispute(missing))
    assert (refused.code, refused.reason) == ("NOT_FOUND", "DISPUTE_NOT_FOUND")
