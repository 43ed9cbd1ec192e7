"""An event of the feed as a CloudEvent 1.0 in JSON, the same bytes for every target and every try.

The texts that people wrote stay behind. A copy of them in a stream or at another service could not
be erased, and who needs a text can read it from this service.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from google.protobuf.json_format import MessageToDict

from marketplace.payments.v1 import events_pb2

CONTENT_TYPE: Final = "application/cloudevents+json"
#: As many digits as the greatest sequence has: the extension `sequence` is compared as text.
_DIGITS: Final = 19
#: Of the hash in an id. Two events of one payment and sequence exist only across a restore.
_HASH_DIGITS: Final = 16


@dataclass(frozen=True)
class Outgoing:
    """An event on its way out."""

    id: str
    kind: str
    payment_id: str
    sequence: int
    record_time: datetime
    body: str


def outgoing(event: events_pb2.PaymentEvent, source: str) -> Outgoing:
    """Returns the CloudEvent of an event.

    Its id has a part of the event's hash. So an event that a restored database has in the place of
    a lost one is another event, and no consumer drops it as a duplicate.
    """
    record_time = event.record_time.ToDatetime(tzinfo=UTC)
    event_id = f"{event.payment_id}.{event.sequence}.{event.hash.hex()[:_HASH_DIGITS]}"
    body: dict[str, Any] = {
        "specversion": "1.0",
        "id": event_id,
        "source": source,
        "type": event.kind,
        "subject": event.payment_id,
        "time": event.record_time.ToJsonString(),
        "datacontenttype": "application/json",
        "partitionkey": event.payment_id,
        "sequence": f"{event.sequence:0{_DIGITS}d}",
        "data": {
            "payment_id": event.payment_id,
            "sequence": event.sequence,
            "kind": event.kind,
            "body": json.loads(event.body_json),
            "cause": MessageToDict(event.cause, preserving_proto_field_name=True),
            "hash": event.hash.hex(),
        },
    }
    return Outgoing(
        id=event_id,
        kind=event.kind,
        payment_id=event.payment_id,
        sequence=event.sequence,
        record_time=record_time,
        body=json.dumps(body, separators=(",", ":")),
    )
