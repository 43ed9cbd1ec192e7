"""Conversion of Stripe's objects to snapshots of the domain.

Stripe may add values to its enums at any time, and a new value must not break a payment. So an
unknown status becomes ``UNKNOWN`` and is reported as a discrepancy. A field may be expanded or a
plain id.

Amounts are minor units of the object's own currency.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

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

if TYPE_CHECKING:  # Only for types: the conversion itself does not need the package.
    import stripe
    from stripe._stripe_object import UntypedStripeObject

#: The key in a dispute's metadata: which operation stored its evidence.
EVIDENCE_OPERATION: Final = "evidence_operation_id"
_SEARCH_MARGIN: Final = timedelta(minutes=10)


def creation_window(created: datetime) -> tuple[int, int]:
    """Returns the first and last second (Unix time) in which an operation's object was created.

    The window allows for clocks that differ, and for a day in which the request was repeated. It
    begins a day before: a restored database may have lost the first request.
    """
    most = timedelta(days=1) + _SEARCH_MARGIN
    return int((created - most).timestamp()), int((created + most).timestamp())


def observation_of(
    intent: stripe.PaymentIntent,
    *,
    refunds: tuple[Refund, ...] = (),
    reversals: tuple[Reversal, ...] = (),
    fee_refunds: tuple[FeeRefund, ...] = (),
    separate_transfers: tuple[Transfer, ...] = (),
    disputes: tuple[DisputeSnapshot, ...] = (),
) -> PaymentSnapshot:
    """Returns an intent, and what was listed apart from it, as one snapshot."""
    charge = intent.latest_charge
    error = intent.last_payment_error
    return PaymentSnapshot(
        payment_intent_id=intent.id,
        status=status_of(intent.status),
        minor_units=intent.amount,
        currency=intent.currency.upper(),
        amount_received=intent.amount_received or 0,
        cancellation_reason=intent.cancellation_reason or "",
        accepts_cards="card" in intent.payment_method_types,
        decline=decline_of(error) if error else None,
        charge=None
        if charge is None or isinstance(charge, str)
        else charge_of(charge, reversals, fee_refunds),
        refunds=refunds,
        separate_transfers=separate_transfers,
        disputes=disputes,
        metadata=metadata_of(intent.metadata),
        create_time=datetime.fromtimestamp(intent.created, UTC),
        client_secret=intent.client_secret or "",
    )


def status_of(status: str) -> IntentStatus:
    """Returns the status, or UNKNOWN if Stripe has added a new one."""
    try:
        return IntentStatus(status)
    except ValueError:
        return IntentStatus.UNKNOWN


def decline_of(error: stripe.PaymentIntent.LastPaymentError) -> Decline:
    """Returns why the card was declined. A failed authentication has no decline code."""
    code = getattr(error, "code", None) or error.type
    return Decline(code, getattr(error, "decline_code", None) or "")


def charge_of(
    charge: stripe.Charge,
    reversals: tuple[Reversal, ...],
    fee_refunds: tuple[FeeRefund, ...],
) -> Charge:
    """Returns a charge with its balance transaction, transfer and application fee."""
    details = charge.payment_method_details
    card = details.card if details and details.type == "card" else None
    before = getattr(card, "capture_before", None)
    transfer = getattr(charge, "transfer", None)
    fee = charge.application_fee
    return Charge(
        charge_id=charge.id,
        captured=charge.captured,
        amount_captured=charge.amount_captured,
        capture_before=datetime.fromtimestamp(before, UTC) if before else None,
        line=line_of(charge.balance_transaction),
        transfer=None
        if transfer is None or isinstance(transfer, str)
        else transfer_of(transfer, reversals),
        application_fee_amount=charge.application_fee_amount or 0,
        application_fee=None
        if fee is None or isinstance(fee, str)
        else application_fee_of(fee, charge, fee_refunds),
        review_id=open_review_of(charge.review),
        create_time=datetime.fromtimestamp(charge.created, UTC),
    )


def open_review_of(review: str | stripe.Review | None) -> str:
    """Returns the id of a manual review that is open; one that was not expanded may be."""
    if review is None:
        return ""
    if isinstance(review, str):
        return review
    return review.id if review.open else ""


def application_fee_of(
    fee: stripe.ApplicationFee, charge: stripe.Charge, refunds: tuple[FeeRefund, ...]
) -> ApplicationFee:
    """Returns the fee in the charge's currency.

    Stripe's object has its amounts in the currency of the settlement instead.
    """
    amount = charge.application_fee_amount or fee.amount
    if fee.currency != charge.currency:
        refunds = tuple(
            replace(refund, minor_units=refund.minor_units * amount // fee.amount)
            for refund in refunds
        )
    return ApplicationFee(fee.id, amount, line_of(fee.balance_transaction), refunds)


def transfer_of(transfer: stripe.Transfer, reversals: tuple[Reversal, ...] = ()) -> Transfer:
    """Returns a transfer with its reversals."""
    return Transfer(
        transfer_id=transfer.id,
        minor_units=transfer.amount,
        currency=transfer.currency.upper(),
        operation_id=metadata_of(transfer.metadata).get("operation_id", ""),
        destination_account_id=_id_of(transfer.destination),
        line=line_of(transfer.balance_transaction),
        connected_line=_connected_line(transfer.destination_payment),
        reversals=reversals,
        metadata=metadata_of(transfer.metadata),
        create_time=datetime.fromtimestamp(transfer.created, UTC),
    )


def _id_of(account: str | stripe.Account | None) -> str:
    """Returns the id of an account that is expanded, a plain id, or missing ("")."""
    return account or "" if account is None or isinstance(account, str) else account.id


def refund_of(refund: stripe.Refund) -> Refund:
    """Returns a refund; after a failure it has a second balance transaction."""
    return Refund(
        refund_id=refund.id,
        minor_units=refund.amount,
        status=refund.status or "",
        operation_id=metadata_of(refund.metadata).get("operation_id", ""),
        line=line_of(refund.balance_transaction),
        failure_line=line_of(getattr(refund, "failure_balance_transaction", None)),
        metadata=metadata_of(refund.metadata),
        create_time=datetime.fromtimestamp(refund.created, UTC),
    )


def reversal_of(reversal: stripe.TransferReversal) -> Reversal:
    """Returns a reversal of a transfer."""
    return Reversal(
        reversal_id=reversal.id,
        minor_units=reversal.amount,
        operation_id=metadata_of(reversal.metadata).get("operation_id", ""),
        line=line_of(reversal.balance_transaction),
        connected_line=_connected_line(reversal.destination_payment_refund),
        # In a preview of Stripe's; other accounts get no status.
        status=getattr(reversal, "status", None) or "",
        metadata=metadata_of(reversal.metadata),
        create_time=datetime.fromtimestamp(reversal.created, UTC),
    )


def fee_refund_of(refund: stripe.ApplicationFeeRefund) -> FeeRefund:
    """Returns a refund of an application fee."""
    return FeeRefund(refund.id, refund.amount, line_of(refund.balance_transaction))


def dispute_of(dispute: stripe.Dispute) -> DisputeSnapshot:
    """Returns a dispute with its balance transactions."""
    details = dispute.evidence_details
    charge = dispute.charge
    return DisputeSnapshot(
        dispute_id=dispute.id,
        charge_id=charge if isinstance(charge, str) else charge.id,
        status=dispute.status,
        reason=dispute.reason,
        minor_units=dispute.amount,
        due_by=datetime.fromtimestamp(details.due_by, UTC) if details.due_by else None,
        has_evidence=details.has_evidence,
        submission_count=details.submission_count,
        operation_id=metadata_of(dispute.metadata).get(EVIDENCE_OPERATION, ""),
        lines=tuple(
            DisputeTransaction(line.id, line.currency.upper(), line.amount, line.fee)
            for line in sorted(dispute.balance_transactions, key=lambda line: line.created)
        ),
        create_time=datetime.fromtimestamp(dispute.created, UTC),
    )


def fraud_warning_of(warning: stripe.radar.EarlyFraudWarning) -> FraudWarning:
    """Returns an early fraud warning."""
    return FraudWarning(warning.id, warning.fraud_type, warning.actionable)


def account_of(account: stripe.Account) -> Account:
    """Returns a connected account and what Stripe still requires of it."""
    requirements = account.requirements
    future = getattr(account, "future_requirements", None)
    capabilities = account.capabilities
    return Account(
        stripe_account_id=account.id,
        charges_enabled=bool(account.charges_enabled),
        payouts_enabled=bool(account.payouts_enabled),
        transfers_active=bool(capabilities and capabilities.transfers == "active"),
        details_submitted=bool(account.details_submitted),
        requirements_due=_required(requirements),
        requirements_due_time=_deadline(requirements),
        future_requirements=_required(future),
        future_requirements_due_time=_deadline(future),
        disabled_reason=(requirements.disabled_reason or "") if requirements else "",
    )


def _required(hash_: Any) -> tuple[str, ...]:
    """Returns what one of an account's two hashes of requirements asks for, by Stripe's names."""
    due = [getattr(hash_, name, None) or () for name in ("currently_due", "past_due")]
    return tuple(dict.fromkeys(requirement for part in due for requirement in part))


def _deadline(hash_: Any) -> datetime | None:
    """Returns when that is due, or None if Stripe names no time."""
    deadline = getattr(hash_, "current_deadline", None)
    return None if deadline is None else datetime.fromtimestamp(deadline, UTC)


def found_account_of(account: stripe.Account) -> FoundAccount:
    """Returns a connected account with its metadata."""
    created = account.created or 0
    return FoundAccount(
        account_of(account),
        metadata_of(account.metadata),
        datetime.fromtimestamp(created, UTC),
    )


def payout_of(payout: stripe.Payout) -> PayoutSnapshot:
    """Returns a payout; after a failure it has a second balance transaction."""
    try:
        state = PayoutState(payout.status.upper())
    except ValueError:
        state = PayoutState.UNKNOWN
    return PayoutSnapshot(
        payout_id=payout.id,
        minor_units=payout.amount,
        currency=payout.currency.upper(),
        state=state,
        automatic=payout.automatic,
        arrival_time=datetime.fromtimestamp(payout.arrival_date, UTC),
        create_time=datetime.fromtimestamp(payout.created, UTC),
        failure_code=getattr(payout, "failure_code", None) or "",
        line=_payout_line(payout.balance_transaction),
        failure_line=_payout_line(getattr(payout, "failure_balance_transaction", None)),
    )


def _payout_line(transaction: stripe.BalanceTransaction | str | None) -> PayoutTransaction | None:
    """Returns the signed net amount by which the payout changed the account's balance."""
    if transaction is None or isinstance(transaction, str):
        return None
    return PayoutTransaction(transaction.id, transaction.currency.upper(), transaction.net)


