"""Collects what experts owe as soon as their accounts have it.

A debt arises where a reversal found too little in the expert's account, or where a refund waits for
the platform's balance. Captures keep debts back too; each part of a debt is reserved under the
expert's lock by one of them only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from payment_service.application.app import App
from payment_service.application.execution.executor import (
    execute,
    execute_followups,
    sync_and_execute,
)
from payment_service.application.fair_queue import isolated
from payment_service.application.operations.start import start_operation
from payment_service.application.sync.payment import apply
from payment_service.domain.operation_payloads import CollectionPayload
from payment_service.domain.operations import (
    Operation,
    OperationKind,
    OperationPurpose,
    OperationState,
)
from payment_service.domain.payment import Payment
from payment_service.domain.payouts import AccountBalance
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import Cause, DebtCheck, JobKind
from payment_service.domain.snapshot import PaymentSnapshot, Transfer
from payment_service.domain.sync.reversals import collectible

COLLECTION: Final = Cause("payment_service", "collect_debts")

_BATCH: Final = 8
#: Less than this is not worth a reversal, unless it pays all that is owed; minor units.
_LEAST: Final = 100
#: The most payments of one expert that one round looks at.
_PAYMENTS: Final = 10


async def collect_debts(app: App) -> int:
    """Collects the debts that are due. Returns how many experts were looked at."""
    if app.stripe.is_unavailable:
        return 0
    looked_at = 0
    while looked_at < _BATCH:
        check = await app.database.transact(lease_check, app.policy)
        if check is None:
            break
        done = await isolated(
            JobKind.COLLECT_DEBTS, check.expert_id, lambda one: collect_from(app, one)
        )
        await app.database.transact(pause_check, app.policy, check, done=done)
        looked_at += 1
    return looked_at


def lease_check(tx: Transaction, policy: Policy) -> DebtCheck | None:
    """Returns the check that is due first. While the lease lasts, no other replica gets it.

    If this process dies meanwhile, another one collects after the lease, and not after the pause.
    While the books catch up with Stripe none is due, so that its pause does not grow for nothing.
    """
    if tx.catches_up():
        return None
    return tx.lease_debt_check(policy.lease)


def pause_check(tx: Transaction, policy: Policy, check: DebtCheck, *, done: bool) -> None:
    """Plans the next check, unless money has come meanwhile or nothing is owed any more.

    A check that failed says nothing about the account, so it is repeated soon.
    """
    first = policy.debt_check_first_seconds if done else policy.lease
    tx.pause_debt_check(check, first, policy.debt_check_longest_seconds)


def end_check(tx: Transaction, expert_id: str) -> bool:
    """Returns whether the expert owes nothing any more; then no further check is made."""
    return tx.end_debt_check(expert_id)


async def collect_from(app: App, expert_id: str) -> None:
    """Takes what the expert owes, as far as the account has it now.

    A debt is taken back by reversing what is left of the transfers of the payment that left it.
    Stripe may have converted such a transfer: then the account's own currency pays in proportion.
    """
    if await app.database.transact(end_check, expert_id):
        return
    for currency, _, debt in await app.database.read(
        lambda reader: reader.expert_balances(expert_id)
    ):
        if debt > 0:
            await _collect(app, expert_id, currency)


async def _collect(app: App, expert_id: str, currency: str) -> None:
    balances: dict[str, Sequence[AccountBalance] | None] = {}
    for payment, snapshot in await _candidates(app, expert_id, currency):
        for transfer in reversed(snapshot.transfers):
            account_id = transfer.destination_account_id
            if account_id not in balances:
                balances[account_id] = await app.stripe.account_balance(account_id)
            shown = balances[account_id] or ()
            for available in _bearable(snapshot, transfer, shown):
                operation = await app.database.transact(
                    begin_collection, app.policy, Collection(payment, transfer, available)
                )
                if operation is None:
                    continue
                balances.pop(account_id, None)
                await execute(app, operation, 0, COLLECTION)
                if await _succeeded(app, operation):
                    break


async def _candidates(
    app: App, expert_id: str, currency: str
) -> Sequence[tuple[Payment, PaymentSnapshot]]:
    """Returns the payments to collect from, as Stripe shows them.

    All are booked as Stripe shows them first: a restored database may have lost collections.
    """
    shown = []
    for payment_id, intent_id in await app.database.read(_listed, expert_id, currency):
        before = await app.database.read(_payment, payment_id)
        snapshot = await app.stripe.observe(intent_id)
        if before is None or snapshot is None:
            continue
        applied = await apply(app, payment_id, snapshot, before.version, COLLECTION)
        if applied.shows_more:
            applied = await sync_and_execute(app, payment_id, COLLECTION)
        else:
            applied = await execute_followups(app, applied, COLLECTION)
        if applied.payment is not None:
            shown.append((applied.payment, snapshot))
    return shown


def _listed(reader: Reader, expert_id: str, currency: str) -> Sequence[tuple[str, str]]:
    return reader.collectible_payments(expert_id, currency, _PAYMENTS)


def _bearable(
    snapshot: PaymentSnapshot, transfer: Transfer, balances: Sequence[AccountBalance]
) -> Iterator[int]:
    """Returns what a reversal may take, the most first, in the transfer's currency.

    What is pending can be taken back only by the transfer that a destination charge made. Stripe
    may refuse that, so what is available is tried next.
    """
    for balance in balances:
        if balance.currency != transfer.currency:
            continue
        own = snapshot.charge.transfer if snapshot.charge else None
        made_by_charge = own is not None and own.transfer_id == transfer.transfer_id
        if made_by_charge and balance.pending > 0:
            yield balance.available + balance.pending
        yield balance.available


@dataclass(frozen=True, slots=True)
class Collection:
    """A transfer to take from, and what the expert's account has in its currency."""

    payment: Payment
    transfer: Transfer
    available: int


