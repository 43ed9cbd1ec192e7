"""The sentences of a payment's story, what comes next, and what operators are shown to do."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from marketplace.payments.v1 import operations_pb2
from payment_service.domain.audit_trail import cause_in
from payment_service.domain.ledger import Posting
from payment_service.domain.money import Money
from payment_service.domain.operations import OperationKind, OperationPurpose, OperationState
from payment_service.domain.payment import Freeze, State, WaitingFor, WaitingReason
from payment_service.domain.ports.records import StoredEvent, StoredPosting
from payment_service.domain.schedule import Schedule
from payment_service.domain.state_machine import EventKind
from payment_service.domain.story import entries as story_entries
from payment_service.domain.story import outlook as story_outlook
from payment_service.domain.story.entries import (
    EntryKind,
    Records,
    StoredOperation,
    entries_of,
    request_of,
)
from payment_service.domain.story.outlook import Mover, outlook_of, summary_of
from payment_service.domain.story.sentences import (
    NOT_KNOWN,
    SENTENCES,
    amounts_of,
    facts_of,
    sentence_of,
)
from payment_service.domain.sync.superseded import CATCHES_UP
from tests.unit.domain.builders import NOW, PAYLOADS, in_state, new_operation, new_payment
from tests.unit.protos import ROOT, services


def event(kind: str, sequence: int = 1, **body: Any) -> StoredEvent:
    by = body.pop("by", {"caller": "gig-service", "rpc": "CapturePayment", "request_id": "req-1"})
    written = json.dumps({"facts": body, "amounts": {"held": 5_000}, "by": by})
    return StoredEvent("pay_1", sequence, kind, NOW + timedelta(seconds=sequence), written, b"")


def records(**fields: Any) -> Records:
    given = {"payment": new_payment(), "schedule": Schedule(), "events": (), "now": NOW}
    return Records(**{**given, **fields})


def test_every_event_of_the_trail_has_a_sentence() -> None:
    assert set(SENTENCES) == set(EventKind)


@pytest.mark.parametrize("kind", EventKind)
def test_a_sentence_survives_an_event_without_facts(kind: EventKind) -> None:
    said = sentence_of(kind, {}, "USD")
    assert said[0].isalnum() or said.startswith(NOT_KNOWN)
    assert "[" not in said
    assert "{" not in said
    assert "()" not in said
    assert said.endswith(".")
    assert amounts_of(kind, {}, "USD") == []


@pytest.mark.parametrize(
    ("kind", "facts", "currency", "said"),
    [
        (
            EventKind.CAPTURED,
            {"amount": 6_000, "commission": 600, "debt_offset": 0, "released": 4_000},
            "USD",
            (
                "60.00 USD was captured: 6.00 USD is commission and the remainder is the expert's. "
                "40.00 USD was released to the client."
            ),
        ),
        (
            EventKind.CAPTURED,
            {"amount": 5_001, "commission": 500, "debt_offset": 100, "transfer_id": "tr_1"},
            "JPY",
            (
                "5001 JPY was captured: 500 JPY is commission and the remainder is the expert's, "
                "less 100 JPY that pays the expert's debt (transfer tr_1)."
            ),
        ),
        (
            EventKind.CLIENT_REFUNDED,
            {"amount": 10_050, "refund_id": "re_1", "from_escrow": 10_050, "commission": 0},
            "KWD",
            "10.050 KWD went back to the client (re_1), 10.050 KWD out of escrow.",
        ),
        (
            EventKind.DISPUTE_FUNDS_WITHDRAWN,
            {"amount": 5_000, "dispute_id": "du_1", "fee": 1_500, "fee_currency": "USD"},
            "JPY",
            "Stripe took 5000 JPY from the platform for the dispute du_1, and a fee of 15.00 USD.",
        ),
        (
            EventKind.WAITING_CHANGED,
            {"waiting_for": "expert", "why": "", "waiting_reason": "EXPERT_RESTRICTED"},
            "USD",
            "What the payment waits for has changed: the expert (EXPERT_RESTRICTED).",
        ),
        (
            "payment.invented",
            {},
            "USD",
            "payment.invented happened, which this release does not know.",
        ),
    ],
)
def test_sentences(kind: str, facts: dict[str, Any], currency: str, said: str) -> None:
    assert sentence_of(kind, facts, currency) == said


def test_the_fee_is_in_the_currency_that_stripe_settled_it_in() -> None:
    facts = {"fee": 320, "currency": "USD"}
    assert amounts_of(EventKind.PROCESSOR_FEE, facts, "EUR") == [Money(320, "USD")]


def test_texts_are_shown_as_they_are_kept() -> None:
    body = json.dumps({"facts": {"reason": {"sealed": "ab"}, "amount": 100}})
    stored = StoredEvent("pay_1", 1, EventKind.REFUND_STARTED, NOW, body, b"", {"reason": "late"})
    assert "“late”" in sentence_of(stored.kind, facts_of(stored), "USD")
    assert "“[erased]”" in sentence_of(stored.kind, facts_of(replace(stored, texts={})), "USD")


@pytest.mark.parametrize("body", ["", "[]", "null", '{"facts": 3}', '{"facts": {"amount": "x"}}'])
def test_an_altered_body_is_no_error(body: str) -> None:
    stored = StoredEvent("pay_1", 1, EventKind.CAPTURED, NOW, body, b"")
    [shown] = [one for one in entries_of(records(events=[stored])) if one.kind == EntryKind.EVENT]
    assert NOT_KNOWN in shown.sentence or "x was captured" in shown.sentence


def test_a_call_comes_once_before_its_events_and_postings_after_theirs() -> None:
    made = [event(EventKind.CAPTURE_STARTED, 1), event(EventKind.CAPTURED, 2)]
    lines = [
        StoredPosting(1, "pay_1:2", "pay_1", Posting("escrow:pay_1", 100, "USD", "captured"), NOW),
        StoredPosting(2, "pay_1:2", "pay_1", Posting("commission", -100, "USD", "captured"), NOW),
        StoredPosting(3, "pay_1:2", "pay_1", Posting("hold", 5, "USD", "captured"), NOW),
        StoredPosting(4, "pay_1:2", "pay_1", Posting("hold", -5, "USD", "captured"), NOW),
    ]
    found = entries_of(records(events=made, postings=lines))
    assert [one.kind for one in found] == ["CALL", "EVENT", "EVENT", "POSTINGS"]
    assert found[0].sentence == "gig-service called CapturePayment (request req-1)."
    assert (
        found[3].sentence == "The books: debit escrow:pay_1 1.00 USD; credit commission 1.00 USD."
    )
    assert len(found[3].postings) == 4
    # The page after begins in the middle of the call.
    following = entries_of(records(former_causes=[cause_in(made[0].body)], events=made[1:]))
    assert [one.kind for one in following] == ["EVENT"]


def test_a_caller_that_acts_for_a_user_is_named_with_the_user() -> None:
    by = {"caller": "app", "rpc": "RefundPayment", "request_id": "", "act_for": "client-1"}
    found = entries_of(records(events=[event(EventKind.REFUND_STARTED, by=by)]))
    assert found[0].sentence == "app called RefundPayment for the user client-1."


@pytest.mark.parametrize("kind", OperationKind)
@pytest.mark.parametrize("purpose", OperationPurpose)
@pytest.mark.parametrize("state", OperationState)
def test_every_operation_has_sentences(
    kind: OperationKind, purpose: OperationPurpose, state: OperationState
) -> None:
    operation = replace(new_operation(kind, 5_000, purpose=purpose), state=state)
    settled = None if operation.is_open else NOW + timedelta(seconds=1)
    found = entries_of(records(operations=[StoredOperation(operation, settled)]))
    assert found[0].sentence.startswith("Request to Stripe: ")
    assert len(found) == (1 if operation.is_open else 2)
    assert request_of(operation, "USD")


def test_what_is_between_other_events_is_on_their_page() -> None:
    operation = new_operation(OperationKind.CAPTURE, 5_000)
    late = StoredOperation(
        replace(operation, state=OperationState.SUCCEEDED), NOW + timedelta(hours=1)
    )
    first = records(operations=[late], until=NOW + timedelta(minutes=1))
    second = records(operations=[late], since=NOW + timedelta(minutes=1))
    assert [one.kind for one in entries_of(first)] == ["STRIPE_REQUEST"]
    assert [one.kind for one in entries_of(second)] == ["STRIPE_OUTCOME"]


@pytest.mark.parametrize("state", State)
def test_every_state_says_what_it_waits_for(state: State) -> None:
    assert outlook_of(records(payment=in_state(state))).waits_for


@pytest.mark.parametrize("reason", [one for one in WaitingReason if one])
def test_every_reason_to_wait_is_explained(reason: WaitingReason) -> None:
    payment = replace(
        in_state(State.CAPTURING), waiting_for=WaitingFor.EXPERT, waiting_reason=reason
    )
    found = outlook_of(records(payment=payment))
    assert found.mover is not Mover.NOBODY


@pytest.mark.parametrize("freeze", [one for one in Freeze if one is not Freeze.NONE])
def test_every_freeze_is_explained(freeze: Freeze) -> None:
    payment = replace(in_state(State.CAPTURED), frozen=freeze, frozen_by="du_1")
    assert outlook_of(records(payment=payment)).mover in (Mover.STRIPE, Mover.OPERATOR)


def test_a_parked_operation_is_resumed_or_abandoned_once_it_cannot_arrive() -> None:
    payment = in_state(State.CAPTURING)
    parked = replace(new_operation(OperationKind.CAPTURE, 5_000), state=OperationState.PARKED)
    sure = outlook_of(records(payment=payment, open_operations=[parked]))
    assert sure.mover is Mover.OPERATOR
    assert [one.rpc.partition("/")[2] for one in sure.options] == [
        "ResumeOperation",
        "AbandonOperation",
    ]
    unsure = replace(parked, unsure_until=NOW + timedelta(hours=1))
    found = outlook_of(records(payment=payment, open_operations=[unsure]))
    assert [one.rpc.partition("/")[2] for one in found.options] == ["ResumeOperation"]
    assert [one.time for one in found.timers] == [unsure.unsure_until]


def test_a_reversal_that_waits_for_stripes_events_says_so_and_not_that_stripe_was_asked() -> None:
    waiting = replace(
        new_operation(OperationKind.REVERSE_TRANSFER, 5_000),
        state=OperationState.UNKNOWN,
        last_error=CATCHES_UP,
    )
    found = outlook_of(records(payment=in_state(State.REFUNDED), open_operations=[waiting]))
    assert found.mover is Mover.SERVICE
    assert "not known" not in found.waits_for
    assert "events" in found.waits_for


def test_what_operators_are_sent_to_exists() -> None:
    """Pages and RPCs stand as texts in the source; each of them must be there."""
    sources = [Path(story_outlook.__file__).read_text(), Path(story_entries.__file__).read_text()]
    words = {word.strip('",') for text in sources for word in text.split()}
    pages = {word for word in words if word.startswith("docs/") and "{" not in word}
    assert len(pages) > 3
    assert [page for page in pages if not (ROOT / page).is_file()] == []
    known = {f"{service.name}/{rpc}" for service in services() for rpc in service.parts}
    rpcs = {word for word in words if "Service/" in word}
    assert len(rpcs) > 6
    assert rpcs <= known


def test_the_summary_says_where_the_money_is() -> None:
    assert summary_of(in_state(State.CAPTURED)).endswith(
        "The money: 90.00 USD the expert's, 10.00 USD the platform's commission."
    )
    assert "no money was taken" in summary_of(new_payment())


def test_the_payloads_of_the_builders_are_of_every_kind() -> None:
    assert set(PAYLOADS) == set(OperationKind)


def test_a_job_acts_anew_when_something_came_between() -> None:
    job = {"caller": "payment_service", "rpc": "deadline", "request_id": ""}
    made = [
        event(EventKind.DEADLINE_NEAR, 1, by=job),
        event(EventKind.DEADLINE_PASSED, 2, by=job),
        event(EventKind.CAPTURE_STARTED, 3),
        event(EventKind.DEADLINE_PASSED, 4, by=job),
        event(EventKind.CAPTURED, 5),
    ]
    called = [one.sequence or one.sentence for one in entries_of(records(events=made))]
    job_acted = "The job that acts on deadlines acted."
    call = "gig-service called CapturePayment (request req-1)."
    assert called == [job_acted, 1, 2, call, 3, job_acted, 4, 5]


def test_every_verdict_has_words() -> None:
    verdicts = {
        name.removeprefix("WEBHOOK_EVENT_VERDICT_").lower()
        for name in operations_pb2.WebhookEventVerdict.keys()  # noqa: SIM118 - an enum of protobuf
    }
    #: The answers of IngestEvent to what is never stored.
    unstored = {"unspecified", "other_mode", "not_an_event", "odd"}
    assert verdicts - unstored == set(story_entries.VERDICTS)
