"""Proto messages to domain values and back, and every check of a request's fields.

All faults of a request are named at once. A field's rules stand in one place, :class:`Fields`.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from marketplace.payments.v1 import (
    disputes_pb2,
    events_pb2,
    experts_pb2,
    ledger_pb2,
    money_pb2,
    operations_pb2,
    payments_pb2,
)
from payment_service.application.capture_payment import Part
from payment_service.application.get_expert_balance import ExpertBalance
from payment_service.application.reconcile import Report
from payment_service.domain import money
from payment_service.domain.deadlines import deadlines_of
from payment_service.domain.disputes import Dispute
from payment_service.domain.errors import invalid_field, invalid_fields
from payment_service.domain.escrow import EscrowMode, Failure, OnDeadline, Payment, State
from payment_service.domain.experts import BusinessType, Expert, ExpertStatus
from payment_service.domain.followed import Discrepancy
from payment_service.domain.money import InvalidMoney, Money
from payment_service.domain.operations import Operation, OperationState
from payment_service.domain.payouts import Payout
from payment_service.domain.ports import (
    BEGINNING,
    MARK_BYTES,
    Answer,
    InboxEvent,
    Mark,
    Policy,
    StoredDiscrepancy,
    StoredEvent,
    StoredPosting,
)
from payment_service.domain.preview import Preview

T = TypeVar("T")

_ID: Final = re.compile(r"[!-~]{1,64}")
_OUR_ID: Final = re.compile(r"[a-z]{2,5}_[0-9a-f]{32}")
_EMAIL: Final = re.compile(r"[^@\s]{1,64}@[^@\s]{1,190}\.[^@\s.]{2,63}")
_COUNTRY: Final = re.compile(r"[A-Za-z]{2}")
_MAX_TEXT: Final = 500
#: A place in the feed as bytes.
_MARK: Final = struct.Struct(f">q{MARK_BYTES}s")
_DEFAULT_PAGE: Final = 50
_MAX_PAGE: Final = 200


class Fields:
    """Collects the faults of one request; :meth:`check` raises them all together."""

    def __init__(self) -> None:
        self._faults: list[tuple[str, str]] = []

    def fault(self, field: str, what: str) -> None:
        self._faults.append((field, what))

    def check(self) -> None:
        if self._faults:
            raise invalid_fields(self._faults)

    def identifier(self, field: str, value: str) -> str:
        """The user or gig service's id: at most 64 visible characters."""
        if not value:
            self.fault(field, "is required")
        elif not _ID.fullmatch(value):
            self.fault(field, "must be at most 64 visible ASCII characters")
        return value

    def our_id(self, field: str, value: str) -> str:
        """An id of ours. One that cannot be ours is simply not found; only absence is a fault."""
        if not value:
            self.fault(field, "is required")
        elif len(value) > 255 or "\x00" in value:
            self.fault(field, "is not an id of this service")
        return value

    def cursor(self, field: str, value: str) -> Mark:
        """A place in the feed; the beginning if none is named."""
        if not value:
            return BEGINNING
        try:
            mark = Mark(*_MARK.unpack(base64.urlsafe_b64decode(value + "=" * (-len(value) % 4))))
        except (ValueError, struct.error):
            mark = BEGINNING
        if mark.position < 1 or cursor_of(mark) != value:
            self.fault(field, "is not a cursor that this service gave out")
            return BEGINNING
        return mark

    def key(self, value: str) -> str:
        field = "idempotency_key"
        if not value:
            self.fault(field, "is required")
        elif len(value) > 255:
            self.fault(field, "must be at most 255 characters")
        elif not value.isprintable():
            self.fault(field, "must be printable characters")
        return value

    def text(self, field: str, value: str, *, most: int = _MAX_TEXT, required: bool = False) -> str:
        if required and not value.strip():
            self.fault(field, "is required")
        elif len(value) > most:
            self.fault(field, f"must be at most {most} characters")
        elif any(ord(character) < 32 and character not in "\t\n\r" for character in value):
            self.fault(field, "must not contain control characters")
        return value

    def amount(self, given: money_pb2.Money | None, policy: Policy) -> Money:
        """The whole amount of a new payment: present, a currency Stripe charges, within limits."""
        nothing = Money(0, policy.default_currency)
        if given is None:
            self.fault("amount", "is required")
            return nothing
        try:
            currency = money.check_currency(given.currency_code or policy.default_currency)
        except InvalidMoney as fault:
            self.fault("amount.currency_code", str(fault))
            return nothing
        amount = Money(given.minor_units, currency)
        try:
            money.check_charge(
                amount, policy.maximum_charge_minor_units, policy.settlement_currencies
            )
        except InvalidMoney as fault:
            self.fault("amount.minor_units", str(fault))
        return amount

    def currency(self, field: str, value: str) -> str:
        """A currency that must be named."""
        try:
            return money.check_currency(value)
        except InvalidMoney as fault:
            self.fault(field, str(fault) if value else "is required")
            return value

    def part(self, given: money_pb2.Money | None, policy: Policy) -> Part | None:
        """A part of a payment, if one is named; its currency is checked against the payment."""
        if given is None:
            return None
        if given.currency_code:
            try:
                money.check_currency(given.currency_code)
            except InvalidMoney as fault:
                self.fault("amount.currency_code", str(fault))
        if given.minor_units <= 0:
            self.fault("amount.minor_units", "must be more than zero")
        elif given.minor_units > policy.maximum_charge_minor_units:
            most = policy.maximum_charge_minor_units
            self.fault("amount.minor_units", f"must be at most {most} minor units")
        return Part(given.minor_units, given.currency_code)

    def email(self, field: str, value: str) -> str:
        if not value:
            self.fault(field, "is required")
        elif len(value) > 254 or not _EMAIL.fullmatch(value) or not value.isprintable():
            self.fault(field, "is not an e-mail address")
        return value

    def country(self, field: str, value: str, default: str) -> str:
        if value and not _COUNTRY.fullmatch(value):
            self.fault(field, "must be two letters (ISO 3166)")
        return (value or default).upper()

    def basis_points(self, field: str, value: int) -> int:
        if not 0 <= value < money.BASIS_POINTS_IN_WHOLE:
            self.fault(field, "must be from 0 to 9999 basis points")
        return value

    def enum(self, field: str, value: int, known: Any) -> int:
        """Refuse a number that the contract does not know: proto3 enums are open."""
        if value not in known.values():
            self.fault(field, "is not a value of the contract")
            return 0
        return value

    def version(self, field: str, value: int) -> int:
        if value < 0:
            self.fault(field, "must not be negative; 0 means any")
        return value

    def page_size(self, value: int, *, default: int = _DEFAULT_PAGE, most: int = _MAX_PAGE) -> int:
        if value < 0:
            self.fault("page_size", "must not be negative")
        return min(value or default, most)

    def time(self, field: str, request: Message) -> datetime | None:
        if not request.HasField(field):
            return None
        given: Timestamp = getattr(request, field)
        try:
            moment = given.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError):
            self.fault(field, "is not a time")
            return None
        return moment


