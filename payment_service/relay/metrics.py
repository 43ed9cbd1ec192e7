"""The relay's metrics."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge


class RelayMetrics:
    """Every metric of the relay, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.active = Gauge(
            "payments_relay_active",
            "1 if this relay has the lock and publishes, 0 if it stands by.",
            registry=self.registry,
        )
        self.feed_failing = Gauge(
            "payments_relay_feed_failing",
            "1 while the service refuses the feed to this target.",
            ["target"],
            registry=self.registry,
        )
        self.lag_seconds = Gauge(
            "payments_relay_lag_seconds",
            "Age of the oldest event that a target or endpoint has not got.",
            ["target"],
            registry=self.registry,
        )
        self.lag_events = Gauge(
            "payments_relay_lag_events",
            "Events that were read from the feed and that a target or endpoint has not got.",
            ["target"],
            registry=self.registry,
        )
        self.published = Counter(
            "payments_relay_published",
            "Events that were published to NATS, by outcome.",
            ["outcome"],
            registry=self.registry,
        )
        self.deliveries = Counter(
            "payments_relay_deliveries",
            "Tries to deliver a webhook, by outcome.",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self.parked = Gauge(
            "payments_relay_deliveries_parked",
            "Webhooks that an endpoint did not take, and that are not tried any more.",
            ["endpoint"],
            registry=self.registry,
        )
        self.disabled = Gauge(
            "payments_relay_endpoint_disabled",
            "1 if an endpoint failed for so long that it is not tried any more.",
            ["endpoint"],
            registry=self.registry,
        )
