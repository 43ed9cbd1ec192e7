"""Requests, with keys and names that no other test uses."""

from __future__ import annotations

import itertools
import secrets
from typing import Any

from marketplace.payments.v1 import money_pb2, payments_pb2

_numbers = itertools.count(1)


def new_name(prefix: str) -> str:
    """A name that no other test of this run uses."""
    return f"{prefix}-{next(_numbers)}"


def new_key() -> str:
    return secrets.token_hex(8)


def money(minor_units: int, currency: str = "") -> money_pb2.Money:
    return money_pb2.Money(minor_units=minor_units, currency_code=currency)


def capture_request(
    payment_id: str, amount: int | money_pb2.Money = 0, **fields: Any
) -> payments_pb2.CapturePaymentRequest:
    """An amount of zero means that none is named."""
    given: dict[str, Any] = {"idempotency_key": new_key()}
    if amount:
        given["amount"] = money(amount) if isinstance(amount, int) else amount
    return payments_pb2.CapturePaymentRequest(payment_id=payment_id, **{**given, **fields})


def refund_request(
    payment_id: str, amount: int | money_pb2.Money = 0, **fields: Any
) -> payments_pb2.RefundPaymentRequest:
    """An amount of zero means that none is named."""
    given: dict[str, Any] = {"idempotency_key": new_key()}
    if amount:
        given["amount"] = money(amount) if isinstance(amount, int) else amount
    return payments_pb2.RefundPaymentRequest(payment_id=payment_id, **{**given, **fields})
