"""What people wrote can be erased everywhere, and the books and the chain stay as they are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from marketplace.payments.v1 import events_pb2, experts_pb2, operations_pb2
from payment_service.application import erase_user
from tests.support.books import check_books
from tests.support.errors import refusal
from tests.support.requests import capture_request, refund_request
from tests.support.steps.disputes import WON, decide, disputed, evidence_request, settled
from tests.support.steps.experts import replacement
from tests.support.steps.faults import fail_stripe
from tests.support.steps.payments import PLATFORM
from tests.support.world import World

CLIENT = operations_pb2.USER_KIND_CLIENT
EXPERT = operations_pb2.USER_KIND_EXPERT

#: What a person would not want to find again.
WORDS = (
    *("canary-name", "canary@example.com", "canary-description", "canary-notes"),
    *("canary-reason", "canary-evidence", "canary-operator"),
)


async def erase(
    world: World, user_id: str, kind: operations_pb2.UserKind.ValueType
) -> operations_pb2.EraseUserResponse:
    return await world.operations.EraseUser(
        operations_pb2.EraseUserRequest(user_id=user_id, kind=kind, reason="ticket 7")
    )


def places_of(world: World, *words: str) -> list[tuple[str, str, str]]:
    """Returns (table, column, word) for each column of the database that holds one of the words."""
    columns = world.sql(
        "SELECT table_name, column_name, data_type FROM information_schema.columns "
        "JOIN information_schema.tables USING (table_schema, table_name) "
        "WHERE table_schema = 'public' AND table_type = 'BASE TABLE' "
        "AND data_type IN ('text', 'character', 'json', 'jsonb', 'bytea', 'ARRAY')"
    )
    assert len(columns) > 100
    found = []
    for table, column, data_type in columns:
        shown = f"encode({column}, 'escape')" if data_type == "bytea" else f"{column}::text"
        for word in words:
            [(count,)] = world.sql(
                f"SELECT count(*) FROM {table} WHERE {shown} LIKE %s",  # noqa: S608
                f"%{word}%",
            )
            if count:
                found.append((table, column, word))
    return found


async def written_about(world: World, expert: str, client: str) -> list[str]:
    """Writes every kind of text about payments of the two. Returns the payments."""
    given: dict[str, Any] = {"client_id": client, "description": "a canary-description"}
    held = await world.escrowed(expert, **given)
    await world.capture(held.payment_id, notes="some canary-notes")
    await world.refund(held.payment_id, 1_000, reason="the canary-reason")
    in_parts = await world.escrowed(expert, escrow_mode=PLATFORM, **given)
    await world.capture(in_parts.payment_id, 1_000, notes="some canary-notes")
    await world.capture(in_parts.payment_id, final=True, notes="some canary-notes")
    canceled = await world.escrowed(expert, **given)
    await world.refund(canceled.payment_id, reason="the canary-reason")
    of_dispute, dispute_id = await disputed(world, expert_id=expert, **given)
    await world.disputes.SubmitEvidence(
        evidence_request(dispute_id, "the canary-evidence", submit=False)
    )
    await decide(world, dispute_id, "win")
    await settled(world, of_dispute, dispute_id, WON)
    await world.settle_down()
    return [*(one.payment_id for one in (held, in_parts, canceled)), of_dispute]


async def texts_of(world: World, payment_id: str) -> set[str]:
    """Returns all texts that the payment's events show. Their chain must be intact."""
    request = events_pb2.ListPaymentEventsRequest(payment_id=payment_id, page_size=200)
    shown = await world.events.ListPaymentEvents(request)
    assert shown.chain_intact
    return {text for event in shown.events for text in event.texts.values()}


async def nothing_is_broken(world: World) -> None:
    report = await world.operations.RunReconciliation(operations_pb2.RunReconciliationRequest())
    assert [one for one in report.invariants if one.violations] == []
    await check_books(world)


