"""A notification service: follows the events of all payments, and sends messages about some.

    python notification_service.py          # until Ctrl-C

An event and the cursor behind it are stored in one transaction, with the message to send. A message
is marked after it was sent, so a crash between the two sends it again: each message comes at least
once, and its id, which is that of its event, lets the receiver drop the second one.
"""

import argparse
import asyncio
import os
import signal
import sqlite3
import sys
from pathlib import Path

import grpc

from marketplace.payments.channel import connect
from marketplace.payments.credentials import Tls, Token
from marketplace.payments.errors import refusal_of, until_answered
from marketplace.payments.events import watch
from marketplace.payments.v1 import events_pb2, payments_pb2, payments_pb2_grpc

#: Who gets which message. Other kinds are ignored: any release can add some.
MESSAGES = {
    "payment.authorized": ("client", "Your payment is secured: the amount is held on your card"),
    "payment.charged": ("client", "Your payment is secured: it is held until the gig is done"),
    "payment.attempt_failed": ("client", "Your card was declined: please use another one"),
    "payment.captured": ("expert", "You have been paid"),
    "payment.client_refunded": ("client", "You have got money back"),
    "payment.canceled": ("client", "The payment was called off: nothing is charged"),
    "payment.expired": ("client", "The payment has expired: nothing is charged"),
    "payment.refund_accepted": ("client", "Your refund is accepted and on its way"),
    "payment.deadline_near": ("client", "Please accept the gig, or call it off, within two days"),
    "payment.dispute_opened": ("expert", "The client's bank disputes a payment"),
}

_TABLES = """
CREATE TABLE IF NOT EXISTS messages (
    event_id TEXT PRIMARY KEY, recipient TEXT, words TEXT, sent INTEGER DEFAULT 0);
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


class NotificationService:
    """Turns events into messages, and sends them."""

    def __init__(self, channel: grpc.aio.Channel, database: str) -> None:
        self._channel = channel
        self._payments: payments_pb2_grpc.PaymentServiceAsyncStub
        self._payments = payments_pb2_grpc.PaymentServiceStub(channel)
        self._database = sqlite3.connect(database)
        self._database.executescript(_TABLES)

    async def run(self) -> None:
        """Follows the feed until the task is cancelled."""
        await self.send_waiting()  # what the last run had stored and not sent
        [cursor] = self._database.execute("SELECT max(cursor) FROM feed").fetchone()
        while True:
            try:
                async for update in watch(self._channel, after_cursor=cursor or ""):
                    await self._take(update)
                    await self.send_waiting()
            except grpc.aio.AioRpcError as error:
                if refusal_of(error).reason != "CURSOR_NOT_IN_FEED":
                    raise
                # The feed was restored from a backup: begin again, and skip the events we know.
                cursor = ""

    async def _take(self, update: events_pb2.WatchEventsResponse) -> None:
        event = update.event
        event_id = f"{event.payment_id}.{event.sequence}"
        recipient, words = "", ""
        if event.kind in MESSAGES:
            role, words = MESSAGES[event.kind]
            read = payments_pb2.GetPaymentRequest(payment_id=event.payment_id)
            payment = (await until_answered(self._payments.GetPayment, read)).payment
            recipient = payment.client_id if role == "client" else payment.expert_id
            words = f"{words} ({payment.gig_id})"
        with self._database:  # all of it, or nothing
            if words:
                self._database.execute(
                    "INSERT OR IGNORE INTO messages (event_id, recipient, words) VALUES (?, ?, ?)",
                    [event_id, recipient, words],
                )
            self._database.execute("REPLACE INTO feed VALUES (1, ?)", [update.cursor])

    async def send_waiting(self) -> None:
        """Sends the messages that were not sent yet, in the order of their events."""
        query = "SELECT event_id, recipient, words FROM messages WHERE NOT sent ORDER BY rowid"
        for event_id, recipient, words in self._database.execute(query).fetchall():
            await self.send(event_id, recipient, words)
            with self._database:
                query = "UPDATE messages SET sent = 1 WHERE event_id = ?"
                self._database.execute(query, [event_id])

    async def send(self, event_id: str, recipient: str, words: str) -> None:
        """Prints the message. A real one calls the mail provider, with the id as its key."""
        print(f"[{event_id}] to {recipient}: {words}", flush=True)


async def main() -> None:
    """Runs until SIGINT or SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--database", default="notifications.sqlite")
    given = parser.parse_args()
    async with open_channel() as channel:
        running = asyncio.ensure_future(NotificationService(channel, given.database).run())
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, running.cancel)
        await asyncio.wait([running])
    if not running.cancelled():
        running.result()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
