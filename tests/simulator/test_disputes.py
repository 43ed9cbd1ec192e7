"""Disputes: by test card, by the control API, by the clock."""

from typing import Any

import pytest
import stripe

from stripe_simulator.dispute_schemas import EVIDENCE_TEXTS
from tests.simulator.conftest import (
    Receiver,
    StartWorld,
    World,
    available_and_pending,
    balance,
    settle,
)

DAY = 86_400
# What evidence against a chargeback costs.
COUNTERED = 1_500
CREATED = ["charge.dispute.created", "charge.dispute.funds_withdrawn"]
WON = ["charge.dispute.updated", "charge.dispute.funds_reinstated", "charge.dispute.closed"]


async def dispute_of(world: World, charge: stripe.Charge | str) -> stripe.Dispute:
    id_ = charge if isinstance(charge, str) else charge.id
    (dispute,) = (await world.client.v1.disputes.list_async(params={"charge": id_})).data
    return dispute


async def disputed(world: World, amount: int = 10_000, **body: Any) -> stripe.Dispute:
    """A captured charge that its cardholder disputes."""
    charge = await world.charged(amount)
    shown = await world.control("POST", f"/charges/{charge.id}/dispute", body)
    return await world.client.v1.disputes.retrieve_async(shown["id"])


async def submitted(world: World, dispute: stripe.Dispute, text: str) -> stripe.Dispute:
    return await world.client.v1.disputes.update_async(
        dispute.id, params={"evidence": {"uncategorized_text": text}, "submit": True}
    )


async def refusal(world: World, path: str, body: Any = None) -> Any:
    async with world.http.post(f"{world.url}/_simulator{path}", json=body or {}) as answer:
        assert answer.status == 400
        return (await answer.json())["error"]


async def test_chargeback_comes_with_the_capture_and_not_before(world: World) -> None:
    held = await world.paid(card="pm_card_createDispute")
    assert (await world.client.v1.disputes.list_async()).data == []
    await world.client.v1.payment_intents.capture_async(
        held.id, params={"amount_to_capture": 8_000}
    )
    assert (await world.event_types())[-4:] == [
        "charge.captured",
        *CREATED,
        "payment_intent.succeeded",
    ]
    dispute = await dispute_of(world, str(held.latest_charge))
    assert dispute.id.startswith("dp_")
    assert (dispute.amount, dispute.currency, dispute.reason) == (8_000, "usd", "fraudulent")
    assert (dispute.status, dispute.is_charge_refundable) == ("needs_response", False)
    assert (dispute.payment_intent, dispute.charge) == (held.id, held.latest_charge)
    (line,) = dispute.balance_transactions
    assert (line.type, line.reporting_category, line.source) == (
        "adjustment",
        "dispute",
        dispute.id,
    )
    assert (line.amount, line.fee, line.net) == (-8_000, 1_500, -9_500)
    assert (line.fee_details[0].type, line.fee_details[0].description) == (
        "stripe_fee",
        "Dispute fee",
    )
    details = dispute.evidence_details
    assert details.due_by is not None
    assert 15 * DAY < details.due_by - dispute.created < 17 * DAY
    assert (details.has_evidence, details.past_due, details.submission_count) == (False, False, 0)
    charge = await world.client.v1.charges.retrieve_async(str(held.latest_charge))
    assert charge.disputed
    assert await balance(world) == 8_000 - 262 - 9_500


@pytest.mark.parametrize("method", ["automatic", "automatic_async"])
async def test_automatic_capture_is_disputed_at_once(world: World, method: str) -> None:
    paid = await world.paid(card="pm_card_createDisputeProductNotReceived", capture_method=method)
    types = await world.event_types()
    assert types[1:5] == ["charge.succeeded", *CREATED, "payment_intent.succeeded"]
    dispute = await dispute_of(world, str(paid.latest_charge))
    assert (dispute.reason, dispute.network_reason_code) == ("product_not_received", "13.1")
    assert dispute.payment_method_details is not None
    assert dispute.payment_method_details.card is not None
    assert dispute.payment_method_details.card.case_type == "chargeback"