async def test_nothing_that_was_written_about_a_client_is_left(world: World) -> None:
    expert = await world.expert()
    payments = await written_about(world, expert, "client-to-erase")
    other = await world.captured(expert, client_id="another-client", description="kept words")
    assert {word for *_, word in places_of(world, *WORDS)} == {
        "canary-description",
        "canary-notes",
        "canary-reason",
    }
    assert await texts_of(world, payments[0]) == {
        "a canary-description",
        "some canary-notes",
        "the canary-reason",
    }
    answer = await erase(world, "client-to-erase", CLIENT)
    assert answer.payment_count == len(payments)
    assert answer.erased_text_count == 9
    assert places_of(world, *WORDS) == []
    for payment_id in payments:
        assert (await world.get(payment_id)).description == "[erased]"
        assert await texts_of(world, payment_id) == {"[erased]"}
    assert await texts_of(world, other.payment_id) == {"kept words"}
    assert (await world.get(other.payment_id)).description == "kept words"
    assert world.sql("SELECT user_kind, user_id, reason, caller FROM erasures") == [
        ("CLIENT", "client-to-erase", "ticket 7", "local")
    ]
    again = await erase(world, "client-to-erase", CLIENT)
    assert (again.payment_count, again.erased_text_count) == (len(payments), 0)
    await nothing_is_broken(world)


async def test_nothing_of_an_expert_is_left(world: World) -> None:
    created = await world.experts.CreateExpertAccount(
        experts_pb2.CreateExpertAccountRequest(
            expert_id="expert-to-erase", name="canary-name", email="canary@example.com"
        )
    )
    account = created.expert.stripe_account_id
    await world.stripe.control("POST", f"/accounts/{account}/complete_onboarding")
    await world.expert_status("expert-to-erase", experts_pb2.EXPERT_STATUS_READY)
    payments = await written_about(world, "expert-to-erase", "client-1")
    request = replacement(
        "expert-to-erase",
        reason="the canary-operator",
        former_account_id=account,
        replace_working_account=True,
    )
    await world.experts.ReplaceExpertAccount(request)
    assert "canary-operator" in {word for *_, word in places_of(world, *WORDS)}
    answer = await erase(world, "expert-to-erase", EXPERT)
    assert answer.payment_count == len(payments)
    assert places_of(world, *WORDS) == []
    shown = await world.experts.GetExpert(experts_pb2.GetExpertRequest(expert_id="expert-to-erase"))
    assert (shown.expert.name, shown.expert.email) == ("[erased]", "[erased]")
    gone = await refusal(world.initiate("expert-to-erase"))
    assert (gone.code, gone.reason) == ("FAILED_PRECONDITION", "USER_ERASED")
    gone = await refusal(world.experts.ReplaceExpertAccount(replacement("expert-to-erase")))
    assert gone.reason == "USER_ERASED"
    spent = await refusal(world.experts.ReplaceExpertAccount(request))
    assert spent.reason == "ANSWER_NOT_KEPT"
    assert (await erase(world, "expert-to-erase", EXPERT)).erased_text_count == 0
    kinds = [kind for (kind,) in world.sql("SELECT kind FROM expert_events ORDER BY sequence")]
    assert kinds[-1] == "expert.erased"
    await nothing_is_broken(world)


async def test_an_operators_words_are_erased_with_the_payment(world: World) -> None:
    expert = await world.expert()
    payment = await world.captured(expert, client_id="client-to-erase")
    world.sql(
        "INSERT INTO discrepancies (payment_id, kind, detail, time) "
        "VALUES (%s, 'out_of_band_refund', 're_1', now())",
        payment.payment_id,
    )
    [(number,)] = world.sql("SELECT discrepancy_id FROM discrepancies")
    await world.operations.ResolveDiscrepancy(
        operations_pb2.ResolveDiscrepancyRequest(
            discrepancy_id=f"disc_{number}", reason="the canary-operator"
        )
    )
    assert places_of(world, "canary-operator") != []
    await erase(world, "client-to-erase", CLIENT)
    assert places_of(world, "canary-operator") == []


