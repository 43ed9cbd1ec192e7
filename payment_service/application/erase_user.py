"""EraseUser: what is known of a client or an expert is erased; books, ids and events stay.

An operation that is not settled may be sent again, and Stripe must see the same request. So nothing
is erased while one is open. The payments are erased some at a time, each batch in a transaction of
its own; a call that ends in between is repeated and erases what is left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog

from payment_service.application.app import App
from payment_service.domain.errors import Precondition, expert_not_found
from payment_service.domain.experts import Expert
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.records import Cause, UserKind
from payment_service.domain.texts import ERASED

log = structlog.get_logger(__name__)

#: How many payments one transaction erases.
_BATCH: Final = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseUser:
    cause: Cause
    kind: UserKind
    user_id: str
    reason: str


@dataclass(frozen=True, slots=True)
class Erased:
    """When the call began, the user's payments, and how many texts this call has erased."""

    time: datetime
    payments: int = 0
    texts: int = 0


async def erase_user(app: App, command: EraseUser) -> Erased:
    """Erases the user. Raises :class:`Refusal`, and then has usually erased nothing."""
    erased = Erased(await app.database.transact(begin_erasure, command))
    after: tuple[datetime, str] | None = None
    while True:
        page, texts = await app.database.transact(erase_batch, command, after)
        erased = replace(erased, payments=erased.payments + len(page), texts=erased.texts + texts)
        if len(page) < _BATCH:
            break
        after = page[-1]
    if command.kind is UserKind.EXPERT:
        texts = await app.database.transact(erase_expert, command)
        erased = replace(erased, texts=erased.texts + texts)
    log.info("user_erased", kind=command.kind.value, payments=erased.payments, texts=erased.texts)
    return erased


def begin_erasure(tx: Transaction, command: EraseUser) -> datetime:
    """Refuses, or records who erases whom and why, before anything is erased."""
    _check(tx, command)
    tx.record_erasure(command.kind, command.user_id, command.reason, command.cause)
    return tx.now


def erase_batch(
    tx: Transaction, command: EraseUser, after: tuple[datetime, str] | None
) -> tuple[Sequence[tuple[datetime, str]], int]:
    """Erases a page of the user's payments. An operation may have begun since the last page."""
    page = tx.lock_payments_of(command.kind, command.user_id, after, _BATCH)
    _refuse(command, tx.open_operations_of(command.kind, command.user_id))
    return page, tx.erase_payments([payment_id for _, payment_id in page])


def erase_expert(tx: Transaction, command: EraseUser) -> int:
    """Erases the expert's name and address, and all texts about the account."""
    expert = _check(tx, command)
    assert expert is not None
    texts = tx.erase_expert(expert.expert_id)
    if not expert.is_erased:
        after = replace(
            expert, name=ERASED, email=ERASED, version=expert.version + 1, update_time=tx.now
        )
        tx.save_expert(after, "expert.erased", command.cause)
    return texts


def _check(tx: Transaction, command: EraseUser) -> Expert | None:
    """Raises if the user has something open. Locks an expert, whom it returns."""
    expert = None
    open_business: list[str] = []
    if command.kind is UserKind.EXPERT:
        expert = tx.lock_expert(command.user_id)
        if expert is None:
            raise expert_not_found(command.user_id)
        open_business.extend(tx.open_business_of_expert(command.user_id))
    _refuse(command, [*open_business, *tx.open_operations_of(command.kind, command.user_id)])
    return expert


def _refuse(command: EraseUser, open_business: Sequence[str]) -> None:
    if open_business:
        raise Precondition(
            "USER_HAS_OPEN_BUSINESS",
            "something of this user is not finished: " + "; ".join(open_business),
            {"user_id": command.user_id, "open": "; ".join(open_business)},
        )
