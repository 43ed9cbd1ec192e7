"""Any request gets one of the declared answers; the fault is named, and nothing changes."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message

from marketplace.payments.v1 import (
    disputes_pb2,
    errors_pb2,
    events_pb2,
    experts_pb2,
    ledger_pb2,
    onboarding_pb2,
    operations_pb2,
    payments_pb2,
    webhooks_pb2,
)
from tests.support.books import check_books
from tests.support.errors import Reply
from tests.support.running import running_world
from tests.support.valid_requests import valid_requests
from tests.support.world import World

pytestmark = pytest.mark.asyncio(loop_scope="module")

_FILES = (
    payments_pb2,
    experts_pb2,
    onboarding_pb2,
    webhooks_pb2,
    events_pb2,
    ledger_pb2,
    operations_pb2,
    disputes_pb2,
)
#: The one that streams has its own in test_feed.py.
_METHODS: list[MethodDescriptor] = [
    method
    for module in _FILES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
    if not method.server_streaming
]
#: While nothing is down and no other caller competes, there is no other answer.
_CODES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "ALREADY_EXISTS",
}
_REASONS = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.keys()}  # noqa: SIM118 - an enum's wrapper


def _path(method: MethodDescriptor) -> str:
    return f"{method.containing_service.name}/{method.name}"


def _check(reply: Reply, what: object) -> None:
    assert reply.code in _CODES, (what, reply)
    if reply.refused is not None:
        assert reply.refused.reason in _REASONS - {"UNEXPECTED", "UNSPECIFIED"}, (what, reply)
        assert len(reply.refused.raw) <= 4_096
        if reply.refused.reason == "INVALID_FIELD":
            assert reply.refused.fields, what


async def test_bytes_that_are_no_message(shared: World) -> None:
    chance = random.Random(20261122)
    rows = shared.counts()
    for method in _METHODS:
        for _ in range(12):
            garbage = chance.randbytes(chance.choice((1, 2, 5, 30, 300, 5_000)))
            _check(await shared.raw(_path(method), garbage), (method.full_name, garbage[:40]))
        nested = b"\x0a\xff\xff\xff\xff\x0f" + b"\x0a" * 200
        for garbage in (nested, b"\x0a\x02\xff\xfe", b"\xff" * 11, b"\x0a\x05abc"):
            reply = await shared.raw(_path(method), garbage)
            _check(reply, (method.full_name, garbage))
    assert shared.counts() == rows


async def test_the_empty_message(shared: World) -> None:
    rows = shared.counts()
    for method in _METHODS:
        reply = await shared.raw(_path(method), b"")
        _check(reply, method.full_name)
        asks_for_nothing = method.name.startswith(("List", "Run")) and not reply.refused
        assert asks_for_nothing or reply.code == "INVALID_ARGUMENT", (method.full_name, reply)
    assert shared.counts() == rows


_TEXTS = ("", "\x00", "a\x00b", "\x1b[2J", "x" * 1_000_000, "\u202e\U0010ffff", "no-such")
_INTEGERS = (0, -1, 2**31 - 1, -(2**31), 2**63 - 1, -(2**63))


def _bad_values(field: Any) -> Iterator[Any]:
    if field.type == FieldDescriptor.TYPE_STRING:
        yield from _TEXTS
    elif field.type == FieldDescriptor.TYPE_BYTES:
        yield from (b"", b"\x00", b"{" * 1_000_000)
    elif field.type == FieldDescriptor.TYPE_INT64:
        yield from _INTEGERS
    elif field.type == FieldDescriptor.TYPE_INT32:
        yield from _INTEGERS[:4]
    elif field.type == FieldDescriptor.TYPE_ENUM:
        yield from (99, -1, 0)


def _spoiled(request: Message) -> Iterator[tuple[str, Message]]:
    """The request with each of its fields spoiled in turn, messages within it included."""
    for field in request.DESCRIPTOR.fields:
        if field.type == FieldDescriptor.TYPE_MESSAGE and field.is_repeated:
            for place, one in enumerate(getattr(request, field.name)):
                for name, inner in _spoiled(one):
                    changed = type(request)()
                    changed.CopyFrom(request)
                    getattr(changed, field.name)[place].CopyFrom(inner)
                    yield f"{field.name}.{name}", changed
            continue
        if field.type == FieldDescriptor.TYPE_MESSAGE:
            for name, inner in _spoiled(getattr(request, field.name)):
                changed = type(request)()
                changed.CopyFrom(request)
                getattr(changed, field.name).CopyFrom(inner)
                yield f"{field.name}.{name}", changed
            continue
        for value in _bad_values(field):
            changed = type(request)()
            changed.CopyFrom(request)
            if field.is_repeated:
                getattr(changed, field.name).append(value)
            else:
                setattr(changed, field.name, value)
            yield field.name, changed


async def test_every_field_of_every_request_spoiled_in_every_way(shared: World) -> None:
    valid = await valid_requests(shared)
    named: set[tuple[str, str]] = set()
    await shared.settle_down()
    rows = shared.counts()
    for method in _METHODS:
        request = valid[method.name]
        for field, spoiled in _spoiled(request):
            reply = await shared.raw(_path(method), spoiled.SerializeToString())
            what = (method.name, field, str(getattr(spoiled, field, ""))[:40])
            _check(reply, what)
            if reply.code in ("INVALID_ARGUMENT", "NOT_FOUND"):
                assert shared.counts() == rows, what
            else:  # It was not that bad, or was refused as things are.
                await shared.settle_down()
                rows = shared.counts()
            if reply.refused is not None and reply.refused.reason == "INVALID_FIELD":
                wrong = set(reply.refused.fields)
                named |= {(method.name, name) for name in wrong}
                if request.ByteSize():  # Nothing else was wrong with it.
                    head = field.partition(".")[0]
                    assert all(name.startswith(head) for name in wrong), (what, wrong)
    must_be_named = {
        ("InitiatePayment", field)
        for field in (
            "client_id expert_id gig_id amount.minor_units amount.currency_code description "
            "idempotency_key escrow_mode"
        ).split()
    } | {
        ("CapturePayment", "idempotency_key"),
        ("CapturePayment", "payment_id"),
        ("CapturePayment", "amount.minor_units"),
        ("CapturePayment", "amount.currency_code"),
        ("CapturePayment", "notes"),
        ("RefundPayment", "reason"),
        ("ListPayments", "role"),
        ("ListPayments", "states"),
        ("ListPayments", "page_size"),
        ("ListPayments", "page_token"),
        ("CreateExpertAccount", "email"),
        ("CreateExpertAccount", "country"),
        ("CreateExpertAccount", "business_type"),
        ("SetCommission", "commission_basis_points"),
        ("ListExperts", "statuses"),
        ("ListExperts", "page_size"),
        ("ListExperts", "page_token"),
        ("ListPayouts", "states"),
        ("ListPayouts", "page_size"),
        ("ListPayouts", "page_token"),
        ("ListOperations", "state"),
        ("ListWebhookEvents", "state"),
        ("ListBalances", "account_prefix"),
    }
    assert must_be_named <= named
    await check_books(shared)


@pytest.mark.parametrize(
    ("amount", "currency", "field"),
    [
        (49, "USD", "minor_units"),
        (100_000_000, "USD", "minor_units"),
        (10_001, "ISK", "minor_units"),
        (10_005, "KWD", "minor_units"),
        (10_000, "XXX", "currency_code"),
        (10_000, "dollars", "currency_code"),
    ],
)
async def test_amounts_that_stripe_would_not_charge(
    shared: World, amount: int, currency: str, field: str
) -> None:
    rows = shared.counts()
    request = shared.initiation("nobody", amount, currency)
    reply = await shared.bytes_of("InitiatePayment", request)
    assert reply.refused is not None
    assert (reply.code, list(reply.refused.fields)) == ("INVALID_ARGUMENT", [f"amount.{field}"])
    assert shared.counts() == rows


async def test_all_faults_are_named_at_once(shared: World) -> None:
    reply = await shared.bytes_of("InitiatePayment", payments_pb2.InitiatePaymentRequest())
    assert reply.refused is not None
    assert set(reply.refused.fields) == {
        "client_id",
        "expert_id",
        "gig_id",
        "amount",
        "idempotency_key",
    }


async def test_forged_page_tokens(shared: World) -> None:
    """Tokens are no secret: a caller can decode one and put anything into it."""
    expert = await shared.expert()
    await shared.expert()
    for _ in range(3):
        payment = await shared.captured(expert)
        await shared.stripe.control("POST", f"/charges/{payment.charge_id}/dispute", {})
    await shared.settle_down()
    [(payment_id,)] = shared.sql("SELECT payment_id FROM payments LIMIT 1")
    lists: list[tuple[str, Message]] = [
        ("PaymentService/ListPayments", payments_pb2.ListPaymentsRequest(user_id=expert)),
        (
            "EventService/ListPaymentEvents",
            events_pb2.ListPaymentEventsRequest(payment_id=payment_id),
        ),
        ("LedgerService/ListBalances", ledger_pb2.ListBalancesRequest()),
        ("ExpertService/ListExperts", experts_pb2.ListExpertsRequest()),
        ("DisputeService/ListDisputes", disputes_pb2.ListDisputesRequest()),
        (
            "OperationsService/ListOperations",
            operations_pb2.ListOperationsRequest(state=operations_pb2.OPERATION_STATE_SUCCEEDED),
        ),
        (
            "OperationsService/ListWebhookEvents",
            operations_pb2.ListWebhookEventsRequest(
                state=operations_pb2.WEBHOOK_EVENT_STATE_APPLIED
            ),
        ),
    ]
    odd = (
        "", "\x00", "\ud800", "x" * 500, "0", "-1", "9" * 30, "٣", "1e9", "NaN", "infinity",
        "9999-12-31T23:59:59-23:59", "0001-01-01T00:00:00+23:59", "2026-11-22", "now",
    )  # fmt: skip
    for path, request in lists:
        given: Any = request
        given.page_size = 1
        reply = await shared.raw(path, request.SerializeToString())
        assert reply.code == "OK"
        module = next(
            file for file in _FILES if path.split("/")[0] in file.DESCRIPTOR.services_by_name
        )
        answer: Any = getattr(module, path.split("/")[1] + "Response").FromString(reply.body)
        token = answer.next_page_token
        assert token, path
        good = json.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
        for place in range(2, len(good)):
            for value in odd:
                forged = [*good[:place], value, *good[place + 1 :]]
                text = base64.urlsafe_b64encode(json.dumps(forged).encode()).decode()
                given.page_token = text.rstrip("=")
                reply = await shared.raw(path, request.SerializeToString())
                _check(reply, (path, place, value))


async def test_a_long_address_is_refused_before_it_is_stored(
    new_database: Callable[[], str],
) -> None:
    async with running_world(
        new_database(), loops=False, allowed_origins=("https://app.example.com",)
    ) as world:
        for length, wanted in ((2_000, "OK"), (2_001, "INVALID_ARGUMENT")):
            request = experts_pb2.CreateExpertAccountRequest(
                expert_id=f"expert-{length}",
                name="Ann",
                email="ann@example.com",
                continue_url="https://app.example.com/".ljust(length, "x"),
            )
            path = "ExpertService/CreateExpertAccount"
            assert (await world.raw(path, request.SerializeToString())).code == wanted


async def test_a_list_of_a_million_values_is_refused_by_its_name(shared: World) -> None:
    """Before each of them is looked at, and with a short answer."""
    million: Any = [1] * 1_000_000
    lists: list[tuple[str, str, Message]] = [
        (
            "PaymentService/ListPayments",
            "states",
            payments_pb2.ListPaymentsRequest(user_id="a", states=million),
        ),
        (
            "ExpertService/ListPayouts",
            "states",
            experts_pb2.ListPayoutsRequest(expert_id="a", states=million),
        ),
        (
            "ExpertService/ListExperts",
            "statuses",
            experts_pb2.ListExpertsRequest(statuses=million),
        ),
    ]
    for path, field, request in lists:
        reply = await shared.raw(path, request.SerializeToString())
        assert reply.refused is not None
        assert (reply.code, reply.refused.reason) == ("INVALID_ARGUMENT", "INVALID_FIELD")
        assert reply.refused.fields == {field: "must hold at most 50 values"}


async def test_an_unknown_method_and_a_huge_message(shared: World) -> None:
    assert (await shared.raw("PaymentService/StealPayment", b"")).code == "UNIMPLEMENTED"
    request = shared.initiation("nobody", description="x" * 6_000_000)
    reply = await shared.bytes_of("InitiatePayment", request)
    assert reply.code == "RESOURCE_EXHAUSTED"
