"""The life of the process: it listens, becomes healthy, serves, drains, and ends."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import Any, Final

import grpc
import structlog
from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.reflection import aio as aio_reflection

from payment_service.access import grpc_credentials
from payment_service.account_watch import AccountWatch
from payment_service.application.jobs.scheduler import run_background
from payment_service.application.jobs.supervision import supervised
from payment_service.application.stripe_account import WrongAccount
from payment_service.bootstrap import SERVICES, Wired, add_services, interceptors_of, wire
from payment_service.config import Settings
from payment_service.domain.errors import Refusal
from payment_service.gauges import read_gauges
from payment_service.maintenance import CannotRun
from payment_service.metrics_site import MetricsSite
from payment_service.rpc.call_context import Context
from payment_service.workers.worker import Worker

log = structlog.get_logger(__name__)

#: The last bound of memory: gRPC itself refuses more calls, health included. The classes of calls
#: refuse long before it; they do not count calls that wait for their message.
MAXIMUM_CONCURRENT_RPCS: Final = 8_000
#: A megabyte of text must be received, so that it can be refused with the name of its field. The
#: gateway passes on webhooks of up to four.
OPTIONS: Final[Sequence[tuple[str, Any]]] = (
    ("grpc.max_receive_message_length", 5 * 1024 * 1024),
    ("grpc.max_send_message_length", 4 * 1024 * 1024),
    ("grpc.max_metadata_size", 8192),
    ("grpc.absolute_max_metadata_size", 8192),
    ("grpc.max_concurrent_streams", 1000),
    # Calls that the event loop has not looked at yet. Beyond the first number gRPC ends some of
    # them as CANCELLED, which says neither why nor that the call may be repeated. By its default of
    # 1,000 a burst, or a tenth of a second without the event loop, is enough for that.
    ("grpc.server.max_pending_requests", MAXIMUM_CONCURRENT_RPCS),
    ("grpc.server.max_pending_requests_hard_limit", 2 * MAXIMUM_CONCURRENT_RPCS),
    ("grpc.so_reuseport", 0),  # A second server on the same port must fail, not share.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 30_000),
    ("grpc.http2.max_ping_strikes", 2),
    ("grpc.max_connection_idle_ms", 300_000),
    ("grpc.max_connection_age_ms", 600_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    # A socket that is opened and says nothing is closed. gRPC's own default is two minutes.
    ("grpc.server_handshake_timeout_ms", 10_000),
)
_HEALTH_SECONDS: Final = 1.0
_LAST_WORD_SECONDS: Final = 0.2
#: How long callers have to move to another replica before the port is closed. A call to a closing
#: server ends as CANCELLED, which does not say that it may be retried.
_MOVE_OFF_SECONDS: Final = 0.5
#: Under this name, health says whether this replica accepts new calls. It does not depend on the
#: database: otherwise an overload would remove all replicas from rotation at once.
_ADMISSION: Final = SERVICES[0].rpartition(".")[0]
_GAUGE_SECONDS: Final = 15.0


class CannotListen(Exception):
    """The port is taken."""

    @classmethod
    def of_metrics(cls, settings: Settings) -> CannotListen:
        return cls(
            f"METRICS_PORT: {settings.metrics_host}:{settings.metrics_port} is taken; "
            "set another port, or 0 for none"
        )


class ServerEnded(Exception):
    """The gRPC server has ended, though nobody asked it to. Only a new process serves again."""


class _Health(health.aio.HealthServicer):
    """Ends the streams of watchers after the last status, because they would delay the end."""

    def __init__(self) -> None:
        super().__init__()
        self.ending = asyncio.Event()
        #: The last status of :data:`_ADMISSION`.
        self.accepts_calls = False

    async def admit(self, accepts_calls: bool) -> None:
        """Says under :data:`_ADMISSION` whether this replica accepts new calls."""
        status = health_pb2.HealthCheckResponse
        await self.set(_ADMISSION, status.SERVING if accepts_calls else status.NOT_SERVING)
        self.accepts_calls = accepts_calls

    async def enter_graceful_shutdown(self) -> None:
        self.accepts_calls = False
        await super().enter_graceful_shutdown()

    async def Check(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> Any:
        try:
            return await super().Check(request, context)
        except aio.AbortError:
            # The context does not keep the code of an abort, and the call is counted by it. Only a
            # service that is not known ends so.
            context.set_code(grpc.StatusCode.NOT_FOUND)
            raise

    async def Watch(  # noqa: N802 - the contract's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> None:
        watching = asyncio.create_task(super().Watch(request, context))
        ending = asyncio.create_task(self.ending.wait())
        try:
            await asyncio.wait({watching, ending}, return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait({watching}, timeout=_LAST_WORD_SECONDS)
        finally:
            ending.cancel()
            watching.cancel()


async def serve(settings: Settings, worker: Worker | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then finishes the calls in progress.

    A ``worker`` also ends when its parent does, and shows its metrics to the parent alone.
    """
    wired, stop = wire(settings), asyncio.Event()
    tie = _begin(wired, stop, worker)
    await _refuse_powerful_role(wired)
    credentials = grpc_credentials(
        settings, wired.metrics.access_source_failed, wired.metrics.certificate_expires.set
    )
    account = await _watch_account(wired, stop)
    server = aio.server(
        interceptors=interceptors_of(wired),
        options=OPTIONS,
        maximum_concurrent_rpcs=MAXIMUM_CONCURRENT_RPCS,
    )
    add_services(server, wired)
    servicer = _Health()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    await servicer.admit(False)
    if settings.reflection:
        _add_reflection(server)
    port = await _listen(server, wired, credentials)
    site = await _serve_metrics(wired, servicer, worker)
    await server.start()
    background = asyncio.create_task(run_background(wired.app))
    watch = asyncio.create_task(
        supervised(wired.metrics, "health", partial(_watch_health, wired, servicer))
    )
    gauge = asyncio.create_task(supervised(wired.metrics, "gauges", partial(_gauge_backlog, wired)))
    lag = asyncio.create_task(supervised(wired.metrics, "loop_lag", wired.metrics.watch_loop))
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    _warn(settings)
    # What the start has made stays. Otherwise each full collection would look at all of it again,
    # and hold every call up for as long (60 ms, measured).
    gc.freeze()
    log.info(
        "serving",
        grpc=f"{settings.grpc_host}:{port}",
        auth=settings.effective_auth,
        tls=credentials is not None,
        metrics=settings.metrics_port,
    )
    was_asked = await _until_end(server, stop)

    log.info("draining", operations=settings.shutdown_grace)
    watch.cancel()
    account.end()
    gauge.cancel()
    lag.cancel()
    await servicer.enter_graceful_shutdown()
    wired.app.feed.ending.set()
    background.cancel()
    # Callers move to other replicas, open calls are answered, and operations whose callers have
    # left are finished. All share one grace, so that the end takes no longer than that.
    began = asyncio.get_running_loop().time()
    move_off = min(_MOVE_OFF_SECONDS, settings.shutdown_grace)
    await asyncio.sleep(move_off)
    servicer.ending.set()
    await server.stop(settings.shutdown_grace - move_off)
    wired.operations.close()
    spent = asyncio.get_running_loop().time() - began
    left = await wired.operations.drain(max(settings.shutdown_grace - spent, 1.0))
    with suppress(asyncio.CancelledError):
        await background
    await _close(wired)
    await site.stop()
    tie.cancel()
    log.info("stopped", unfinished=left)
    _raise_fault(account, was_asked)


