"""Conversion between rows of the database and values of the domain."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any, Final

from payment_service.adapters.postgres.statements import Row, array_of
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.disputes import Dispute, Outcome, Stage
from payment_service.domain.experts import Account, BusinessType, Expert
from payment_service.domain.ledger import Posting
from payment_service.domain.operation_payloads import payload_from_json, payload_to_json
from payment_service.domain.operations import (
    PAYLOAD_TYPES,
    Operation,
    OperationKind,
    OperationPurpose,
    OperationState,
)
from payment_service.domain.payment import (
    ChargeModel,
    EscrowMode,
    Failure,
    Freeze,
    ModeReason,
    OnDeadline,
    Payment,
    State,
    WaitingFor,
    WaitingReason,
)
from payment_service.domain.payouts import Payout, PayoutState
from payment_service.domain.ports.records import (
    Answer,
    Claim,
    StoredDiscrepancy,
    StoredEvent,
    StoredPosting,
    WebhookEvent,
)
from payment_service.domain.schedule import SCHEDULE_COLUMNS, Schedule
from payment_service.domain.sync.changes import Discrepancy


def _names(columns: str) -> list[str]:
    """Returns the columns by the very texts that name the fields of classes.

    A class takes its values by name. If it must compare each name with all of its fields', to make
    a payment takes almost twice as long.
    """
    return [sys.intern(name) for name in columns.split()]


PAYMENT_COLUMNS = _names(
    "payment_id client_id expert_id gig_id description state escrow_mode charge_model mode_reason "
    "on_deadline destination_account_id currency amount commission_basis_points commission "
    "expert_amount held charged captured refunded_after_capture "
    "refunded_from_escrow remainder_to_client lost_held lost "
    "frozen frozen_by fraud_warning_id review_id debt_offset net_commission client_payable "
    "pending_refund "
    "processor_fee payment_intent_id charge_id transfer_id operation_id waiting_for "
    "waiting_reason failure version create_time update_time escrow_time capture_time "
    "escrow_expire_time release_due_time warn_time deadline_time payment_expire_time"
)

#: The columns of a payment that hold an enum.
_ENUMS: Final[Mapping[str, Callable[[str], StrEnum]]] = {
    "state": State,
    "escrow_mode": EscrowMode,
    "charge_model": ChargeModel,
    "mode_reason": ModeReason,
    "on_deadline": OnDeadline,
    "waiting_for": WaitingFor,
    "waiting_reason": WaitingReason,
    "frozen": Freeze,
}


def payment_values(payment: Payment) -> dict[str, Any]:
    """Returns a payment as bound parameters, by column name."""
    values: dict[str, Any] = {name: getattr(payment, name) for name in PAYMENT_COLUMNS}
    for name in _ENUMS:
        values[name] = values[name].value
    values["payment_intent_id"] = payment.payment_intent_id or None
    failure = payment.failure
    values["failure"] = failure and json.dumps(
        {
            "code": failure.code,
            "decline_code": failure.decline_code,
            "message": failure.message,
            "time": failure.time.isoformat(),
        }
    )
    return values


def schedule_values(schedule: Schedule) -> dict[str, Any]:
    """Returns a schedule as bound parameters, by column name."""
    return {name: getattr(schedule, name) for name in SCHEDULE_COLUMNS}


def schedule_of(row: Row) -> Schedule:
    """Returns the schedule that a row of ``payments`` holds."""
    return Schedule(**{name: row[name] for name in SCHEDULE_COLUMNS})


def payment_of(row: Row) -> Payment:
    """Returns the payment that a row of ``payments`` holds."""
    values = {name: row[name] for name in PAYMENT_COLUMNS}
    failure = values["failure"]
    values.update(
        **{name: enum(values[name]) for name, enum in _ENUMS.items()},
        payment_intent_id=values["payment_intent_id"] or "",
        failure=failure
        and Failure(
            failure["code"],
            failure["decline_code"],
            failure["message"],
            datetime.fromisoformat(failure["time"]),
        ),
    )
    return Payment(**values)


def posted(owner: str) -> str:
    """Returns a CTE that inserts the postings of the event in the CTE ``recorded``.

    Even without postings it takes a moment, and fires the trigger that sums them up.

    ``owner`` is the column that says whose they are: ``payment_id``, ``expert_id``,
    ``platform_line_id`` or ``adjustment_id``.
    """
    return f"""posted AS (
    INSERT INTO postings
        ({owner}, sequence, account, currency, minor_units, kind, balance_transaction_id, time)
    SELECT {owner}, sequence, line.*, :update_time
    FROM recorded, unnest(
        CAST(:accounts AS text[]), CAST(:currencies AS text[]), CAST(:amounts AS bigint[]),
        CAST(:kinds AS text[]), CAST(:txns AS text[])) AS line
)"""


def posting_values(postings: Sequence[Posting]) -> dict[str, Any]:
    """Returns postings as bound parameters, one array for each column."""
    return {
        "accounts": array_of(posting.account for posting in postings),
        "currencies": array_of(posting.currency for posting in postings),
        "amounts": array_of(posting.minor_units for posting in postings),
        "kinds": array_of(posting.kind for posting in postings),
        "txns": array_of(posting.balance_transaction_id for posting in postings),
    }


OPERATION_COLUMNS: Final = _names(
    "operation_id kind purpose payment_id expert_id dispute_id payload minor_units claim_id state "
    "attempt tries key_spent verify_only last_error create_time attempt_time lease_until "
    "lease_token next_try_time unsure_until"
)

#: The columns of an operation that are NULL where its attribute is empty.
_NULL_IF_EMPTY: Final = ("payment_id", "expert_id", "dispute_id", "claim_id")


def operation_values(operation: Operation) -> dict[str, Any]:
    """Returns an operation as bound parameters, by column name."""
    values: dict[str, Any] = {name: getattr(operation, name) for name in OPERATION_COLUMNS}
    values.update({name: values[name] or None for name in _NULL_IF_EMPTY})
    return {
        **values,
        "kind": operation.kind.value,
        "purpose": operation.purpose.value,
        "state": operation.state.value,
        "payload": json.dumps(payload_to_json(operation.payload)),
    }


def operation_of(row: Row) -> Operation:
    """Returns the operation that a row of ``operations`` holds.

    Raises :class:`MalformedPayload` if its payload is not what its kind needs.
    """
    values = {name: row[name] for name in OPERATION_COLUMNS}
    kind = OperationKind(row["kind"])
    values.update({name: values[name] or "" for name in _NULL_IF_EMPTY})
    values.update(
        kind=kind,
        purpose=OperationPurpose(row["purpose"]),
        state=OperationState(row["state"]),
        payload=payload_from_json(PAYLOAD_TYPES[kind], row["payload"]),
    )
    return Operation(**values)


def discrepancy_of(row: Row) -> StoredDiscrepancy:
    """Returns the discrepancy that a row of ``discrepancies`` holds."""
    return StoredDiscrepancy(
        f"disc_{row['discrepancy_id']}",
        Discrepancy(
            row["payment_id"] or "",
            DiscrepancyKind(row["kind"]),
            row["detail"],
            row["expected"],
            row["found"],
            row["currency"],
            row["remediation"],
            row["line_id"],
        ),
        row["time"],
        row["last_seen_time"],
        row["resolve_time"],
        row["resolved_by"],
        row["resolve_reason"],
    )


def stored_posting_of(row: Row) -> StoredPosting:
    """Returns the posting that a row of ``postings`` holds, which must be of a payment."""
    return StoredPosting(
        row["posting_id"],
        f"{row['payment_id']}:{row['sequence']}",
        row["payment_id"],
        Posting(
            row["account"],
            row["minor_units"],
            row["currency"],
            row["kind"],
            row["balance_transaction_id"],
        ),
        row["time"],
    )


def expert_of(row: Row) -> Expert:
    """Returns the expert that a row of ``experts`` holds."""
    return Expert(
        expert_id=row["expert_id"],
        name=row["name"],
        email=row["email"],
        country=row["country"],
        business_type=BusinessType(row["business_type"]),
        commission_basis_points=row["commission_basis_points"],
        commission_asked=row["commission_asked"],
        account=Account(
            stripe_account_id=row["stripe_account_id"] or "",
            charges_enabled=row["charges_enabled"],
            payouts_enabled=row["payouts_enabled"],
            transfers_active=row["transfers_active"],
            details_submitted=row["details_submitted"],
            requirements_due=tuple(row["requirements_due"]),
            disabled_reason=row["disabled_reason"],
            requirements_due_time=row["requirements_due_time"],
            future_requirements=tuple(row["future_requirements"]),
            future_requirements_due_time=row["future_requirements_due_time"],
        ),
        deauthorized=row["deauthorized"],
        operation_id=row["operation_id"],
        check_time=row["check_time"],
        check_due_time=row["check_due_time"],
        version=row["version"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def expert_values(expert: Expert) -> dict[str, Any]:
    """Returns an expert as bound parameters, by column name."""
    account = expert.account
    return {
        "expert_id": expert.expert_id,
        "name": expert.name,
        "email": expert.email,
        "country": expert.country,
        "business_type": expert.business_type.value,
        "commission_basis_points": expert.commission_basis_points,
        "commission_asked": expert.commission_asked,
        "stripe_account_id": account.stripe_account_id or None,
        "charges_enabled": account.charges_enabled,
        "payouts_enabled": account.payouts_enabled,
        "transfers_active": account.transfers_active,
        "details_submitted": account.details_submitted,
        "requirements_due": list(account.requirements_due),
        "disabled_reason": account.disabled_reason,
        "requirements_due_time": account.requirements_due_time,
        "future_requirements": list(account.future_requirements),
        "future_requirements_due_time": account.future_requirements_due_time,
        "deauthorized": expert.deauthorized,
        "status": expert.status.value,
        "operation_id": expert.operation_id,
        "check_time": expert.check_time,
        "check_due_time": expert.check_due_time,
        "version": expert.version,
        "create_time": expert.create_time,
        "update_time": expert.update_time,
    }


def announced_values(account: Account) -> dict[str, Any]:
    """Returns what Stripe asks for by a time, as the bodies of experts' events contain it."""
    times = {
        "requirements_due_time": account.requirements_due_time,
        "future_requirements_due_time": account.future_requirements_due_time,
    }
    values: dict[str, Any] = {name: time.isoformat() for name, time in times.items() if time}
    if account.future_requirements:
        values["future_requirements"] = list(account.future_requirements)
    return values


