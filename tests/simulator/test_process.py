"""The process itself: its one line, its signals, and a state file that survives being killed."""

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from stripe_simulator.__main__ import parse
from tests.simulator.conftest import Receiver, StartWorld, World, settle

ROOT = Path(__file__).parents[2]
AUTHORIZATION = {"Authorization": "Bearer sk_test_simulator"}


@asynccontextmanager
async def process(*arguments: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """A simulator of its own, and its address."""
    child = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "stripe_simulator",
        "--port",
        "0",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        env={name: value for name, value in os.environ.items() if "STRIPE" not in name},
    )
    try:
        assert child.stdout is not None
        line = (await asyncio.wait_for(child.stdout.readline(), 20)).decode()
        assert line.startswith("stripe_simulator listening on http://127.0.0.1:"), line
        yield child, line.split()[-1]
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


async def call(http: aiohttp.ClientSession, url: str, data: str | None = None, **head: str) -> Any:
    headers = {**AUTHORIZATION, **{name.replace("_", "-"): value for name, value in head.items()}}
    if data is not None:
        headers["Content-Type"] = "application/x-www-form-urlencoded"
    method = "GET" if data is None else "POST"
    async with http.request(method, url, data=data, headers=headers) as answer:
        assert answer.status == 200, await answer.text()
        return await answer.json()


async def test_killed_and_started_again(tmp_path: Path) -> None:
    state = str(tmp_path / "state.sqlite")
    create = "amount=5000&currency=usd&allowed_payment_method_types[]=card&capture_method=manual"
    async with aiohttp.ClientSession() as http:
        async with process("--state", state, "--seed", "s") as (child, url):
            intents = f"{url}/v1/payment_intents"
            first = await call(http, intents, create, Idempotency_Key="k1")
            held = await call(
                http, f"{intents}/{first['id']}/confirm", "payment_method=pm_card_visa"
            )
            child.send_signal(signal.SIGKILL)
            assert await child.wait() == -signal.SIGKILL
        async with process("--state", state) as (child, url):
            intents = f"{url}/v1/payment_intents"
            assert await call(http, f"{intents}/{first['id']}") == held
            assert await call(http, intents, create, Idempotency_Key="k1") == first
            second = await call(http, intents, create, Idempotency_Key="k2")
            assert second["id"] != first["id"]
            done = await call(http, f"{intents}/{first['id']}/capture", "")
            assert done["status"] == "succeeded"
            effects = await call(http, f"{url}/_simulator/effects")
            assert [row["kind"] for row in effects["effects"]] == [
                "intent_created",
                "authorized",
                "intent_created",
                "captured",
            ]
            child.send_signal(signal.SIGTERM)
            assert await child.wait() == 0


async def test_killed_under_load_loses_nothing_it_answered(tmp_path: Path) -> None:
    state = str(tmp_path / "state.sqlite")
    create = "amount=5000&currency=usd&allowed_payment_method_types[]=card"
    answered: dict[str, Any] = {}
    async with aiohttp.ClientSession() as http:
        async with process("--state", state) as (child, url):

            async def one(number: int) -> None:
                key = f"k{number}"
                answered[key] = await call(
                    http, f"{url}/v1/payment_intents", create, Idempotency_Key=key
                )
                if len(answered) == 40:
                    child.send_signal(signal.SIGKILL)

            await asyncio.gather(*(one(n) for n in range(120)), return_exceptions=True)
            await child.wait()
        assert len(answered) >= 40
        async with process("--state", state) as (_, url):
            for number in range(120):
                again = await call(
                    http, f"{url}/v1/payment_intents", create, Idempotency_Key=f"k{number}"
                )
                assert again == answered.get(f"k{number}", again)
            effects = (await call(http, f"{url}/_simulator/effects"))["effects"]
            assert len({row["idempotency_key"] for row in effects}) == len(effects) == 120


async def test_restart_keeps_clock_deadlines_balances_and_deliveries(
    tmp_path: Path, start_world: StartWorld, receiver: Receiver
) -> None:
    settings: Any = {"state": tmp_path / "state.sqlite", "webhooks": receiver.targets()}
    before = await start_world(**settings)
    await before.control("POST", "/webhooks", {"paused": True})
    manual = {"payouts": {"schedule": {"interval": "manual"}}}
    expert = await before.expert(settings=manual)
    held = await before.paid()
    await before.destination_charge(expert)
    await before.control("POST", "/clock", {"advance_seconds": 6 * 86_400})
    await before.control("POST", "/settings", {"reversal_balance": "available"})
    lines = [line.to_dict() for line in await before.lines()]
    await before.simulator.close()

    after: World = await start_world(**settings)
    assert [line.to_dict() for line in await after.lines()] == lines
    assert (await after.control("GET", "/settings"))["reversal_balance"] == "available"
    balance = await after.client.v1.balance.retrieve_async(options={"stripe_account": expert})
    assert balance.available[0].amount == 9_000
    await settle(after)
    assert "payment.created" in receiver.types("connect")
    assert "payment_intent.succeeded" in receiver.types("platform")
    await after.control("POST", "/clock", {"advance_seconds": 2 * 86_400})
    found = await after.client.v1.payment_intents.retrieve_async(held.id)
    assert found.status == "canceled"


async def test_ids_follow_from_the_seed(start_world: StartWorld) -> None:
    async def walk(world: World) -> list[str]:
        expert = await world.expert()
        paid = await world.destination_charge(expert)
        return [expert, paid.id, *[line.id for line in await world.lines()]]

    first, second, third = [await start_world(seed=seed) for seed in ("a", "a", "b")]
    walked = await walk(first)
    # The number of reads changes nothing.
    await second.event_types()
    assert await walk(second) == walked
    assert not set(await walk(third)) & set(walked)


async def test_reset(world: World) -> None:
    await world.paid()
    await world.control("POST", "/faults", {"action": "reset"})
    await world.control("POST", "/clock", {"advance_seconds": 100})
    await world.control("POST", "/reset")
    assert await world.effects() == []
    assert (await world.client.v1.payment_intents.list_async()).data == []
    health = await world.control("GET", "/health")
    assert health["objects"]["payment_intent"] == 0
    assert (await world.paid()).status == "requires_capture"


def test_flags_and_environment(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setenv("STRIPE_SIMULATOR_PORT", "4000")
    config = parse(
        [
            "--webhook", "platform=http://127.0.0.1:1/a,whsec_1,whsec_2",
            "--webhook", "connect=http://127.0.0.1:1/b,whsec_3",
            "--settlement-currencies", "usd,chf",
        ]
    )  # fmt: skip
    assert config.port == 4000
    assert [target.secrets for target in config.webhooks] == [("whsec_1", "whsec_2"), ("whsec_3",)]
    assert config.settlement_currencies == ("usd", "chf")
    for wrong in ("elsewhere=http://a,b", "platform=ftp://a,b", "platform=http://a"):
        with pytest.raises(SystemExit):
            parse(["--webhook", wrong])
    assert "platform=URL,SECRET" in capsys.readouterr().err


async def test_many_at_once(world: World) -> None:
    """Three hundred requests in flight under latency, all right and none lost."""
    await world.control("POST", "/settings", {"latency_ms": 100})
    intents = await asyncio.gather(*(world.intent(1_000 + n) for n in range(300)))
    assert len({intent.id for intent in intents}) == 300
    assert sorted(intent.amount for intent in intents) == [1_000 + n for n in range(300)]
    assert len(await world.effects("intent_created")) == 300