async def test_disputes_reach_a_webhook(hooked: World, receiver: Receiver) -> None:
    await hooked.charged(card="pm_card_createDispute")
    await settle(hooked)
    assert {*CREATED} <= set(receiver.types("platform"))
    assert not any("dispute" in type_ for type_ in receiver.types("connect"))


async def test_inquiry_takes_nothing_and_lets_a_refund_through(world: World) -> None:
    await world.fund()
    charge = await world.charged(card="pm_card_createDisputeInquiry")
    dispute = await dispute_of(world, charge)
    assert (dispute.status, dispute.is_charge_refundable) == ("warning_needs_response", True)
    assert dispute.balance_transactions == []
    assert "charge.dispute.funds_withdrawn" not in await world.event_types()
    refunds = world.client.v1.refunds
    await refunds.create_async(params={"charge": charge.id, "amount": 4_000})
    assert (await dispute_of(world, charge)).status == "warning_needs_response"
    await refunds.create_async(params={"charge": charge.id})
    closed = await dispute_of(world, charge)
    assert (closed.status, closed.is_charge_refundable) == ("warning_closed", False)
    assert (await world.event_types())[-2:] == ["charge.refunded", "charge.dispute.closed"]
    assert [line.type for line in await world.lines()] == ["topup", "charge", "refund", "refund"]