DISPUTE_COLUMNS: Final = _names(
    "dispute_id payment_id expert_id charge_id stage status outcome reason currency amount "
    "withdrawn reinstated lost fee fee_currency evidence_due_time has_evidence "
    "submission_count operation_id create_time update_time close_time"
)


def dispute_values(dispute: Dispute) -> dict[str, Any]:
    """Returns a dispute as bound parameters, by column name; ``unsettled`` is derived."""
    values: dict[str, Any] = {name: getattr(dispute, name) for name in DISPUTE_COLUMNS}
    values["unsettled"] = dispute.unsettled
    return {**values, "stage": dispute.stage.value, "outcome": dispute.outcome.value}


def dispute_of(row: Row) -> Dispute:
    """Returns the dispute that a row of ``disputes`` holds."""
    values = {name: row[name] for name in DISPUTE_COLUMNS}
    values.update(stage=Stage(values["stage"]), outcome=Outcome(values["outcome"]))
    return Dispute(**values)


PAYOUT_COLUMNS: Final = _names(
    "payout_id expert_id stripe_account_id minor_units currency state automatic arrival_time "
    "failure_code balance_transaction_id failure_balance_transaction_id version create_time "
    "update_time"
)


def payout_values(payout: Payout) -> dict[str, Any]:
    """Returns a payout as bound parameters, by column name."""
    values: dict[str, Any] = {name: getattr(payout, name) for name in PAYOUT_COLUMNS}
    values["state"] = payout.state.value
    return values


