"""Separate charges and transfers: the platform holds the charge, and sends parts of it on later."""

from typing import Any

import pytest
import stripe

from tests.simulator.conftest import StartWorld, World, available_and_pending, balance

# After so long the money of a charge is available.
SETTLING = 2 * 86_400


async def transfer_out_of(
    world: World, expert: str, charge: stripe.Charge, amount: int, currency: str = "usd"
) -> stripe.Transfer:
    """A part of a charge, sent on to an expert."""
    return await world.client.v1.transfers.create_async(
        params={
            "amount": amount,
            "currency": currency,
            "destination": expert,
            "source_transaction": charge.id,
        }
    )


async def test_transfer_from_a_charge_before_it_settles(world: World) -> None:
    expert = await world.expert()
    charge = await world.charged(10_000, transfer_group="gig_7")
    transfer = await world.client.v1.transfers.create_async(
        params={
            "amount": 6_000,
            "currency": "usd",
            "destination": expert,
            "source_transaction": charge.id,
            "metadata": {"part": "1"},
        }
    )
    assert transfer.transfer_group == "gig_7"
    listed = await world.client.v1.transfers.list_async(params={"transfer_group": "gig_7"})
    assert [row.id for row in listed.data] == [transfer.id]
    too_much: Any = {
        "amount": 4_001,
        "currency": "usd",
        "destination": expert,
        "source_transaction": charge.id,
    }
    with pytest.raises(stripe.InvalidRequestError, match="must not exceed the source amount"):
        await world.client.v1.transfers.create_async(params=too_much)
    in_euro: Any = {**too_much, "currency": "eur"}
    with pytest.raises(stripe.InvalidRequestError, match="currency"):
        await world.client.v1.transfers.create_async(params=in_euro)
    assert await balance(world, expert) == 6_000
    funds = await world.client.v1.balance.retrieve_async(options={"stripe_account": expert})
    assert funds.available[0].amount == 0
    await world.control("POST", "/clock", {"advance_seconds": SETTLING})
    funds = await world.client.v1.balance.retrieve_async(options={"stripe_account": expert})
    assert funds.available[0].amount == 6_000


async def test_transfer_without_source_needs_available_money(world: World) -> None:
    expert = await world.expert()
    await world.charged(10_000)
    params: Any = {"amount": 500, "currency": "usd", "destination": expert}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.client.v1.transfers.create_async(params=params)
    assert caught.value.code == "balance_insufficient"
    await world.charged(10_000, card="pm_card_bypassPending")
    sent = await world.client.v1.transfers.create_async(params=params)
    assert sent.source_transaction is None
    assert await balance(world, expert) == 500


async def test_reversal(world: World) -> None:
    expert = await world.expert()
    charge = await world.charged(10_000)
    transfers = world.client.v1.transfers
    transfer = await transfers.create_async(
        params={
            "amount": 9_000,
            "currency": "usd",
            "destination": expert,
            "source_transaction": charge.id,
        }
    )
    await world.control("POST", "/clock", {"advance_seconds": SETTLING})
    reversal = await transfers.reversals.create_async(
        transfer.id, params={"amount": 2_000, "metadata": {"why": "x"}}
    )
    assert reversal.transfer == transfer.id
    transfer = await transfers.retrieve_async(transfer.id)
    assert (transfer.amount_reversed, transfer.reversed) == (2_000, False)
    assert [row.id for row in transfer.reversals.data] == [reversal.id]
    assert (await world.event_types())[-1] == "transfer.reversed"
    with pytest.raises(stripe.InvalidRequestError):
        await transfers.reversals.create_async(transfer.id, params={"amount": 7_001})
    await transfers.reversals.create_async(transfer.id)
    assert (await transfers.retrieve_async(transfer.id)).reversed
    assert await balance(world, expert) == 0
    listed = await transfers.reversals.list_async(transfer.id)
    assert [row.amount for row in listed.data] == [7_000, 2_000]
    found = await transfers.reversals.retrieve_async(transfer.id, reversal.id)
    assert found.amount == 2_000


async def test_charge_held_on_the_platform_is_transferred_in_parts(world: World) -> None:
    """Manual capture without a destination; what was captured is what can be sent."""
    expert = await world.expert()
    held = await world.paid(10_000, transfer_group="gig_8", metadata={"operation_id": "op_1"})
    charge = await world.client.v1.charges.retrieve_async(str(held.latest_charge))
    with pytest.raises(stripe.InvalidRequestError, match="has not been captured"):
        await transfer_out_of(world, expert, charge, 1_000)
    done = await world.client.v1.payment_intents.capture_async(
        held.id, params={"amount_to_capture": 8_000, "expand": ["latest_charge"]}
    )
    assert done.transfer_data is None
    captured: Any = done.latest_charge
    assert (captured.captured, captured.amount_captured) == (True, 8_000)
    assert captured.transfer_group == "gig_8"
    assert "transfer" not in captured.to_dict()
    assert (await world.event_types())[-2:] == ["charge.captured", "payment_intent.succeeded"]
    first = await transfer_out_of(world, expert, captured, 5_000)
    second = await transfer_out_of(world, expert, captured, 3_000)
    with pytest.raises(stripe.InvalidRequestError, match="must not exceed the source amount"):
        await transfer_out_of(world, expert, captured, 1)
    assert {first.transfer_group, second.transfer_group} == {"gig_8"}
    assert [line.type for line in await world.lines()] == ["charge", "transfer", "transfer"]
    assert (await world.event_types())[-1] == "transfer.created"
    assert (await world.event_types(expert))[-1] == "payment.created"


