"""The calls of callers, as the rpc layer would begin them."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any

from payment_service.application.app import App
from payment_service.application.capture_payment import CapturePayment, capture_payment
from payment_service.application.create_expert_account import (
    CreateExpertAccount,
    create_expert_account,
)
from payment_service.application.initiate_payment import InitiatePayment, initiate_payment
from payment_service.application.refund_payment import RefundPayment, refund_payment
from payment_service.domain.experts import BusinessType
from payment_service.domain.money import Money
from payment_service.domain.plans import RequestedAmount
from payment_service.domain.ports.records import Cause
from tests.reliability.model.trouble import BASIS_POINTS, HOLDS
from tests.reliability.oracle import Asked

Call = Coroutine[Any, Any, Any]


def create_expert(app: App, expert_id: str) -> Call:
    command = CreateExpertAccount(
        cause=Cause("local", "CreateExpertAccount", "model"),
        expert_id=expert_id,
        name="Ann Expert",
        email="ann@example.com",
        country="US",
        business_type=BusinessType.INDIVIDUAL,
        commission_basis_points=BASIS_POINTS,
        continue_url="",
    )
    return create_expert_account(app, command)


def initiate(app: App, key: str, expert_id: str, amount: Money, hold: str) -> Call:
    mode, on_deadline = HOLDS[hold]
    command = InitiatePayment(
        cause=Cause("local", "InitiatePayment", "model"),
        key=key,
        fields={
            "amount": str(amount.minor_units),
            "currency": amount.currency,
            "expert_id": expert_id,
        },
        client_id="client-1",
        expert_id=expert_id,
        gig_id="gig-1",
        amount=amount,
        description="A website",
        escrow_mode=mode,
        on_deadline=on_deadline,
    )
    return initiate_payment(app, command)


def capture(app: App, key: str, payment_id: str, part: int | None, *, final: bool) -> Call:
    command = CapturePayment(
        cause=Cause("local", "CapturePayment", "model"),
        key=key,
        fields={"payment_id": payment_id, "amount": str(part), "final": str(final)},
        payment_id=payment_id,
        part=None if part is None else RequestedAmount(part),
        final=final,
        notes="",
    )
    return capture_payment(app, command)


def refund(app: App, key: str, payment_id: str, part: int | None) -> Call:
    command = RefundPayment(
        cause=Cause("local", "RefundPayment", "model"),
        key=key,
        fields={"payment_id": payment_id, "amount": str(part)},
        payment_id=payment_id,
        part=None if part is None else RequestedAmount(part),
        reason="",
    )
    return refund_payment(app, command)


def with_other_content(app: App, asked: Asked, expert_id: str) -> Call:
    """Returns a call under a key that another one has used."""
    if asked.rpc == "InitiatePayment":
        return initiate(app, asked.key, expert_id, Money(9_999, "USD"), "destination")
    if asked.rpc == "CapturePayment":
        return capture(app, asked.key, asked.payment_id, 5, final=not asked.final)
    return refund(app, asked.key, asked.payment_id, 5)
