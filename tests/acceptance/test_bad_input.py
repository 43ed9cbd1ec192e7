"""Every bad input to every field of every RPC, as reflection lists them: named, and nothing moves.

A field or RPC that is added later is covered by its type. What cannot be known from the type (how a
good value looks, whether it may be absent) stands in the tables below, and an unknown name fails.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from dev.caller import call_of
from dev.forwarding import signature
from marketplace.payments.v1 import (
    adjustments_pb2,
    disputes_pb2,
    experts_pb2,
    money_pb2,
    operations_pb2_grpc,
    payments_pb2,
)
from tests.acceptance.browser import submit
from tests.acceptance.conftest import APP, WEBHOOK_SECRETS, World, new_name, until
from tests.acceptance.programs import PACKAGE, Answer

MEGABYTE = "x" * 1_000_000
#: The refusals of a bad input. No other code may ever be the answer to one.
REFUSALS = {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"}
#: What no call may ever answer.
NEVER = {"UNKNOWN", "INTERNAL", "UNAVAILABLE", "DEADLINE_EXCEEDED", "UNIMPLEMENTED"}

#: Fields that may be absent, by request; every other one must be asked for when it is missing.
OPTIONAL = {
    "AcceptDisputeRequest": "validate_only",
    "CapturePaymentRequest": "amount final notes validate_only expected_version",
    "CreateExpertAccountRequest": "country business_type commission_basis_points continue_url",
    "Evidence": " ".join(disputes_pb2.Evidence.DESCRIPTOR.fields_by_name),
    "ListAdjustmentsRequest": "payment_id expert_id state page_size page_token",
    "ProposeAdjustmentRequest": "payment_id expert_id",
    "ExportPaymentProofRequest": "include_texts",
    "InitiatePaymentRequest": (
        "description escrow_mode on_deadline expected_completion_time validate_only"
    ),
    "ListBalancesRequest": "account_prefix page_size page_token",
    "ListDiscrepanciesRequest": "payment_id page_size page_token open_only",
    "ListDisputesRequest": "payment_id expert_id open_only page_size page_token",
    "ListWebhookEventsRequest": "state page_size page_token",
    "ListOperationsRequest": "payment_id state page_size page_token",
    "ListPaymentEventsRequest": "page_size page_token",
    "ListPaymentsRequest": (
        "page_size page_token role states gig_id min_create_time max_create_time max_deadline_time"
    ),
    "ListExpertsRequest": "page_size page_token statuses max_requirements_due_time",
    "ListPayoutsRequest": "page_size page_token states",
    "Money": "currency_code",
    "RefreshOnboardingRequest": "continue_url",
    "ReplaceExpertAccountRequest": (
        "replace_working_account continue_url country email business_type"
    ),
    "RefundPaymentRequest": "amount reason validate_only expected_version",
    "DismissFraudWarningRequest": "warning_id",
    "RunReconciliationRequest": "payment_id min_update_time",
    "SettleClientPayableRequest": "amount",
    "SubmitEvidenceRequest": "submit",
    "WriteOffExpertDebtRequest": "amount validate_only",
}
#: Ids that must name something that exists, and one of their kind that does not.
UNKNOWN_IDS = {
    "payment_id": "pay_" + "0" * 32,
    "dispute_id": "dp_" + "0" * 24,
    "expert_id": "expert-nobody",
    "operation_id": "op_" + "0" * 32,
    "event_id": "evt_nothing",
    "discrepancy_id": f"disc_{2**62}",
    "adjustment_id": "adj_" + "0" * 32,
    "onboarding_token": "A" * 43,
}
#: Where an id filters or is chosen by the caller, an unknown one is no fault.
MAY_BE_UNKNOWN = {
    ("ListDiscrepanciesRequest", "payment_id"),
    ("ListOperationsRequest", "payment_id"),
    ("ListAdjustmentsRequest", "payment_id"),
    ("ListAdjustmentsRequest", "expert_id"),
    ("ListDisputesRequest", "payment_id"),
    ("ListDisputesRequest", "expert_id"),
    ("CreateExpertAccountRequest", "expert_id"),
}
#: Texts that are wrong for a reason of their own, by name.
WRONG_TEXTS = {
    "currency_code": ["XXX", "US", "DOLLARS", "€"],
    "continue_url": ["https://evil.example/", "javascript:alert(1)", "//evil.example"],
    "page_token": ["WyJwYXltZW50cyJd", "made up"],
    "email": ["ada", "ada@", "@example.com", "a b@example.com"],
    "country": ["USA", "1", "ÜÄ"],
}
#: Amounts and counts that are out of range, by name; 0 only where the number may not be absent.
OUT_OF_RANGE = {
    "minor_units": [0, -1, -(2**63), 2**63 - 1, 100_000_000],
    "page_size": [-1, -(2**31)],
    "commission_basis_points": [-1, 10_000, 2**31 - 1],
    "expected_version": [-1, -(2**63)],
}
#: Times that are wrong for a reason of their own, by name: seconds since 1970.
WRONG_TIMES = {"expected_completion_time": [1, 2**33]}


@dataclass(frozen=True)
class Method:
    path: str
    input_type: Descriptor


@dataclass(frozen=True)
class Case:
    """One request with one fault."""

    path: str
    field: str
    fault: str
    request: bytes

    def __str__(self) -> str:
        return f"{self.path.rpartition('.')[2]} {self.field}: {self.fault}"


class Service:
    """The service as reflection shows it, called with bytes."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel
        database = ProtoReflectionDescriptorDatabase(channel)
        pool = DescriptorPool(database)
        names = database.get_services()
        self.methods = [
            Method(f"/{name}/{method.name}", method.input_type)
            for name in names
            if name.startswith(PACKAGE)
            for method in _methods(pool, name)
            if not method.server_streaming  # A feed answers with no end; see test_feed.py.
        ]

    def call(self, path: str, request: bytes) -> Answer:
        ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(path)
        try:
            ask(request, timeout=20)
        except grpc.RpcError as error:
            return _answer(error)
        return Answer("OK")