async def test_refund_of_a_chargeback_is_refused_until_it_is_won(world: World) -> None:
    dispute = await disputed(world)
    refunds = world.client.v1.refunds
    for params in (
        {"charge": str(dispute.charge)},
        {"payment_intent": str(dispute.payment_intent)},
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await refunds.create_async(params=params)  # type: ignore[arg-type]
        assert (caught.value.http_status, caught.value.code) == (400, "charge_disputed")
    won = await world.control("POST", f"/disputes/{dispute.id}/win")
    assert (won["status"], won["is_charge_refundable"]) == ("won", True)
    await refunds.create_async(params={"charge": str(dispute.charge)})
    lost = await disputed(world)
    await world.control("POST", f"/disputes/{lost.id}/lose")
    with pytest.raises(stripe.InvalidRequestError, match="has been charged back"):
        await refunds.create_async(params={"charge": str(lost.charge)})


async def test_an_appeal_opens_what_was_decided_and_takes_what_was_won(world: World) -> None:
    await world.control("POST", "/settings", {"dispute_fee": 0})
    dispute = await disputed(world)
    before = await balance(world)
    with pytest.raises(AssertionError, match="status of needs_response"):
        await world.control("POST", f"/disputes/{dispute.id}/appeal")
    for word, shown in (("lose", 0), ("win", 10_000), ("lose", 0)):
        await world.control("POST", f"/disputes/{dispute.id}/{word}")
        assert await balance(world) == before + shown
        appealed = await world.control("POST", f"/disputes/{dispute.id}/appeal")
        assert appealed["status"] == "appeal_under_review"
        assert await balance(world) == before
    with pytest.raises(stripe.InvalidRequestError, match="has been charged back"):
        await world.client.v1.refunds.create_async(params={"charge": str(dispute.charge)})


async def test_winning_evidence_brings_the_amount_back(world: World) -> None:
    await world.control("POST", "/clock", {"freeze": True})
    dispute = await disputed(world)
    before = await balance(world)
    answer = await submitted(world, dispute, "winning_evidence")
    assert (answer.status, answer.evidence.uncategorized_text) == (
        "under_review",
        "winning_evidence",
    )
    details = answer.evidence_details
    assert (details.has_evidence, details.submission_count) == (True, 1)
    assert (details.submission_method, details.past_due) == ("manual", False)
    assert (await world.event_types())[-1] == "charge.dispute.updated"
    await world.control("POST", "/clock", {"advance_seconds": 59})
    assert (await world.client.v1.disputes.retrieve_async(dispute.id)).status == "under_review"
    await world.control("POST", "/clock", {"advance_seconds": 1})
    won = await world.client.v1.disputes.retrieve_async(dispute.id)
    taken, back = won.balance_transactions
    assert (won.status, taken.amount, taken.fee) == ("won", -10_000, 1_500)
    assert (back.amount, back.fee, back.net) == (10_000, 0, 10_000)
    assert (back.type, back.reporting_category) == ("adjustment", "dispute_reversal")
    assert await balance(world) == before + 10_000
    assert (await world.event_types())[-3:] == WON
    (updated, *_) = (
        await world.client.v1.events.list_async(params={"type": "charge.dispute.updated"})
    ).data
    previous = updated.data.previous_attributes
    assert previous is not None
    assert previous["status"] == "under_review"
    assert len(previous["balance_transactions"]) == 1
    charge = await world.client.v1.charges.retrieve_async(str(dispute.charge))
    assert charge.disputed


async def test_fee_comes_back_where_the_switch_says_so(world: World) -> None:
    await world.control("POST", "/settings", {"dispute_fee": 2_000, "dispute_fee_returned": True})
    dispute = await disputed(world)
    won = await world.control("POST", f"/disputes/{dispute.id}/win")
    taken, back = won["balance_transactions"]
    assert (taken["fee"], taken["net"]) == (2_000, -12_000)
    assert (back["fee"], back["net"]) == (-2_000, 12_000)
    await world.control("POST", "/settings", {"dispute_fee": 0})
    free = await disputed(world)
    assert (free.balance_transactions[0].net, free.balance_transactions[0].fee_details) == (
        -10_000,
        [],
    )


async def test_losing_evidence_decided_at_once(world: World) -> None:
    await world.control("POST", "/settings", {"dispute_review_seconds": 0})
    dispute = await disputed(world)
    before = await balance(world)
    await submitted(world, dispute, "losing_evidence")
    lost = await world.client.v1.disputes.retrieve_async(dispute.id)
    assert (lost.status, len(lost.balance_transactions)) == ("lost", 1)
    assert await balance(world) == before - COUNTERED
    assert (await world.event_types())[-2:] == ["charge.dispute.updated", "charge.dispute.closed"]


async def test_evidence_is_staged_then_submitted_once(world: World) -> None:
    dispute = await disputed(world)
    api = world.client.v1.disputes
    staged = await api.update_async(
        dispute.id,
        params={
            "evidence": {"receipt": "file_1", "customer_name": "A", "service_date": "May 1"},
            "metadata": {"operation_id": "op_1"},
            "submit": False,
        },
    )
    assert (staged.status, staged.evidence.receipt) == ("needs_response", "file_1")
    assert (staged.evidence_details.has_evidence, staged.evidence_details.submission_count) == (
        True,
        0,
    )
    # An empty value takes a piece of evidence back; what is not named stays.
    options: Any = {"idempotency_key": "key_3"}
    params: Any = {"evidence": {"customer_name": ""}}
    answer = await api.update_async(dispute.id, params=params, options=options)
    assert answer == await api.update_async(dispute.id, params=params, options=options)
    assert answer.status == "under_review"
    assert (answer.evidence.receipt, answer.evidence.customer_name) == ("file_1", None)
    assert answer.evidence_details.submission_count == 1
    for params in ({"evidence": {"receipt": "file_2"}}, {"submit": True}):
        with pytest.raises(stripe.InvalidRequestError, match="under_review"):
            await api.update_async(dispute.id, params=params)
    changed = await api.update_async(dispute.id, params={"metadata": {"n": "1"}})
    assert changed.metadata.to_dict() == {"operation_id": "op_1", "n": "1"}
    with pytest.raises(stripe.InvalidRequestError):
        await api.close_async(dispute.id)
    # Only the bank decides on evidence that says nothing about the outcome.
    await world.control("POST", "/clock", {"advance_seconds": 200 * DAY})
    assert (await api.retrieve_async(dispute.id)).status == "under_review"
    effects = [
        (effect["kind"], effect["idempotency_key"], effect["metadata"])
        for effect in await world.effects()
        if effect["object"] == dispute.id
    ]
    own = {"operation_id": "op_1"}
    assert effects[0][0] == "dispute_opened"
    assert effects[1][0::2] == ("evidence_staged", own)
    assert effects[2:] == [("evidence_submitted", "key_3", own)]


async def test_refused_evidence(world: World) -> None:
    dispute = await disputed(world)
    long = dict.fromkeys(EVIDENCE_TEXTS, "x" * 20_000)
    refused: list[Any] = [
        {"submit": True},
        {"evidence": {"receipt": ""}},
        {"evidence": long},
        {"evidence": {"uncategorized_text": "x" * 20_001}},
        {"evidence": {"invented": "x"}},
        {"evidence": {"enhanced_evidence": {"visa_compliance": {"fee_acknowledged": True}}}},
    ]
    for params in refused:
        with pytest.raises(stripe.InvalidRequestError):
            await world.client.v1.disputes.update_async(dispute.id, params=params)
    found = await world.client.v1.disputes.retrieve_async(dispute.id)
    assert (found.status, found.evidence_details.has_evidence) == ("needs_response", False)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.client.v1.disputes.retrieve_async("dp_none")
    assert caught.value.http_status == 404


async def test_accepted_dispute_is_lost(world: World) -> None:
    dispute = await disputed(world)
    options: Any = {"idempotency_key": "key_4"}
    for _ in range(2):
        closed = await world.client.v1.disputes.close_async(dispute.id, options=options)
        assert closed.status == "lost"
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.disputes.close_async(dispute.id)
    assert (await world.event_types())[-1] == "charge.dispute.closed"
    (accepted,) = await world.effects("dispute_accepted")
    assert (accepted["object"], accepted["idempotency_key"]) == (dispute.id, "key_4")
    # One thing was asked for under the key, and one happened.
    assert await world.effects("dispute_lost") == []


async def test_unanswered_chargeback_is_lost_when_its_time_is_over(world: World) -> None:
    dispute = await disputed(world)
    due_by = dispute.evidence_details.due_by
    assert due_by is not None
    await world.control("POST", "/clock", {"freeze": True, "set": due_by - 1})
    assert (await dispute_of(world, str(dispute.charge))).status == "needs_response"
    await world.control("POST", "/clock", {"advance_seconds": 1})
    lost = await dispute_of(world, str(dispute.charge))
    assert (lost.status, lost.evidence_details.past_due) == ("lost", False)
    assert (await world.event_types())[-1] == "charge.dispute.closed"


async def test_unanswered_inquiry_is_over_after_its_time(world: World) -> None:
    dispute = await disputed(world, inquiry=True, reason="general")
    await world.control("POST", "/clock", {"advance_seconds": 30 * DAY})
    late = await submitted(world, dispute, "what happened")
    assert (late.status, late.evidence_details.past_due) == ("warning_under_review", True)
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.disputes.close_async(dispute.id)
    await world.control("POST", "/clock", {"advance_seconds": 90 * DAY})
    over = await dispute_of(world, str(dispute.charge))
    assert (over.status, over.balance_transactions) == ("warning_closed", [])


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("winning_evidence", "warning_closed"),
        ("losing_evidence", "warning_closed"),
        ("escalate_inquiry_evidence", "needs_response"),
    ],
)
async def test_inquiry_by_its_evidence(world: World, text: str, status: str) -> None:
    dispute = await disputed(world, inquiry=True)
    assert (await submitted(world, dispute, text)).status == "warning_under_review"
    await world.control("POST", "/clock", {"advance_seconds": 61})
    found = await dispute_of(world, str(dispute.charge))
    assert found.status == status
    if status == "warning_closed":
        assert (await world.event_types())[-1] == "charge.dispute.closed"
        return
    # The same dispute is a chargeback now, and can be answered once more.
    assert (found.id, found.is_charge_refundable) == (dispute.id, False)
    assert found.balance_transactions[0].net == -11_500
    assert (await world.event_types())[-2:] == [
        "charge.dispute.updated",
        "charge.dispute.funds_withdrawn",
    ]
    answered = await submitted(world, found, "winning_evidence")
    assert answered.evidence_details.submission_count == 2
    await world.control("POST", "/clock", {"advance_seconds": 61})
    assert (await dispute_of(world, str(dispute.charge))).status == "won"