def fields_of(
    request: Message, *, without: frozenset[str] = frozenset({"idempotency_key"})
) -> dict[str, str]:
    """Every field but the key as text, for the fingerprint; absent differs from explicit."""
    found: dict[str, str] = {}

    def walk(message: Message, prefix: str) -> None:
        for field, value in message.ListFields():
            name = prefix + field.name
            if not prefix and field.name in without:
                continue
            if field.type == FieldDescriptor.TYPE_MESSAGE and not field.is_repeated:
                found[name] = "present"
                walk(value, f"{name}.")
            else:
                found[name] = repr(list(value)) if field.is_repeated else repr(value)

    walk(request, "")
    return found


# ---- page tokens and cursors ----


def page_token(kind: str, filters: str, *keyset: str) -> str:
    """Opaque: where the former page ended, and for which filters it is good."""
    text = json.dumps([kind, _digest(filters), *keyset], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_page_token(kind: str, filters: str, token: str, parts: int) -> list[str] | None:
    """The keyset in a token; None for the first page. Raises :class:`InvalidArgument`."""
    if not token:
        return None
    wrong = invalid_field("page_token", "is not of a former page with the same filters")
    if len(token) > 1000:
        raise wrong
    try:
        text = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
        values = json.loads(text)
    except (ValueError, binascii.Error, RecursionError):
        raise wrong from None
    well_formed = isinstance(values, list) and all(
        isinstance(value, str) and value.isprintable() for value in values
    )
    if not well_formed or len(values) != 2 + parts or values[:2] != [kind, _digest(filters)]:
        raise wrong
    return [str(value) for value in values[2:]]


def page_of(
    found: Sequence[T], size: int, kind: str, filters: str, keyset: Callable[[T], Sequence[str]]
) -> tuple[Sequence[T], str]:
    """A page and its next token, of what was found when one more than the page was asked for."""
    page = found[:size]
    if len(found) <= size:
        return page, ""
    return page, page_token(kind, filters, *keyset(page[-1]))


def cursor_of(mark: Mark) -> str:
    """Opaque: a place in the feed."""
    return base64.urlsafe_b64encode(_MARK.pack(mark.position, mark.digest)).decode().rstrip("=")


def token_time(text: str) -> datetime:
    """A time out of a token."""
    try:
        moment = datetime.fromisoformat(text)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
    except (ValueError, OverflowError):
        raise invalid_field("page_token", "is not of a former page") from None


def token_number(text: str) -> int:
    """A number out of a token."""
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise invalid_field("page_token", "is not of a former page")
    return int(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# ---- domain to proto ----


def money_message(minor_units: int, currency: str) -> money_pb2.Money:
    return money_pb2.Money(minor_units=minor_units, currency_code=currency)


def time_message(moment: datetime | None) -> Timestamp | None:
    if moment is None:
        return None
    message = Timestamp()
    message.FromDatetime(moment.astimezone(UTC))
    return message


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
        escrow_mode=payments_pb2.EscrowMode.Value(f"ESCROW_MODE_{payment.escrow_mode}"),
        charge_model=payments_pb2.ChargeModel.Value(f"CHARGE_MODEL_{payment.charge_model}"),
        amount=amount(payment.amount),
        commission=amount(payment.commission),
        expert_amount=amount(payment.expert_amount),
        held_amount=amount(payment.held),
        captured_amount=amount(payment.captured),
        refunded_amount=amount(payment.refunded),
        net_amount=amount(payment.net),
        net_commission=amount(payment.net_commission),
        net_expert_amount=amount(payment.net_expert),
        commission_basis_points=payment.commission_basis_points,
        payment_intent_id=payment.payment_intent_id,
        charge_id=payment.charge_id,
        version=payment.version,
        create_time=time_message(payment.create_time),
        update_time=time_message(payment.update_time),
        escrow_time=time_message(payment.escrow_time),
        capture_time=time_message(payment.capture_time),
        escrow_expire_time=time_message(payment.escrow_expire_time),
        last_failure=failure_message(payment.failure),
        waiting_for=payment.waiting_for.value,
        waiting_reason=payments_pb2.WaitingReason.Value(
            f"WAITING_REASON_{payment.waiting_reason or 'UNSPECIFIED'}"
        ),
        payment_expire_time=time_message(payment.payment_expire_time),
        returned_amount=amount(payment.returned),
        mode_reason=payments_pb2.ModeReason.Value(f"MODE_REASON_{payment.mode_reason}"),
        on_deadline=on_deadline_value(payment.on_deadline),
        expected_completion_time=time_message(payment.release_due_time),
        deadlines=[
            payments_pb2.Deadline(
                kind=payments_pb2.DeadlineKind.Value(f"DEADLINE_KIND_{deadline.kind}"),
                time=time_message(deadline.time),
                action=on_deadline_value(deadline.action),
            )
            for deadline in deadlines_of(payment)
        ],
        freeze=payments_pb2.PaymentFreeze.Value(f"PAYMENT_FREEZE_{payment.frozen}"),
        lost_amount=amount(payment.lost + payment.lost_held),
        lost_held_amount=amount(payment.lost_held),
    )


def on_deadline_value(on_deadline: OnDeadline) -> payments_pb2.OnDeadline.ValueType:
    return payments_pb2.OnDeadline.Value(f"ON_DEADLINE_{on_deadline}")


def on_deadline_of(value: int) -> OnDeadline:
    """Unspecified means ALERT."""
    name = payments_pb2.OnDeadline.Name(payments_pb2.OnDeadline.ValueType(value))
    return OnDeadline(name.removeprefix("ON_DEADLINE_")) if value else OnDeadline.ALERT


def escrow_mode_of(value: int) -> EscrowMode | None:
    """None lets the service choose."""
    name = payments_pb2.EscrowMode.Name(payments_pb2.EscrowMode.ValueType(value))
    return EscrowMode(name.removeprefix("ESCROW_MODE_")) if value else None


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


def state_value(state: State) -> payments_pb2.PaymentState.ValueType:
    return payments_pb2.PaymentState.Value(f"PAYMENT_STATE_{state}")


def failure_message(failure: Failure | None) -> payments_pb2.Failure | None:
    if failure is None:
        return None
    return payments_pb2.Failure(
        code=failure.code,
        decline_code=failure.decline_code,
        message=failure.message,
        time=time_message(failure.time),
    )


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
    )


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


