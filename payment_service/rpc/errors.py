"""The one place where errors become gRPC statuses.

Nothing else maps errors; ``interceptor.py`` asks here for every call. An unexpected error becomes
UNAVAILABLE with a reference that is in the log; never UNKNOWN, never INTERNAL, never a text from
inside.
"""

from __future__ import annotations

import random
import secrets
from typing import Any, Final

import structlog
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from payment_service.application.idempotency import ReplayedRefusal
from payment_service.domain.errors import Exhausted, Refusal, Unavailable
from payment_service.domain.guards import VersionMismatch
from payment_service.domain.ports.records import Answer
from payment_service.rpc.messages.payments import payment_message

log = structlog.get_logger(__name__)

DOMAIN: Final = "payments.marketplace"
#: Details of 17 KB turn the error itself into RESOURCE_EXHAUSTED.
_MAX_DETAILS_BYTES: Final = 4096
#: gRPC's own retries wait as long as this says (gRFC A6).
_PUSHBACK: Final = "grpc-retry-pushback-ms"


class Malformed(Exception):
    """The message is not one, or did not come."""


def status_of(refusal: Refusal) -> status_pb2.Status:
    """Returns the status of a refusal: its ``ErrorInfo`` and, for fields, its ``BadRequest``."""
    status = status_pb2.Status(
        code=code_pb2.Code.Value(refusal.code.value), message=refusal.sentence[:1000]
    )
    info = error_details_pb2.ErrorInfo(reason=refusal.reason, domain=DOMAIN)
    for name, value in sorted(refusal.facts.items()):
        info.metadata[name] = value[:200]
    status.details.add().Pack(info)
    if refusal.fields:
        bad = error_details_pb2.BadRequest()
        for field, fault in refusal.fields[:20]:
            bad.field_violations.add(field=field[:100], description=fault[:200])
        status.details.add().Pack(bad)
    if isinstance(refusal, VersionMismatch):
        status.details.add().Pack(payment_message(refusal.payment))
    if isinstance(refusal, Exhausted):
        status.details.add().Pack(_retry_info(refusal.retry_seconds))
    while status.ByteSize() > _MAX_DETAILS_BYTES:
        del status.details[-1]
    return status


def _retry_info(seconds: float) -> error_details_pb2.RetryInfo:
    """Returns the delay with jitter, so that the refused callers do not come back together."""
    info = error_details_pb2.RetryInfo()
    info.retry_delay.FromMilliseconds(round(1000 * seconds * random.uniform(1, 2)))  # noqa: S311
    return info


def to_grpc(status: status_pb2.Status) -> Any:
    """Returns gRPC's status, with the delay also where gRPC's own retries look for it."""
    found: Any = rpc_status.to_status(status)
    info = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info):
            delay = (_PUSHBACK, str(info.retry_delay.ToMilliseconds()))
            return found._replace(trailing_metadata=(*found.trailing_metadata, delay))
    return found


def refusal_answer(refusal: Refusal) -> Answer:
    """Returns a refusal as bytes, to be stored: maps would serialize in varying order."""
    return Answer(False, status_of(refusal).SerializeToString(deterministic=True))


def status_of_error(error: Exception, method: str) -> status_pb2.Status:
    """Returns the status of whatever a call raised. What nobody expected is logged."""
    if isinstance(error, Malformed):
        return _malformed()
    if isinstance(error, NotImplementedError):
        return status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message="not implemented")
    if isinstance(error, ReplayedRefusal):
        return status_pb2.Status.FromString(error.answer.body)
    if isinstance(error, Refusal):
        return status_of(error)
    reference = secrets.token_hex(6)
    log.error(
        "unexpected_error",
        method=method,
        error=type(error).__name__,
        where=_where(error),
        reference=reference,
    )
    return status_of(
        Unavailable(
            "UNEXPECTED",
            f"an unexpected error; the log explains it under the reference {reference}",
            {"reference": reference},
        )
    )


def _where(error: BaseException) -> str:
    """Returns file and line, never the text: the text of an exception can contain values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{trace.tb_frame.f_code.co_filename.rsplit('/', 1)[-1]}:{trace.tb_lineno}"


def _malformed() -> status_pb2.Status:
    status = status_pb2.Status(
        code=code_pb2.INVALID_ARGUMENT, message="the bytes are not a message of the expected type"
    )
    info = error_details_pb2.ErrorInfo(reason="MALFORMED_MESSAGE", domain=DOMAIN)
    status.details.add().Pack(info)
    return status