def payout_of(row: Row) -> Payout:
    """Returns the payout that a row of ``payouts`` holds."""
    values = {name: row[name] for name in PAYOUT_COLUMNS}
    return Payout(**{**values, "state": PayoutState(values["state"])})


def webhook_event_of(row: Row) -> WebhookEvent:
    """Returns the webhook event that a row of ``webhook_events`` holds."""
    return WebhookEvent(
        event_id=row["event_id"],
        endpoint=row["endpoint"],
        type=row["type"],
        object_id=row["object_id"],
        account_id=row["account_id"],
        payment_intent_id=row["payment_intent_id"],
        payment_ref=row["payment_ref"],
        payload_sha256=bytes(row["payload_sha256"]),
        create_time=row["create_time"],
        state=row["state"],
        verdict=row["verdict"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        receive_time=row["receive_time"],
        next_try_time=row["next_try_time"],
        traceparent=row["traceparent"],
    )


def stored_event_of(row: Row) -> StoredEvent:
    """Returns the event that a row of ``events`` holds."""
    return StoredEvent(
        row["payment_id"],
        row["sequence"],
        row["kind"],
        row["time"],
        row["body"],
        bytes(row["hash"]),
        row["texts"] or {},
    )


def claim_of(row: Row) -> Claim:
    """Returns the claim that a row of ``claims`` holds: an earlier call made it."""
    answer = row["answer"]
    return Claim(
        row["claim_id"],
        row["rpc"],
        fresh=False,
        answer=None if answer is None else Answer(bool(row["ok"]), bytes(answer)),
        operation_id=row["operation_id"] or "",
        payment_id=row["payment_id"] or "",
    )
