"""Balances: every movement is a line on somebody's account, and nothing gets lost between them."""

import random
from typing import Any

import pytest
import stripe

from tests.simulator.conftest import StartWorld, World, balance

#: What comes from, or goes to, somebody outside of Stripe.
OUTSIDE = ("charge", "refund", "adjustment", "payout")


def summary(lines: list[stripe.BalanceTransaction]) -> list[tuple[str, int, int]]:
    return [(line.type, line.amount, line.net) for line in lines]


async def test_destination_charge(world: World) -> None:
    expert = await world.expert()
    paid = await world.destination_charge(expert, 10_000, 1_000)
    assert summary(await world.lines()) == [
        ("charge", 10_000, 9_680),
        ("transfer", -10_000, -10_000),
        ("application_fee", 1_000, 1_000),
    ]
    (line,) = await world.lines(expert)
    assert (line.type, line.amount, line.fee, line.net) == ("payment", 10_000, 1_000, 9_000)
    assert line.fee_details[0].type == "application_fee"

    charge: Any = paid.latest_charge
    transfer = await world.client.v1.transfers.retrieve_async(
        charge.transfer, params={"expand": ["destination_payment"]}
    )
    payment: Any = transfer.destination_payment
    assert (transfer.source_transaction, transfer.destination) == (charge.id, expert)
    assert payment.id.startswith("py_")
    assert payment.application_fee == charge.application_fee
    fees = await world.client.v1.application_fees.list_async(params={"charge": charge.id})
    assert [fee.id for fee in fees.data] == [charge.application_fee]
    assert fees.data[0].originating_transaction == charge.id
    assert fees.data[0].charge == payment.id
    assert (await world.event_types(expert))[-1] == "payment.created"
    assert (await world.event_types())[-4:] == [
        "transfer.created",
        "application_fee.created",
        "charge.captured",
        "payment_intent.succeeded",
    ]


async def test_application_fee_refund(world: World) -> None:
    expert = await world.expert()
    paid = await world.destination_charge(expert)
    charge: Any = paid.latest_charge
    fees = world.client.v1.application_fees
    back = await fees.refunds.create_async(charge.application_fee, params={"amount": 400})
    assert back.fee == charge.application_fee
    fee = await fees.retrieve_async(charge.application_fee)
    assert (fee.amount_refunded, fee.refunded) == (400, False)
    assert [row.id for row in fee.refunds.data] == [back.id]
    assert summary(await world.lines())[-1] == ("application_fee_refund", -400, -400)
    assert await balance(world, expert) == 9_400
    with pytest.raises(stripe.InvalidRequestError):
        await fees.refunds.create_async(charge.application_fee, params={"amount": 601})
    assert (await world.event_types())[-1] == "application_fee.refunded"


async def test_refund_leaves_fee_and_transfer_unless_asked(world: World) -> None:
    await world.fund()
    expert = await world.expert()
    paid = await world.destination_charge(expert, 10_000, 1_000)
    refunds = world.client.v1.refunds
    refund = await refunds.create_async(params={"payment_intent": paid.id, "amount": 1_000})
    assert (refund.status, refund.transfer_reversal) == ("succeeded", None)
    assert await balance(world, expert) == 9_000
    with pytest.raises(stripe.InvalidRequestError):
        await refunds.create_async(
            params={"payment_intent": paid.id, "amount": 1, "refund_application_fee": True}
        )
    refund = await refunds.create_async(
        params={
            "payment_intent": paid.id,
            "amount": 3_000,
            "reverse_transfer": True,
            "refund_application_fee": True,
            "expand": ["transfer_reversal", "charge"],
        }
    )
    reversal: Any = refund.transfer_reversal
    assert (reversal.amount, reversal.source_refund) == (3_000, refund.id)
    assert await balance(world, expert) == 9_000 - 3_000 + 300
    # The remainder also takes what is left of the transfer and of the fee.
    await refunds.create_async(
        params={
            "payment_intent": paid.id,
            "reverse_transfer": True,
            "refund_application_fee": True,
        }
    )
    assert await balance(world, expert) == 0
    charge = await world.client.v1.charges.retrieve_async(str(refund.charge.id))  # type: ignore[union-attr]
    assert charge.refunded


