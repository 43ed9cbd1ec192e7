"""Stripe's objects as the domain's observations: pure conversion, tolerant of what it does not use.

Enums of Stripe's are open: a new value must not break a payment, so an unknown status becomes
``UNKNOWN`` and is reported as a discrepancy. Fields may come expanded or as plain ids.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from payment_service.domain.envelope import OddEvent, reference_of
from payment_service.domain.experts import Account
from payment_service.domain.observation import (
    ApplicationFee,
    BalanceLine,
    Charge,
    Decline,
    DisputeLine,
    FeeRefund,
    FraudWarning,
    IntentStatus,
    Observation,
    Refund,
    Reversal,
    ShownDispute,
    Transfer,
)
from payment_service.domain.payouts import AccountBalance, PayoutLine, PayoutState, SeenPayout
from payment_service.domain.ports import BalanceEntry

if TYPE_CHECKING:  # Only the port's implementation imports stripe at run time.
    import stripe
    from stripe._stripe_object import UntypedStripeObject

#: In a dispute's metadata: whose evidence it holds.
EVIDENCE_OPERATION: Final = "evidence_operation_id"


def observation_of(
    intent: stripe.PaymentIntent,
    *,
    refunds: tuple[Refund, ...] = (),
    reversals: tuple[Reversal, ...] = (),
    fee_refunds: tuple[FeeRefund, ...] = (),
    separate_transfers: tuple[Transfer, ...] = (),
    disputes: tuple[ShownDispute, ...] = (),
) -> Observation:
    charge = intent.latest_charge
    error = intent.last_payment_error
    return Observation(
        payment_intent_id=intent.id,
        status=status_of(intent.status),
        minor_units=intent.amount,
        currency=intent.currency.upper(),
        amount_received=intent.amount_received or 0,
        cancellation_reason=intent.cancellation_reason or "",
        decline=decline_of(error) if error else None,
        charge=None
        if charge is None or isinstance(charge, str)
        else charge_of(charge, reversals, fee_refunds),
        refunds=refunds,
        separate_transfers=separate_transfers,
        disputes=disputes,
        metadata=metadata_of(intent.metadata),
        client_secret=intent.client_secret or "",
    )


def status_of(status: str) -> IntentStatus:
    try:
        return IntentStatus(status)
    except ValueError:
        return IntentStatus.UNKNOWN


def decline_of(error: stripe.PaymentIntent.LastPaymentError) -> Decline:
    """Stripe leaves out what does not apply: a failed authentication has no decline code."""
    code = getattr(error, "code", None) or error.type
    return Decline(code, getattr(error, "decline_code", None) or "")


def charge_of(
    charge: stripe.Charge,
    reversals: tuple[Reversal, ...],
    fee_refunds: tuple[FeeRefund, ...],
) -> Charge:
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
    )


def application_fee_of(
    fee: stripe.ApplicationFee, charge: stripe.Charge, refunds: tuple[FeeRefund, ...]
) -> ApplicationFee:
    """In the charge's currency. The object itself is in that of the settlement."""
    amount = charge.application_fee_amount or fee.amount
    if fee.currency != charge.currency:
        refunds = tuple(
            replace(refund, minor_units=refund.minor_units * amount // fee.amount)
            for refund in refunds
        )
    return ApplicationFee(fee.id, amount, line_of(fee.balance_transaction), refunds)


def transfer_of(transfer: stripe.Transfer, reversals: tuple[Reversal, ...] = ()) -> Transfer:
    return Transfer(
        transfer_id=transfer.id,
        minor_units=transfer.amount,
        currency=transfer.currency.upper(),
        operation_id=metadata_of(transfer.metadata).get("operation_id", ""),
        destination_account_id=_id_of(transfer.destination),
        line=line_of(transfer.balance_transaction),
        connected_line=_connected_line(transfer.destination_payment),
        reversals=reversals,
    )


def _id_of(account: str | stripe.Account | None) -> str:
    return account or "" if account is None or isinstance(account, str) else account.id


def refund_of(refund: stripe.Refund) -> Refund:
    return Refund(
        refund_id=refund.id,
        minor_units=refund.amount,
        status=refund.status or "",
        operation_id=metadata_of(refund.metadata).get("operation_id", ""),
        line=line_of(refund.balance_transaction),
        failure_line=line_of(getattr(refund, "failure_balance_transaction", None)),
    )


def reversal_of(reversal: stripe.TransferReversal) -> Reversal:
    return Reversal(
        reversal_id=reversal.id,
        minor_units=reversal.amount,
        operation_id=metadata_of(reversal.metadata).get("operation_id", ""),
        line=line_of(reversal.balance_transaction),
        connected_line=_connected_line(reversal.destination_payment_refund),
    )


def fee_refund_of(refund: stripe.ApplicationFeeRefund) -> FeeRefund:
    return FeeRefund(refund.id, refund.amount, line_of(refund.balance_transaction))


def dispute_of(dispute: stripe.Dispute) -> ShownDispute:
    details = dispute.evidence_details
    charge = dispute.charge
    return ShownDispute(
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
            DisputeLine(line.id, line.currency.upper(), line.amount, line.fee)
            for line in dispute.balance_transactions
        ),
        create_time=datetime.fromtimestamp(dispute.created, UTC),
    )


