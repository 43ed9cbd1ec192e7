"""Converts postings (ledger.proto)."""

from __future__ import annotations

from marketplace.payments.v1 import ledger_pb2
from payment_service.domain.ports.records import StoredPosting
from payment_service.rpc.messages.common import money_message, time_message


def posting_message(stored: StoredPosting) -> ledger_pb2.Posting:
    posting = stored.posting
    return ledger_pb2.Posting(
        posting_id=stored.posting_id,
        transaction_id=stored.transaction_id,
        payment_id=stored.payment_id,
        account=posting.account,
        amount=money_message(posting.minor_units, posting.currency),
        kind=posting.kind,
        balance_transaction_id=posting.balance_transaction_id,
        post_time=time_message(stored.time),
    )