async def test_refunds_end_at_what_was_captured(world: World) -> None:
    held = await world.paid(10_000)
    refunds = world.client.v1.refunds
    with pytest.raises(stripe.InvalidRequestError):
        await refunds.create_async(params={"payment_intent": held.id})
    await world.client.v1.payment_intents.capture_async(
        held.id, params={"amount_to_capture": 6_000}
    )
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await refunds.create_async(params={"payment_intent": held.id, "amount": 6_001})
    assert caught.value.param == "amount"
    first = await refunds.create_async(
        params={"payment_intent": held.id, "amount": 1_000, "metadata": {"n": "1"}}
    )
    await refunds.create_async(params={"charge": str(held.latest_charge)})
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await refunds.create_async(params={"payment_intent": held.id})
    assert caught.value.code == "charge_already_refunded"
    listed = await refunds.list_async(params={"payment_intent": held.id})
    assert [refund.amount for refund in listed.data] == [5_000, 1_000]
    changed = await refunds.update_async(first.id, params={"metadata": {"n": "2"}})
    assert changed.metadata is not None
    assert changed.metadata.to_dict() == {"n": "2"}
    with pytest.raises(stripe.InvalidRequestError):
        await refunds.cancel_async(first.id)


async def test_refund_that_is_pending_and_refund_that_fails(world: World) -> None:
    await world.fund()
    pending = await world.charged(card="pm_card_pendingRefund")
    failing = await world.charged(card="pm_card_refundFail")
    refunds = world.client.v1.refunds
    first = await refunds.create_async(params={"charge": pending.id})
    second = await refunds.create_async(params={"charge": failing.id})
    assert (first.status, second.status) == ("pending", "succeeded")
    before = await balance(world)
    await world.control("POST", "/clock", {"advance_seconds": 61})
    first = await refunds.retrieve_async(first.id)
    second = await refunds.retrieve_async(second.id, params={"expand": ["charge"]})
    assert (first.status, second.status) == ("succeeded", "failed")
    assert second.failure_reason == "expired_or_canceled_card"
    assert second.failure_balance_transaction is not None
    charge: Any = second.charge
    assert (charge.refunded, charge.amount_refunded) == (False, 0)
    assert await balance(world) == before + 10_000
    assert (await world.event_types())[-3:] == [
        "refund.updated",
        "refund.updated",
        "refund.failed",
    ]


async def test_other_currencies_are_settled_in_dollars(start_world: StartWorld) -> None:
    world = await start_world(settlement_currencies=("usd", "eur"))
    euro = await world.charged(10_000, currency="eur")
    franc = await world.charged(10_000, currency="chf")
    lines = {line.source: line for line in await world.lines()}
    assert (lines[euro.id].currency, lines[euro.id].exchange_rate) == ("eur", None)
    settled = lines[franc.id]
    assert (settled.currency, settled.amount, settled.exchange_rate) == ("usd", 11_200, 1.12)
    assert franc.amount == 10_000
    expert = await world.expert()
    with pytest.raises(stripe.InvalidRequestError):
        await world.client.v1.transfers.create_async(
            params={
                "amount": 100,
                "currency": "chf",
                "destination": expert,
                "source_transaction": franc.id,
            }
        )


@pytest.mark.parametrize(
    ("amount", "currency", "code"),
    [
        (49, "usd", "amount_too_small"),
        (29, "gbp", "amount_too_small"),
        (49, "jpy", "amount_too_small"),
        (44, "chf", "amount_too_small"),
        (100_000_000, "usd", "amount_too_large"),
        (10_050, "isk", "invalid_charge_amount_no_decimal_compatible"),
        (10_051, "kwd", "parameter_invalid_integer"),
        (0, "usd", "parameter_invalid_integer"),
    ],
)
async def test_refused_amounts(world: World, amount: int, currency: str, code: str) -> None:
    with pytest.raises(stripe.InvalidRequestError) as caught:
        await world.intent(amount, currency=currency)
    assert (caught.value.code, caught.value.param) == (code, "amount")


@pytest.mark.parametrize(
    ("amount", "currency"), [(50, "usd"), (50, "jpy"), (10_000, "isk"), (1_050, "kwd"), (45, "chf")]
)
async def test_accepted_amounts(world: World, amount: int, currency: str) -> None:
    assert (await world.charged(amount, currency=currency)).amount == amount


