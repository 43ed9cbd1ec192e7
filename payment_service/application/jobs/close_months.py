"""Stores the balances of all accounts at the end of each month.

A report then sums the postings since the newest closing, and never the whole past. Closings are
derived: a lost one is made again, and a report without any is the same, only slower.
"""

from __future__ import annotations

from typing import Final

from payment_service.application.app import App
from payment_service.domain.monthly import CLOSES_AFTER, month_at
from payment_service.domain.ports.database import Transaction

#: How often the job looks whether a month has ended.
_PAUSE_SECONDS: Final = 3600.0


async def close_months(app: App) -> int:
    """Closes the months that have ended, the oldest first. It runs on one replica at a time."""
    aside = app.aside().database
    if await aside.transact(lease_closing):
        while await aside.transact(close_next_month):
            pass
    return 0


def lease_closing(tx: Transaction) -> bool:
    return tx.lease_job("close_months", _PAUSE_SECONDS)


def close_next_month(tx: Transaction) -> bool:
    """Closes the first month that is not closed. Returns whether there may be another one."""
    since = tx.open_since()
    if since is None:
        return False
    month = month_at(since)
    if tx.now < month.end + CLOSES_AFTER:
        return False
    tx.close_month(month.start, month.end)
    return True
