"""Brings a restored database up to what Stripe shows, before the replicas serve again.

It reads what Stripe has made or changed since the backup and records what carries the marks of this
installation. It sends nothing that moves money. It may be run again at any time: what is on the
books by then is found and left as it is.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

from payment_service.application.app import App
from payment_service.application.sync.lost_payments import record_account, recover_payment
from payment_service.application.sync.payment import Occasion, sync_payment
from payment_service.domain.errors import Refusal
from payment_service.domain.operation_payloads import CancelPayload
from payment_service.domain.operations import Operation, OperationKind, OperationState
from payment_service.domain.payment import State
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.reader import Reader
from payment_service.domain.ports.records import (
    Cause,
    ListedOperation,
    StoredDiscrepancy,
    StoredEvent,
    WebhookEvent,
)
from payment_service.domain.webhook_event import FRAUD_EVENTS, OPERATION_KEY

RESTORE: Final = Cause("operator", "recover-after-restore")

_PAGE: Final = 200
_PROGRESS_EVERY: Final = 50


@dataclass(slots=True)
class Recovered:
    """What was recovered, counted, and what a person must decide."""

    accounts: int = 0
    payments: int = 0
    changed: int = 0
    checked: int = 0
    #: One line each.
    to_decide: list[str] = field(default_factory=list)


async def recover_after_restore(app: App, since: datetime, result: Recovered) -> AsyncIterator[str]:
    """Recovers everything, and yields a line for each thing that it does."""
    yield f"reading the accounts that were created since {since.isoformat()}"
    for found in await app.stripe.accounts_since(since):
        expert_id = await app.database.transact(
            record_account, app.answers, app.policy, found, RESTORE
        )
        if expert_id:
            result.accounts += 1
            account = found.account.stripe_account_id
            yield f"recovered expert {expert_id} with the account {account}"
    yield "reading the intents that were created since then"
    async for line in _recover_payments(app, since, result):
        yield line
    yield "reading the events since then"
    listed = await app.stripe.events("", "", since)
    async for line in _sync_payments(app, listed.events if listed else (), result):
        yield line
    async for line in _what_is_left(app, result):
        yield line


async def _recover_payments(app: App, since: datetime, result: Recovered) -> AsyncIterator[str]:
    installation_id = await app.database.installation_id()
    for intent, metadata in await app.stripe.intents_since(since):
        if metadata.get("installation_id") != installation_id:
            continue
        if await app.database.read(_payment_of, intent):
            continue
        try:
            recorded = await recover_payment(app, intent, RESTORE)
        except Refusal as refusal:
            result.to_decide.append(f"intent {intent}: {refusal.sentence}; run the command again")
            continue
        if recorded is None:
            continue
        if recorded.is_new:
            result.payments += 1
            yield f"recovered payment {recorded.payment_id} with the intent {intent}"
        if recorded.discrepancy is not None:
            found = recorded.discrepancy
            result.to_decide.append(f"{found.kind}: {found.detail}; {found.remediation}")


async def _sync_payments(
    app: App, events: Sequence[WebhookEvent], result: Recovered
) -> AsyncIterator[str]:
    """Syncs the payments of the events; each once."""
    warned: dict[str, bool] = {}
    for event in events:
        payment_id = await app.database.read(_payment_of, event.payment_ref)
        if payment_id is not None:
            warned[payment_id] = warned.get(payment_id, False) or event.type in FRAUD_EVENTS
    yield f"comparing {len(warned)} payments with Stripe"
    for payment_id, is_warned in warned.items():
        before = await app.database.read(_version_of, payment_id)
        try:
            applied = await sync_payment(
                app, payment_id, RESTORE, occasion=Occasion(warned=is_warned)
            )
        except Refusal as refusal:
            result.to_decide.append(f"{payment_id}: {refusal.sentence}; run the command again")
            continue
        result.checked += 1
        result.changed += int(applied.changed)
        for change in await app.database.read(_events_after, payment_id, before):
            yield f"{payment_id}: {_described(change)}"
        if result.checked % _PROGRESS_EVERY == 0:
            yield f"{result.checked} of {len(warned)} payments compared"
    for event in events:
        key = OPERATION_KEY.fullmatch(event.request_key)
        if event.type == "payment_intent.canceled" and key is not None:
            await app.database.transact(record_cancel, event.payment_intent_id, key[1])


def record_cancel(tx: Transaction, payment_intent_id: str, operation_id: str) -> None:
    """Records the operation that canceled an intent, so that its repeated call is answered.

    An intent keeps no mark of its cancellation; the event names the key of the request.
    """
    payment_id = tx.payment_of_intent(payment_intent_id)
    payment = tx.lock_payment(payment_id) if payment_id else None
    if payment is None or payment.state not in (State.CANCELED, State.EXPIRED):
        return
    if tx.known_operations([operation_id]):
        return
    tx.add_operation(
        Operation(
            operation_id=operation_id,
            kind=OperationKind.CANCEL,
            payment_id=payment.payment_id,
            payload=CancelPayload(payment_intent_id=payment_intent_id),
            minor_units=payment.amount,
            state=OperationState.SUCCEEDED,
            last_error="recovered from Stripe",
            create_time=tx.now,
            attempt_time=tx.now,
        )
    )


def _described(event: StoredEvent) -> str:
    amount = json.loads(event.body).get("facts", {}).get("amount")
    return event.kind + (f" of {amount} minor units" if amount is not None else "")


async def _what_is_left(app: App, result: Recovered) -> AsyncIterator[str]:
    """Yields what a person must decide, and what nobody but a person can know."""
    for stored in await app.database.read(_open_discrepancies):
        found = stored.discrepancy
        about = found.payment_id or "the balance"
        result.to_decide.append(f"{about}: {found.kind}: {found.detail}")
    for listed in await app.database.read(_parked):
        operation = listed.operation
        result.to_decide.append(
            f"{operation.related_payment_id or operation.expert_id}: {operation.operation_id} "
            f"({operation.kind}) is parked: {operation.last_error}"
        )
    yield (
        f"recovered {result.accounts} experts and {result.payments} payments, "
        f"changed {result.changed} of {result.checked} payments"
    )
    for line in dict.fromkeys(result.to_decide):
        yield f"to decide: {line}"
    if len(result.to_decide) >= _PAGE:
        yield "there may be more to decide: see ListDiscrepancies and ListOperations"
    yield (
        "not at Stripe, so repeat what was called since then of: SetCommission, "
        "SettleClientPayable, WriteOffExpertDebt, DismissFraudWarning, ResolveDiscrepancy, "
        "ProposeAdjustment and ApproveAdjustment, EraseUser"
    )


def _payment_of(reader: Reader, reference: str) -> str | None:
    return reader.payment_of(reference) if reference else None


def _version_of(reader: Reader, payment_id: str) -> int:
    payment = reader.payment(payment_id)
    return payment.version if payment else 0


def _events_after(reader: Reader, payment_id: str, version: int) -> Sequence[StoredEvent]:
    return reader.events(payment_id, version, _PAGE)


def _open_discrepancies(reader: Reader) -> Sequence[StoredDiscrepancy]:
    return reader.discrepancies("", None, _PAGE, open_only=True)


def _parked(reader: Reader) -> Sequence[ListedOperation]:
    return reader.operations("", OperationState.PARKED, None, _PAGE)
