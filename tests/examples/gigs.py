"""What the clients in TypeScript and Go do alike: a gig from booking to payout, and the feed."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from marketplace.payments.v1 import payments_pb2
from tests.acceptance.conftest import new_name
from tests.examples.conftest import Town

#: Stripe refuses captures for their rate, more often than the service tries by itself. The answer
#: of the first one that it makes is lost.
FAULTS = {
    "rules": [
        {"match": {"path": "/capture$"}, "action": "status", "status": 429, "times": 5},
        {"match": {"path": "/capture$"}, "action": "reset", "when": "after", "times": 1},
    ]
}


def walk(town: Town, place: Path, gig: Sequence[str], follow: Sequence[str], expert: str) -> str:
    """Returns what a gig's client says of the faults that it meets, once all is as it must be."""
    name = new_name("gig")
    feed = town.start("gig-service", follow, place)
    try:
        town.world.control("faults", FAULTS)
        first = town.run("gig-service", [*gig, name, expert], place)
        assert first.returncode == 0, first.stdout + first.stderr
        payment = _paid_once(town, first.stdout)
        # Started again, it repeats its calls with the same keys: nothing moves a second time.
        again = town.run("gig-service", [*gig, name, expert], place)
        assert again.returncode == 0, again.stdout + again.stderr
        assert _paid_once(town, again.stdout) == payment
        feed.wait_for(f"{payment}.1 payment.initiated")
        feed.wait_for(" payment.captured")
    finally:
        assert feed.end() == 0, "\n".join(feed.lines)
    # The feed continues behind its stored cursor.
    feed = town.start("gig-service", follow, place)
    try:
        other = town.run("gig-service", [*gig, new_name("gig"), expert], place)
        next_payment = _paid_once(town, other.stdout)
        feed.wait_for(f"{next_payment}.1 payment.initiated")
        assert not [line for line in feed.lines if f"{payment}.1 " in line]
    finally:
        feed.end()
    return first.stderr


def _paid_once(town: Town, said: str) -> str:
    """Checks what the client says against the service and Stripe. Returns the payment's id."""
    found = re.search(r"^initiated (pay_\w+)$", said, re.MULTILINE)
    assert found, said
    read = payments_pb2.GetPaymentRequest(payment_id=found[1])
    payment = town.world.payments.GetPayment(read).payment
    assert payment.state == payments_pb2.PAYMENT_STATE_CAPTURED
    assert town.effects("captured", payment.payment_intent_id) == 1
    answers = re.findall(r"^(first|second) answer: CAPTURED, version (\d+)$", said, re.MULTILINE)
    assert answers == [("first", f"{payment.version}"), ("second", f"{payment.version}")], said
    assert "refused: WRONG_STATE, the payment is CAPTURED" in said
    return found[1]