def _methods(pool: DescriptorPool, service: str) -> list[MethodDescriptor]:
    return list(pool.FindServiceByName(service).methods)


def _answer(error: grpc.RpcError) -> Answer:
    call = call_of(error)
    status = rpc_status.from_call(call)
    info = error_details_pb2.ErrorInfo()
    bad = error_details_pb2.BadRequest()
    for detail in status.details if status is not None else ():
        _ = detail.Unpack(info) or detail.Unpack(bad)
    return Answer(
        call.code().name,
        message=call.details() or "",
        reason=info.reason,
        facts=dict(info.metadata),
        fields=tuple(violation.field for violation in bad.field_violations),
    )


@pytest.fixture(scope="module")
def service(world: World) -> Service:
    return Service(world.channel)


@dataclass
class Good:
    """A request of every kind, valid except for the fault that is put into it."""

    values: dict[str, Any]
    by_request: dict[tuple[str, str], Any]

    def request(self, kind: Descriptor) -> Message:
        message = GetMessageClass(kind)()
        for field in kind.fields:
            self.fill(message, field)
        return message

    def fill(self, message: Message, field: FieldDescriptor) -> None:
        name = field.name
        key = (message.DESCRIPTOR.name, name)
        if name == "idempotency_key":
            value: Any = new_name("key")
        elif key in self.by_request:
            value = self.by_request[key]
        else:
            assert name in self.values, f"say what a good {key[0]}.{name} looks like"
            value = self.values[name]
        if field.is_repeated and field.message_type is not None:
            for one in value:
                getattr(message, name).add(**one)
        elif field.is_repeated:
            getattr(message, name).extend(value)
        elif field.message_type is not None:
            part = getattr(message, name)
            part.CopyFrom(type(part)(**value))
        else:
            setattr(message, name, value)


