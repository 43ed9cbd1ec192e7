"""Converts experts, payouts and balances (experts.proto)."""

from __future__ import annotations

from marketplace.payments.v1 import experts_pb2
from payment_service.application.get_expert_balance import ExpertBalance
from payment_service.domain.experts import BusinessType, Expert, ExpertStatus
from payment_service.domain.payouts import Payout, PayoutState
from payment_service.rpc.messages.common import money_message, time_message


def expert_message(expert: Expert) -> experts_pb2.Expert:
    account = expert.account
    return experts_pb2.Expert(
        expert_id=expert.expert_id,
        name=expert.name,
        email=expert.email,
        country=expert.country,
        business_type=business_type_value(expert.business_type),
        stripe_account_id=account.stripe_account_id,
        status=expert_status_value(expert.status),
        charges_enabled=account.charges_enabled,
        payouts_enabled=account.payouts_enabled,
        transfers_active=account.transfers_active,
        details_submitted=account.details_submitted,
        requirements_due=account.requirements_due,
        disabled_reason=account.disabled_reason,
        commission_basis_points=expert.commission_basis_points,
        create_time=time_message(expert.create_time),
        update_time=time_message(expert.update_time),
        version=expert.version,
        requirements_due_time=time_message(account.requirements_due_time),
        future_requirements=account.future_requirements,
        future_requirements_due_time=time_message(account.future_requirements_due_time),
    )


def expert_status_value(status: ExpertStatus) -> experts_pb2.ExpertStatus.ValueType:
    return experts_pb2.ExpertStatus.Value(f"EXPERT_STATUS_{status}")


def expert_status_of(value: int) -> ExpertStatus:
    name = experts_pb2.ExpertStatus.Name(experts_pb2.ExpertStatus.ValueType(value))
    return ExpertStatus(name.removeprefix("EXPERT_STATUS_"))


def business_type_value(business_type: BusinessType) -> experts_pb2.BusinessType.ValueType:
    return experts_pb2.BusinessType.Value(f"BUSINESS_TYPE_{business_type.name}")


def business_type_of(value: int) -> BusinessType:
    """Returns the type; unspecified means individual."""
    if not value:
        return BusinessType.INDIVIDUAL
    name = experts_pb2.BusinessType.Name(experts_pb2.BusinessType.ValueType(value))
    return BusinessType[name.removeprefix("BUSINESS_TYPE_")]


def payout_message(payout: Payout) -> experts_pb2.Payout:
    return experts_pb2.Payout(
        payout_id=payout.payout_id,
        expert_id=payout.expert_id,
        stripe_account_id=payout.stripe_account_id,
        amount=money_message(payout.minor_units, payout.currency),
        state=experts_pb2.PayoutState.Value(f"PAYOUT_STATE_{payout.state}"),
        automatic=payout.automatic,
        arrival_time=time_message(payout.arrival_time),
        failure_code=payout.failure_code,
        create_time=time_message(payout.create_time),
        update_time=time_message(payout.update_time),
        version=payout.version,
    )


def expert_balance_message(balance: ExpertBalance) -> experts_pb2.ExpertBalance:
    return experts_pb2.ExpertBalance(
        available=money_message(balance.available, balance.currency),
        pending=money_message(balance.pending, balance.currency),
        funds=money_message(balance.funds, balance.currency),
        debt=money_message(balance.debt, balance.currency),
    )


def payout_state_of(value: int) -> PayoutState:
    name = experts_pb2.PayoutState.Name(experts_pb2.PayoutState.ValueType(value))
    return PayoutState(name.removeprefix("PAYOUT_STATE_"))
