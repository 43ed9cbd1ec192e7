"""Metrics of the audit trail's proofs: when its heads were exported last."""

from __future__ import annotations

import structlog
from prometheus_client import CollectorRegistry, Gauge

from payment_service.domain.heads import Heads

log = structlog.get_logger(__name__)


class TrailMetrics:
    """The heads of the audit trail, and the alarm if it is broken."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.heads_time = Gauge(
            "payments_heads_exported_timestamp_seconds",
            "When this replica last exported the heads of the audit trail, in seconds since 1970; "
            "0 if another replica did.",
            registry=registry,
        )

    def trail_broken(self, position: int) -> None:
        log.error("trail_broken", position=position)

    def heads_exported(self, heads: Heads) -> None:
        """Logs the heads: with the kept log, a later change of what they cover is found."""
        self.heads_time.set(heads.time.timestamp())
        log.info(
            "heads_exported",
            installation_id=heads.installation_id,
            heads_time=heads.time.isoformat(timespec="microseconds"),
            events=heads.events,
            events_root=heads.events_root.hex(),
            records=heads.records,
            records_root=heads.records_root.hex(),
            key_id=heads.key_id,
            heads_signature=heads.signature.hex(),
        )