@pytest.fixture(scope="module")
def good(world: World, expert: str) -> Good:
    landing = submit(world.new_expert().onboarding_url).location
    body = b'{"id": "evt_1", "object": "event"}'
    held, captured = world.in_escrow(expert), world.captured(expert)
    to_answer, to_accept = contested(world, expert), contested(world, expert)
    debtor = indebted(world)
    to_replace = world.ready_expert()
    debtor, warned = indebted(world), warned_of(world, expert)
    wait_until_quiet(world)
    return Good(
        {
            "account_prefix": "stripe:",
            "adjustment_id": proposed(world),
            "amount": {"minor_units": 5_000, "currency_code": "USD"},
            "business_type": 1,
            "client_id": "client-1",
            "commission_basis_points": 1_000,
            "country": "US",
            "min_create_time": {"seconds": 1},
            "max_create_time": {"seconds": 2**33},
            "max_deadline_time": {"seconds": 2**33},
            "max_requirements_due_time": {"seconds": 2**33},
            "description": "A logo",
            "currency_code": "USD",
            "discrepancy_id": "disc_1",
            "dispute_id": to_answer,
            "email": "ada@example.com",
            "endpoint": 1,
            "escrow_mode": 1,
            "event_id": "evt_nothing",
            "evidence": {"service_date": "May 1st", "uncategorized_text": "It was delivered."},
            "expected_completion_time": {"seconds": int(time.time()) + 86_400},
            "expert_id": expert,
            "final": True,
            "former_account_id": account_of(world, to_replace),
            "gig_id": "gig-1",
            "kind": 1,
            "onboarding_token": landing.partition("token=")[2],
            "name": "Ada",
            "notes": "delivered",
            "on_deadline": payments_pb2.ON_DEADLINE_ALERT,
            "continue_url": f"{APP}/done",
            "open_only": True,
            "operation_id": "op_" + "0" * 32,
            "page_size": 10,
            "page_token": "",
            "payload": body,
            "payment_id": held.payment_id,
            "reason": "not delivered",
            "replace_working_account": True,
            "role": 1,
            "signature": signature(
                body, WEBHOOK_SECRETS["STRIPE_WEBHOOK_SECRET"], int(time.time())
            ),
            "include_texts": False,
            "lines": [
                {"account": "losses", "amount": {"minor_units": 500, "currency_code": "USD"}},
                {"account": "fx", "amount": {"minor_units": -500, "currency_code": "USD"}},
            ],
            "min_update_time": {"seconds": int(time.time())},
            "state": 1,
            "states": [1],
            "statuses": [4],
            "submit": True,
            "ticket": "FIN-7",
            "user_id": "client-1",
            "validate_only": False,
            "warning_id": "",
        },
        {
            ("AcceptDisputeRequest", "dispute_id"): to_accept,
            # The payment is named; naming its expert as well would be a fault.
            ("ProposeAdjustmentRequest", "expert_id"): "",
            ("CapturePaymentRequest", "expected_version"): version_of(world, held.payment_id),
            ("CreateExpertAccountRequest", "expert_id"): new_name("expert"),
            ("RefundPaymentRequest", "expected_version"): version_of(world, captured.payment_id),
            ("RefundPaymentRequest", "payment_id"): captured.payment_id,
            ("ReplaceExpertAccountRequest", "expert_id"): to_replace,
            ("DismissFraudWarningRequest", "payment_id"): warned,
            ("SettleClientPayableRequest", "payment_id"): bounced(world, expert),
            ("WriteOffExpertDebtRequest", "expert_id"): debtor,
        },
    )


def proposed(world: World) -> str:
    """An adjustment of the platform's own accounts that waits for another person."""
    lines = [
        adjustments_pb2.AdjustmentLine(
            account=account, amount=money_pb2.Money(minor_units=units, currency_code="USD")
        )
        for account, units in (("losses", 500), ("fx", -500))
    ]
    request = adjustments_pb2.ProposeAdjustmentRequest(
        lines=lines, ticket="FIN-7", reason="a test", idempotency_key=new_name("key")
    )
    operations = operations_pb2_grpc.OperationsServiceStub(world.channel)
    return operations.ProposeAdjustment(request).adjustment.adjustment_id


def contested(world: World, expert_id: str) -> str:
    """A chargeback that waits for an answer, with nothing staged."""
    charge_id = world.captured(expert_id).charge_id
    dispute_id: str = world.control(f"charges/{charge_id}/dispute", {})["id"]
    found = f"SELECT count(*) FROM disputes WHERE dispute_id = '{dispute_id}'"  # noqa: S608
    until(lambda: world.query(found) == [(1,)], "the dispute is on record")
    return dispute_id


