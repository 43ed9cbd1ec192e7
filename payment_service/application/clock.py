"""The database's time. Replicas' clocks may disagree, so this one decides how old something is."""

from __future__ import annotations

from datetime import datetime

from payment_service.domain.ports.database import Transaction


def database_time(tx: Transaction) -> datetime:
    """Returns the time of this transaction."""
    return tx.now
