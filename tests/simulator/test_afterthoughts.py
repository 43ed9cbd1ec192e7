"""What may still change on an object, and the switches for what Stripe's documents leave open."""

from typing import Any

import pytest
import stripe

from stripe_simulator.config import Settings
from stripe_simulator.store import Store
from tests.simulator.conftest import EXPRESS, World, balance


async def test_charge_transfer_reversal_and_fee_refund_take_metadata(world: World) -> None:
    expert = await world.expert()
    paid = await world.destination_charge(expert)
    api = world.client.v1
    charge: Any = paid.latest_charge
    changed = await api.charges.update_async(
        charge.id, params={"description": "New", "metadata": {"a": "1"}}
    )
    assert (changed.description, changed.metadata.to_dict()) == ("New", {"a": "1"})
    transfer = await api.transfers.update_async(
        charge.transfer, params={"description": "Part", "metadata": {"b": "2"}}
    )
    assert (transfer.description, transfer.metadata.to_dict()) == ("Part", {"b": "2"})
    reversal = await api.transfers.reversals.create_async(
        transfer.id, params={"amount": 5_000, "refund_application_fee": True}
    )
    reversal = await api.transfers.reversals.update_async(
        transfer.id, reversal.id, params={"metadata": {"c": "3"}}
    )
    assert reversal.metadata is not None
    assert reversal.metadata.to_dict() == {"c": "3"}
    fee = await api.application_fees.retrieve_async(charge.application_fee)
    assert fee.amount_refunded == 500
    (back,) = (await api.application_fees.refunds.list_async(fee.id)).data
    back = await api.application_fees.refunds.update_async(
        fee.id, back.id, params={"metadata": {"d": "4"}}
    )
    assert back == await api.application_fees.refunds.retrieve_async(fee.id, back.id)
    assert {"charge.updated", "transfer.updated"} <= set(await world.event_types())
    with pytest.raises(stripe.InvalidRequestError):
        await api.transfers.reversals.retrieve_async("tr_none", reversal.id)


async def test_transfer_data_amount_instead_of_a_fee(world: World) -> None:
    expert = await world.expert()
    held = await world.paid(transfer_data={"destination": expert, "amount": 8_000})
    done = await world.client.v1.payment_intents.capture_async(
        held.id, params={"transfer_data": {"amount": 7_000}, "expand": ["latest_charge.transfer"]}
    )
    charge: Any = done.latest_charge
    assert (charge.transfer.amount, charge.application_fee) == (7_000, None)
    refused: list[Any] = [
        {"transfer_data": {"destination": expert, "amount": 10_001}},
        {"transfer_data": {"destination": expert, "amount": 1}, "application_fee_amount": 1},
        {"transfer_data": {"destination": expert}, "application_fee_amount": 10_001},
        {"application_fee_amount": 1},
        {"allowed_payment_method_types": ["card"], "automatic_payment_methods": {"enabled": True}},
        {"return_url": "http://127.0.0.1/x"},
        {"on_behalf_of": "acct_none"},
    ]
    for params in refused:
        with pytest.raises(stripe.InvalidRequestError):
            await world.intent(**params)


async def test_inherited_fee_is_capped_at_the_captured_amount(world: World) -> None:
    expert = await world.expert()
    held = await world.paid(application_fee_amount=1_000, transfer_data={"destination": expert})
    done = await world.client.v1.payment_intents.capture_async(
        held.id, params={"amount_to_capture": 600}
    )
    assert done.application_fee_amount == 600


