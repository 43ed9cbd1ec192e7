"""Every way to refuse a call, as values that write their own sentence.

    Refusal
    ├── InvalidField …           INVALID_ARGUMENT      never stored: the caller corrects the call
    ├── Denied                   PERMISSION_DENIED     never stored: this caller may not do it
    ├── NotFound                 NOT_FOUND             never stored
    ├── Precondition             FAILED_PRECONDITION   stored for the key if Stripe was asked
    ├── Conflict                 ALREADY_EXISTS        the key or the expert has other content
    ├── Busy                     ABORTED               ask again with the same key
    ├── Exhausted                RESOURCE_EXHAUSTED    ask again later with the same key
    ├── Unavailable              UNAVAILABLE           ask again with the same key
    └── Unauthenticated          UNAUTHENTICATED       never stored: nobody knows who calls

The texts are safe to show to a caller: no exception text, no SQL, no secret ever gets here. One
place, ``rpc/errors.py``, turns them into gRPC statuses. ``facts`` become ``ErrorInfo.metadata``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum


class Code(Enum):
    """The gRPC status that a refusal becomes."""

    INVALID_ARGUMENT = "INVALID_ARGUMENT"
    PERMISSION_DENIED = "PERMISSION_DENIED"
    NOT_FOUND = "NOT_FOUND"
    FAILED_PRECONDITION = "FAILED_PRECONDITION"
    ALREADY_EXISTS = "ALREADY_EXISTS"
    ABORTED = "ABORTED"
    RESOURCE_EXHAUSTED = "RESOURCE_EXHAUSTED"
    UNAVAILABLE = "UNAVAILABLE"
    UNAUTHENTICATED = "UNAUTHENTICATED"


class Refusal(Exception):
    """A call was refused and changed nothing. ``reason`` is an ``ErrorReason`` of the contract."""

    code: Code

    def __init__(
        self,
        reason: str,
        sentence: str,
        facts: Mapping[str, object] | None = None,
        fields: Sequence[tuple[str, str]] = (),
    ) -> None:
        super().__init__(sentence)
        self.reason = reason
        self.sentence = sentence
        self.facts = {name: str(value) for name, value in (facts or {}).items()}
        #: (path of the field, what is wrong with it), for ``google.rpc.BadRequest``.
        self.fields = tuple(fields)


class InvalidArgument(Refusal):
    """The caller's message is wrong whatever the state; it must be corrected before a retry."""

    code = Code.INVALID_ARGUMENT


class Denied(Refusal):
    """This caller may not do it, whatever the state."""

    code = Code.PERMISSION_DENIED


class NotFound(Refusal):
    """There is no such thing."""

    code = Code.NOT_FOUND


class Precondition(Refusal):
    """The message is right, but not now: state, amount, readiness, or Stripe's final word."""

    code = Code.FAILED_PRECONDITION


class Conflict(Refusal):
    """The same name with other content."""

    code = Code.ALREADY_EXISTS


class Busy(Refusal):
    """Something else is at it; the same call may be made again with the same key."""

    code = Code.ABORTED


class Exhausted(Refusal):
    """Too much at once; the same call may be made again with the same key, after some seconds."""

    code = Code.RESOURCE_EXHAUSTED

    def __init__(
        self,
        reason: str,
        sentence: str,
        facts: Mapping[str, object] | None = None,
        *,
        retry_seconds: float = 1.0,
    ) -> None:
        super().__init__(reason, sentence, facts)
        self.retry_seconds = retry_seconds


class Unavailable(Refusal):
    """Something below is away or unclear; the same call may be made again with the same key."""

    code = Code.UNAVAILABLE


class Unauthenticated(Refusal):
    """The call does not prove who makes it; nothing was read or changed."""

    code = Code.UNAUTHENTICATED


def invalid_field(field: str, fault: str) -> InvalidArgument:
    """One field is wrong."""
    return invalid_fields([(field, fault)])


def invalid_fields(faults: Sequence[tuple[str, str]]) -> InvalidArgument:
    """Some fields are wrong; all are named at once, so that one round corrects them."""
    sentence = "; ".join(f"{field} {fault}" for field, fault in faults)
    return InvalidArgument("INVALID_FIELD", sentence, {"field": faults[0][0]}, faults)


def payment_not_found(payment_id: str) -> NotFound:
    return NotFound(
        "PAYMENT_NOT_FOUND", "there is no payment with this id", {"payment_id": payment_id}
    )


def expert_not_found(expert_id: str) -> NotFound:
    return NotFound("EXPERT_NOT_FOUND", "there is no expert with this id", {"expert_id": expert_id})


def operation_not_found(operation_id: str) -> NotFound:
    return NotFound(
        "OPERATION_NOT_FOUND", "there is no operation with this id", {"operation_id": operation_id}
    )


def webhook_event_not_found(event_id: str) -> NotFound:
    return NotFound(
        "WEBHOOK_EVENT_NOT_FOUND", "there is no webhook event with this id", {"event_id": event_id}
    )


def discrepancy_not_found(discrepancy_id: str) -> NotFound:
    return NotFound(
        "DISCREPANCY_NOT_FOUND",
        "there is no discrepancy with this id",
        {"discrepancy_id": discrepancy_id},
    )


def key_reused(key: str, field: str) -> Conflict:
    return Conflict(
        "IDEMPOTENCY_KEY_REUSED",
        f"this idempotency key was used with another {field}; a new request takes a new key",
        {"idempotency_key": key, "field": field},
    )


def answer_not_kept(key: str) -> Precondition:
    return Precondition(
        "ANSWER_NOT_KEPT",
        "the call with this idempotency key was answered before, its answer is not kept any more, "
        "and it is not made again",
        {"idempotency_key": key},
    )


def key_in_use(key: str) -> Busy:
    return Busy(
        "IDEMPOTENCY_KEY_IN_USE",
        "the first call with this idempotency key is still running; ask again with the same key",
        {"idempotency_key": key},
    )


def operation_in_progress(payment_id: str, state: str) -> Busy:
    return Busy(
        "OPERATION_IN_PROGRESS",
        f"another operation on this payment is under way (it is {state}); ask again later",
        {"payment_id": payment_id, "state": state},
    )


def outcome_unknown(**facts: str) -> Unavailable:
    return Unavailable(
        "OUTCOME_UNKNOWN",
        "Stripe may or may not have acted; ask again with the same idempotency key",
        facts,
    )


def processor_unavailable(**facts: str) -> Unavailable:
    return Unavailable(
        "PROCESSOR_UNAVAILABLE", "Stripe cannot be reached now; ask again with the same key", facts
    )


def database_unavailable() -> Unavailable:
    return Unavailable(
        "DATABASE_UNAVAILABLE", "the database is away or busy; ask again with the same key"
    )


def unauthenticated(fault: str, sentence: str) -> Unauthenticated:
    """The caller is not known. ``fault`` is one word; neither text shows the credential."""
    return Unauthenticated("UNAUTHENTICATED", sentence, {"fault": fault})


def callers_unknown() -> Unavailable:
    return Unavailable(
        "AUTHENTICATION_UNAVAILABLE",
        "the keys that tokens are checked with cannot be read now; ask again with the same key",
    )