def _raise_fault(account: AccountWatch, was_asked: bool) -> None:
    """Raises what has ended the process, unless it was a signal."""
    if account.fault is not None:
        raise CannotRun(str(account.fault))
    if not was_asked:
        raise ServerEnded


async def _until_end(server: aio.Server, stop: asyncio.Event) -> bool:
    """Waits for the end. Returns False if the gRPC server has ended by itself.

    An error in gRPC's own loop closes the port. The rest of this process would live on, and its
    pages would say that it accepts calls. `wait_for_termination` does not return then.
    """
    grpcs_own: Any = server  # It has no public word for it.
    while not stop.is_set() and grpcs_own._server.is_running():
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), _HEALTH_SECONDS)
    if not stop.is_set():
        log.error("grpc_server_ended")
    return stop.is_set()


def _begin(wired: Wired, stop: asyncio.Event, worker: Worker | None) -> asyncio.Future[None]:
    """Shows what this process is among the workers, and ties a worker to its parent."""
    wired.metrics.begun(workers=wired.settings.workers, starts=worker.starts if worker else 1)
    return asyncio.ensure_future(worker.keep_tie(stop)) if worker else asyncio.Future()


async def _listen(
    server: aio.Server, wired: Wired, credentials: grpc.ServerCredentials | None
) -> int:
    """Returns the port that the server listens on. Raises :class:`CannotListen`."""
    address = f"{wired.settings.grpc_host}:{wired.settings.grpc_port}"
    try:
        if credentials is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, credentials)
    except RuntimeError:
        await _close(wired)
        raise CannotListen(f"GRPC_PORT: {address} is taken; set another port") from None