async def test_capabilities_and_settings_of_an_account(world: World) -> None:
    accounts = world.client.v1.accounts
    account = await accounts.create_async(params={"type": "express"})
    listed = await accounts.capabilities.list_async(account.id)
    assert listed.data == []
    capability = await accounts.capabilities.update_async(
        account.id, "transfers", params={"requested": True}
    )
    assert (capability.status, capability.requested) == ("inactive", True)
    changed = await accounts.update_async(
        account.id,
        params={
            "business_profile": {"url": "https://example.com", "mcc": "7392"},
            "company": {"name": "C", "tax_id": "1"},
            "individual": {"first_name": "A", "address": {"city": "Bern"}},
            "settings": {"payouts": {"schedule": {"interval": "manual"}}},
            "tos_acceptance": {"service_agreement": "recipient"},
        },
    )
    assert changed.settings is not None
    assert changed.settings.payouts is not None
    assert changed.settings.payouts.schedule.interval == "manual"
    assert changed.requirements is not None
    assert "business_profile.url" not in (changed.requirements.currently_due or [])
    with pytest.raises(stripe.InvalidRequestError):
        await accounts.capabilities.retrieve_async(account.id, "flying")


async def test_account_with_money_cannot_be_deleted(world: World) -> None:
    expert = await world.expert()
    await world.destination_charge(expert)
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.accounts.delete_async(expert)


async def test_restriction_may_leave_a_capability(world: World) -> None:
    expert = await world.expert()
    body = {"capabilities": {"transfers": "active"}, "disabled_reason": "under_review"}
    shown = await world.control("POST", f"/accounts/{expert}/restrict", body)
    assert shown["capabilities"] == {"card_payments": "inactive", "transfers": "active"}
    intent = await world.intent(transfer_data={"destination": expert})
    assert intent.transfer_data is not None


async def test_account_restricted_after_the_hold_stops_its_capture(world: World) -> None:
    expert = await world.expert()
    held = await world.paid(transfer_data={"destination": expert})
    await world.control("POST", f"/accounts/{expert}/restrict")
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.client.v1.payment_intents.capture_async(held.id)
    assert caught.value.code == "insufficient_capabilities_for_transfer"
    await world.control("POST", f"/accounts/{expert}/restore")
    done = await world.client.v1.payment_intents.capture_async(held.id)
    assert done.status == "succeeded"


async def test_charge_updated_after_capture(world: World) -> None:
    await world.control("POST", "/settings", {"charge_updated_on_capture": True})
    held = await world.paid()
    await world.client.v1.payment_intents.capture_async(held.id)
    assert (await world.event_types())[-1] == "charge.updated"


async def test_search_is_not_taken_for_an_object(world: World) -> None:
    for kind in ("payment_intents", "charges"):
        path = f"/v1/{kind}/search?query=status:'succeeded'"
        status, body, _ = await world.curl("GET", path)
        assert status == 400
        assert body["error"]["message"].startswith(f"stripe_simulator: /v1/{kind}/search")


async def test_a_switch_refuses_what_it_does_not_know(world: World) -> None:
    for given in ({"no_such": 1}, {"payout_interval": "never"}, {"payout_interval": 1}):
        async with world.http.post(f"{world.url}/_simulator/settings", json=given) as answer:
            assert answer.status == 400


async def test_refund_failed_by_the_control_api(world: World) -> None:
    charge = await world.charged()
    refund = await world.client.v1.refunds.create_async(params={"charge": charge.id, "amount": 10})
    assert "failure_reason" not in refund.to_dict()
    shown = await world.control("POST", f"/refunds/{refund.id}/fail", {"reason": "declined"})
    assert (shown["status"], shown["failure_reason"]) == ("failed", "declined")


async def test_refund_that_waits_fails_when_the_charge_is_disputed(world: World) -> None:
    charge = await world.charged(10_000)
    refunds = world.client.v1.refunds
    refund = await refunds.create_async(params={"charge": charge.id})
    assert refund.pending_reason == "insufficient_funds"
    await world.control("POST", f"/charges/{charge.id}/dispute")
    await world.control("POST", "/clock", {"advance_seconds": 3_601})
    failed = await refunds.retrieve_async(refund.id)
    assert (failed.status, failed.failure_reason) == (
        "failed",
        "charge_for_pending_refund_disputed",
    )
    # It had taken nothing, so nothing comes back.
    assert failed.balance_transaction is None
    assert "failure_balance_transaction" not in failed.to_dict()
    assert [line.type for line in await world.lines()] == ["charge", "adjustment"]


