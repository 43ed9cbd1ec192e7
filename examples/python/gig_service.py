"""The payments of a gig service: book a gig, pay the expert when it is done, or return the money.

    python gig_service.py book logo --client bob --expert ann --minor-units 10000
    python gig_service.py follow        # keeps the states of the gigs up to date, until Ctrl-C
    python gig_service.py show logo
    python gig_service.py done logo
    python gig_service.py cancel logo --reason "the client has changed plans"

Each request is stored before it is sent. After a crash the same command sends the same bytes under
the same key, and gets the answer of the first call.
"""

import argparse
import asyncio
import contextlib
import json
import os
import sqlite3
import sys
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from marketplace.payments.channel import connect
from marketplace.payments.credentials import Tls, Token
from marketplace.payments.errors import Refusal, refusal_of, until_answered
from marketplace.payments.events import watch
from marketplace.payments.v1 import money_pb2, payments_pb2, payments_pb2_grpc

A = TypeVar("A", bound=Message)
Q = TypeVar(
    "Q",
    payments_pb2.InitiatePaymentRequest,
    payments_pb2.CapturePaymentRequest,
    payments_pb2.RefundPaymentRequest,
)

_TABLES = """
CREATE TABLE IF NOT EXISTS gigs
    (gig_id TEXT PRIMARY KEY, payment_id TEXT, state TEXT, version INTEGER DEFAULT 0);
CREATE TABLE IF NOT EXISTS requests (key TEXT PRIMARY KEY, purpose TEXT, body BLOB, refused TEXT);
CREATE TABLE IF NOT EXISTS feed (one INTEGER PRIMARY KEY CHECK (one = 1), cursor TEXT);
"""


def open_channel() -> grpc.aio.Channel:
    """Opens one channel for the whole process, by the settings of the deployment."""
    ca, token = os.environ.get("PAYMENTS_CA_FILE"), os.environ.get("PAYMENTS_TOKEN_FILE")
    return connect(
        *os.environ.get("PAYMENTS_ADDRESS", "127.0.0.1:50051").split(","),
        tls=Tls(Path(ca)) if ca else None,
        token=Token(Path(token)) if token else None,
    )


