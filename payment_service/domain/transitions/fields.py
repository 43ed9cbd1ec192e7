"""Fields that many transitions set in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from payment_service.domain.payment import (
    Failure,
    FreezeReason,
    Payment,
    State,
    WaitingFor,
    WaitingReason,
)
from payment_service.domain.state_machine import EventKind, Transition, move

#: The fields that every transition sets which ends the operation at Stripe.
OPERATION_CLOSED: Final[Mapping[str, Any]] = {
    "operation_id": "",
    "waiting_for": WaitingFor.NOTHING,
    "waiting_reason": WaitingReason.NOTHING,
    "debt_offset": 0,
}


def with_next_operation(next_operation_id: str | None) -> dict[str, Any]:
    """Returns the fields that end the open operation and, with an id, start the next one."""
    return {**OPERATION_CLOSED, "operation_id": next_operation_id or ""}


def freeze_fields(frozen: FreezeReason) -> dict[str, Any]:
    """Returns the fields that say whether the payment is frozen, and by which object at Stripe."""
    return {"frozen": frozen.freeze, "frozen_by": frozen.by}


def reverted(payment: Payment, kind: EventKind, state: State, failure: Failure) -> Transition:
    """Returns the transition back to ``state``, where the payment was before Stripe refused."""
    return move(
        payment,
        kind,
        state,
        failure.time,
        facts={"code": failure.code},
        failure=failure,
        **OPERATION_CLOSED,
    )