async def test_refund_canceled_in_the_dashboard(world: World) -> None:
    await world.fund()
    charge = await world.charged(card="pm_card_pendingRefund")
    refunds = world.client.v1.refunds
    refund = await refunds.create_async(params={"charge": charge.id, "amount": 4_000})
    before = await balance(world)
    shown = await world.control("POST", f"/refunds/{refund.id}/cancel")
    assert shown["failure_reason"] == "merchant_request"
    assert "pending_reason" not in shown
    canceled = await refunds.retrieve_async(
        refund.id, params={"expand": ["failure_balance_transaction", "charge"]}
    )
    assert (canceled.status, shown["status"]) == ("canceled", "canceled")
    line: Any = canceled.failure_balance_transaction
    assert (line.type, line.amount) == ("refund_failure", 4_000)
    assert canceled.charge.amount_refunded == 0  # type: ignore[union-attr]
    assert await balance(world) == before + 4_000
    assert (await world.event_types())[-1] == "refund.updated"
    assert "refund.failed" not in await world.event_types()
    await world.control("POST", "/clock", {"advance_seconds": 61})
    assert (await refunds.retrieve_async(refund.id)).status == "canceled"
    async with world.http.post(f"{world.url}/_simulator/refunds/{refund.id}/cancel") as answer:
        assert answer.status == 400
    assert [row["object"] for row in await world.effects("refund_canceled")] == [refund.id]


async def test_old_events_make_room(world: World) -> None:
    await world.control("POST", "/settings", {"keep_events": 5})
    intents = [await world.intent() for _ in range(8)]
    page = await world.client.v1.events.list_async()
    assert [event.data.object["id"] for event in page.data] == [
        intent.id for intent in intents[:2:-1]
    ]


async def test_refused_change_leaves_nothing(world: World) -> None:
    """The test card became a payment method before the refusal; it must be gone again."""
    intent = await world.intent()
    store = world.simulator.simulation.store
    before = store.count("payment_method")
    account: Any = {**EXPRESS, "email": "x@example.com"}
    expert = (await world.client.v1.accounts.create_async(params=account)).id
    await world.control("POST", f"/accounts/{expert}/complete_onboarding")
    held = await world.intent(transfer_data={"destination": expert})
    await world.control("POST", f"/accounts/{expert}/restrict")
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.payment_intents.confirm_async(
            held.id, params={"payment_method": "pm_card_visa"}
        )
    assert store.count("payment_method") == before
    paid = await world.client.v1.payment_intents.confirm_async(
        intent.id, params={"payment_method": "pm_card_visa"}
    )
    assert paid.status == "requires_capture"


def test_store_undoes_inserts_changes_and_removals() -> None:
    store = Store()
    for number in range(3):
        store.insert("charge", {"id": f"ch_{number}", "_account": "a", "amount": number})
    store.commit()
    store.insert("charge", {"id": "ch_3", "_account": "a", "amount": 3})
    store.change("charge", "ch_0", amount=100)
    store.change("charge", "ch_3", amount=300)
    store.remove("charge", "ch_1")
    assert [row["id"] for row in store.select("charge", {"_account": "a"})] == [
        "ch_3",
        "ch_2",
        "ch_0",
    ]
    store.rollback()
    rows = list(store.select("charge", {"_account": "a"}, oldest_first=True))
    assert [(row["id"], row["amount"]) for row in rows] == [("ch_0", 0), ("ch_1", 1), ("ch_2", 2)]
    assert [row["id"] for row in store.all("charge")] == ["ch_0", "ch_1", "ch_2"]


def test_settings_check_names_types_and_choices() -> None:
    settings = Settings()
    for wrong in ({"colour": 1}, {"latency_ms": "1"}, {"reversal_balance": "some"}):
        with pytest.raises(ValueError, match=r"unknown|must be"):
            settings.move(wrong)
    settings.move({"latency_ms": 5})
    assert settings.latency_ms == 5
