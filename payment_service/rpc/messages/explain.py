"""Converts the story of a payment (explain.proto)."""

from __future__ import annotations

from marketplace.payments.v1 import explain_pb2
from payment_service.application.explain_payment import Explained
from payment_service.domain.payment import Payment
from payment_service.domain.story.entries import Entry
from payment_service.domain.story.outlook import Outlook, match_sentence, summary_of
from payment_service.rpc.messages.common import money_message, time_message
from payment_service.rpc.messages.ledger import posting_message
from payment_service.rpc.messages.payments import payment_message


def explained_message(
    explained: Explained, next_page_token: str
) -> explain_pb2.ExplainPaymentResponse:
    answer = explain_pb2.ExplainPaymentResponse(
        matches=[_match(payment) for payment in explained.matches],
        next_page_token=next_page_token,
    )
    story = explained.story
    if story is not None:
        answer.summary = summary_of(story.payment)
        answer.entries.extend(entry_message(entry) for entry in story.entries)
        answer.outlook.CopyFrom(_outlook(story.outlook))
        answer.payment.CopyFrom(payment_message(story.payment))
        answer.left_out = story.left_out
    return answer


def entry_message(entry: Entry) -> explain_pb2.StoryEntry:
    cause = entry.cause
    return explain_pb2.StoryEntry(
        entry_time=time_message(entry.time),
        kind=explain_pb2.StoryEntryKind.Value(f"STORY_ENTRY_KIND_{entry.kind.value}"),
        sentence=entry.sentence,
        name=entry.name,
        ids=entry.ids,
        amounts=[money_message(amount.minor_units, amount.currency) for amount in entry.amounts],
        sequence=entry.sequence,
        caller=cause.caller if cause else "",
        act_for=cause.act_for if cause else "",
        request_id=cause.request_id if cause else "",
        postings=[posting_message(posting) for posting in entry.postings],
    )


def _match(payment: Payment) -> explain_pb2.PaymentMatch:
    return explain_pb2.PaymentMatch(
        payment_id=payment.payment_id,
        sentence=match_sentence(payment),
        create_time=time_message(payment.create_time),
    )


def _outlook(outlook: Outlook) -> explain_pb2.Outlook:
    return explain_pb2.Outlook(
        waits_for=outlook.waits_for,
        mover=explain_pb2.Mover.Value(f"MOVER_{outlook.mover.value}"),
        timers=[
            explain_pb2.Timer(due_time=time_message(timer.time), sentence=timer.sentence)
            for timer in outlook.timers
        ],
        options=[
            explain_pb2.OperatorOption(
                rpc=option.rpc, sentence=option.sentence, runbook_page=option.page, id=option.id
            )
            for option in outlook.options
        ],
    )
