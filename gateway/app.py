"""Routes, what is true of every answer, and the life of the listener."""

import asyncio
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiohttp import hdrs, web

from gateway.connections import ConnectionGuard, GuardedSite
from gateway.core_channel import open_core_channel
from gateway.door import Door
from gateway.health import HEALTH_PATH, LIVE_PATH, TEST_PATH, HealthPages
from gateway.logs import facts_of, note
from gateway.metrics import Metrics
from gateway.onboarding import (
    PATH_PREFIX,
    REFRESH_PATH,
    RETURN_PATH,
    Onboarding,
    invalid_link,
    unavailable,
)
from gateway.payments_client import PaymentsClient
from gateway.settings import Settings
from gateway.tracing import NOT_TRACED, Tracing, tracing_of
from gateway.webhooks import CONNECT_PATH, PLATFORM_PATH, Webhooks
from sidecar.logs import describe_exception, get_logger

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def create_app(
    core: PaymentsClient,
    settings: Settings,
    metrics: Metrics,
    connections: ConnectionGuard,
    door: Door,
    tracing: Tracing = NOT_TRACED,
) -> web.Application:
    """All routes of the public port."""

    async def dress(_request: web.Request, response: web.StreamResponse) -> None:
        door.dress(response)

    webhooks = Webhooks(core, settings, metrics, connections, tracing=tracing)
    onboarding = Onboarding(core, settings, metrics, connections)
    health = HealthPages(core, settings)

    app = web.Application(
        middlewares=[_observe, _uniform_errors], client_max_size=settings.gateway_max_body_bytes
    )
    app.on_response_prepare.append(dress)
    app.router.add_post(PLATFORM_PATH, webhooks.platform, expect_handler=webhooks.invite)
    app.router.add_post(CONNECT_PATH, webhooks.connect, expect_handler=webhooks.invite)
    app.router.add_get(RETURN_PATH, onboarding.return_page)
    app.router.add_get(REFRESH_PATH, onboarding.refresh_page)
    app.router.add_post(REFRESH_PATH, onboarding.renew)
    for path, handler in (
        (HEALTH_PATH, health.health),
        (LIVE_PATH, health.live),
        (TEST_PATH, health.test),
    ):
        app.router.add_get(path, handler)
        app.router.add_options(path, health.preflight)
    return app


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[str]:
    """Listens while the block runs and yields the public address; then drains what is under way.

    Raises OSError if a port cannot be had, and RefusedSettings for files that cannot be used.
    """
    metrics = Metrics()
    connections = ConnectionGuard(settings.gateway_max_connections, metrics)
    tracing = tracing_of(settings)  # Before the channel: it passes traces on from then on.
    channel = open_core_channel(settings)
    door = Door(settings, metrics)
    options = {
        "access_log": None,
        "auto_decompress": False,
        "keepalive_timeout": settings.gateway_keepalive_seconds,
        "lingering_time": 1,
        "max_line_size": settings.gateway_max_line_bytes,
        "max_field_size": settings.gateway_max_field_bytes,
        "max_headers": settings.gateway_max_headers,
    }
    runner = web.AppRunner(
        create_app(
            PaymentsClient(channel, settings), settings, metrics, connections, door, tracing
        ),
        shutdown_timeout=settings.gateway_shutdown_seconds,
    )
    metrics_runner = web.AppRunner(metrics.application(), access_log=None, shutdown_timeout=1)
    try:
        await metrics_runner.setup()
        if settings.gateway_metrics_port:
            host, port = settings.gateway_host, settings.gateway_metrics_port
            await web.TCPSite(metrics_runner, host, port).start()
        await runner.setup()
        site = GuardedSite(runner, settings, guard=connections, door=door, options=options)
        await site.start()
        yield site.name
    finally:
        try:
            # aiohttp gives each of its two waits this long; together they get it once.
            async with asyncio.timeout(settings.gateway_shutdown_seconds):
                await runner.cleanup()
        except TimeoutError:
            # A sender that is cut off here got no answer, so Stripe delivers again.
            get_logger().warning("stopped_with_requests_in_flight")
        await metrics_runner.cleanup()
        await channel.close()
        await asyncio.to_thread(tracing.close)


async def serve(settings: Settings) -> None:
    """Runs until SIGTERM or SIGINT."""
    log = get_logger()
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as address:
        # For the process that started this one with port 0; the log level may hide it.
        sys.stdout.write(f"gateway listening on {address}\n")
        sys.stdout.flush()
        log.info(
            "listening",
            address=address,
            metrics_port=settings.gateway_metrics_port,
            core=list(settings.core_address),
            allowed_origins=sorted(settings.allowed_origins),
            environment=settings.environment,
        )
        await stop.wait()
        log.info("stopping")
    log.info("stopped")


@web.middleware
async def _observe(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """One line for every request: which route and what came of it, nothing that it carried."""
    started = time.perf_counter()
    status: int | None = None  # stays so if the client has left and the handler was cancelled
    try:
        response = await handler(request)
        status = response.status
        return response
    finally:
        resource = request.match_info.route.resource
        log = get_logger()
        write = log.warning if status is None or status >= 500 else log.info
        write(
            "request",
            method=request.method,
            route=resource.canonical if resource is not None else "unknown",
            status=status,
            duration_ms=round((time.perf_counter() - started) * 1000, 1),
            **facts_of(request),
        )


@web.middleware
async def _uniform_errors(request: web.Request, handler: _Handler) -> web.StreamResponse:
    """No answer in aiohttp's own words, and none that quotes an exception."""
    is_page = request.path.startswith(PATH_PREFIX)
    try:
        return await handler(request)
    except web.HTTPException as error:
        if is_page and error.status == 404:
            return invalid_link()
        response = web.json_response({"error": _name(error.status)}, status=error.status)
        if hdrs.ALLOW in error.headers:
            response.headers[hdrs.ALLOW] = error.headers[hdrs.ALLOW]
        return response
    except Exception as error:  # noqa: BLE001 - a fault of ours must not turn into a lost webhook
        note(request, **describe_exception(error))
        return unavailable() if is_page else _try_again_later()


def _try_again_later() -> web.Response:
    response = web.json_response({"error": "try_again_later"}, status=503)
    response.headers[hdrs.RETRY_AFTER] = "5"
    return response


def _name(status: int) -> str:
    return {404: "not_found", 405: "method_not_allowed"}.get(status, "refused")
