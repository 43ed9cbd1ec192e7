"""Converts adjustments (adjustments.proto)."""

from __future__ import annotations

from datetime import datetime

from marketplace.payments.v1 import adjustments_pb2
from payment_service.domain.adjustments import Adjustment, AdjustmentState
from payment_service.rpc.messages.common import money_message, time_message


def adjustment_message(adjustment: Adjustment, now: datetime) -> adjustments_pb2.Adjustment:
    state = adjustment.state_at(now)
    return adjustments_pb2.Adjustment(
        adjustment_id=adjustment.adjustment_id,
        kind=adjustments_pb2.AdjustmentKind.Value(f"ADJUSTMENT_KIND_{adjustment.kind}"),
        state=adjustments_pb2.AdjustmentState.Value(f"ADJUSTMENT_STATE_{state}"),
        payment_id=adjustment.payment_id,
        expert_id=adjustment.expert_id,
        lines=[
            adjustments_pb2.AdjustmentLine(
                account=line.account, amount=money_message(line.minor_units, line.currency)
            )
            for line in adjustment.lines
        ],
        ticket=adjustment.ticket,
        reason=adjustment.reason,
        proposed_by=adjustment.proposed_by,
        create_time=time_message(adjustment.create_time),
        expire_time=time_message(adjustment.expire_time),
        decided_by=adjustment.decided_by,
        decide_time=time_message(adjustment.decide_time),
        decide_reason=adjustment.decide_reason,
        transaction_id=adjustment.transaction_id,
    )


def adjustment_state_of(value: int) -> AdjustmentState | None:
    """Returns the state, or None for unspecified: any."""
    if not value:
        return None
    name = adjustments_pb2.AdjustmentState.Name(adjustments_pb2.AdjustmentState.ValueType(value))
    return AdjustmentState(name.removeprefix("ADJUSTMENT_STATE_"))
