"""Answers of calls that are refused."""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass

from google.rpc import error_details_pb2, status_pb2
from grpc import aio


@dataclass(frozen=True)
class Refused:
    """An error as the caller gets it, with the raw bytes of its details."""

    code: str
    sentence: str
    reason: str
    facts: Mapping[str, str]
    fields: Mapping[str, str]
    raw: bytes

    @classmethod
    def of(cls, error: aio.AioRpcError) -> Refused:
        trailers = dict(error.trailing_metadata() or ())
        raw = trailers.get("grpc-status-details-bin", b"")
        assert isinstance(raw, bytes)
        status = status_pb2.Status.FromString(raw)
        info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
        for detail in status.details:
            detail.Unpack(info)
            detail.Unpack(bad)
        return cls(
            code=error.code().name,
            sentence=error.details() or "",
            reason=info.reason,
            facts=dict(info.metadata),
            fields={fault.field: fault.description for fault in bad.field_violations},
            raw=raw,
        )


async def refusal(call: Awaitable[object]) -> Refused:
    """The error of a call that must be refused."""
    try:
        answer = await call
    except aio.AioRpcError as error:
        return Refused.of(error)
    raise AssertionError(f"was not refused: {answer!r}")


@dataclass(frozen=True)
class Reply:
    """An answer as bytes: of the response, or of the status."""

    code: str
    body: bytes
    refused: Refused | None = None
