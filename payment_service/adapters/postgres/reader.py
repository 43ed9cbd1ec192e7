"""The reader port: single statements outside transactions, for RPCs, metrics and jobs.

One small class for each aggregate, in the module of the same name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from psycopg2 import Error

from payment_service.adapters.postgres.adjustments import AdjustmentReads
from payment_service.adapters.postgres.agenda import AgendaReads
from payment_service.adapters.postgres.balances import BalanceReads
from payment_service.adapters.postgres.claims import ClaimReads
from payment_service.adapters.postgres.debts import DebtReads
from payment_service.adapters.postgres.discrepancies import DiscrepancyReads
from payment_service.adapters.postgres.disputes import DisputeReads
from payment_service.adapters.postgres.experts import ExpertReads
from payment_service.adapters.postgres.feed import FeedReads
from payment_service.adapters.postgres.gauges import GaugeReads
from payment_service.adapters.postgres.heads import HeadReads
from payment_service.adapters.postgres.installation import InstallationReads
from payment_service.adapters.postgres.jobs import JobReads
from payment_service.adapters.postgres.months import MonthReads
from payment_service.adapters.postgres.operations import OperationReads
from payment_service.adapters.postgres.payments import PaymentReads
from payment_service.adapters.postgres.payouts import PayoutReads
from payment_service.adapters.postgres.reports import LedgerReads, ReportReads
from payment_service.adapters.postgres.stories import StoryReads
from payment_service.adapters.postgres.webhooks import WebhookReads

T = TypeVar("T")


class SqlReader(
    ClaimReads,
    PaymentReads,
    DebtReads,
    DisputeReads,
    OperationReads,
    ExpertReads,
    PayoutReads,
    DiscrepancyReads,
    WebhookReads,
    FeedReads,
    InstallationReads,
    JobReads,
    AgendaReads,
    LedgerReads,
    BalanceReads,
    ReportReads,
    AdjustmentReads,
    StoryReads,
    MonthReads,
    GaugeReads,
    HeadReads,
):
    """Reads on one connection.

    Each method is one statement, so its result is of one moment. Only `violations` and `story` run
    several: the former one for each invariant, the latter within `SqlDatabase.read_at_once`.
    """

    def at_once(self, query: Callable[[], T]) -> T:
        """Runs a query in a transaction that sees one moment; the connection commits by itself."""
        # Not by `_do`: what begins and ends a transaction cannot be prepared.
        self._cursor.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        try:
            return query()
        finally:
            # After an error of the connection there is nothing left to end.
            with contextlib.suppress(Error):
                self._cursor.execute("ROLLBACK")