@pytest.mark.parametrize("seed", range(3))
async def test_random_walk_keeps_all_money(world: World, seed: int) -> None:
    """Balances are sums of lines; only fees, refunds and disputes take money out of the system."""
    dice = random.Random(seed)
    experts = [await world.expert(), await world.expert()]
    charges: list[str] = []
    transfers: list[str] = []
    api = world.client.v1
    for _ in range(60):
        amount = dice.randrange(50, 20_000)
        step = dice.randrange(9)
        try:
            if step <= 1:
                paid = await world.destination_charge(
                    dice.choice(experts), amount, dice.randrange(amount)
                )
                charge: Any = paid.latest_charge
                charges.append(charge.id)
                transfers.append(charge.transfer)
            elif step == 2:
                charges.append((await world.charged(amount)).id)
            elif step == 3 and charges:
                both = dice.random() < 0.5
                await api.refunds.create_async(
                    params={
                        "charge": dice.choice(charges),
                        "amount": amount,
                        "reverse_transfer": both,
                        "refund_application_fee": both,
                    }
                )
            elif step == 4 and charges:
                sent = await api.transfers.create_async(
                    params={
                        "amount": amount,
                        "currency": "usd",
                        "destination": dice.choice(experts),
                        "source_transaction": dice.choice(charges),
                    }
                )
                transfers.append(sent.id)
            elif step == 5 and transfers:
                await api.transfers.reversals.create_async(
                    dice.choice(transfers), params={"amount": amount}
                )
            elif step == 6 and charges:
                # Refused where a dispute is open already or less was captured; that may be.
                path = f"/_simulator/charges/{dice.choice(charges)}/dispute"
                inquiry = {"amount": amount, "inquiry": dice.random() < 0.5}
                await world.http.post(world.url + path, json=inquiry)
            elif step == 7:
                for dispute in (await api.disputes.list_async()).data[:3]:
                    outcome = dice.choice(("win", "lose", "escalate", "close_warning"))
                    path = f"/_simulator/disputes/{dispute.id}/{outcome}"
                    await world.http.post(world.url + path)
            else:
                days = dice.randrange(3) * 86_400
                await world.control("POST", "/clock", {"advance_seconds": days})
        except stripe.InvalidRequestError:
            pass
    everywhere = 0
    outside = 0
    for account in (None, *experts):
        lines = await world.lines(account)
        assert sum(line.net for line in lines) == await balance(world, account)
        everywhere += sum(line.net for line in lines)
        outside += sum(line.amount for line in lines if line.type in OUTSIDE)
        outside -= sum(
            detail.amount
            for line in lines
            for detail in line.fee_details
            if detail.type == "stripe_fee"
        )
    assert everywhere == outside


async def test_refund_waits_until_the_money_is_available(world: World) -> None:
    """What is pending bears no refund, and neither does a part of the amount."""
    charge = await world.charged(10_000)
    refunds = world.client.v1.refunds
    refund = await refunds.create_async(params={"charge": charge.id})
    assert (refund.status, refund.pending_reason) == ("pending", "insufficient_funds")
    assert refund.balance_transaction is None
    await world.control("POST", "/clock", {"advance_seconds": 3 * 86_400})
    # All of the charge is available by now, less Stripe's fee.
    assert (await refunds.retrieve_async(refund.id)).status == "pending"
    await world.fund(319)
    assert (await refunds.retrieve_async(refund.id)).status == "pending"
    await world.fund(1)
    refund = await refunds.retrieve_async(refund.id)
    assert refund.status == "succeeded"
    assert "pending_reason" not in refund.to_dict()
    assert refund.balance_transaction is not None
    assert await balance(world) == 0


async def test_refund_is_paid_when_pending_money_becomes_available(world: World) -> None:
    first = await world.charged(10_000)
    await world.charged(10_000)
    refunds = world.client.v1.refunds
    refund = await refunds.create_async(params={"charge": first.id})
    assert refund.pending_reason == "insufficient_funds"
    await world.control("POST", "/clock", {"advance_seconds": 2 * 86_400 + 1})
    assert (await refunds.retrieve_async(refund.id)).status == "succeeded"
    assert await balance(world) == 20_000 - 2 * 320 - 10_000


async def test_refund_that_waits_too_long_for_money_fails(world: World) -> None:
    charge = await world.charged(10_000)
    refunds = world.client.v1.refunds
    refund = await refunds.create_async(params={"charge": charge.id})
    await world.control("POST", "/clock", {"advance_seconds": 30 * 86_400 + 1})
    failed = await refunds.retrieve_async(refund.id)
    assert (failed.status, failed.failure_reason) == ("failed", "insufficient_funds")
    assert failed.balance_transaction is None
    charge = await world.client.v1.charges.retrieve_async(charge.id)
    assert (charge.refunded, charge.amount_refunded) == (False, 0)


async def test_refund_that_the_balance_does_not_bear_may_be_refused(world: World) -> None:
    await world.control("POST", "/settings", {"refund_on_low_balance": "refused"})
    charge = await world.charged(10_000)
    refunds = world.client.v1.refunds
    with pytest.raises(stripe.InvalidRequestError, match="Insufficient funds") as caught:
        await refunds.create_async(params={"charge": charge.id})
    assert caught.value.code is None
    body: Any = caught.value.json_body
    assert body["error"]["message_code"] == "insufficient_balance_for_refund"
    await world.fund()
    assert (await refunds.create_async(params={"charge": charge.id})).status == "succeeded"