def warned_of(world: World, expert_id: str) -> str:
    """A payment that a fraud warning freezes."""
    payment = world.captured(expert_id)
    world.control(f"charges/{payment.charge_id}/early_fraud_warning", {})
    found = f"SELECT frozen FROM payments WHERE payment_id = '{payment.payment_id}'"  # noqa: S608
    until(lambda: world.query(found) == [("FRAUD_WARNING",)], "the warning is on record")
    return payment.payment_id


def bounced(world: World, expert_id: str) -> str:
    """A payment of which 100 dollars are client payable."""
    payment_id = world.captured(expert_id).payment_id
    world.payments.RefundPayment(
        payments_pb2.RefundPaymentRequest(payment_id=payment_id, idempotency_key=new_name("key"))
    )
    kind = f"FROM movements WHERE payment_id = '{payment_id}' AND kind"
    [(refund_id,)] = world.query(f"SELECT movement_id {kind} = 'refund'")
    world.control(f"refunds/{refund_id}/fail", {})
    failed = f"SELECT count(*) {kind} = 'refund_failure'"
    until(lambda: world.query(failed) == [(1,)], "the refund is known to have bounced")
    return payment_id


def indebted(world: World) -> str:
    """An expert with a debt of 90 dollars: the client was refunded, and the reversal failed.

    What the account got by a transfer of its own is pending for two days, so that nothing of it can
    be taken back, and nothing is collected during the tests.
    """
    expert_id = world.ready_expert()
    order = payments_pb2.InitiatePaymentRequest(
        client_id="client-1",
        expert_id=expert_id,
        gig_id="gig-1",
        amount=money_pb2.Money(minor_units=10_000, currency_code="USD"),
        escrow_mode=payments_pb2.ESCROW_MODE_PLATFORM_HOLD,
        idempotency_key=new_name("key"),
    )
    made = world.payments.InitiatePayment(order)
    world.pay(made.client_secret)
    payment_id = made.payment.payment_id
    world.await_state(payment_id, payments_pb2.PAYMENT_STATE_IN_ESCROW)
    world.payments.CapturePayment(
        payments_pb2.CapturePaymentRequest(payment_id=payment_id, idempotency_key=new_name("key"))
    )
    request = payments_pb2.RefundPaymentRequest(
        payment_id=payment_id, idempotency_key=new_name("key")
    )
    refunded = world.payments.RefundPayment(request).payment
    assert refunded.state == payments_pb2.PAYMENT_STATE_REFUNDED
    return expert_id


def account_of(world: World, expert_id: str) -> str:
    request = experts_pb2.GetExpertRequest(expert_id=expert_id)
    return world.experts.GetExpert(request).expert.stripe_account_id


def version_of(world: World, payment_id: str) -> int:
    request = payments_pb2.GetPaymentRequest(payment_id=payment_id)
    return world.payments.GetPayment(request).payment.version


# The faults


def cases(good: Good, method: Method) -> Iterator[Case]:
    """Also with `validate_only`, where there is that: it refuses what the call would refuse."""
    kind = method.input_type
    for validate_only in (False, True) if "validate_only" in kind.fields_by_name else (False,):
        for field in kind.fields:
            for place, fault, spoil in faults(kind, field):
                request: Any = good.request(kind)
                if validate_only:
                    request.validate_only = True
                spoil(request)
                what = f"{fault}, validate_only" if validate_only else fault
                yield Case(method.path, place, what, request.SerializeToString())
    for field in kind.fields:
        if field.type == FieldDescriptor.TYPE_STRING:
            request = good.request(kind)
            request.ClearField(field.name)
            bad = bytes([field.number << 3 | 2, 2]) + b"\xff\xfe"
            yield Case(
                method.path, "", f"{field.name} is no UTF-8", request.SerializeToString() + bad
            )


Spoil = Callable[[Message], None]
#: Where in the request, what, and how to do it.
Fault = tuple[str, str, Spoil]


def faults(kind: Descriptor, field: FieldDescriptor) -> Iterator[Fault]:
    """What may be wrong with a field of this type and name."""
    name = field.name
    may_be_absent = name in OPTIONAL.get(kind.name, "").split()
    if not may_be_absent:
        yield name, "missing", _clearing(name)
    if field.is_repeated and field.message_type is not None:
        yield from faults_of_lines(field, field.message_type)
    elif field.is_repeated:
        yield name, "an unknown value", lambda message: getattr(message, name).append(99)
    elif field.message_type is not None:
        yield from faults_within(field, field.message_type)
    else:
        for fault, value in bad_values(kind, field):
            if value != 0 or not may_be_absent:
                yield name, fault, _setting(name, value)