async def test_control_api_decides(world: World) -> None:
    part = await disputed(world, amount=2_500, reason="product_unacceptable")
    assert (part.amount, part.reason) == (2_500, "product_unacceptable")
    assert part.balance_transactions[0].amount == -2_500
    inquiry = await disputed(world, inquiry=True)
    shown = await world.control("POST", f"/disputes/{inquiry.id}/escalate")
    assert (shown["status"], shown["payment_method_details"]["card"]["case_type"]) == (
        "needs_response",
        "chargeback",
    )
    other = await disputed(world, inquiry=True)
    shown = await world.control("POST", f"/disputes/{other.id}/close_warning")
    assert shown["status"] == "warning_closed"
    # A bank that closed its inquiry may still report a chargeback.
    shown = await world.control("POST", f"/charges/{other.charge}/dispute")
    listed = await world.client.v1.disputes.list_async(
        params={"payment_intent": str(other.payment_intent), "expand": ["data.charge"]}
    )
    assert [row.id for row in listed.data] == [shown["id"], other.id]
    charge: Any = listed.data[0].charge
    assert charge.disputed
    page = await world.client.v1.disputes.list_async(
        params={"created": {"gte": part.created}, "limit": 2}
    )
    assert page.has_more
    assert len([row async for row in page.auto_paging_iter()]) == 4
    kinds = [effect["kind"] for effect in await world.effects()]
    assert kinds.count("dispute_opened") == 4
    assert (kinds.count("dispute_escalated"), kinds.count("inquiry_closed")) == (1, 1)


