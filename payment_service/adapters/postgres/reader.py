"""The reader port: single statements outside transactions, for RPCs, metrics and jobs.

One small class for each aggregate, in the module of the same name.
"""

from __future__ import annotations

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
from payment_service.adapters.postgres.jobs import JobReads
from payment_service.adapters.postgres.operations import OperationReads
from payment_service.adapters.postgres.payments import PaymentReads
from payment_service.adapters.postgres.payouts import PayoutReads
from payment_service.adapters.postgres.reports import LedgerReads, ReportReads
from payment_service.adapters.postgres.webhooks import WebhookReads


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
    JobReads,
    AgendaReads,
    LedgerReads,
    BalanceReads,
    ReportReads,
    AdjustmentReads,
    GaugeReads,
    HeadReads,
):
    """Reads on one connection.

    Each method is one statement, so its result is of one moment. Only `violations` runs several,
    one for each invariant.
    """