class GigService:
    """What a gig service asks of the payment service."""

    def __init__(self, channel: grpc.aio.Channel, database: str) -> None:
        self._channel = channel
        self._payments: payments_pb2_grpc.PaymentServiceAsyncStub
        self._payments = payments_pb2_grpc.PaymentServiceStub(channel)
        self._database = sqlite3.connect(database)  # the gig service's own, beside its gigs
        self._database.executescript(_TABLES)

    async def book(
        self, gig_id: str, client: str, expert: str, minor_units: int, currency: str = "USD"
    ) -> payments_pb2.InitiatePaymentResponse:
        """Initiates the payment. The client secret is for that client's browser alone."""
        with self._database:
            self._database.execute("INSERT OR IGNORE INTO gigs (gig_id) VALUES (?)", [gig_id])
        request = payments_pb2.InitiatePaymentRequest(
            client_id=client,
            expert_id=expert,
            gig_id=gig_id,
            amount=money_pb2.Money(minor_units=minor_units, currency_code=currency),
            on_deadline=payments_pb2.ON_DEADLINE_CAPTURE,
        )
        answer = await self._send(self._payments.InitiatePayment, f"initiate-{gig_id}", request)
        self._note(answer.payment)
        return answer

    async def done(self, gig_id: str) -> payments_pb2.Payment:
        """Pays the expert, unless the payment has changed since it was read."""
        payment = await self.payment_of(gig_id)
        request = payments_pb2.CapturePaymentRequest(
            payment_id=payment.payment_id, expected_version=payment.version
        )
        answer = await self._send(self._payments.CapturePayment, f"accept-{gig_id}", request)
        return self._note(answer.payment)

    async def cancel(self, gig_id: str, reason: str) -> payments_pb2.Payment:
        """Returns the money to the client, whether it is held or paid out."""
        payment = await self.payment_of(gig_id)
        request = payments_pb2.RefundPaymentRequest(
            payment_id=payment.payment_id, expected_version=payment.version, reason=reason
        )
        answer = await self._send(self._payments.RefundPayment, f"cancel-{gig_id}", request)
        return self._note(answer.payment)

    async def payment_of(self, gig_id: str) -> payments_pb2.Payment:
        """Reads the payment of a gig. Raises LookupError if the gig has none."""
        query = "SELECT payment_id FROM gigs WHERE gig_id = ? AND payment_id IS NOT NULL"
        row = self._database.execute(query, [gig_id]).fetchone()
        if row is None:
            raise LookupError(f"the gig {gig_id} was not booked")
        request = payments_pb2.GetPaymentRequest(payment_id=row[0])
        return (await self._payments.GetPayment(request)).payment

    async def follow(self) -> None:
        """Keeps the states of the gigs. An event says when to read a payment, and no more."""
        [cursor] = self._database.execute("SELECT max(cursor) FROM feed").fetchone()
        async for update in watch(self._channel, after_cursor=cursor or ""):
            read = payments_pb2.GetPaymentRequest(payment_id=update.event.payment_id)
            payment = (await until_answered(self._payments.GetPayment, read)).payment
            self._note(payment, update.cursor)
            print(f"{payment.gig_id}: {update.event.kind}", flush=True)

    async def _send(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Q, A]", purpose: str, request: Q
    ) -> A:
        """Stores a request, then sends it until its outcome is known.

        Each purpose is served once, as it was first decided. It is decided anew, under a new key,
        only after a refusal that changed nothing.
        """
        with self._database:
            query = "SELECT count(*) FROM requests WHERE purpose = ? AND refused IS NOT NULL"
            [refused] = self._database.execute(query, [purpose]).fetchone()
            request.idempotency_key = key = f"{purpose}-{refused + 1}"
            query = "INSERT OR IGNORE INTO requests VALUES (?, ?, ?, NULL)"
            self._database.execute(query, [key, purpose, request.SerializeToString()])
            query = "SELECT body FROM requests WHERE key = ?"
            request.ParseFromString(self._database.execute(query, [key]).fetchone()[0])
        try:
            return await until_answered(method, request, repeated=_report)
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            if refusal.changed_nothing:
                with self._database:
                    query = "UPDATE requests SET refused = ? WHERE key = ?"
                    self._database.execute(query, [refusal.reason, key])
            raise

    def _note(self, payment: payments_pb2.Payment, cursor: str = "") -> payments_pb2.Payment:
        """Keeps the newest version that was seen, whichever way it came, and how far we read."""
        with self._database:
            self._database.execute(
                "UPDATE gigs SET payment_id = :payment_id, state = :state, version = :version "
                "WHERE gig_id = :gig_id AND version < :version",
                {
                    "payment_id": payment.payment_id,
                    "gig_id": payment.gig_id,
                    "version": payment.version,
                    "state": state_of(payment),
                },
            )
            if cursor:
                self._database.execute("REPLACE INTO feed VALUES (1, ?)", [cursor])
        return payment


def state_of(payment: payments_pb2.Payment) -> str:
    """Returns the state by its short name."""
    return payments_pb2.PaymentState.Name(payment.state).removeprefix("PAYMENT_STATE_")


def _report(refusal: Refusal) -> None:
    why = refusal.reason or refusal.code.name
    print(f"{why}: again with the same key", file=sys.stderr, flush=True)


async def main() -> str:
    """Runs one command, and returns why it failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["book", "follow", "show", "done", "cancel"])
    parser.add_argument("gig", nargs="?", default="")
    parser.add_argument("--client", default="bob")
    parser.add_argument("--expert", default="ann")
    parser.add_argument("--minor-units", type=int, default=10_000)
    parser.add_argument("--reason", default="called off")
    parser.add_argument("--database", default="gigs.sqlite")
    given = parser.parse_args()
    async with open_channel() as channel:
        service = GigService(channel, given.database)
        try:
            if given.command == "follow":
                await service.follow()
            elif given.command == "book":
                made = await service.book(given.gig, given.client, given.expert, given.minor_units)
                # A gig service answers this to the client's browser: see examples/checkout.
                secret, key = made.client_secret, made.publishable_key
                print(json.dumps({"client_secret": secret, "publishable_key": key}))
            else:
                change = {
                    "show": lambda: service.payment_of(given.gig),
                    "done": lambda: service.done(given.gig),
                    "cancel": lambda: service.cancel(given.gig, given.reason),
                }
                print(state_of(await change[given.command]()))
        except LookupError as error:
            return str(error)
        except grpc.aio.AioRpcError as error:
            refusal = refusal_of(error)
            return f"{refusal.reason or refusal.code.name}: {refusal.sentence}"
    return ""


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(asyncio.run(main()) or 0)
