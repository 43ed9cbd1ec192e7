"""The request id is a caller's text that stands in the audit trail for ever."""

from __future__ import annotations

import json

import pytest

from marketplace.payments.v1 import payments_pb2
from tests.support.books import check_books
from tests.support.raw_http2 import send_call
from tests.support.requests import capture_request
from tests.support.world import World, until


@pytest.mark.parametrize(
    "given", [b"a\x00b", b"a\nb", b"a\x1b[2Jb", "a\u202eb".encode(), b" ", b"x" * 100]
)
async def test_what_is_no_plain_text_is_replaced(world: World, given: bytes) -> None:
    """gRPC's server lets every byte through, and PostgreSQL reads no JSON with a NUL in it."""
    payment = await world.escrowed()
    await send_call(
        world.address,
        "/marketplace.payments.v1.PaymentService/CapturePayment",
        capture_request(payment.payment_id).SerializeToString(),
        {b"x-request-id": given},
    )

    async def captured() -> bool:
        state = (await world.get(payment.payment_id)).state
        return state == payments_pb2.PAYMENT_STATE_CAPTURED

    await until(captured, "the capture")
    bodies = world.sql(
        "SELECT body, body::jsonb -> 'by' ->> 'request_id' FROM events "
        "WHERE payment_id = %s ORDER BY sequence",
        payment.payment_id,
    )
    for body, request_id in bodies:
        said = json.loads(body)["by"]["request_id"]
        assert said == request_id
        assert said.isascii()
        assert said.isprintable()
        assert len(said) <= 64
    await check_books(world)