def fraud_warning_of(warning: stripe.radar.EarlyFraudWarning) -> FraudWarning:
    return FraudWarning(warning.id, warning.fraud_type, warning.actionable)


def account_of(account: stripe.Account) -> Account:
    requirements = account.requirements
    due = [
        *(requirements.currently_due or () if requirements else ()),
        *(requirements.past_due or () if requirements else ()),
    ]
    capabilities = account.capabilities
    return Account(
        stripe_account_id=account.id,
        charges_enabled=bool(account.charges_enabled),
        payouts_enabled=bool(account.payouts_enabled),
        transfers_active=bool(capabilities and capabilities.transfers == "active"),
        details_submitted=bool(account.details_submitted),
        requirements_due=tuple(dict.fromkeys(due)),
        disabled_reason=(requirements.disabled_reason or "") if requirements else "",
    )


def payout_of(payout: stripe.Payout) -> SeenPayout:
    try:
        state = PayoutState(payout.status.upper())
    except ValueError:
        state = PayoutState.UNKNOWN
    return SeenPayout(
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


def _payout_line(transaction: stripe.BalanceTransaction | str | None) -> PayoutLine | None:
    """Signed and net: what the account's balance moved by."""
    if transaction is None or isinstance(transaction, str):
        return None
    return PayoutLine(transaction.id, transaction.currency.upper(), transaction.net)


def account_balances_of(balance: stripe.Balance) -> tuple[AccountBalance, ...]:
    available, pending = (
        {part.currency.upper(): part.amount for part in parts}
        for parts in (balance.available, balance.pending)
    )
    return tuple(
        AccountBalance(currency, available.get(currency, 0), pending.get(currency, 0))
        for currency in sorted(available.keys() | pending.keys())
    )


def balance_entry_of(transaction: stripe.BalanceTransaction) -> BalanceEntry:
    source = transaction.source
    shown = source.to_dict() if source is not None and not isinstance(source, str) else {}
    try:
        reference = reference_of(shown)
    except OddEvent:
        reference = ""
    return BalanceEntry(
        transaction.id,
        transaction.currency.upper(),
        transaction.net,
        transaction.type,
        reference,
        datetime.fromtimestamp(transaction.created, UTC),
    )


def line_of(transaction: stripe.BalanceTransaction | str | None) -> BalanceLine | None:
    """A balance transaction, unsigned; None while Stripe has none, or where it came as an id."""
    if transaction is None or isinstance(transaction, str):
        return None
    return BalanceLine(
        transaction.id, transaction.currency.upper(), abs(transaction.amount), transaction.fee
    )


def _connected_line(payment: object) -> BalanceLine | None:
    """The connected account's side, which hangs on the payment (or its refund) there."""
    return line_of(getattr(payment, "balance_transaction", None))


def metadata_of(metadata: UntypedStripeObject[str] | None) -> dict[str, str]:
    return dict(metadata.to_dict()) if metadata else {}