async def _refuse_powerful_role(wired: Wired) -> None:
    """Refuses a production whose role could rewrite the books. Raises :class:`CannotRun`.

    A database that is unavailable does not prevent a start: readiness looks again.
    """
    if wired.settings.environment != "production":
        return
    with suppress(Refusal):
        if refusal := (await wired.database.role()).refusal:
            await _close(wired)
            raise CannotRun(refusal)


async def _watch_account(wired: Wired, stop: asyncio.Event) -> AccountWatch:
    """Compares the account at Stripe with that of the books. Raises :class:`CannotRun`."""
    account = AccountWatch(wired.app, livemode=wired.settings.is_live)
    try:
        await account.begin(stop)
    except WrongAccount as fault:
        await _close(wired)
        raise CannotRun(str(fault)) from None
    return account


def _warn(settings: Settings) -> None:
    """Says what is missing that a production has."""
    if settings.is_simulated:
        log.warning(
            "stripe_is_simulated",
            api_base=settings.effective_api_base,
            meaning="no real card is charged, nobody is paid; set STRIPE_SECRET_KEY to change it",
        )
    if settings.heads_signing_key_file is None:
        log.warning(
            "heads_are_not_signed",
            meaning="exported heads prove as much as the place where they are kept; set "
            "HEADS_SIGNING_KEY_FILE to change it",
        )
    if settings.effective_auth == "off":
        log.warning(
            "callers_are_not_authenticated",
            grpc_host=settings.grpc_host,
            meaning="every program on this machine may move money; set AUTH to change it",
        )


async def _close(wired: Wired) -> None:
    await wired.stripe.close()
    await wired.database.close()
    await asyncio.get_running_loop().run_in_executor(None, wired.tracer.close)


async def _watch_health(wired: Wired, servicer: _Health) -> None:
    """Sets the health status: serving means that the database accepts writes.

    It also means that callers can be authenticated. If Stripe is unavailable, reads are still
    served. New calls are accepted from the first moment at which the database was ready, because
    it is migrated then, until a newer release takes over.
    """
    serving: bool | None = None
    admitted = False
    while True:
        now = await _can_serve(wired)
        if now and not admitted:
            await servicer.admit(True)
            admitted = True
        if admitted and wired.database.is_superseded:
            await servicer.admit(False)
            admitted = False
        if now != serving:
            status = health_pb2.HealthCheckResponse.ServingStatus.Value(
                "SERVING" if now else "NOT_SERVING"
            )
            for name in ("", *SERVICES):
                await servicer.set(name, status)
            log.info("health", serving=now)
            serving = now
        await asyncio.sleep(_HEALTH_SECONDS)


async def _can_serve(wired: Wired) -> bool:
    """Returns whether the database is ready, and whether callers can be authenticated.

    An unexpected error says that they are not.
    """
    try:
        return await wired.database.ping() and await wired.authenticator.ready()
    except Exception as error:  # noqa: BLE001 - health must not keep its last status
        wired.metrics.background_failed("health", type(error).__name__)
        return False


async def _gauge_backlog(wired: Wired) -> None:
    """Updates the gauges. They keep their last values while the database is unavailable."""
    while True:
        wired.metrics.event_watchers.set(wired.app.feed.watchers)
        with suppress(Refusal):
            await read_gauges(wired.metrics, wired.database)
        await asyncio.sleep(_GAUGE_SECONDS)


def _add_reflection(server: aio.Server) -> None:
    """Serves both names of the protocol. Only the older one is listed: grpcurl needs that."""
    names = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME)
    servicer = aio_reflection.ReflectionServicer(service_names=names)
    reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]  # grpc's
    handler = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=(reflection_pb2.ServerReflectionResponse.SerializeToString),
    )
    server.add_generic_rpc_handlers(
        (
            grpc.method_handlers_generic_handler(
                "grpc.reflection.v1.ServerReflection", {"ServerReflectionInfo": handler}
            ),
        )
    )


async def _serve_metrics(wired: Wired, servicer: _Health, worker: Worker | None) -> MetricsSite:
    """Starts the pages of METRICS_PORT. Port 0 means that there are none."""
    settings, site = (
        wired.settings,
        MetricsSite(wired.metrics.registry, lambda: servicer.accepts_calls),
    )
    if worker is not None:
        await site.start_on_socket(worker.socket_path)
    elif settings.metrics_port:
        try:
            await site.start(settings.metrics_host, settings.metrics_port)
        except OSError:
            raise CannotListen.of_metrics(settings) from None
    return site
