"""Previews: the steps of a call with ``validate_only``, and the payment as it would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from payment_service.domain.ledger import RefundSplit
from payment_service.domain.payment import (
    EscrowMode,
    FreezeReason,
    Payment,
    State,
    WaitingFor,
    WaitingReason,
)
from payment_service.domain.plans import (
    CapturePlan,
    RefundPlan,
    ReversibleTransfer,
    plan_loss,
    plan_reversals,
)
from payment_service.domain.transitions.dispute import after_loss
from payment_service.domain.transitions.refund import after_refund


class LegKind(StrEnum):
    CHARGE_CARD = "CHARGE_CARD"
    RELEASE_HOLD = "RELEASE_HOLD"
    COLLECT_COMMISSION = "COLLECT_COMMISSION"
    PAY_EXPERT = "PAY_EXPERT"
    OFFSET_DEBT = "OFFSET_DEBT"
    REFUND_CLIENT = "REFUND_CLIENT"
    RETURN_COMMISSION = "RETURN_COMMISSION"
    REVERSE_TRANSFER = "REVERSE_TRANSFER"
    RECORD_DEBT = "RECORD_DEBT"
    DISPUTE_LOSS = "DISPUTE_LOSS"


@dataclass(frozen=True, slots=True)
class Leg:
    """One step, in minor units of the payment's currency."""

    kind: LegKind
    minor_units: int
    transfer_id: str = ""


@dataclass(frozen=True, slots=True)
class Preview:
    """The payment as it is and as it would be, and the steps between."""

    before: Payment
    after: Payment
    legs: tuple[Leg, ...]

    @property
    def refund(self) -> int:
        """What the client is refunded out of the platform's balance, in minor units."""
        refunds = (leg.minor_units for leg in self.legs if leg.kind is LegKind.REFUND_CLIENT)
        return sum(refunds)


def preview_waiting_capture(payment: Payment, plan: CapturePlan, reason: WaitingReason) -> Preview:
    """Previews a capture that would wait for the expert's account, for this reason.

    Only a card that was authorized without a destination is charged before it waits.
    """
    after = replace(
        payment,
        state=State.CAPTURING,
        waiting_for=WaitingFor.EXPERT,
        waiting_reason=reason,
    )
    if payment.charged or not payment.is_separate:
        return _preview(payment, after, [])
    legs = [Leg(LegKind.CHARGE_CARD, plan.charges), Leg(LegKind.RELEASE_HOLD, plan.released)]
    after = replace(
        after, charged=plan.charges, held=plan.charges, escrow_mode=EscrowMode.PLATFORM_HOLD
    )
    return _preview(payment, after, legs)


def preview_capture(payment: Payment, plan: CapturePlan) -> Preview:
    split = plan.split
    legs = [
        Leg(LegKind.CHARGE_CARD, plan.charges),
        Leg(LegKind.RELEASE_HOLD, plan.released),
        Leg(LegKind.PAY_EXPERT, split.sent),
        Leg(LegKind.OFFSET_DEBT, split.debt_offset),
        Leg(LegKind.COLLECT_COMMISSION, split.commission),
        Leg(LegKind.REFUND_CLIENT, plan.refunded_from_escrow),
    ]
    charged = payment.charged or plan.charges
    after = replace(
        payment,
        charged=charged,
        held=charged
        - payment.captured
        - payment.refunded_from_escrow
        - payment.lost_held
        - split.amount
        - plan.refunded_from_escrow,
        captured=payment.captured + split.amount,
        refunded_from_escrow=payment.refunded_from_escrow + plan.refunded_from_escrow,
        net_commission=payment.net_commission + split.commission,
        escrow_mode=EscrowMode.PLATFORM_HOLD if payment.is_separate else payment.escrow_mode,
    )
    return _preview(payment, replace(after, state=after.resting_state), legs)


def preview_refund(
    payment: Payment, plan: RefundPlan, transfers: Sequence[ReversibleTransfer]
) -> Preview:
    """Previews a refund. ``transfers`` are what can be reversed, oldest first."""
    if plan.cancels:
        released = Leg(LegKind.RELEASE_HOLD, payment.held)
        return _preview(payment, replace(payment, state=State.CANCELED, held=0), [released])
    legs = [
        Leg(LegKind.REFUND_CLIENT, plan.split.whole),
        *_taken_back(plan.split, transfers),
    ]
    after = after_refund(payment, plan.split)
    return _preview(payment, replace(after, state=after.resting_state), legs)


def refund_that_waits(preview: Preview) -> Preview:
    """Returns the preview of the same refund if the platform's balance does not cover it now."""
    waiting = replace(
        preview.after,
        state=State.REFUNDING,
        pending_refund=preview.refund,
        waiting_for=WaitingFor.PROCESSOR,
        waiting_reason=WaitingReason.REFUND_PENDING_FUNDS,
    )
    return replace(preview, after=waiting)


def preview_loss(
    payment: Payment, amount: int, transfers: Sequence[ReversibleTransfer], frozen: FreezeReason
) -> Preview:
    """Previews the loss of a dispute. ``frozen`` is the freeze that other disputes leave."""
    loss = plan_loss(payment, amount)
    legs = [Leg(LegKind.DISPUTE_LOSS, amount), *_taken_back(loss.split, transfers)]
    after = after_loss(payment, loss.split)
    after = replace(after, frozen=frozen.freeze, frozen_by=frozen.by)
    return _preview(payment, replace(after, state=after.resting_state), legs)


def _taken_back(split: RefundSplit, transfers: Sequence[ReversibleTransfer]) -> list[Leg]:
    """The commission that is returned, and how the expert's amount is taken back."""
    due = split.expert_amount
    reversals = plan_reversals(due, transfers)
    return [
        Leg(LegKind.RETURN_COMMISSION, split.commission),
        *(Leg(LegKind.REVERSE_TRANSFER, leg.minor_units, leg.transfer_id) for leg in reversals),
        Leg(LegKind.RECORD_DEBT, due - sum(leg.minor_units for leg in reversals)),
    ]


def _preview(before: Payment, after: Payment, legs: Sequence[Leg]) -> Preview:
    return Preview(before, after, tuple(leg for leg in legs if leg.minor_units))
