"""`doctor` looks at the Stripe account before the first payment, and waits for a real webhook."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator

import pytest

from dev.stripe_side import SimulatorSide, post
from tests.acceptance.browser import look
from tests.acceptance.conftest import World
from tests.support.nursery import Nursery


def doctor(
    nursery: Nursery, world: World, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, **world.stack.services[0].environment, **environment}
    return nursery.run("payment_service", "doctor", *arguments, env=told)


def switch(world: World, **switches: int | str) -> None:
    SimulatorSide(world.stack.simulator_url).switch(**switches)


@pytest.fixture
def switches(world: World) -> Iterator[None]:
    yield
    switch(
        world,
        platform_payout_interval="manual",
        webhook_events="*",
        webhook_status="enabled",
        card_payments_enabled=True,
    )


def test_a_platform_that_is_set_up(nursery: Nursery, world: World) -> None:
    done = doctor(nursery, world)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("✓ account: acct_")
    assert any(line.startswith("✓ webhook round trip: evt_") for line in lines)
    assert lines[-1] == "ready for the first payment"
    assert not [line for line in lines if line.startswith("✗")]


@pytest.mark.usefixtures("switches")
def test_each_thing_to_change_is_said_with_its_place(nursery: Nursery, world: World) -> None:
    switch(
        world,
        platform_payout_interval="daily",
        webhook_events="payment_intent.succeeded,account.updated",
        card_payments_enabled=False,
    )
    done = doctor(nursery, world, "--no-round-trip", PLATFORM_COUNTRY="DE")
    assert done.returncode == 1
    faults = {
        line.partition(":")[0][2:] for line in done.stdout.splitlines() if line.startswith("✗")
    }
    assert faults == {
        *("country", "payouts", "cards", "webhooks", "webhooks of connected accounts"),
    }
    assert "! thin events of connected accounts" in done.stdout
    assert "Dashboard > Settings > Payouts" in done.stdout
    assert done.stdout.splitlines()[-1] == "5 to be changed"


def test_a_webhook_that_does_not_arrive(nursery: Nursery, world: World) -> None:
    simulator = f"{world.stack.simulator_url}/_simulator/webhooks"
    shown = look(f"{simulator}?limit=0").text
    try:
        post(simulator, b'{"targets": []}')
        done = doctor(nursery, world, "--patience", "1")
    finally:
        post(simulator, json.dumps({"targets": json.loads(shown)["targets"]}).encode())
    assert done.returncode == 1
    assert "✗ webhook round trip" in done.stdout
    assert "✗ webhooks: no endpoint has this path" in done.stdout


def test_a_key_that_stripe_refuses(nursery: Nursery, world: World) -> None:
    done = doctor(nursery, world, "--no-round-trip", STRIPE_API_BASE="http://127.0.0.1:9")
    assert done.returncode == 1
    assert "✗ account: " in done.stdout
    assert "Traceback" not in done.stderr
