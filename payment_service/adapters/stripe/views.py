"""Conversion of Stripe's answers to snapshots of the domain.

Stripe may add values to its enums at any time, and a new value must not break a payment. So an
unknown status becomes ``UNKNOWN`` and is reported as a discrepancy. A field may be expanded or a
plain id.

Amounts are minor units of the object's own currency.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final

from payment_service.adapters.stripe.fields import (
    Json,
    flag,
    flag_or_false,
    id_in,
    metadata_of,
    moment,
    moment_or_none,
    number,
    number_or_none,
    part,
    parts,
    text,
    text_or_empty,
    texts,
)
from payment_service.domain.experts import Account
from payment_service.domain.payouts import (
    AccountBalance,
    PayoutSnapshot,
    PayoutState,
    PayoutTransaction,
)
from payment_service.domain.ports.stripe import BalanceEntry, FoundAccount
from payment_service.domain.snapshot import (
    ApplicationFee,
    BalanceTransaction,
    Charge,
    Decline,
    DisputeSnapshot,
    DisputeTransaction,
    FeeRefund,
    FraudWarning,
    IntentStatus,
    PaymentSnapshot,
    Refund,
    Reversal,
    Transfer,
)
from payment_service.domain.webhook_event import reference_of

#: The key in a dispute's metadata: which operation stored its evidence.
EVIDENCE_OPERATION: Final = "evidence_operation_id"
_SEARCH_MARGIN: Final = timedelta(minutes=10)


def searched_since(created: datetime) -> int:
    """Returns the first second (Unix time) in which an operation's object may have been created.

    It is a day before: a restored database may have lost the first request. There is no last one:
    an object that is missed would be created a second time.
    """
    return int((created - timedelta(days=1) - _SEARCH_MARGIN).timestamp())


def observation_of(
    intent: Json,
    *,
    refunds: tuple[Refund, ...] = (),
    reversals: tuple[Reversal, ...] = (),
    fee_refunds: tuple[FeeRefund, ...] = (),
    separate_transfers: tuple[Transfer, ...] = (),
    disputes: tuple[DisputeSnapshot, ...] = (),
) -> PaymentSnapshot:
    """Returns an intent, and what was listed apart from it, as one snapshot."""
    charge = part(intent, "latest_charge")
    error = part(intent, "last_payment_error")
    return PaymentSnapshot(
        payment_intent_id=text(intent, "id"),
        status=status_of(text(intent, "status")),
        minor_units=number(intent, "amount"),
        currency=text(intent, "currency").upper(),
        amount_received=number_or_none(intent, "amount_received") or 0,
        cancellation_reason=text_or_empty(intent, "cancellation_reason"),
        accepts_cards="card" in texts(intent, "payment_method_types"),
        decline=decline_of(error) if error else None,
        charge=None if charge is None else charge_of(charge, reversals, fee_refunds),
        refunds=refunds,
        separate_transfers=separate_transfers,
        disputes=disputes,
        metadata=metadata_of(intent),
        create_time=moment(intent, "created"),
        client_secret=text_or_empty(intent, "client_secret"),
    )


def status_of(status: str) -> IntentStatus:
    """Returns the status, or UNKNOWN if Stripe has added a new one."""
    try:
        return IntentStatus(status)
    except ValueError:
        return IntentStatus.UNKNOWN


def decline_of(error: Json) -> Decline:
    """Returns why the card was declined. A failed authentication has no decline code."""
    code = text_or_empty(error, "code") or text(error, "type")
    return Decline(code, text_or_empty(error, "decline_code"))


def charge_of(
    charge: Json, reversals: tuple[Reversal, ...], fee_refunds: tuple[FeeRefund, ...]
) -> Charge:
    """Returns a charge with its balance transaction, transfer and application fee."""
    details = part(charge, "payment_method_details")
    card = part(details, "card") if details and text(details, "type") == "card" else None
    # Stripe leaves out attributes that a charge on the platform does not have.
    transfer = part(charge, "transfer")
    fee = part(charge, "application_fee")
    return Charge(
        charge_id=text(charge, "id"),
        captured=flag(charge, "captured"),
        amount_captured=number(charge, "amount_captured"),
        capture_before=moment_or_none(card, "capture_before"),
        line=line_of(charge),
        transfer=None if transfer is None else transfer_of(transfer, reversals),
        application_fee_amount=number_or_none(charge, "application_fee_amount") or 0,
        application_fee=None if fee is None else application_fee_of(fee, charge, fee_refunds),
        review_id=open_review_of(charge),
        create_time=moment(charge, "created"),
    )


def open_review_of(charge: Json) -> str:
    """Returns the id of a manual review that is open; one that was not expanded may be."""
    review = part(charge, "review")
    if review is None or flag(review, "open"):
        return id_in(charge, "review")
    return ""


def application_fee_of(fee: Json, charge: Json, refunds: tuple[FeeRefund, ...]) -> ApplicationFee:
    """Returns the fee in the charge's currency.

    Stripe's object has its amounts in the currency of the settlement instead.
    """
    settled = number(fee, "amount")
    amount = number_or_none(charge, "application_fee_amount") or settled
    if text(fee, "currency") != text(charge, "currency"):
        refunds = tuple(
            replace(refund, minor_units=refund.minor_units * amount // settled)
            for refund in refunds
        )
    return ApplicationFee(text(fee, "id"), amount, line_of(fee), refunds)


def transfer_of(transfer: Json, reversals: tuple[Reversal, ...] = ()) -> Transfer:
    """Returns a transfer with its reversals."""
    metadata = metadata_of(transfer)
    return Transfer(
        transfer_id=text(transfer, "id"),
        minor_units=number(transfer, "amount"),
        currency=text(transfer, "currency").upper(),
        operation_id=metadata.get("operation_id", ""),
        destination_account_id=id_in(transfer, "destination"),
        line=line_of(transfer),
        connected_line=line_of(part(transfer, "destination_payment")),
        reversals=reversals,
        metadata=metadata,
        create_time=moment(transfer, "created"),
    )


def refund_of(refund: Json) -> Refund:
    """Returns a refund; after a failure it has a second balance transaction."""
    metadata = metadata_of(refund)
    return Refund(
        refund_id=text(refund, "id"),
        minor_units=number(refund, "amount"),
        status=text_or_empty(refund, "status"),
        operation_id=metadata.get("operation_id", ""),
        line=line_of(refund),
        failure_line=line_of(refund, "failure_balance_transaction"),
        metadata=metadata,
        create_time=moment(refund, "created"),
    )


def reversal_of(reversal: Json) -> Reversal:
    """Returns a reversal of a transfer."""
    metadata = metadata_of(reversal)
    return Reversal(
        reversal_id=text(reversal, "id"),
        minor_units=number(reversal, "amount"),
        operation_id=metadata.get("operation_id", ""),
        line=line_of(reversal),
        connected_line=line_of(part(reversal, "destination_payment_refund")),
        # In a preview of Stripe's; other accounts get no status.
        status=text_or_empty(reversal, "status"),
        metadata=metadata,
        create_time=moment(reversal, "created"),
    )


def fee_refund_of(refund: Json) -> FeeRefund:
    """Returns a refund of an application fee."""
    return FeeRefund(text(refund, "id"), number(refund, "amount"), line_of(refund))


def dispute_of(dispute: Json) -> DisputeSnapshot:
    """Returns a dispute with its balance transactions."""
    details = part(dispute, "evidence_details") or {}
    lines = parts(dispute, "balance_transactions")
    return DisputeSnapshot(
        dispute_id=text(dispute, "id"),
        charge_id=id_in(dispute, "charge"),
        status=text(dispute, "status"),
        reason=text(dispute, "reason"),
        minor_units=number(dispute, "amount"),
        due_by=moment_or_none(details, "due_by"),
        has_evidence=flag(details, "has_evidence"),
        submission_count=number(details, "submission_count"),
        operation_id=metadata_of(dispute).get(EVIDENCE_OPERATION, ""),
        lines=tuple(
            DisputeTransaction(
                text(line, "id"),
                text(line, "currency").upper(),
                number(line, "amount"),
                number(line, "fee"),
            )
            for line in sorted(lines, key=lambda line: number(line, "created"))
        ),
        create_time=moment(dispute, "created"),
    )


def fraud_warning_of(warning: Json) -> FraudWarning:
    """Returns an early fraud warning."""
    return FraudWarning(
        text(warning, "id"), text(warning, "fraud_type"), flag(warning, "actionable")
    )


def account_of(account: Json) -> Account:
    """Returns a connected account and what Stripe still requires of it."""
    requirements = part(account, "requirements")
    future = part(account, "future_requirements")
    capabilities = part(account, "capabilities")
    return Account(
        stripe_account_id=text(account, "id"),
        charges_enabled=flag_or_false(account, "charges_enabled"),
        payouts_enabled=flag_or_false(account, "payouts_enabled"),
        transfers_active=text_or_empty(capabilities, "transfers") == "active",
        details_submitted=flag_or_false(account, "details_submitted"),
        requirements_due=_required(requirements),
        requirements_due_time=moment_or_none(requirements, "current_deadline"),
        future_requirements=_required(future),
        future_requirements_due_time=moment_or_none(future, "current_deadline"),
        disabled_reason=text_or_empty(requirements, "disabled_reason"),
    )


def _required(requirements: Json | None) -> tuple[str, ...]:
    """Returns what one of an account's two hashes of requirements asks for, by Stripe's names."""
    due = texts(requirements, "currently_due") + texts(requirements, "past_due")
    return tuple(dict.fromkeys(due))


def found_account_of(account: Json) -> FoundAccount:
    """Returns a connected account with its metadata."""
    created = number_or_none(account, "created") or 0
    return FoundAccount(
        account_of(account), metadata_of(account), datetime.fromtimestamp(created, UTC)
    )


def payout_of(payout: Json) -> PayoutSnapshot:
    """Returns a payout; after a failure it has a second balance transaction."""
    try:
        state = PayoutState(text(payout, "status").upper())
    except ValueError:
        state = PayoutState.UNKNOWN
    return PayoutSnapshot(
        payout_id=text(payout, "id"),
        minor_units=number(payout, "amount"),
        currency=text(payout, "currency").upper(),
        state=state,
        automatic=flag(payout, "automatic"),
        arrival_time=moment(payout, "arrival_date"),
        create_time=moment(payout, "created"),
        failure_code=text_or_empty(payout, "failure_code"),
        line=_payout_line(payout, "balance_transaction"),
        failure_line=_payout_line(payout, "failure_balance_transaction"),
    )


def _payout_line(payout: Json, name: str) -> PayoutTransaction | None:
    """Returns the signed net amount by which the payout changed the account's balance."""
    line = part(payout, name)
    if line is None:
        return None
    return PayoutTransaction(text(line, "id"), text(line, "currency").upper(), number(line, "net"))


