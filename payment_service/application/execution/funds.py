"""Operations that wait until the platform's available balance covers them.

Stripe keeps a card's refund pending, or refuses it, while the *available* balance is too low: what
is still pending there does not count. Nothing is lost, and only money ends it: so the caller is
answered, the operation stays open, and a discrepancy says what is missing.
"""

from __future__ import annotations

from collections.abc import Sequence

import structlog

from payment_service.application.app import App
from payment_service.application.operations.lease import release
from payment_service.domain.discrepancies import DiscrepancyKind
from payment_service.domain.errors import Refusal
from payment_service.domain.operations import Operation, Retry
from payment_service.domain.payment import Payment
from payment_service.domain.payouts import AccountBalance
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause
from payment_service.domain.sync.changes import Discrepancy

log = structlog.get_logger(__name__)


async def release_accepted(
    app: App, operation: Operation, payment: Payment | None, cause: Cause
) -> None:
    """Gives back the lease of an operation that Stripe has accepted and does later.

    The first look comes before the expert's part is collected, so it reports nothing yet.
    """
    waits = payment is not None and payment.waits_for_funds
    why = "waits for the platform's balance" if waits else "accepted by Stripe, not done yet"
    pause = app.policy.funds_check_seconds
    how = Retry(why=why, after=pause, counts=False, answered=True)
    await release(app, operation, how, cause)
    if waits and operation.tries:
        await report_missing_funds(app, operation)


async def report_missing_funds(app: App, operation: Operation) -> None:
    """Reports what the platform's available balance lacks for an operation, as far as it shows."""
    payment = await app.database.read(lambda reader: reader.payment(operation.payment_id))
    if payment is None or payment.operation_id != operation.operation_id:
        return
    try:
        balances = await app.stripe.account_balance("") or ()
    except Refusal as refusal:
        log.info("balance_not_read", reason=refusal.reason)
        return
    available = available_in(balances, payment.currency)
    missing = max(operation.minor_units - available, 0)
    reported = await app.database.transact(report_waiting, operation, payment.currency, available)
    if reported:
        log.warning(
            "refund_waits_for_funds",
            payment=payment.payment_id,
            operation=operation.operation_id,
            missing=missing,
            currency=payment.currency,
        )
        app.alarms.discrepancy(payment.payment_id, DiscrepancyKind.REFUND_WAITS_FOR_FUNDS)


def report_waiting(tx: Transaction, operation: Operation, currency: str, available: int) -> bool:
    """Stores the discrepancy, unless the operation has ended meanwhile."""
    payment = tx.lock_payment(operation.payment_id)
    if payment is None or payment.operation_id != operation.operation_id:
        return False
    if not payment.waits_for_funds:
        return False
    tx.report(
        Discrepancy(
            payment.payment_id,
            DiscrepancyKind.REFUND_WAITS_FOR_FUNDS,
            operation.operation_id,
            expected=operation.minor_units,
            found=available,
            currency=currency,
            remediation="add the difference to the platform's available balance; "
            "the refund or the transfer then continues by itself",
        )
    )
    return True


def available_in(balances: Sequence[AccountBalance], currency: str) -> int:
    """Returns what is available in a currency; 0 if the account has no balance in it."""
    return sum(balance.available for balance in balances if balance.currency == currency)
