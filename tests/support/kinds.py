"""The kinds of discrepancies and operations by the names under which they are stored."""

from __future__ import annotations

from marketplace.payments.v1 import operations_pb2


def kind_of(found: operations_pb2.Discrepancy) -> str:
    """Returns the stored name; of a violated invariant with the invariant's name."""
    if found.invariant:
        assert found.kind == operations_pb2.DISCREPANCY_KIND_INVARIANT_VIOLATED
        return f"invariant_{found.invariant}"
    return operations_pb2.DiscrepancyKind.Name(found.kind).removeprefix("DISCREPANCY_KIND_").lower()


def operation_kind_of(operation: operations_pb2.Operation) -> str:
    return operations_pb2.OperationKind.Name(operation.kind).removeprefix("OPERATION_KIND_").lower()