async def test_a_key_of_an_erased_payment_is_not_executed_again(world: World) -> None:
    paid = await world.captured(client_id="client-to-erase")
    request = refund_request(paid.payment_id, 1_000, reason="a part")
    await world.payments.RefundPayment(request)
    await erase(world, "client-to-erase", CLIENT)
    refused = await refusal(world.payments.RefundPayment(request))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "ANSWER_NOT_KEPT")
    assert (await world.get(paid.payment_id)).refunded_amount.minor_units == 1_000
    # The payment goes on, with other words.
    assert (await world.refund(paid.payment_id, 500, reason="more")).refunded_amount.minor_units
    await nothing_is_broken(world)


async def test_an_expert_with_something_open_is_not_erased(world: World) -> None:
    expert = await world.expert()
    held = await world.escrowed(expert, description="a canary-description")
    refused = await refusal(erase(world, expert, EXPERT))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "USER_HAS_OPEN_BUSINESS")
    assert refused.facts == {"user_id": expert, "open": f"payment {held.payment_id}"}
    assert (await world.get(held.payment_id)).description == "a canary-description"
    assert world.sql("SELECT FROM erasures") == []
    await world.capture(held.payment_id)
    await erase(world, expert, EXPERT)


async def test_an_expert_with_a_debt_is_not_erased(world: World) -> None:
    expert = await world.expert()
    payment = await world.captured(expert)
    taken = {"account": world.account_of(expert), "amount": -9_000, "currency": "usd"}
    await world.stripe.control("POST", "/balance", {**taken, "type": "payout"})
    await world.refund(payment.payment_id)
    refused = await refusal(erase(world, expert, EXPERT))
    assert (refused.reason, refused.facts["open"]) == (
        "USER_HAS_OPEN_BUSINESS",
        "debt of 90.00 USD",
    )


async def test_an_operation_that_may_be_sent_again_keeps_its_words(world: World) -> None:
    held = await world.escrowed(client_id="client-to-erase")
    await fail_stripe(world, "/capture$", 503)
    await refusal(world.payments.CapturePayment(capture_request(held.payment_id, notes="w")))
    refused = await refusal(erase(world, "client-to-erase", CLIENT))
    [(operation_id,)] = world.sql("SELECT operation_id FROM operations WHERE settle_time IS NULL")
    assert refused.facts["open"] == f"operation {operation_id}"


async def test_many_payments_are_erased_in_batches(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(erase_user, "_BATCH", 2)
    expert = await world.expert()
    for _ in range(4):
        await world.initiate(expert, client_id="client-to-erase")
    await world.settle_down()
    answer = await erase(world, "client-to-erase", CLIENT)
    assert (answer.payment_count, answer.erased_text_count) == (4, 4)


async def test_the_request_is_checked(world: World) -> None:
    request = operations_pb2.EraseUserRequest()
    refused = await refusal(world.operations.EraseUser(request))
    assert set(refused.fields) == {"kind", "user_id", "reason"}
    assert (await refusal(erase(world, "nobody", EXPERT))).reason == "EXPERT_NOT_FOUND"
    assert (await erase(world, "nobody", CLIENT)).payment_count == 0


async def test_a_text_that_somebody_has_changed_is_found(
    world: World, as_superuser: Callable[..., int]
) -> None:
    held = await world.captured(description="three pages")
    changes = (
        "UPDATE texts SET text = 'two pages' WHERE payment_id = %s AND name = 'description'",
        "UPDATE payments SET description = 'two pages' WHERE payment_id = %s",
    )
    for change in changes:
        as_superuser(world, change, held.payment_id)
        report = await world.operations.RunReconciliation(
            operations_pb2.RunReconciliationRequest(payment_id=held.payment_id)
        )
        found = [one.name for one in report.invariants if one.violations]
        assert found == ["texts_are_as_recorded"]
        as_superuser(world, change.replace("two", "three"), held.payment_id)
    with pytest.raises(Exception, match="append-only"):
        world.sql(changes[0], held.payment_id)
    with pytest.raises(Exception, match="rewritten"):
        world.sql(changes[1], held.payment_id)