def expert_status_value(status: ExpertStatus) -> experts_pb2.ExpertStatus.ValueType:
    return experts_pb2.ExpertStatus.Value(f"EXPERT_STATUS_{status}")


def business_type_value(business_type: BusinessType) -> experts_pb2.BusinessType.ValueType:
    return experts_pb2.BusinessType.Value(f"BUSINESS_TYPE_{business_type.name}")


def business_type_of(value: int) -> BusinessType:
    """Unspecified means individual."""
    if not value:
        return BusinessType.INDIVIDUAL
    name = experts_pb2.BusinessType.Name(experts_pb2.BusinessType.ValueType(value))
    return BusinessType[name.removeprefix("BUSINESS_TYPE_")]


def dispute_message(dispute: Dispute) -> disputes_pb2.Dispute:
    def amount(minor_units: int) -> money_pb2.Money:
        return money_message(minor_units, dispute.currency)

    return disputes_pb2.Dispute(
        dispute_id=dispute.dispute_id,
        payment_id=dispute.payment_id,
        expert_id=dispute.expert_id,
        charge_id=dispute.charge_id,
        stage=disputes_pb2.DisputeStage.Value(f"DISPUTE_STAGE_{dispute.stage}"),
        status=dispute.status,
        outcome=disputes_pb2.DisputeOutcome.Value(f"DISPUTE_OUTCOME_{dispute.outcome}"),
        reason=dispute.reason,
        amount=amount(dispute.amount),
        withdrawn_amount=amount(dispute.withdrawn),
        reinstated_amount=amount(dispute.reinstated),
        lost_amount=amount(dispute.lost),
        fee=money_message(dispute.fee, dispute.fee_currency or dispute.currency),
        evidence_due_time=time_message(dispute.evidence_due_time),
        has_evidence=dispute.has_evidence,
        submission_count=dispute.submission_count,
        operation_id=dispute.operation_id,
        create_time=time_message(dispute.create_time),
        update_time=time_message(dispute.update_time),
        close_time=time_message(dispute.close_time),
    )


