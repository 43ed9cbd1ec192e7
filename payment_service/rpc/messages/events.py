"""Converts events of the audit trail (events.proto)."""

from __future__ import annotations

from marketplace.payments.v1 import events_pb2
from payment_service.domain.audit_trail import cause_in
from payment_service.domain.ports.records import StoredEvent
from payment_service.domain.texts import texts_to_show
from payment_service.rpc.messages.common import time_message


def event_message(event: StoredEvent, of_user: str) -> events_pb2.PaymentEvent:
    """Returns the event as the caller may see it. ``of_user`` is the user for whom it acts, or "".

    What staff wrote is for staff: a user sees the texts of calls that were made for a user.
    """
    cause = cause_in(event.body)
    is_for_caller = bool(cause.act_for) or not of_user
    return events_pb2.PaymentEvent(
        payment_id=event.payment_id,
        sequence=event.sequence,
        kind=event.kind,
        record_time=time_message(event.time),
        body_json=event.body,
        hash=event.hash,
        texts=texts_to_show(event.body, event.texts) if is_for_caller else {},
        cause=events_pb2.EventCause(
            caller=cause.caller,
            act_for=cause.act_for,
            rpc=cause.rpc,
            request_id=cause.request_id,
        ),
    )
