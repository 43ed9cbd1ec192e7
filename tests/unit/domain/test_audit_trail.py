"""What the audit trail hashes is written in the same bytes by every release."""

from __future__ import annotations

import hashlib
from dataclasses import fields
from datetime import UTC, datetime, timedelta, timezone

import pytest

from payment_service.domain.audit_trail import (
    WRITER,
    canonical,
    event_body,
    row_values,
    schedule_digest,
)
from payment_service.domain.ledger import Posting
from payment_service.domain.payment import Failure, Payment, State
from payment_service.domain.ports.records import Cause
from payment_service.domain.schedule import Schedule
from payment_service.domain.state_machine import EventKind, Transition

_NOW = datetime(2026, 1, 2, 3, 4, 5, 6, UTC)
_PAYMENT = Payment(
    payment_id="pay_1",
    client_id="client-1",
    expert_id="exp_1",
    gig_id="gig-ü",
    description="is somebody's words",
    state=State.IN_ESCROW,
    destination_account_id="acct_1",
    currency="EUR",
    amount=10_000,
    commission_basis_points=1_000,
    commission=1_000,
    expert_amount=9_000,
    held=10_000,
    remainder_to_client=True,
    processor_fee=0,
    failure=Failure("card_declined", "", "The card was declined.", _NOW),
    version=2,
    create_time=_NOW,
    update_time=_NOW.astimezone(timezone(timedelta(hours=2))),
    payment_expire_time=_NOW,
)
_SCHEDULE = Schedule(first_deadline_time=_NOW, warn_due_time=_NOW + timedelta(microseconds=1))


def test_body_of_an_event_keeps_its_bytes() -> None:
    before, after = _PAYMENT, _PAYMENT
    postings = (
        Posting("held", -5, "EUR", "capture", "txn_1"),
        Posting("paid", 5, "EUR", "capture"),
    )
    transition = Transition(before, after, EventKind.CAPTURED, {"part": 1.5}, postings)
    cause = Cause("gig-service", "CapturePayment", request_id="r")
    body = event_body(transition, {"notes": {"sealed": "ab"}, "amount": 7}, _SCHEDULE, cause)
    # Stored chains contain it. If this changes, WRITER must be raised (CONTRIBUTING.md).
    assert hashlib.sha256(body.encode()).hexdigest() == (
        "97725bd54d6cbc3fd08d8d579f99a42286ecc57fa70f8c1002cb0c6da28f65fd"
    )


def test_schedule_is_hashed_with_every_time_that_it_has() -> None:
    written = {name.name: getattr(_SCHEDULE, name.name) for name in fields(Schedule)}
    right = hashlib.sha256(canonical(written).encode()).hexdigest()
    assert schedule_digest(_SCHEDULE) == right
    assert '"capture_retry_due_time":null' in canonical(written)


def test_row_has_every_field_that_is_not_empty() -> None:
    values = row_values(_PAYMENT, WRITER)
    assert values == {
        one.name: getattr(_PAYMENT, one.name)
        for one in fields(Payment)
        if one.name != "description" and getattr(_PAYMENT, one.name) not in (None, "", 0)
    }
    assert "processor_fee" not in values
    assert values["remainder_to_client"] is True


@pytest.mark.parametrize("value", [{1, 2}, object(), b"bytes"])
def test_value_without_a_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="has no canonical form"):
        canonical({"value": value})