def evidence_of(evidence: disputes_pb2.Evidence) -> dict[str, str]:
    """By Stripe's names, which are the fields' own; what is empty was not given."""
    return {field.name: str(value) for field, value in evidence.ListFields()}


def event_message(event: StoredEvent) -> events_pb2.PaymentEvent:
    return events_pb2.PaymentEvent(
        payment_id=event.payment_id,
        sequence=event.sequence,
        kind=event.kind,
        time=time_message(event.time),
        body_json=event.body,
        hash=event.hash,
    )


def posting_message(stored: StoredPosting) -> ledger_pb2.Posting:
    posting = stored.posting
    return ledger_pb2.Posting(
        posting_id=stored.posting_id,
        transaction_id=stored.transaction_id,
        payment_id=stored.payment_id,
        account=posting.account,
        amount=money_message(posting.minor_units, posting.currency),
        kind=posting.kind,
        balance_transaction_id=posting.balance_transaction_id,
        time=time_message(stored.time),
    )


def operation_message(operation: Operation) -> operations_pb2.Operation:
    return operations_pb2.Operation(
        operation_id=operation.operation_id,
        kind=operation.kind.value,
        payment_id=operation.payment_id or operation.text("payment_id"),
        expert_id=operation.expert_id,
        state=operations_pb2.OperationState.Value(f"OPERATION_STATE_{operation.state}"),
        attempts=operation.tries,
        last_error=operation.last_error,
        create_time=time_message(operation.create_time),
        next_try_time=time_message(operation.next_try_time),
        dispute_id=operation.dispute_id,
    )


def operation_state_of(value: int) -> OperationState | None:
    if not value:
        return None
    name = operations_pb2.OperationState.Name(operations_pb2.OperationState.ValueType(value))
    return OperationState(name.removeprefix("OPERATION_STATE_"))


def inbox_event_message(event: InboxEvent) -> operations_pb2.InboxEvent:
    return operations_pb2.InboxEvent(
        event_id=event.event_id,
        type=event.type,
        object_id=event.object_id,
        account_id=event.account_id,
        state=operations_pb2.InboxState.Value(f"INBOX_STATE_{event.state}"),
        verdict=event.verdict,
        attempts=event.attempts,
        last_error=event.last_error,
        receive_time=time_message(event.receive_time),
        next_try_time=time_message(event.next_try_time),
    )