def begin_collection(tx: Transaction, policy: Policy, wanted: Collection) -> Operation | None:
    """Reserves a part of the debt by an operation, under the expert's lock.

    Returns None if nothing is owed that nobody else takes, or if nothing can be taken. So it is
    while the books catch up with Stripe: the debt may be paid by what they do not know yet.
    """
    payment, transfer = wanted.payment, wanted.transfer
    expert_id = payment.expert_id
    if tx.lock_expert(expert_id) is None or tx.has_open_collection(expert_id):
        return None
    if tx.catches_up():
        return None
    # Nothing that was read before the lock counts: others may have taken it back meanwhile.
    owed = tx.collectible_debt(expert_id, payment.currency, payment.payment_id)
    if not tx.is_collectible(payment.payment_id):  # An operator has decided since it was listed.
        return None
    before = tx.reversed_amounts(payment.payment_id).get(transfer.transfer_id, 0)
    amount, taken = collectible(owed, wanted.available, transfer, payment, before)
    if not amount or amount < min(owed, _LEAST):
        return None
    return start_operation(
        tx,
        policy,
        kind=OperationKind.COLLECT_DEBT,
        purpose=OperationPurpose.DEBT,
        expert_id=expert_id,
        operation_id=tx.operation_id_for(expert_id, OperationPurpose.DEBT, transfer.transfer_id),
        minor_units=amount,
        payload=CollectionPayload(
            payment_id=payment.payment_id,
            transfer_id=transfer.transfer_id,
            transfer_minor_units=taken,
            currency=payment.currency,
        ),
    )


def _payment(reader: Reader, payment_id: str) -> Payment | None:
    return reader.payment(payment_id)


async def _succeeded(app: App, operation: Operation) -> bool:
    known = await app.database.read(lambda reader: reader.operation(operation.operation_id))
    return known is not None and known.state is OperationState.SUCCEEDED