def account_balances_of(balance: Json) -> tuple[AccountBalance, ...]:
    """Returns available and pending amounts by currency."""
    available, pending = (
        {text(one, "currency").upper(): number(one, "amount") for one in parts(balance, name)}
        for name in ("available", "pending")
    )
    return tuple(
        AccountBalance(currency, available.get(currency, 0), pending.get(currency, 0))
        for currency in sorted(available.keys() | pending.keys())
    )


def balance_entry_of(line: Json) -> BalanceEntry:
    """Returns a balance transaction with its signed net amount."""
    return BalanceEntry(
        text(line, "id"),
        text(line, "currency").upper(),
        number(line, "net"),
        text(line, "type"),
        reference_of(part(line, "source") or {}),
        moment(line, "created"),
        text_or_empty(line, "reporting_category"),
        text_or_empty(line, "description"),
        id_in(line, "source"),
    )


def line_of(shown: Json | None, name: str = "balance_transaction") -> BalanceTransaction | None:
    """Returns an object's balance transaction without its sign.

    Returns None if it is missing or a plain id.
    """
    line = part(shown, name)
    if line is None:
        return None
    return BalanceTransaction(
        text(line, "id"),
        text(line, "currency").upper(),
        abs(number(line, "amount")),
        number(line, "fee"),
    )
