"""Converts events of the audit trail (events.proto)."""

from __future__ import annotations

from marketplace.payments.v1 import events_pb2
from payment_service.domain.audit_trail import cause_in
from payment_service.domain.ports.records import StoredEvent
from payment_service.domain.texts import texts_to_show
from payment_service.rpc.messages.common import time_message


def event_message(event: StoredEvent) -> events_pb2.PaymentEvent:
    cause = cause_in(event.body)
    return events_pb2.PaymentEvent(
        payment_id=event.payment_id,
        sequence=event.sequence,
        kind=event.kind,
        record_time=time_message(event.time),
        body_json=event.body,
        hash=event.hash,
        texts=texts_to_show(event.body, event.texts),
        cause=events_pb2.EventCause(
            caller=cause.caller,
            act_for=cause.act_for,
            rpc=cause.rpc,
            request_id=cause.request_id,
        ),
    )
