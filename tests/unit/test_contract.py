"""The rules of the contract that `buf lint` does not know."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Final

import pytest
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FileDescriptor

from marketplace.payments.v1 import errors_pb2, operations_pb2, payments_pb2
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.operations import OperationKind, OperationState
from payment_service.domain.payment import Freeze, State, WaitingFor, WaitingReason
from payment_service.rpc.messages.operations import discrepancy_kind_value, verdict_value
from tests.unit.protos import PROTOS, error_reasons, labelled, messages, reasons_in, services

#: They come last in a request, in this order.
_LAST: Final = ("idempotency_key", "validate_only", "expected_version")
_OPTIONS: Final = (
    'option go_package = "marketplace/payments/v1;paymentsv1";\n'
    "option java_multiple_files = true;\n"
    'option java_package = "com.marketplace.payments.v1";\n'
)
_RPCS: Final = {
    f"{service.name}.{rpc}": comment
    for service in services()
    for rpc, comment in service.parts.items()
}


def _files() -> Iterator[FileDescriptor]:
    for path in PROTOS:
        yield importlib.import_module(f"marketplace.payments.v1.{path.stem}_pb2").DESCRIPTOR


def _messages() -> Iterator[Descriptor]:
    for file in _files():
        yield from file.message_types_by_name.values()


def test_keys_previews_and_versions_come_last_in_one_order() -> None:
    seen = 0
    for message in _messages():
        # In the order of the file: a later field has the next number, and stands before these.
        names = [field.name for field in message.fields]
        last = [name for name in _LAST if name in names]
        seen += len(last)
        assert names[len(names) - len(last) :] == last, message.name
    assert seen > 10


def test_numbers_are_counted_from_one_without_gaps() -> None:
    for message in _messages():
        numbers = sorted(field.number for field in message.fields)
        assert numbers == list(range(1, len(numbers) + 1)), message.name


def test_times_are_called_times() -> None:
    for message in _messages():
        for field in message.fields:
            kind = field.message_type
            is_time = kind is not None and kind.full_name == "google.protobuf.Timestamp"
            assert field.name.endswith("_time") is is_time, f"{message.name}.{field.name}"


def test_operators_give_a_reason() -> None:
    for message in _messages():
        notes = {field.name for field in message.fields} & {"note", "notes"}
        assert notes <= ({"notes"} if message.name == "CapturePaymentRequest" else set())


def test_every_file_names_its_packages() -> None:
    for path in PROTOS:
        assert _OPTIONS in path.read_text(), path.name


@pytest.mark.parametrize("rpc", _RPCS)
def test_an_rpc_explains_itself(rpc: str) -> None:
    comment = _RPCS[rpc]
    first = comment.split()[0]
    assert first.endswith("s"), f"the comment of {rpc} begins with a verb in the third person"
    for label in ("Money", "Idempotency", "Errors"):
        assert labelled(comment, label), f"{rpc} does not say its {label.lower()}"
    assert set(reasons_in(labelled(comment, "Errors"))) <= set(error_reasons())


def test_requests_and_responses_name_their_rpc() -> None:
    comments = {name: block.comment for name, block in messages().items()}
    for rpc in _RPCS:
        name = rpc.partition(".")[2]
        assert comments[f"{name}Request"].startswith(f"Request of {name}."), name
        assert comments[f"{name}Response"].startswith(f"Response of {name}"), name


def test_every_reason_is_an_error_of_some_rpc() -> None:
    listed = {
        reason for comment in _RPCS.values() for reason in reasons_in(labelled(comment, "Errors"))
    }
    proto = next(path for path in PROTOS if path.name == "errors.proto").read_text()
    for_all = set(reasons_in(proto.partition("Three groups")[2].partition("enum ")[0]))
    assert listed | for_all >= set(error_reasons()) - {"UNSPECIFIED"}


def test_the_numbers_of_reasons_are_grouped_by_status_code() -> None:
    """In tens; FAILED_PRECONDITION takes several of them."""
    codes: dict[int, set[str]] = {}
    for name, comment in error_reasons().items():
        number = errors_pb2.ErrorReason.Value(f"ERROR_REASON_{name}")
        if number:
            code = comment.split(".")[0]
            codes.setdefault(min(number // 10, 10), set()).add(code)
    assert all(len(group) == 1 for group in codes.values()), codes
    named = [code for group in codes.values() for code in group]
    assert len(named) == len(set(named)) == 9


def _names(enum: EnumDescriptor, prefix: str) -> set[str]:
    return {value.name.removeprefix(prefix) for value in enum.values} - {"UNSPECIFIED"}


def test_enums_have_the_values_of_the_domain() -> None:
    operations, payments = operations_pb2.DESCRIPTOR, payments_pb2.DESCRIPTOR
    for file, name, prefix, values in (
        (operations, "OperationKind", "OPERATION_KIND_", OperationKind),
        (operations, "OperationState", "OPERATION_STATE_", OperationState),
        (payments, "PaymentState", "PAYMENT_STATE_", State),
        (payments, "PaymentFreeze", "PAYMENT_FREEZE_", Freeze),
        (payments, "WaitingFor", "WAITING_FOR_", WaitingFor),
        (payments, "WaitingReason", "WAITING_REASON_", WaitingReason),
    ):
        ours = {value.name for value in values} - {"NOTHING"}
        assert _names(file.enum_types_by_name[name], prefix) == ours, name


def test_discrepancies_have_a_kind_each() -> None:
    enum = operations_pb2.DESCRIPTOR.enum_types_by_name["DiscrepancyKind"]
    kinds = {kind.name for kind in DiscrepancyKind if not kind.is_invariant}
    # An alarm only: no discrepancy of this kind is stored.
    kinds -= {"INTENT_MISSING"}
    assert _names(enum, "DISCREPANCY_KIND_") == kinds | {"INVARIANT_VIOLATED"}


def test_what_a_newer_release_stored_is_unspecified() -> None:
    """During a rolling release an old replica reads kinds that it does not know."""
    assert discrepancy_kind_value("a_kind_of_tomorrow") == 0
    assert verdict_value("a_verdict_of_tomorrow") == 0
    assert verdict_value("") == operations_pb2.WEBHOOK_EVENT_VERDICT_UNSPECIFIED
    stored = ("applied", "no_change", "unknown_object", "not_acted_upon")
    for verdict in (*stored, "other_mode", "not_an_event", "odd"):
        assert verdict_value(verdict) != 0
    violated = discrepancy_kind_value("invariant_postings_sum_to_zero")
    assert violated == operations_pb2.DISCREPANCY_KIND_INVARIANT_VIOLATED


def test_a_value_of_tomorrow_does_not_break_an_old_caller() -> None:
    sent = operations_pb2.Operation(operation_id="op_1").SerializeToString() + bytes([2 << 3, 99])
    read = operations_pb2.Operation.FromString(sent)
    assert (read.operation_id, int(read.kind)) == ("op_1", 99)
    assert read.SerializeToString() == sent
