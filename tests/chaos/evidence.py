"""Sound evidence of a run, and the ways to spoil it."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from chaos.evidence import Evidence, Row
from chaos.history import Entry, History, Seen

NOW = datetime(2026, 11, 1, 12, 0, 0, 5, UTC)
PAYMENT, INTENT = "pay_1", "pi_1"
_STATES = ["PENDING", "IN_ESCROW", "CAPTURING", "CAPTURED", "REFUNDING", "REFUNDING", "CAPTURED"]
_AMOUNTS = [(0, 0, 0), (1000, 0, 0), (1000, 0, 0), (0, 1000, 0), (0, 1000, 0), (0, 1000, 333)]


def _event(number: int, former: bytes) -> Row:
    held, captured, refunded = _AMOUNTS[min(number, len(_AMOUNTS)) - 1]
    body = json.dumps(
        {
            "from": _STATES[number - 2] if number > 1 else None,
            "to": _STATES[number - 1],
            "amounts": {"held": held, "captured": captured, "refunded_after_capture": refunded},
        }
    )
    return hashed(number, "kind", body, former)


def hashed(number: int, kind: str, body: str, former: bytes) -> Row:
    """An event that continues the chain."""
    digest = hashlib.sha256(former)
    for part in (PAYMENT, str(number), kind, NOW.isoformat(timespec="microseconds"), body):
        digest.update(len(part).to_bytes(8, "big") + part.encode())
    return {
        "payment_id": PAYMENT,
        "sequence": number,
        "kind": kind,
        "time": NOW,
        "body": body,
        "hash": digest.digest(),
    }


def _posting(sequence: int, account: str, minor_units: int, line: str = "") -> Row:
    return {
        "payment_id": PAYMENT,
        "expert_id": None,
        "kind": "",
        "sequence": sequence,
        "account": account,
        "currency": "USD",
        "minor_units": minor_units,
        "balance_transaction_id": line,
    }


def _effect(number: int, kind: str, object_: str, amount: int, operation: str) -> Row:
    return {
        "sequence": number,
        "kind": kind,
        "object": object_,
        "payment_intent": INTENT,
        "amount": amount,
        "currency": "usd",
        "metadata": {"payment_id": PAYMENT, "operation_id": operation},
        "idempotency_key": f"{operation}-1",
        "time": 0,
    }


def _operation(name: str, kind: str) -> Row:
    return {
        "operation_id": name,
        "kind": kind,
        "payment_id": PAYMENT,
        "dispute_id": None,
        "purpose": "REQUESTED",
        "payload": {},
        "state": "SUCCEEDED",
        "last_error": "",
        "create_time": NOW,
        "settle_time": NOW,
    }


def _entry(rpc: str, key: str, version: int, *, started: float, body: bytes = b"") -> Entry:
    held, captured, refunded = _AMOUNTS[min(version, len(_AMOUNTS)) - 1]
    seen = Seen(PAYMENT, version, _STATES[version - 1], (held, captured, refunded))
    return Entry(0, rpc, key, b"", started, started + 0.5, "ok", "OK", body=body, seen=seen)


def sound() -> Evidence:
    """One payment of 10.00 dollars at 10 %, captured whole, 3.33 given back."""
    events: list[Row] = []
    for number in range(1, len(_STATES) + 1):
        events.append(_event(number, events[-1]["hash"] if events else b""))
    payment = {
        "payment_id": PAYMENT,
        "payment_intent_id": INTENT,
        "state": "CAPTURED",
        "version": len(_STATES),
        "head_hash": events[-1]["hash"],
        "currency": "USD",
        "amount": 1000,
        "charge_model": "DESTINATION",
        "held": 0,
        "charged": 1000,
        "captured": 1000,
        "refunded_after_capture": 333,
        "refunded_from_escrow": 0,
        "pending_refund": 0,
        "client_payable": 0,
        "commission_basis_points": 1000,
        "commission": 100,
        "expert_amount": 900,
        "net_commission": 67,
        "lost": 0,
        "lost_held": 0,
        "destination_account_id": "acct_1",
        "waiting_for": "",
        "waiting_reason": "",
        "frozen": "NONE",
        "frozen_by": "",
        "expert_id": "e",
    }
    postings = [
        _posting(2, "hold", 1000),
        _posting(2, "client", -1000),
        _posting(4, "hold", -1000),
        _posting(4, "client", 1000),
        _posting(4, "stripe:platform", 1000, "txn_1"),
        _posting(4, "escrow:pay_1", -1000),
        _posting(4, "escrow:pay_1", 1000),
        _posting(4, "expert_funds:e", -900),
        _posting(4, "commission", -100),
    ]
    history = History()
    for entry in (
        _entry("CapturePayment", "key", 4, started=1, body=b"answer"),
        _entry("CapturePayment", "key", 4, started=2, body=b"answer"),
        _entry("GetPayment", "", 7, started=3),
    ):
        history.add(entry)
    return Evidence(
        payments=[payment],
        events=events,
        feed=[
            {"position": 3 * number, "payment_id": PAYMENT, "sequence": number}
            for number in range(1, len(_STATES) + 1)
        ],
        postings=postings,
        movements=[
            {
                "movement_id": "re_1",
                "payment_id": PAYMENT,
                "kind": "refund",
                "minor_units": 333,
                "operation_id": "op_3",
            }
        ],
        operations=[
            _operation("op_1", "create_intent"),
            _operation("op_2", "capture"),
            _operation("op_3", "refund"),
        ],
        idempotency_keys=[
            {"key": "key", "answer": b"x", "operation_id": "op_2", "payment_id": PAYMENT}
        ],
        webhook_events=[{"event_id": "evt_1", "type": "t", "state": "APPLIED", "last_error": ""}],
        experts=[{"expert_id": "e", "stripe_account_id": "acct_1"}],
        effects=[
            {**_effect(0, "account_created", "acct_1", 0, "op_0"), "metadata": {"expert_id": "e"}},
            _effect(1, "intent_created", INTENT, 1000, "op_1"),
            _effect(2, "captured", "ch_1", 1000, "op_2"),
            _effect(3, "refunded", "re_1", 333, "op_3"),
        ],
        intents=[{"id": INTENT, "status": "succeeded"}],
        deliveries=[{"event": "evt_1", "type": "t", "state": "delivered"}],
        lines=[("stripe:platform", {"id": "txn_1", "currency": "usd", "net": 1000})],
        history=history,
        armed=["kill replica"],
        injected=Counter({"kill replica": 1}),
    )


def on_the_platform() -> Evidence:
    """The same, but charged there and paid out by a transfer; its reversal left a debt of 3.00."""
    world = sound()
    world.payments[0]["charge_model"] = "SEPARATE"
    world.movements.append(
        {
            "movement_id": "tr_1",
            "payment_id": PAYMENT,
            "kind": "transfer",
            "minor_units": 900,
            "operation_id": "op_4",
        }
    )
    world.operations.append(_operation("op_4", "transfer"))
    world.effects.append(_effect(4, "transferred", "tr_1", 900, "op_4"))
    due = _told("client_refunded", expert_amount=300)
    world.events[-1].update(hashed(7, due["kind"], due["body"], world.events[-2]["hash"]))
    owes = _told("expert_debt_recorded", amount=300)
    body = json.dumps({**json.loads(owes["body"]), "from": "CAPTURED"})
    world.events.append(hashed(8, owes["kind"], body, world.events[-1]["hash"]))
    world.feed.append({"position": 24, "payment_id": PAYMENT, "sequence": 8})
    world.payments[0].update(version=8, head_hash=world.events[-1]["hash"])
    world.operations.append({**_operation("op_9", "reverse_transfer"), "state": "REFUSED"})
    world.postings.append(_posting(6, "expert_debt:e", 300))
    world.postings.append(_posting(6, "client_refund", -300))
    return world


def _put(table: str, **changes: Any) -> Callable[[Evidence], None]:
    """Change the last row of a table."""

    def spoil(world: Evidence) -> None:
        getattr(world, table)[-1].update(changes)

    return spoil


def _add(table: str, row: Any) -> Callable[[Evidence], None]:
    def spoil(world: Evidence) -> None:
        getattr(world, table).append(row)

    return spoil


def _drop(table: str, index: int = -1) -> Callable[[Evidence], None]:
    def spoil(world: Evidence) -> None:
        del getattr(world, table)[index]

    return spoil


def _told(kind: str, **facts: int) -> Row:
    """An event of another kind, with facts."""
    amounts = dict(zip(("held", "captured", "refunded_after_capture"), _AMOUNTS[-1], strict=True))
    body = {"from": "REFUNDING", "to": "CAPTURED", "amounts": amounts, "facts": facts}
    return {"kind": f"payment.{kind}", "body": json.dumps(body)}


def tell(world: Evidence, kind: str, to: str, facts: Row | None = None, **amounts: int) -> None:
    """One more event of the payment, in an unbroken chain, and on its row."""
    [payment] = world.payments
    last = json.loads(world.events[-1]["body"])
    body = {
        "from": last["to"],
        "to": to,
        "amounts": {**last["amounts"], **amounts},
        "facts": facts or {},
    }
    number = len(world.events) + 1
    event = hashed(number, f"payment.{kind}", json.dumps(body), world.events[-1]["hash"])
    world.events.append(event)
    world.feed.append({"position": 3 * number, "payment_id": PAYMENT, "sequence": number})
    payment.update(amounts, state=to, version=number, head_hash=event["hash"])