def faults_of_lines(field: FieldDescriptor, kind: Descriptor) -> Iterator[Fault]:
    """A fault in the first line of several. An amount is wrong only beside the others."""
    for inner in kind.fields:
        for place, fault, spoil in faults(kind, inner):
            named = "" if place.endswith("minor_units") else f"[0].{place}"
            yield f"{field.name}{named}", fault, _first(field.name, spoil)


def faults_within(field: FieldDescriptor, kind: Descriptor) -> Iterator[Fault]:
    if kind.full_name == "google.protobuf.Timestamp":
        wrong = [("seconds", 2**62), ("seconds", -(2**62)), ("nanos", -1)]
        wrong += [("seconds", seconds) for seconds in WRONG_TIMES.get(field.name, ())]
        for name, value in wrong:
            yield field.name, f"{name} {value}", _within(field.name, _setting(name, value))
        return
    for inner in kind.fields:
        for place, fault, spoil in faults(kind, inner):
            yield f"{field.name}.{place}", fault, _within(field.name, spoil)


def bad_values(kind: Descriptor, field: FieldDescriptor) -> Iterator[tuple[str, Any]]:
    name, place = field.name, f"{kind.name}.{field.name}"
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            yield "NUL", "a\x00b"
            yield "a megabyte", MEGABYTE
            for value in WRONG_TEXTS.get(name, ()):
                yield value, value
            if name in UNKNOWN_IDS and (kind.name, name) not in MAY_BE_UNKNOWN:
                yield "unknown", UNKNOWN_IDS[name]
                yield "nonsense", "'; DROP TABLE payments; --"
        case FieldDescriptor.TYPE_BYTES:
            yield "NUL", b"\x00"
            yield "a megabyte", MEGABYTE.encode()
        case FieldDescriptor.TYPE_ENUM:
            yield "an unknown value", 99
            yield "a negative value", -1
        case FieldDescriptor.TYPE_INT32 | FieldDescriptor.TYPE_INT64:
            assert name in OUT_OF_RANGE, f"say which values of {place} are out of range"
            for number in OUT_OF_RANGE[name]:
                yield f"out of range: {number}", number
        case FieldDescriptor.TYPE_BOOL:
            return
        case _:
            raise AssertionError(f"say what is wrong with a {place}")


def _setting(name: str, value: Any) -> Spoil:
    return lambda message: setattr(message, name, value)


def _within(name: str, spoil: Spoil) -> Spoil:
    return lambda message: spoil(getattr(message, name))


def _first(name: str, spoil: Spoil) -> Spoil:
    return lambda message: spoil(getattr(message, name)[0]) if getattr(message, name) else None


def _clearing(name: str) -> Spoil:
    return lambda message: message.ClearField(name)


def test_every_bad_input_is_named_and_changes_nothing(
    world: World, service: Service, good: Good
) -> None:
    wait_until_quiet(world)
    before = contents(world)
    every = [case for method in service.methods for case in cases(good, method)]
    wrong = []
    for case in every:
        answer = service.call(case.path, case.request)
        if answer.code not in REFUSALS or not names(answer, case):
            wrong.append(f"{case}: {str(answer)[:300]}")
    assert not wrong, "\n".join([f"{len(wrong)} of {len(every)}", *wrong])
    assert len(every) > 10 * len(service.methods)
    assert contents(world) == before


def names(answer: Answer, case: Case) -> bool:
    """Whether the refusal says what was wrong: the field, or the fact."""
    if not case.field:
        return answer.reason == "MALFORMED_MESSAGE"
    if answer.reason == "INVALID_FIELD":
        return any(re.match(rf"{re.escape(case.field)}[.\[]", f"{name}.") for name in answer.fields)
    if answer.reason == "WEBHOOK_REFUSED":
        return bool(answer.facts["fault"])
    return bool(answer.facts) or case.field.upper() in answer.reason


