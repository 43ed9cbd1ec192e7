"""Forwards Stripe's events to a gateway that Stripe cannot reach, as `stripe listen` does.

Events are read from Stripe's list, signed with the local secrets, and posted as Stripe would post
them. An event that the gateway did not take is posted again with the next reading.
"""

import hashlib
import hmac
import json
import threading
import time
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

import stripe

from dev.stripe_side import StripeSide, post

_PAUSE_SECONDS = 0.5
_CLOCKS_DIFFER_SECONDS = 120


class Forwarder:
    """Runs in its own thread while the block runs."""

    def __init__(
        self,
        side: StripeSide,
        gateway_url: str,
        *,
        platform_secret: str,
        connect_secret: str,
        tell: Callable[[str], None],
    ) -> None:
        self._side = side
        self._webhooks = f"{gateway_url}/api/v1/webhooks/stripe"
        self._platform_secret = platform_secret
        self._connect_secret = connect_secret
        self._tell = tell
        self._since = int(time.time()) - _CLOCKS_DIFFER_SECONDS
        self._taken: set[str] = set()
        self._accounts: list[str] = [""]
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="forwarder", daemon=True)
        #: How many events the gateway has accepted.
        self.forwarded = 0

    def listen_to(self, account: str) -> None:
        """Also forwards the events of a connected account."""
        self._accounts.append(account)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._end.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._end.wait(_PAUSE_SECONDS):
            for account in list(self._accounts):
                try:
                    for event in self._side.events(account, self._since):
                        self._forward(account, event)
                except stripe.StripeError as error:
                    self._tell(f"reading Stripe's events failed, trying again: {error}")

    def _forward(self, account: str, event: Mapping[str, Any]) -> None:
        event_id = str(event["id"])
        if event_id in self._taken:
            return
        shown = {**event, "account": account} if account else dict(event)
        body = json.dumps(shown).encode()
        secret = self._connect_secret if account else self._platform_secret
        headers = {
            "Content-Type": "application/json; charset=utf-8",
            "Stripe-Signature": signature(body, secret, int(time.time())),
        }
        status, _ = post(self._webhooks + ("/connect" if account else ""), body, headers)
        if status == 200:
            self._taken.add(event_id)
            self.forwarded += 1
        else:
            self._tell(f"the gateway answered {status} to {event['type']}; it comes again")


def signature(body: bytes, secret: str, seconds: int) -> str:
    """Returns the header `Stripe-Signature` for a body sent at this time."""
    signed = f"{seconds}.".encode() + body
    return f"t={seconds},v1={hmac.new(secret.encode(), signed, hashlib.sha256).hexdigest()}"