def inbox_state_of(value: int) -> str | None:
    if not value:
        return None
    name = operations_pb2.InboxState.Name(operations_pb2.InboxState.ValueType(value))
    return name.removeprefix("INBOX_STATE_")


def discrepancy_message(
    discrepancy: Discrepancy, stored: StoredDiscrepancy | None = None
) -> operations_pb2.Discrepancy:
    def amount(minor_units: int | None) -> money_pb2.Money | None:
        return None if minor_units is None else money_message(minor_units, discrepancy.currency)

    return operations_pb2.Discrepancy(
        discrepancy_id=stored.discrepancy_id if stored else 0,
        payment_id=discrepancy.payment_id,
        kind=discrepancy.kind,
        detail=discrepancy.detail,
        expected=amount(discrepancy.expected),
        found=amount(discrepancy.found),
        cure=discrepancy.cure,
        time=time_message(stored.time) if stored else None,
        last_seen_time=time_message(stored.last_seen_time) if stored else None,
        resolve_time=time_message(stored.resolve_time) if stored else None,
        resolved_by=stored.resolved_by if stored else "",
        note=stored.note if stored else "",
    )


def report_message(report: Report) -> operations_pb2.RunReconciliationResponse:
    return operations_pb2.RunReconciliationResponse(
        checked_payments=report.checked_payments,
        corrected_payments=report.corrected_payments,
        checked_lines=report.checked_lines,
        invariants=[
            operations_pb2.Invariant(name=name, violations=len(payment_ids))
            for name, payment_ids in report.violations.items()
        ],
        discrepancies=[discrepancy_message(found) for found in report.discrepancies],
    )


def initiated_message(
    payment: Payment, publishable_key: str
) -> payments_pb2.InitiatePaymentResponse:
    return payments_pb2.InitiatePaymentResponse(
        payment=payment_message(payment),
        publishable_key=publishable_key,
        application_fee=money_message(payment.commission, payment.currency),
    )


class AnswerEncoder:
    """The answers port: outcomes as the bytes that a repeated key gets again for ever.

    ``client_secret`` is not among them: it is stored nowhere and is read from Stripe again.
    """

    def __init__(self, publishable_key: str, refusal_answer: Any) -> None:
        self._publishable_key = publishable_key
        self.refusal = refusal_answer

    def written_off(self, expert_id: str, part: Money, debt: Money) -> Answer:
        message = operations_pb2.WriteOffDebtResponse(
            expert_id=expert_id,
            written_off=money_message(part.minor_units, part.currency),
            debt=money_message(debt.minor_units, debt.currency),
        )
        return Answer(True, message.SerializeToString(deterministic=True))

    def owed_settled(self, payment: Payment, part: int) -> Answer:
        message = operations_pb2.SettleOwedResponse(
            payment=payment_message(payment),
            settled=money_message(part, payment.currency),
            owed=money_message(payment.client_owed, payment.currency),
        )
        return Answer(True, message.SerializeToString(deterministic=True))

    def account_replaced(self, expert: Expert) -> Answer:
        """Without the link into onboarding, which is made anew for each answer."""
        message = experts_pb2.ReplaceExpertAccountResponse(expert=expert_message(expert))
        return Answer(True, message.SerializeToString(deterministic=True))

    def response(self, rpc: str, payment: Payment) -> Answer:
        message = payment_message(payment)
        responses: Mapping[str, Message] = {
            "InitiatePayment": initiated_message(payment, self._publishable_key),
            "CapturePayment": payments_pb2.CapturePaymentResponse(payment=message),
            "RefundPayment": payments_pb2.RefundPaymentResponse(payment=message),
            "ReleaseFraudWarning": operations_pb2.ReleaseFraudWarningResponse(payment=message),
        }
        return Answer(True, responses[rpc].SerializeToString(deterministic=True))

    def dispute_response(self, rpc: str, dispute: Dispute) -> Answer:
        message = dispute_message(dispute)
        responses: Mapping[str, Message] = {
            "SubmitEvidence": disputes_pb2.SubmitEvidenceResponse(dispute=message),
            "AcceptDispute": disputes_pb2.AcceptDisputeResponse(dispute=message),
        }
        return Answer(True, responses[rpc].SerializeToString(deterministic=True))