async def test_control_api_refuses_what_cannot_be(world: World) -> None:
    held = await world.paid()
    assert "never captured" in await refusal(world, f"/charges/{held.latest_charge}/dispute")
    dispute = await disputed(world)
    charge = f"/charges/{dispute.charge}"
    assert "open dispute" in await refusal(world, f"{charge}/dispute")
    for body in ({"amount": 10_001}, {"amount": 0}, {"reason": "mood"}, {"inquiry": 1}, {"x": 1}):
        assert await refusal(world, f"{charge}/dispute", body)
    assert await refusal(world, f"{charge}/early_fraud_warning", {"fraud_type": "x"})
    assert await refusal(world, f"/disputes/{dispute.id}/forget")
    assert await refusal(world, "/disputes/dp_none/win")
    error = await refusal(world, f"/disputes/{dispute.id}/escalate")
    assert "needs_response" in error["message"]


async def test_dispute_in_a_currency_that_is_converted(world: World) -> None:
    """One franc is 1.12 dollars; the dispute is in francs, its money in dollars."""
    charge = await world.charged(10_000, currency="chf")
    shown = await world.control("POST", f"/charges/{charge.id}/dispute", {"amount": 5_000})
    (line,) = shown["balance_transactions"]
    assert (shown["amount"], shown["currency"]) == (5_000, "chf")
    assert (line["amount"], line["fee"], line["currency"]) == (-5_600, 1_500, "usd")


async def test_dispute_of_a_destination_charge_is_the_platforms_loss(world: World) -> None:
    expert = await world.expert()
    paid = await world.destination_charge(expert)
    charge: Any = paid.latest_charge
    before = await balance(world)
    await world.control("POST", f"/charges/{charge.id}/dispute")
    assert await balance(world) == before - 11_500
    assert await balance(world, expert) == 9_000


async def test_withdrawal_is_pending_with_its_charge_or_immediate(world: World) -> None:
    dispute = await disputed(world)
    assert await available_and_pending(world) == (0, 10_000 - 320 - 11_500)
    await world.control("POST", f"/disputes/{dispute.id}/win")
    charge = await world.charged(10_000)
    await world.control("POST", "/clock", {"advance_seconds": 2 * DAY})
    available, _ = await available_and_pending(world)
    await world.control("POST", f"/charges/{charge.id}/dispute")
    assert await available_and_pending(world) == (available - 11_500, 0)


