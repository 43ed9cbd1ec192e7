"""Lets Stripe's description judge what the simulators of a test are asked and answer.

A conftest imports the two fixtures. A request that the simulator refuses may be wrong on purpose,
and what a fault has spoiled is meant to be wrong; everything else is judged.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from stripe_simulator import events, rendering
from stripe_simulator.api import Answer, Api, Exchange
from stripe_simulator.config import API_VERSION
from tests.support.stripe_api.judge import Judge


@pytest.fixture(scope="session")
def judge() -> Iterator[Judge]:
    """Sees the traffic of every simulator in this process."""
    judge = Judge()
    log, envelope = Api._log, rendering.event_envelope

    def judged(
        api: Api, exchange: Exchange, status: int, answer: Answer | None, started: float
    ) -> None:
        log(api, exchange, status, answer, started)
        if answer is not None and exchange.fault is None and exchange.path.startswith("/v1/"):
            # An older version has other parameters, and Stripe.js some of its own.
            method, path = exchange.method, exchange.path
            described = exchange.version == API_VERSION and not exchange.publishable
            if status < 400 and described and judge.is_new(method, path, *exchange.pairs):
                judge.request(method, path, exchange.pairs)
            if "Idempotent-Replayed" not in answer.headers and judge.is_new(
                method, path, status, answer.body
            ):
                judge.answer(method, path, status, json.loads(answer.body))

    def enveloped(*args: Any) -> Any:
        event = envelope(*args)
        judge.event(event)
        return event

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Api, "_log", judged)
        patch.setattr(events, "event_envelope", enveloped)
        yield judge


@pytest.fixture(autouse=True)
def stripe_approves(judge: Judge) -> Iterator[None]:
    """Fails a test whose traffic is not as Stripe describes it."""
    yield
    faults = judge.take()
    assert not faults, "not as Stripe describes it:\n" + "\n".join(faults)
