"""Reads from the database what the gauges show. Each replica does, and shows the same."""

from __future__ import annotations

from payment_service.domain.ports.database import Database
from payment_service.metrics import Metrics


async def read_gauges(metrics: Metrics, database: Database) -> None:
    """Sets the gauges. Raises Unavailable if the database is; they keep their last values then."""
    metrics.observe_backlog(await database.read(lambda reader: reader.backlog()))
    metrics.observe_held(await database.read(lambda reader: reader.held_money()))
    metrics.observe_overdue(await database.read(lambda reader: reader.overdue()))
    metrics.observe_at_risk(await database.read(lambda reader: reader.money_at_risk()))
    found = await database.read(lambda reader: reader.discrepancies_open())
    metrics.observe_open_discrepancies(found)
    metrics.gauges_read()
