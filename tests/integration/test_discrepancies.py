"""How a discrepancy ends: what caused it is over, or somebody has decided."""

from __future__ import annotations

from collections.abc import Callable

from marketplace.payments.v1 import operations_pb2
from tests.support.errors import refusal
from tests.support.kinds import kind_of
from tests.support.steps.dashboard import bounce
from tests.support.steps.operators import open_kinds, repaid, run
from tests.support.steps.payments import PLATFORM
from tests.support.world import IN_ESCROW, Payment, World, until

Tamper = Callable[..., int]


async def rest_refused(world: World) -> Payment:
    """A final amount was captured, and Stripe did not refund the remainder."""
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.stripe.fault("/refunds$", "status", status=400, code="charge_disputed")
    return await world.capture(held.payment_id, 3_000, final=True)


async def resolve(world: World, discrepancy_id: str, reason: str) -> operations_pb2.Discrepancy:
    request = operations_pb2.ResolveDiscrepancyRequest(discrepancy_id=discrepancy_id, reason=reason)
    return (await world.operations.ResolveDiscrepancy(request)).discrepancy


async def adjusted(world: World, amount: int = -500) -> None:
    """Stripe moves money on the platform's account for no payment."""
    adjustment = {"amount": amount, "currency": "usd", "type": "adjustment"}
    await world.stripe.control("POST", "/balance", adjustment)


async def the_open_one(world: World) -> operations_pb2.Discrepancy:
    request = operations_pb2.ListDiscrepanciesRequest(open_only=True)
    found = (await world.operations.ListDiscrepancies(request)).discrepancies
    [one] = [one for one in found if kind_of(one) != "escrow_underfunded"]
    return one


async def test_a_remainder_that_was_returned_later_is_resolved(world: World) -> None:
    payment = await rest_refused(world)
    await world.settle_down()
    assert await open_kinds(world) == ["remainder_not_returned"]
    await run(world)
    assert await open_kinds(world) == ["remainder_not_returned"]
    assert (await world.refund(payment.payment_id)).held_amount.minor_units == 0
    await run(world)
    assert await open_kinds(world) == []
    [ended] = await world.discrepancies(payment.payment_id)
    assert (ended.HasField("resolve_time"), ended.resolved_by, ended.resolve_reason) == (
        True,
        "",
        "",
    )


async def test_failed_refund_stays_open_until_nothing_is_client_payable(world: World) -> None:
    held = await world.escrowed(amount=10_000, escrow_mode=PLATFORM)
    await world.refund(held.payment_id, 2_000)
    await bounce(world, held.payment_id)

    await run(world)
    assert await open_kinds(world) == ["refund_failed"]
    await repaid(world, held.payment_id, IN_ESCROW)
    await run(world, held.payment_id)
    assert await open_kinds(world) == []


async def test_a_discrepancy_that_is_no_longer_observed_is_resolved(
    world: World, as_superuser: Tamper
) -> None:
    payment = await world.captured()
    await world.settle_down()
    for kind in ("state_mismatch", "intent_mismatch", "charge_missing"):
        as_superuser(
            world,
            "INSERT INTO discrepancies (payment_id, kind, detail, time) "
            "VALUES (%s, %s, 'as it was once', now())",
            payment.payment_id,
            kind,
        )
    assert len(await open_kinds(world)) == 3
    # Of a payment that contradicts its own history nothing is followed, so nothing is over.
    tamper = "UPDATE payments SET net_commission = net_commission + %s WHERE payment_id = %s"
    as_superuser(world, tamper, 7, payment.payment_id)
    await run(world)
    assert {"state_mismatch", "intent_mismatch", "charge_missing"} < set(await open_kinds(world))
    as_superuser(world, tamper, -7, payment.payment_id)
    await run(world)
    assert await open_kinds(world) == []


async def test_an_out_of_band_change_is_open_until_an_operator_resolves_it(world: World) -> None:
    payment = await world.captured()
    await world.settle_down()
    await world.stripe.api(
        "POST", "/refunds", payment_intent=payment.payment_intent_id, amount=1_000
    )

    async def reported() -> bool:
        return await open_kinds(world) == ["out_of_band_refund"]

    await until(reported, "the refund is seen")
    await run(world)
    one = await the_open_one(world)
    decided = await resolve(world, one.discrepancy_id, "agreed with the expert, ticket 7")
    assert (decided.resolved_by, decided.resolve_reason) == (
        "local",
        "agreed with the expert, ticket 7",
    )
    assert decided.HasField("resolve_time")
    assert await open_kinds(world) == []
    [listed] = await world.discrepancies(payment.payment_id)
    assert listed == decided
    # An answer that was lost is given again; another word on it is not taken.
    assert await resolve(world, one.discrepancy_id, decided.resolve_reason) == decided
    refused = await refusal(resolve(world, one.discrepancy_id, "something else"))
    assert (refused.code, refused.reason) == ("FAILED_PRECONDITION", "WRONG_STATE")
    assert refused.facts["discrepancy_id"] == one.discrepancy_id


async def test_a_resolved_line_stays_resolved(world: World) -> None:
    """Reconciliation sees it again each hour, as long as it reaches back to it."""
    await world.captured()
    await world.settle_down()
    await adjusted(world)
    await run(world)
    one = await the_open_one(world)
    decided = await resolve(world, one.discrepancy_id, "Stripe's own correction")
    await run(world)
    assert await open_kinds(world) == []
    listed = [found for found in await world.discrepancies() if kind_of(found) == kind_of(one)]
    assert [(found.resolve_reason, found.resolve_time) for found in listed] == [
        ("Stripe's own correction", decided.resolve_time)
    ]
    await adjusted(world, -700)
    await run(world)
    assert (await the_open_one(world)).found.minor_units == -700


async def test_a_resolved_invariant_violation_is_reported_again(
    world: World, as_superuser: Tamper
) -> None:
    payment = await world.captured()
    await world.settle_down()
    as_superuser(
        world,
        "UPDATE postings SET minor_units = minor_units + 1 WHERE account LIKE 'escrow:%%' "
        "AND payment_id = %s AND minor_units > 0",
        payment.payment_id,
    )
    await run(world)
    violated = set(await open_kinds(world))
    assert "invariant_postings_sum_to_zero" in violated
    for one in await world.discrepancies(payment.payment_id):
        await resolve(world, one.discrepancy_id, "never mind")
    assert await open_kinds(world) == []
    await run(world)
    assert set(await open_kinds(world)) == violated
    assert not [one for one in await world.discrepancies(payment.payment_id) if one.resolve_reason]


async def test_what_cannot_be_resolved_is_named(world: World) -> None:
    unknown = await refusal(resolve(world, f"disc_{10**12}", "a reason"))
    assert (unknown.code, unknown.reason) == ("NOT_FOUND", "DISCREPANCY_NOT_FOUND")
    assert unknown.facts == {"discrepancy_id": f"disc_{10**12}"}
    for no_id in ("17", "disc_", "disc_0", "disc_x", "disc_1_", "disc_" + "9" * 30):
        assert (await refusal(resolve(world, no_id, "a reason"))).code == "NOT_FOUND"
    for discrepancy_id, reason, field in (
        ("", "a reason", "discrepancy_id"),
        ("disc_1", " ", "reason"),
    ):
        wrong = await refusal(resolve(world, discrepancy_id, reason))
        assert (wrong.code, list(wrong.fields)) == ("INVALID_ARGUMENT", [field])
    too_long = await refusal(resolve(world, f"disc_{2**62}", "x" * 501))
    assert list(too_long.fields) == ["reason"]
