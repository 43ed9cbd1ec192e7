"""What the gateway counts, in Prometheus' terms. Served on a port of its own, never in public."""

import os

from aiohttp import hdrs, web
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST


class Metrics:
    """The counters; each gateway has a registry of its own, so that tests can have several."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.webhooks = Counter(
            "gateway_webhooks",
            "Webhook deliveries by endpoint and by what became of them",
            ["endpoint", "outcome"],
            registry=self.registry,
        )
        self.webhook_seconds = Histogram(
            "gateway_webhook_seconds",
            "From the end of a webhook's headers to its answer",
            ["endpoint"],
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15),
            registry=self.registry,
        )
        self.pages = Counter(
            "gateway_pages",
            "Onboarding pages by page and by what became of them",
            ["page", "outcome"],
            registry=self.registry,
        )
        self.requests_refused = Counter(
            "gateway_requests_refused",
            "Requests that no route has seen, by what was wrong with them",
            ["reason"],
            registry=self.registry,
        )
        self.connections = Gauge(
            "gateway_connections", "Open connections on the public port", registry=self.registry
        )
        self.connections_dropped = Counter(
            "gateway_connections_dropped",
            "Connections closed to stay within GATEWAY_MAX_CONNECTIONS",
            ["reason"],
            registry=self.registry,
        )
        self.build = Info("gateway_build", "What runs here", registry=self.registry)
        self.build.info(
            {
                "version": os.environ.get("BUILD_VERSION", "") or "unknown",
                "revision": os.environ.get("BUILD_REVISION", "") or "unknown",
            }
        )
        ProcessCollector(registry=self.registry)

    def application(self) -> web.Application:
        """The application behind GATEWAY_METRICS_PORT."""

        async def scrape(_request: web.Request) -> web.Response:
            body = generate_latest(self.registry)
            return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

        async def hide_versions(_request: web.Request, response: web.StreamResponse) -> None:
            response.headers[hdrs.SERVER] = "gateway"

        application = web.Application()
        application.on_response_prepare.append(hide_versions)
        application.router.add_get("/metrics", scrape)
        return application