async def test_transfers_are_listed_with_both_sides_of_their_money(world: World) -> None:
    first, second = await world.expert(), await world.expert()
    charge = await world.charged(10_000, transfer_group="gig_9")
    made = [
        await transfer_out_of(world, expert, charge, 2_000) for expert in (first, second, first)
    ]
    transfers = world.client.v1.transfers
    page = await transfers.list_async(
        params={
            "destination": first,
            "transfer_group": "gig_9",
            "created": {"gte": made[0].created, "lte": made[2].created},
            "limit": 1,
            "expand": ["data.balance_transaction", "data.destination_payment.balance_transaction"],
        }
    )
    assert page.has_more
    found = [transfer async for transfer in page.auto_paging_iter()]
    assert [transfer.id for transfer in found] == [made[2].id, made[0].id]
    for transfer in found:
        ours: Any = transfer.balance_transaction
        theirs: Any = transfer.destination_payment
        assert (ours.type, ours.net, ours.source) == ("transfer", -2_000, transfer.id)
        arrived = theirs.balance_transaction
        assert (arrived.type, arrived.net, arrived.source) == ("payment", 2_000, theirs.id)
    later = await transfers.list_async(params={"created": {"gt": made[2].created}})
    assert later.data == []


async def test_transfer_needs_an_account_that_can_receive(world: World) -> None:
    ready = await world.expert()
    fresh: Any = {"type": "express", "capabilities": {"transfers": {"requested": True}}}
    unready = (await world.client.v1.accounts.create_async(params=fresh)).id
    gone = await world.expert()
    await world.control("POST", f"/accounts/{gone}/deauthorize")
    charge = await world.charged(10_000)
    for expert, code in (
        (unready, "insufficient_capabilities_for_transfer"),
        (gone, "resource_missing"),
        ("acct_none", "resource_missing"),
    ):
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await transfer_out_of(world, expert, charge, 1_000)
        assert (caught.value.http_status, caught.value.code) == (400, code)
        assert caught.value.param == "destination"
    assert await world.effects("transferred") == []
    transfer = await transfer_out_of(world, ready, charge, 1_000)
    await world.control("POST", f"/accounts/{ready}/deauthorize")
    with pytest.raises(stripe.PermissionError):
        await world.client.v1.transfers.reversals.create_async(transfer.id)


async def test_transfer_is_an_effect_with_its_key_and_metadata(world: World) -> None:
    expert = await world.expert()
    charge = await world.charged(10_000)
    params: Any = {
        "amount": 4_000,
        "currency": "usd",
        "destination": expert,
        "source_transaction": charge.id,
        "metadata": {"operation_id": "op_2"},
    }
    create = world.client.v1.transfers.create_async
    transfer = await create(params=params, options={"idempotency_key": "key_2"})
    assert await create(params=params, options={"idempotency_key": "key_2"}) == transfer
    (effect,) = await world.effects("transferred")
    assert (effect["object"], effect["amount"]) == (transfer.id, 4_000)
    assert effect["payment_intent"] == charge.payment_intent
    assert effect["idempotency_key"] == "key_2"
    assert effect["metadata"] == {"operation_id": "op_2"}


async def test_reversal_draws_on_available_money_alone(world: World) -> None:
    """As Stripe documents it for transfers made on their own, unlike a destination charge's."""
    expert = await world.expert()
    charge = await world.charged(10_000)
    transfer = await transfer_out_of(world, expert, charge, 9_000)
    reversals = world.client.v1.transfers.reversals
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await reversals.create_async(transfer.id)
    assert caught.value.code == "balance_insufficient"
    paid = await world.destination_charge(expert)
    own: Any = paid.latest_charge
    await reversals.create_async(own.transfer, params={"amount": 1_000})

    await world.control("POST", "/clock", {"advance_seconds": SETTLING})
    # The expert's bank takes all but 3,000 of what the destination charge and the transfer left.
    body = {"account": expert, "amount": -14_000, "currency": "usd", "type": "payout"}
    await world.control("POST", "/balance", body)
    assert await available_and_pending(world, expert) == (3_000, 0)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await reversals.create_async(transfer.id, params={"amount": 3_001})
    assert caught.value.code == "balance_insufficient"
    before = await available_and_pending(world)
    await reversals.create_async(transfer.id, params={"amount": 3_000})
    assert await available_and_pending(world, expert) == (0, 0)
    assert await available_and_pending(world) == (before[0] + 3_000, before[1])


