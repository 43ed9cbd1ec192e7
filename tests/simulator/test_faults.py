"""The fault plan: before and after the effect, at every layer."""

import asyncio
from typing import Any

import aiohttp
import pytest
import stripe

from tests.simulator.conftest import World, struck

CREATE = "amount=2000&currency=usd&allowed_payment_method_types[]=card"
PATH = "/v1/payment_intents"


async def plan(world: World, **rule: Any) -> None:
    await world.control("POST", "/faults", {"match": {"path": "^/v1/payment_intents$"}, **rule})


async def post(world: World, key: str = "k1") -> tuple[int, Any, Any]:
    return await world.curl("POST", PATH, CREATE, Idempotency_Key=key)


@pytest.mark.parametrize(
    ("status", "when", "effects", "replayed"),
    [
        (500, "before", 0, True),
        (500, "after", 1, True),
        (503, "before", 0, False),
        (503, "after", 1, True),
        (429, "before", 0, False),
    ],
)
async def test_statuses(world: World, status: int, when: str, effects: int, replayed: bool) -> None:
    """A 500 is stored whatever happened; behind a 503 the real answer waits under the key."""
    await plan(world, action="status", status=status, when=when, times=1)
    answered, body, _ = await post(world)
    assert answered == status
    assert body["error"]["type"] in ("api_error", "invalid_request_error")
    assert len(await world.effects("intent_created")) == effects
    answered, _, headers = await post(world)
    assert headers.get("Idempotent-Replayed") == ("true" if replayed else None)
    assert answered == (500 if status == 500 else 200)
    if status == 500:
        assert headers["Stripe-Should-Retry"] == "false"
    assert len(await world.effects("intent_created")) == (effects if replayed else 1)


async def test_500_that_is_not_stored(world: World) -> None:
    await plan(world, action="status", status=500, store=False, times=1)
    assert (await post(world))[0] == 500
    assert (await post(world))[0] == 200


async def test_scripted_refusal(world: World) -> None:
    expert = await world.expert()
    await world.control(
        "POST",
        "/faults",
        {
            "match": {"path": "/transfers$", "parameters": {"metadata[gig]": "^7$"}},
            "action": "status",
            "status": 400,
            "code": "balance_insufficient",
            "message": "No money.",
        },
    )
    params: Any = {"amount": 5, "currency": "usd", "destination": expert, "metadata": {"gig": "7"}}
    with pytest.raises(stripe.InvalidRequestError, match="No money") as caught:
        await world.client.v1.transfers.create_async(params=params)
    assert caught.value.code == "balance_insufficient"


@pytest.mark.parametrize("action", ["reset", "truncated", "hang", "malformed"])
@pytest.mark.parametrize(("when", "effects"), [("before", 0), ("after", 1)])
async def test_broken_connections(world: World, action: str, when: str, effects: int) -> None:
    await plan(world, action=action, when=when, times=1, delay_ms=1_000)
    expected = (aiohttp.ClientError, TimeoutError, ValueError)
    with pytest.raises(expected):
        async with asyncio.timeout(0.3):
            await post(world)
    assert len(await world.effects("intent_created")) == effects
    answered, _, headers = await post(world)
    assert answered == 200
    assert headers.get("Idempotent-Replayed") == ("true" if effects else None)
    assert len(await world.effects("intent_created")) == 1


async def test_reset_looks_to_the_sdk_like_a_lost_connection(world: World) -> None:
    await plan(world, action="reset", when="after", times=1)
    with pytest.raises(stripe.APIConnectionError):
        await world.intent()
    assert len(await world.effects("intent_created")) == 1


async def test_late_answer_comes_after_its_effect(world: World) -> None:
    await plan(world, action="delay", when="after", delay_ms=600, times=1)
    first = asyncio.create_task(post(world))
    await struck(world)
    assert len(await world.effects("intent_created")) == 1
    answered, _, headers = await post(world)
    assert (answered, headers["Idempotent-Replayed"]) == (200, "true")
    assert (await first)[0] == 200


async def test_object_that_another_request_holds(world: World) -> None:
    held = await world.paid()
    await world.control("POST", "/settings", {"lock_wait_ms": 20})
    await world.control(
        "POST",
        "/faults",
        {"match": {"path": "/capture$"}, "action": "delay", "delay_ms": 600, "times": 1},
    )
    capture = asyncio.create_task(world.client.v1.payment_intents.capture_async(held.id))
    await struck(world)
    with pytest.raises(stripe.RateLimitError) as caught:
        await world.client.v1.payment_intents.cancel_async(held.id)
    assert caught.value.error is not None
    assert caught.value.error.code == "lock_timeout"
    assert (await capture).status == "succeeded"


async def test_which_calls_are_struck(world: World) -> None:
    await world.control(
        "POST",
        "/faults",
        {
            "rules": [
                {"match": {"path": "/balance$", "nth": 2}, "action": "status", "status": 503},
                {
                    "match": {"path": "/charges$", "every": 3},
                    "action": "status",
                    "status": 503,
                    "times": 1,
                },
            ]
        },
    )
    balances = [(await world.curl("GET", "/v1/balance"))[0] for _ in range(4)]
    charges = [(await world.curl("GET", "/v1/charges"))[0] for _ in range(7)]
    assert balances == [200, 503, 200, 200]
    assert charges == [200, 200, 503, 200, 200, 200, 200]
    rules = (await world.control("GET", "/faults"))["rules"]
    assert [(rule["matched"], rule["fired"]) for rule in rules] == [(4, 1), (7, 1)]
    await world.control("DELETE", "/faults")
    assert (await world.control("GET", "/faults"))["rules"] == []


async def test_probability_is_seeded(world: World) -> None:
    async def draw() -> list[int]:
        rule = {"match": {"probability": 0.5}, "action": "status", "status": 503}
        await world.control("POST", "/faults", {"rules": [rule], "seed": "s", "replace": True})
        return [(await world.curl("GET", "/v1/balance"))[0] for _ in range(12)]

    first = await draw()
    assert set(first) == {200, 503}
    assert await draw() == first


async def test_unknown_rules_are_refused(world: World) -> None:
    for rule in ({"action": "explode"}, {"action": "reset", "wen": "after"}, {"match": {"x": 1}}):
        async with world.http.post(f"{world.url}/_simulator/faults", json=rule) as answer:
            assert answer.status == 400


async def test_rate_limit(world: World) -> None:
    await world.control("POST", "/settings", {"rate_limit_per_second": 5})
    answers = await asyncio.gather(*(world.curl("GET", "/v1/balance") for _ in range(20)))
    assert 429 in [status for status, _, _ in answers]


async def test_requests_are_logged(world: World) -> None:
    await post(world)
    await post(world)
    log = await world.control("GET", "/requests")
    assert log["counts"] == {f"POST {PATH} 200": 2}
    assert [entry["replayed"] for entry in log["requests"]] == [False, True]
    assert log["requests"][0]["parameters"]["amount"] == "2000"


async def test_latency(world: World) -> None:
    await world.control("POST", "/settings", {"latency_ms": 60})
    started = asyncio.get_running_loop().time()
    await asyncio.gather(*(world.curl("GET", "/v1/balance") for _ in range(20)))
    assert asyncio.get_running_loop().time() - started > 0.05