def account_balances_of(balance: stripe.Balance) -> tuple[AccountBalance, ...]:
    """Returns available and pending amounts by currency."""
    available, pending = (
        {part.currency.upper(): part.amount for part in parts}
        for parts in (balance.available, balance.pending)
    )
    return tuple(
        AccountBalance(currency, available.get(currency, 0), pending.get(currency, 0))
        for currency in sorted(available.keys() | pending.keys())
    )


def balance_entry_of(transaction: stripe.BalanceTransaction) -> BalanceEntry:
    """Returns a balance transaction with its signed net amount."""
    source = transaction.source
    shown = source.to_dict() if source is not None and not isinstance(source, str) else {}
    return BalanceEntry(
        transaction.id,
        transaction.currency.upper(),
        transaction.net,
        transaction.type,
        reference_of(shown),
        datetime.fromtimestamp(transaction.created, UTC),
        transaction.reporting_category or "",
        transaction.description or "",
        source if isinstance(source, str) else str(shown.get("id", "")),
    )


def line_of(transaction: stripe.BalanceTransaction | str | None) -> BalanceTransaction | None:
    """Returns a balance transaction without its sign, or None if it is missing or a plain id."""
    if transaction is None or isinstance(transaction, str):
        return None
    return BalanceTransaction(
        transaction.id, transaction.currency.upper(), abs(transaction.amount), transaction.fee
    )


def _connected_line(payment: object) -> BalanceTransaction | None:
    """Returns the balance transaction of a payment (or its refund) on the connected account."""
    return line_of(getattr(payment, "balance_transaction", None))


def metadata_of(metadata: UntypedStripeObject[str] | None) -> dict[str, str]:
    """Returns the metadata, or an empty dictionary."""
    return dict(metadata.to_dict()) if metadata else {}
