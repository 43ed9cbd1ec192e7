"""The transaction port: all writes, and the reads that a write depends on, of one transaction.

One small class for each aggregate, in the module of the same name. They share nothing except the
connection and the time.
"""

from __future__ import annotations

from payment_service.adapters.postgres.adjustments import AdjustmentWrites
from payment_service.adapters.postgres.balances import BalanceWrites
from payment_service.adapters.postgres.claims import ClaimWrites
from payment_service.adapters.postgres.debts import DebtWrites
from payment_service.adapters.postgres.discrepancies import DiscrepancyWrites
from payment_service.adapters.postgres.disputes import DisputeWrites
from payment_service.adapters.postgres.erasure import ErasureWrites
from payment_service.adapters.postgres.experts import ExpertWrites
from payment_service.adapters.postgres.feed import FeedWrites
from payment_service.adapters.postgres.heads import HeadWrites
from payment_service.adapters.postgres.installation import InstallationWrites
from payment_service.adapters.postgres.jobs import JobWrites
from payment_service.adapters.postgres.months import MonthWrites
from payment_service.adapters.postgres.payouts import PayoutWrites
from payment_service.adapters.postgres.platform_lines import PlatformLineWrites
from payment_service.adapters.postgres.polling import PollingWrites
from payment_service.adapters.postgres.retention import RetentionWrites
from payment_service.adapters.postgres.sync import SyncWrites
from payment_service.adapters.postgres.webhooks import WebhookWrites


class SqlTransaction(
    ClaimWrites,
    SyncWrites,
    DebtWrites,
    DisputeWrites,
    ExpertWrites,
    PayoutWrites,
    PlatformLineWrites,
    DiscrepancyWrites,
    WebhookWrites,
    FeedWrites,
    InstallationWrites,
    JobWrites,
    BalanceWrites,
    PollingWrites,
    RetentionWrites,
    ErasureWrites,
    AdjustmentWrites,
    MonthWrites,
    HeadWrites,
):
    """One transaction on one connection. The engine commits it or rolls it back."""