def test_wrong_currency_of_a_part(service: Service, good: Good) -> None:
    for name in ("CapturePayment", "RefundPayment"):
        method = next(m for m in service.methods if m.path.endswith(f"/{name}"))
        request: Any = good.request(method.input_type)
        request.amount.currency_code = "EUR"
        answer = service.call(method.path, request.SerializeToString())
        assert answer.code == "INVALID_ARGUMENT"
        assert answer.fields == ("amount.currency_code",)


def test_a_version_that_has_passed(world: World, service: Service, good: Good) -> None:
    before = contents(world)
    for name in ("CapturePayment", "RefundPayment"):
        method = next(m for m in service.methods if m.path.endswith(f"/{name}"))
        seen = good.by_request[f"{name}Request", "expected_version"]
        for version in (seen - 1, seen + 1, 2**63 - 1):
            for validate_only in (False, True):
                request: Any = good.request(method.input_type)
                request.expected_version, request.validate_only = version, validate_only
                answer = service.call(method.path, request.SerializeToString())
                assert (answer.code, answer.reason) == ("ABORTED", "VERSION_MISMATCH")
                assert answer.facts["expected_version"] == str(version)
                assert answer.facts["version"] == str(seen)
    assert contents(world) == before


def test_a_promotion_of_what_the_platform_holds_already(service: Service, good: Good) -> None:
    method = next(m for m in service.methods if m.path.endswith("/InitiatePayment"))
    for validate_only in (False, True):
        request: Any = good.request(method.input_type)
        request.escrow_mode = payments_pb2.ESCROW_MODE_PLATFORM_HOLD
        request.on_deadline = payments_pb2.ON_DEADLINE_PROMOTE
        request.validate_only = validate_only
        answer = service.call(method.path, request.SerializeToString())
        assert answer.code == "INVALID_ARGUMENT"
        assert answer.fields == ("on_deadline",)


def test_bytes_that_are_no_message(world: World, service: Service) -> None:
    before = contents(world)
    for method in service.methods:
        for garbage in (b"\xff" * 9, b"\x0a\x7f", b"\x00" * 100_000):
            answer = service.call(method.path, garbage)
            assert (answer.code, answer.reason) == ("INVALID_ARGUMENT", "MALFORMED_MESSAGE")
    for path in ("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"):
        assert service.call(path, b"\xff" * 9).code == "INVALID_ARGUMENT"
    assert contents(world) == before


def test_no_call_answers_unknown_or_internal(service: Service, good: Good) -> None:
    """Fields filled by chance, over and over: any answer will do but those."""
    chance = random.Random(20261122)
    for method in service.methods:
        for _ in range(25):
            request = good.request(method.input_type)
            for field in method.input_type.fields:
                if chance.random() < 0.5:
                    spoils = [spoil for _, _, spoil in faults(method.input_type, field)]
                    chance.choice([*spoils, _clearing(field.name)])(request)
            answer = service.call(method.path, request.SerializeToString())
            assert answer.code not in NEVER, f"{method.path}: {answer}"


def wait_until_quiet(world: World) -> None:
    """No webhook is under way any more, so that what changes now was changed by the calls."""
    world.control("webhooks/settle", {"seconds": 10})
    waiting = "SELECT count(*) FROM webhook_events WHERE state = 'WAITING'"
    until(lambda: world.query(waiting) == [(0,)], "the inbox is empty")


#: What calls may leave behind although they were refused, or what changes by itself.
_LEFT_OUT = {
    "idempotency_keys": "what Stripe refuses is remembered under its key",
    "event_cursors": "the poller notes when it asked last",
    "payment_polls": "the poller notes when it asked last",
    "jobs": "the jobs note when they ran last",
    "job_backoff": "the loops note what they looked at last",
    "debt_checks": "the loops note what they looked at last",
}


def contents(world: World) -> dict[str, Any]:
    """All that is stored, by table, and all that ever happened at Stripe."""
    tables = world.query("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    row = "(to_jsonb(t) - 'check_time')::text"
    digest = f"count(*), md5(string_agg({row}, '' ORDER BY {row}))"
    shown: dict[str, Any] = {
        table: world.query(f"SELECT {digest} FROM {table} t")  # noqa: S608 - names of our own
        for (table,) in tables
        if table not in _LEFT_OUT
    }
    shown["at Stripe"] = len(world.control("effects?since=0")["effects"])
    return shown
