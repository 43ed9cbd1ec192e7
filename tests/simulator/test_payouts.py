"""Connected accounts' balances on their way to a bank, as the real SDK sees them."""

from typing import Any

import pytest
import stripe

from tests.simulator.conftest import Receiver, StartWorld, World, settle

DAY = 86_400


async def payouts(world: World, account: str, **given: Any) -> list[stripe.Payout]:
    params: Any = given
    page = await world.client.v1.payouts.list_async(params, {"stripe_account": account})
    return list(page.data)


async def balance(world: World, account: str) -> tuple[int, int]:
    """Available and pending dollars."""
    shown = await world.client.v1.balance.retrieve_async({}, {"stripe_account": account})
    return shown.available[0].amount, shown.pending[0].amount


async def advance(world: World, seconds: int) -> None:
    await world.control("POST", "/clock", {"advance_seconds": seconds})


async def test_the_schedule_pays_out_what_is_available(world: World) -> None:
    expert = await world.expert()
    await world.destination_charge(expert)
    assert await balance(world, expert) == (0, 9_000)
    await advance(world, DAY)
    assert await payouts(world, expert) == []
    await advance(world, 2 * DAY)
    [payout] = await payouts(world, expert)
    assert (payout.amount, payout.currency, payout.automatic) == (9_000, "usd", True)
    assert payout.created % DAY == 0
    assert await balance(world, expert) == (0, 0)
    await advance(world, DAY)
    [payout] = await payouts(world, expert, status="paid")
    types = [name for name in await world.event_types(expert) if name.startswith("payout")]
    assert types == ["payout.created", "payout.updated", "payout.paid"]
    [line] = [line for line in await world.lines(expert) if line.type == "payout"]
    assert (line.net, line.source, line.id) == (-9_000, payout.id, payout.balance_transaction)
    await advance(world, 30 * DAY)
    assert len(await payouts(world, expert)) == 1


async def test_other_schedules(world: World) -> None:
    manual = await world.expert(settings={"payouts": {"schedule": {"interval": "manual"}}})
    weekly: Any = {"interval": "weekly", "weekly_anchor": "friday"}
    friday = await world.expert(settings={"payouts": {"schedule": weekly}})
    for expert in (manual, friday):
        await world.destination_charge(expert)
    await advance(world, 12 * DAY)
    assert await payouts(world, manual) == []
    [payout] = await payouts(world, friday)
    assert (payout.created // DAY + 3) % 7 == 4  # 1970 began on a Thursday.
    made = await world.client.v1.payouts.create_async(
        {"amount": 4_000, "currency": "usd"}, {"stripe_account": manual}
    )
    assert (made.automatic, await balance(world, manual)) == (False, (5_000, 0))
    canceled = await world.client.v1.payouts.cancel_async(made.id, {}, {"stripe_account": manual})
    assert (canceled.status, await balance(world, manual)) == ("canceled", (9_000, 0))
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await world.client.v1.payouts.create_async(
            {"amount": 9_001, "currency": "usd"}, {"stripe_account": manual}
        )
    assert refused.value.code == "balance_insufficient"
    # A schedule that is set later takes the money up.
    await world.client.v1.accounts.update_async(
        manual, {"settings": {"payouts": {"schedule": {"interval": "daily"}}}}
    )
    await advance(world, DAY)
    assert len(await payouts(world, manual, status="pending")) <= 1
    assert await balance(world, manual) == (0, 0)


@pytest.mark.parametrize("after_paid", [False, True])
async def test_a_bank_that_fails_gives_the_money_back(world: World, after_paid: bool) -> None:
    expert = await world.expert()
    await world.destination_charge(expert, card="pm_card_bypassPending")
    given = {"number": "000111111116", "after_paid": after_paid}
    await world.control("POST", f"/accounts/{expert}/bank", given)
    await advance(world, 5 * DAY)
    [payout] = await payouts(world, expert)
    assert (payout.status, payout.failure_code) == ("failed", "no_account")
    lines = {line.id: line for line in await world.lines(expert)}
    back = lines[str(payout.failure_balance_transaction)]
    assert (back.type, back.net, back.source) == ("payout_failure", 9_000, payout.id)
    # The bank account is disabled, so the money waits until somebody has mended it.
    assert await balance(world, expert) == (9_000, 0)
    types = [name for name in await world.event_types(expert) if name.startswith("payout")]
    assert types[2:] == (["payout.paid", "payout.failed"] if after_paid else ["payout.failed"])
    await world.control("POST", f"/accounts/{expert}/bank", {})
    await advance(world, 3 * DAY)
    assert [one.status for one in await payouts(world, expert)] == ["paid", "failed"]


async def test_events_go_to_the_connect_endpoint_with_the_account(
    hooked: World, receiver: Receiver
) -> None:
    expert = await hooked.expert()
    await hooked.destination_charge(expert, card="pm_card_bypassPending")
    made = await hooked.control("POST", f"/accounts/{expert}/payout")
    [id_] = made["payouts"]
    await hooked.control("POST", f"/payouts/{id_}/pay")
    await hooked.control("POST", f"/payouts/{id_}/fail", {"failure": "account_closed"})
    await settle(hooked)
    types = [name for name in receiver.types("connect") if name.startswith("payout")]
    assert sorted(types) == ["payout.created", "payout.failed", "payout.paid"]
    assert not [name for name in receiver.types("platform") if name.startswith("payout")]


async def test_pages_and_other_peoples_payouts(world: World) -> None:
    expert, other = await world.expert(), await world.expert()
    for _ in range(3):
        await world.destination_charge(expert, card="pm_card_bypassPending")
        await world.control("POST", f"/accounts/{expert}/payout")
    first = await payouts(world, expert, limit=2)
    rest = await payouts(world, expert, limit=2, starting_after=first[-1].id)
    assert len({one.id for one in (*first, *rest)}) == 3
    shown = await world.client.v1.payouts.retrieve_async(
        first[0].id, {"expand": ["balance_transaction"]}, {"stripe_account": expert}
    )
    assert isinstance(shown.balance_transaction, stripe.BalanceTransaction)
    with pytest.raises(stripe.InvalidRequestError) as refused:
        await world.client.v1.payouts.retrieve_async(first[0].id, {}, {"stripe_account": other})
    assert refused.value.http_status == 404


async def test_a_restart_forgets_no_payout(start_world: StartWorld, tmp_path: Any) -> None:
    world = await start_world(state=tmp_path / "state.db")
    expert = await world.expert()
    await world.destination_charge(expert)
    await world.destination_charge(expert, card="pm_card_bypassPending")
    await world.control("POST", f"/accounts/{expert}/payout")
    await world.simulator.close()
    again = await start_world(state=tmp_path / "state.db")
    await advance(again, 5 * DAY)
    assert [one.status for one in await payouts(again, expert)] == ["paid", "paid"]