async def test_disputes_survive_a_restart(start_world: StartWorld, tmp_path: Any) -> None:
    state = tmp_path / "state"
    first = await start_world(state=state)
    dispute = await disputed(first)
    await submitted(first, dispute, "winning_evidence")
    await first.simulator.close()
    second = await start_world(state=state)
    await second.control("POST", "/clock", {"advance_seconds": 61})
    assert (await dispute_of(second, str(dispute.charge))).status == "won"


async def test_what_the_cardholder_does_is_not_under_the_callers_key(world: World) -> None:
    """One key stands for one effect; what a bank makes of it is nobody's request."""
    held = await world.paid(card="pm_card_createDisputeInquiry")
    await world.client.v1.payment_intents.capture_async(
        held.id, options={"idempotency_key": "key_5"}
    )
    await world.client.v1.refunds.create_async(
        params={"payment_intent": held.id}, options={"idempotency_key": "key_6"}
    )
    effects = await world.effects()
    asked = [(row["kind"], row["idempotency_key"]) for row in effects[-4:]]
    assert asked == [
        ("captured", "key_5"),
        ("dispute_opened", None),
        ("refunded", "key_6"),
        ("inquiry_closed", None),
    ]
    page = await world.client.v1.events.list_async(params={"type": "charge.dispute.*"})
    assert {event.request.id for event in page.data if event.request is not None} == {None}


async def countered_lines(world: World) -> list[stripe.BalanceTransaction]:
    listed = await world.client.v1.balance_transactions.list_async(params={"limit": 100})
    return [line for line in listed.data if "Countered" in (line.description or "")]


async def test_countering_costs_a_fee_of_its_own_that_a_win_gives_back(world: World) -> None:
    await world.control("POST", "/settings", {"dispute_countered_fee": COUNTERED})
    dispute = await disputed(world)
    before = await balance(world)
    await world.client.v1.disputes.update_async(
        dispute.id, params={"evidence": {"uncategorized_text": "staged"}, "submit": False}
    )
    assert await countered_lines(world) == []
    shown = await submitted(world, dispute, "It was delivered.")
    assert len(shown.balance_transactions) == 1
    [line] = await countered_lines(world)
    assert (line.type, line.source, line.reporting_category) == ("adjustment", None, "fee")
    assert (line.amount, line.fee, line.net, line.currency) == (-COUNTERED, 0, -COUNTERED, "usd")
    assert (line.description or "").startswith("Card Dispute Countered Fee (20")
    assert await balance(world) == before - COUNTERED
    await world.control("POST", f"/disputes/{dispute.id}/win")
    returned, _ = await countered_lines(world)
    assert (returned.net, returned.source) == (COUNTERED, None)
    assert await balance(world) == before + 10_000


async def test_answering_an_inquiry_costs_nothing(world: World) -> None:
    dispute = await disputed(world, inquiry=True)
    await submitted(world, dispute, "It was delivered.")
    assert await countered_lines(world) == []


async def test_a_dispute_may_get_further_lines(world: World) -> None:
    dispute = await disputed(world)
    before = await balance(world)
    await world.control("POST", f"/disputes/{dispute.id}/adjust", {"amount": -7})
    await world.control(
        "POST", f"/disputes/{dispute.id}/adjust", {"amount": 300, "currency": "eur"}
    )
    shown = await world.client.v1.disputes.retrieve_async(dispute.id)
    lines = [(line.amount, line.currency) for line in shown.balance_transactions]
    assert lines == [(-10_000, "usd"), (-7, "usd"), (300, "eur")]
    assert (await world.event_types())[-2:] == [
        "charge.dispute.funds_withdrawn",
        "charge.dispute.funds_reinstated",
    ]
    await world.control("POST", f"/disputes/{dispute.id}/win")
    assert await balance(world) == before + 10_000
    for body in ({"amount": 0}, {"amount": 1, "currency": "xxx"}, {}):
        assert await refusal(world, f"/disputes/{dispute.id}/adjust", body)
    inquiry = await disputed(world, inquiry=True)
    assert await refusal(world, f"/disputes/{inquiry.id}/adjust", {"amount": -7})
