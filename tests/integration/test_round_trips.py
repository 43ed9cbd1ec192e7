"""What a call sends to PostgreSQL decides what it costs, and does not depend on the machine.

A larger number is no fault by itself, but nobody should add to it without noticing.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from payment_service.adapters.postgres.waiting import WaitingCursor
from payment_service.application.sync.payment import sync_payment
from payment_service.domain.ports.records import Cause
from tests.integration.conftest import StartWorld
from tests.support.requests import capture_request, refund_request

_MOST = {"InitiatePayment": 5, "GetPayment": 1, "CapturePayment": 6, "RefundPayment": 11}


@contextlib.contextmanager
def _round_trips() -> Iterator[list[Any]]:
    sent: list[Any] = []
    execute = WaitingCursor.execute

    def note(self: WaitingCursor, query: Any, values: Any = None) -> None:
        sent.append(query)
        execute(self, query, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WaitingCursor, "execute", note)
        yield sent


async def test_a_call_makes_no_more_round_trips_than_are_known(start_world: StartWorld) -> None:
    # One connection: what a new one prepares comes only at first.
    world = await start_world(
        loops=False, database_write_connections=1, database_read_connections=1
    )
    assert world.service is not None
    expert = await world.expert()
    await world.pause_webhooks()
    found: dict[str, list[Any]] = {}
    for _ in range(4):
        with _round_trips() as found["InitiatePayment"]:
            initiated = await world.initiate(expert)
        payment_id = initiated.payment.payment_id
        await world.confirm(initiated)
        await sync_payment(world.service.app, payment_id, Cause("tests", "look"))
        with _round_trips() as found["GetPayment"]:
            await world.get(payment_id)
        with _round_trips() as found["CapturePayment"]:
            await world.payments.CapturePayment(capture_request(payment_id))
        with _round_trips() as found["RefundPayment"]:
            await world.payments.RefundPayment(refund_request(payment_id))
    counted = {name: len(sent) for name, sent in found.items()}
    assert counted == _MOST, found
    # All of it is prepared by now, but for what begins and ends a transaction.
    whole = b";".join(
        one if isinstance(one, bytes) else one.encode() for one in chain(*found.values())
    )
    kinds = set(re.findall(rb"(?:^|;)(\w+)", re.sub(rb"'(?:[^']|'')*'", b"", whole)))
    assert kinds == {b"BEGIN", b"EXECUTE", b"COMMIT"}
