"""Converts payments, previews and their enums (payments.proto)."""

from __future__ import annotations

from marketplace.payments.v1 import money_pb2, payments_pb2
from payment_service.domain.deadlines import deadlines_of
from payment_service.domain.payment import (
    EscrowMode,
    Failure,
    OnDeadline,
    Payment,
    State,
    WaitingFor,
    WaitingReason,
)
from payment_service.domain.preview import Preview
from payment_service.rpc.messages.common import money_message, time_message


def payment_message(payment: Payment) -> payments_pb2.Payment:
    def amount(minor_units: int) -> money_pb2.Money:
        return money_message(minor_units, payment.currency)

    return payments_pb2.Payment(
        payment_id=payment.payment_id,
        client_id=payment.client_id,
        expert_id=payment.expert_id,
        gig_id=payment.gig_id,
        description=payment.description,
        state=state_value(payment.state),
        waiting_for=waiting_for_value(payment.waiting_for),
        waiting_reason=waiting_reason_value(payment.waiting_reason),
        operation_id=payment.operation_id,
        freeze=payments_pb2.PaymentFreeze.Value(f"PAYMENT_FREEZE_{payment.frozen}"),
        frozen_by=payment.frozen_by,
        escrow_mode=payments_pb2.EscrowMode.Value(f"ESCROW_MODE_{payment.escrow_mode}"),
        mode_reason=payments_pb2.ModeReason.Value(f"MODE_REASON_{payment.mode_reason}"),
        charge_model=payments_pb2.ChargeModel.Value(f"CHARGE_MODEL_{payment.charge_model}"),
        amount=amount(payment.amount),
        commission=amount(payment.commission),
        expert_amount=amount(payment.expert_amount),
        held_amount=amount(payment.held),
        captured_amount=amount(payment.captured),
        refunded_amount=amount(payment.refunded_after_capture),
        returned_amount=amount(payment.refunded_from_escrow),
        client_payable=amount(payment.client_payable),
        pending_refund_amount=amount(payment.pending_refund),
        lost_amount=amount(payment.lost + payment.lost_held),
        lost_held_amount=amount(payment.lost_held),
        net_amount=amount(payment.net),
        net_commission=amount(payment.net_commission),
        net_expert_amount=amount(payment.net_expert),
        commission_basis_points=payment.commission_basis_points,
        payment_intent_id=payment.payment_intent_id,
        charge_id=payment.charge_id,
        last_failure=failure_message(payment.failure),
        on_deadline=on_deadline_value(payment.on_deadline),
        deadlines=[
            payments_pb2.Deadline(
                kind=payments_pb2.DeadlineKind.Value(f"DEADLINE_KIND_{deadline.kind}"),
                due_time=time_message(deadline.time),
                action=on_deadline_value(deadline.action),
            )
            for deadline in deadlines_of(payment)
        ],
        version=payment.version,
        create_time=time_message(payment.create_time),
        update_time=time_message(payment.update_time),
        escrow_time=time_message(payment.escrow_time),
        capture_time=time_message(payment.capture_time),
        escrow_expire_time=time_message(payment.escrow_expire_time),
        payment_expire_time=time_message(payment.payment_expire_time),
        expected_completion_time=time_message(payment.release_due_time),
    )


def initiated_message(
    payment: Payment, publishable_key: str
) -> payments_pb2.InitiatePaymentResponse:
    return payments_pb2.InitiatePaymentResponse(
        payment=payment_message(payment),
        publishable_key=publishable_key,
        application_fee=money_message(payment.commission, payment.currency),
    )


def preview_message(preview: Preview) -> payments_pb2.Preview:
    return payments_pb2.Preview(
        legs=[
            payments_pb2.Leg(
                kind=payments_pb2.LegKind.Value(f"LEG_KIND_{leg.kind}"),
                amount=money_message(leg.minor_units, preview.after.currency),
                transfer_id=leg.transfer_id,
            )
            for leg in preview.legs
        ],
        payment=payment_message(preview.after),
    )


def failure_message(failure: Failure | None) -> payments_pb2.Failure | None:
    if failure is None:
        return None
    return payments_pb2.Failure(
        code=failure.code,
        decline_code=failure.decline_code,
        message=failure.message,
        observe_time=time_message(failure.time),
    )


def state_value(state: State) -> payments_pb2.PaymentState.ValueType:
    return payments_pb2.PaymentState.Value(f"PAYMENT_STATE_{state}")


def state_of(value: int) -> State:
    name = payments_pb2.PaymentState.Name(payments_pb2.PaymentState.ValueType(value))
    return State(name.removeprefix("PAYMENT_STATE_"))


def waiting_for_value(waiting_for: WaitingFor) -> payments_pb2.WaitingFor.ValueType:
    if waiting_for is WaitingFor.NOTHING:
        return payments_pb2.WAITING_FOR_UNSPECIFIED
    return payments_pb2.WaitingFor.Value(f"WAITING_FOR_{waiting_for.name}")


def waiting_reason_value(reason: WaitingReason) -> payments_pb2.WaitingReason.ValueType:
    return payments_pb2.WaitingReason.Value(f"WAITING_REASON_{reason or 'UNSPECIFIED'}")


def on_deadline_value(on_deadline: OnDeadline) -> payments_pb2.OnDeadline.ValueType:
    return payments_pb2.OnDeadline.Value(f"ON_DEADLINE_{on_deadline}")


def on_deadline_of(value: int) -> OnDeadline:
    """Returns the action; unspecified means ALERT."""
    name = payments_pb2.OnDeadline.Name(payments_pb2.OnDeadline.ValueType(value))
    return OnDeadline(name.removeprefix("ON_DEADLINE_")) if value else OnDeadline.ALERT


def escrow_mode_of(value: int) -> EscrowMode | None:
    """Returns the mode, or None if the service is to choose it."""
    name = payments_pb2.EscrowMode.Name(payments_pb2.EscrowMode.ValueType(value))
    return EscrowMode(name.removeprefix("ESCROW_MODE_")) if value else None