async def test_pending_transfer_is_reversed_out_of_other_available_money(world: World) -> None:
    expert = await world.expert()
    body = {"account": expert, "amount": 500, "currency": "usd"}
    await world.control("POST", "/balance", body)
    transfer = await transfer_out_of(world, expert, await world.charged(10_000), 9_000)
    reversals = world.client.v1.transfers.reversals
    await reversals.create_async(transfer.id, params={"amount": 500})
    assert await available_and_pending(world, expert) == (0, 9_000)
    with pytest.raises(stripe.InvalidRequestError):
        await reversals.create_async(transfer.id, params={"amount": 1})


@pytest.mark.parametrize(("rule", "refused"), [("total", True), ("unlimited", False)])
async def test_reversal_from_an_empty_balance(world: World, rule: str, refused: bool) -> None:
    expert = await world.expert()
    charge = await world.charged(10_000)
    transfer = await world.client.v1.transfers.create_async(
        params={"currency": "usd", "destination": expert, "source_transaction": charge.id}
    )
    body = {"account": expert, "amount": -9_999, "currency": "usd", "type": "payout"}
    await world.control("POST", "/balance", body)
    await world.control("POST", "/settings", {"reversal_balance": rule})
    if refused:
        with pytest.raises(stripe.InvalidRequestError) as caught:
            await world.client.v1.transfers.reversals.create_async(transfer.id)
        assert caught.value.code == "balance_insufficient"
        return
    await world.client.v1.transfers.reversals.create_async(transfer.id)
    assert await balance(world, expert) == -9_999
    platform = await world.client.v1.balance.retrieve_async()
    reserved = {row.currency: row.amount for row in platform.connect_reserved or []}
    assert reserved["usd"] == 9_999


async def test_refund_leaves_transfers_alone(world: World) -> None:
    """Stripe connects neither with the other here: the platform has to reverse by itself."""
    expert = await world.expert()
    charge = await world.charged(10_000)
    await transfer_out_of(world, expert, charge, 9_000)
    refunds = world.client.v1.refunds
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await refunds.create_async(params={"charge": charge.id, "reverse_transfer": True})
    assert caught.value.param == "reverse_transfer"
    await refunds.create_async(params={"charge": charge.id, "amount": 2_000})
    assert await balance(world, expert) == 9_000
    with pytest.raises(stripe.InvalidRequestError, match="must not exceed the source amount"):
        await transfer_out_of(world, expert, charge, 1_001)


@pytest.mark.parametrize(("amount", "currency"), [(1_001, "jpy"), (10_050, "kwd")])
async def test_currencies_of_other_exponents_settle_as_they_are(
    start_world: StartWorld, amount: int, currency: str
) -> None:
    world = await start_world(settlement_currencies=("usd", "jpy", "kwd"))
    expert = await world.expert()
    charge = await world.charged(amount, currency=currency)
    (line,) = await world.lines()
    assert (line.currency, line.amount, line.exchange_rate) == (currency, amount, None)
    assert line.fee == {"jpy": 59, "kwd": 321}[currency]
    await transfer_out_of(world, expert, charge, amount - 100, currency)
    assert await balance(world, expert, currency) == amount - 100
    await world.fund(330, currency)
    await world.client.v1.refunds.create_async(params={"charge": charge.id, "amount": 330})
    assert await balance(world, currency=currency) == 100 - line.fee


async def test_dinar_that_the_platform_does_not_hold_becomes_dollars(world: World) -> None:
    """One dinar is 3.25 dollars at the simulator's fixed rate."""
    expert = await world.expert()
    charge = await world.charged(10_000, currency="kwd")
    (line,) = await world.lines()
    assert (line.currency, line.amount, line.exchange_rate) == ("usd", 3_250, 3.25)
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await transfer_out_of(world, expert, charge, 9_000, "kwd")
    assert caught.value.param == "currency"
    await transfer_out_of(world, expert, charge, 3_250)
    assert await balance(world, expert) == 3_250


async def test_money_crosses_only_the_borders_that_stripe_allows(world: World) -> None:
    abroad = await world.expert(country="GB")
    beyond = await world.expert(country="JP")
    charge = await world.charged(10_000)
    for expert in (abroad, beyond):
        with pytest.raises(stripe.InvalidRequestError, match="outside the platform's region"):
            await world.client.v1.payment_intents.create_async(
                params={
                    "amount": 1_000,
                    "currency": "usd",
                    "transfer_data": {"destination": expert},
                }
            )
    intent = await world.client.v1.payment_intents.create_async(
        params={
            "amount": 1_000,
            "currency": "usd",
            "on_behalf_of": abroad,
            "transfer_data": {"destination": abroad},
        }
    )
    assert intent.on_behalf_of == abroad
    assert (await transfer_out_of(world, abroad, charge, 1_000)).amount == 1_000
    with pytest.raises(stripe.InvalidRequestError, match="Funds can't be sent") as caught:
        await transfer_out_of(world, beyond, charge, 1_000)
    assert (caught.value.http_status, caught.value.code) == (400, None)
