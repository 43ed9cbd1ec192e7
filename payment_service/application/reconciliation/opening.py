"""Books what the platform's account at Stripe had before the books began."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, TypeVar

import structlog

from payment_service.application.app import App
from payment_service.domain.errors import processor_unavailable
from payment_service.domain.opening import Beginning, opening_amounts, opening_lines
from payment_service.domain.payouts import AccountBalance
from payment_service.domain.ports.database import Transaction
from payment_service.domain.ports.stripe import BalanceEntry

log = structlog.get_logger(__name__)

T = TypeVar("T")

#: How often one run looks for a moment in which Stripe moves nothing.
_TRIES: Final = 5
#: A line that is new to a list is at most this much older than the newest line that was there.
_LATE: Final = timedelta(minutes=1)


async def book_opening(app: App, beginning: Beginning) -> None:
    """Books the opening balance, once for each account that the books are of.

    Without a quiet moment nothing is booked, and the next run tries again. Raises
    :class:`Unavailable` if the account cannot be read.
    """
    if beginning.opening_time is not None:
        return
    quiet = await _quiet(app, beginning.first_line_time)
    if quiet is None:
        log.info("opening_balance_not_quiet")
        return
    await app.database.transact(store_opening, beginning, *quiet)


def store_opening(
    tx: Transaction,
    beginning: Beginning,
    balances: Sequence[AccountBalance],
    lines: Sequence[BalanceEntry],
) -> None:
    """Books the opening balance and stores that this is done, unless another replica was first.

    Nothing is booked either if the books were bound anew since the amounts were read.
    """
    if tx.lock_beginning() != beginning:
        return
    ids = [line.balance_transaction_id for line in lines]
    left = tx.lines_posted_before(ids, beginning.bind_time)
    for line in opening_lines(beginning, opening_amounts(balances, lines, left)):
        tx.book_platform_line(line)
    tx.end_opening()


async def _quiet(
    app: App, since: datetime
) -> tuple[Sequence[AccountBalance], Sequence[BalanceEntry]] | None:
    """Returns the balance with the lines since then, or None without a quiet moment.

    A balance counts only if the lists before and after it are the same: then it is that of these
    lines, and of what was there before them.
    """
    lines = await _lines(app, since)
    for _ in range(_TRIES):
        balances = _shown(await app.stripe.account_balance(""))
        newest = max((line.create_time for line in lines.values()), default=since)
        later = await _lines(app, max(since, newest - _LATE))
        if later.keys() <= lines.keys():
            return balances, list(lines.values())
        lines |= later
    return None


async def _lines(app: App, since: datetime) -> dict[str, BalanceEntry]:
    shown = _shown(await app.stripe.balance_entries("", since))
    return {line.balance_transaction_id: line for line in shown}


def _shown(answer: Sequence[T] | None) -> Sequence[T]:
    """Returns what Stripe shows of our own account. Nothing shown is not the same as no money."""
    if answer is None:
        raise processor_unavailable()
    return answer
