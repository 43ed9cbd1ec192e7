"""The one place where objects are wired: adapters to ports, and use cases to services."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from grpc import aio

from marketplace.payments.v1 import (
    disputes_pb2,
    disputes_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    experts_pb2,
    experts_pb2_grpc,
    ledger_pb2,
    ledger_pb2_grpc,
    onboarding_pb2,
    onboarding_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
    webhooks_pb2,
    webhooks_pb2_grpc,
)
from payment_service.access import Access, authenticator_of
from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.adapters.signatures.ed25519 import (
    Ed25519Signer,
    Ed25519Verifier,
    WrongKey,
    load_signer,
    load_verifier,
)
from payment_service.adapters.stripe.api import StripeApi, StripeApiV2
from payment_service.application.app import App
from payment_service.application.feed import Feed
from payment_service.application.ingest_event import WebhookSecrets
from payment_service.barriers import Barriers
from payment_service.config import Settings, WrongSettings
from payment_service.config.rotation import RotatedSecrets
from payment_service.domain.ports.policy import Policy
from payment_service.domain.ports.tracing import Tracer
from payment_service.domain.quotas import Buckets, Quota, quotas_of
from payment_service.metrics import Metrics
from payment_service.rpc.access import AccessControl
from payment_service.rpc.admission import Admission, CallClass, ClassLimit
from payment_service.rpc.answers import AnswerEncoder
from payment_service.rpc.call_context import CallRegistry
from payment_service.rpc.disputes import DisputeServicer
from payment_service.rpc.errors import refusal_answer
from payment_service.rpc.events import EventServicer
from payment_service.rpc.experts import ExpertServicer
from payment_service.rpc.interceptor import CallInterceptor
from payment_service.rpc.ledger import LedgerServicer
from payment_service.rpc.onboarding import OnboardingServicer
from payment_service.rpc.operations import OperationsServicer
from payment_service.rpc.payments import PaymentServicer
from payment_service.rpc.webhooks import WebhookServicer
from payment_service.tracing import tracer_of

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (payments_pb2, "PaymentService"),
        (experts_pb2, "ExpertService"),
        (disputes_pb2, "DisputeService"),
        (onboarding_pb2, "OnboardingService"),
        (webhooks_pb2, "WebhookService"),
        (events_pb2, "EventService"),
        (ledger_pb2, "LedgerService"),
        (operations_pb2, "OperationsService"),
    )
)

#: Expensive work waits for its own kind only, so it may wait longer than a caller's call.
_EXPENSIVE_ADMISSION_SECONDS: Final = 30.0
#: Anybody may ask for health. A check takes a millisecond, so only calls without a message reach
#: this number. A watcher stays.
_HEALTH_CALLS: Final = 1_000
_HEALTH_WATCHERS: Final = 500


@dataclass(frozen=True, slots=True)
class Wired:
    """What the server needs, and everything that must be closed in the end."""

    app: App
    database: SqlDatabase
    stripe: StripeApi
    operations: CallRegistry
    metrics: Metrics
    settings: Settings
    authenticator: Access
    tracer: Tracer


def wire(
    settings: Settings, policy: Policy | None = None, authenticator: Access | None = None
) -> Wired:
    """Makes the adapters and the core. It must be called on the running event loop.

    ``policy`` and ``authenticator`` are used in place of those that the settings say.
    """
    policy = policy or settings.policy
    metrics = Metrics()
    tracer = tracer_of(settings)
    authenticator = authenticator or authenticator_of(settings, metrics.access_source_failed)
    feed = Feed()

    def recorded(tx: SqlTransaction) -> None:
        metrics.observe_commit(tx)
        feed.recorded.set()

    barriers = Barriers.from_environment(os.environ) if _may_be_tested(settings) else None
    database = SqlDatabase(
        settings.require_database_url(),
        policy=policy,
        write_connections=settings.database_write_connections,
        read_connections=settings.database_read_connections,
        pooled=settings.is_pooled,
        direct_url=settings.effective_direct_url,
        guarded=settings.environment == "production",
        on_record=recorded,
        on_phase=barriers.phase if barriers else None,
        on_timed=metrics.observe_phase,
        tracer=tracer,
    )
    expensive = SqlDatabase(
        settings.require_database_url(),
        policy=policy,
        write_connections=settings.database_expensive_connections,
        read_connections=settings.database_expensive_connections,
        admission_seconds=_EXPENSIVE_ADMISSION_SECONDS,
        pooled=settings.is_pooled,
        beside=database,
        on_record=recorded,
        on_phase=barriers.phase if barriers else None,
        on_timed=metrics.observe_phase,
        tracer=tracer,
    )
    port = StripeApi if settings.stripe_accounts_api == "v1" else StripeApiV2
    stripe = port(
        settings.effective_stripe_key,
        api_base=settings.effective_api_base,
        timeout_seconds=settings.stripe_timeout,
        connections=settings.stripe_connections,
        observe=metrics.observe_stripe,
        tracer=tracer,
    )
    metrics.watch_circuit(lambda: stripe.circuit_is_open)
    metrics.watch_places("", database.places)
    metrics.watch_places("expensive_", expensive.places)
    app = App(
        database=database,
        stripe=barriers.watch(stripe) if barriers else stripe,
        answers=AnswerEncoder(policy.publishable_key, refusal_answer),
        policy=policy,
        alarms=metrics,
        feed=feed,
        signer=signer_of(settings),
        tracer=tracer,
        expensive_database=expensive,
    )
    return Wired(app, database, stripe, CallRegistry(), metrics, settings, authenticator, tracer)


def interceptors_of(wired: Wired) -> list[aio.ServerInterceptor]:
    """Returns what every call passes."""
    settings = wired.settings
    places = {
        CallClass.MONEY: settings.money_calls,
        CallClass.READ: settings.read_calls,
        CallClass.STRIPE_READ: settings.stripe_read_calls,
        CallClass.WEBHOOK: settings.webhook_calls,
        CallClass.EXPENSIVE: settings.expensive_calls,
    }
    limits = {
        name: ClassLimit(number, number // 2, settings.call_queue_seconds)
        for name, number in places.items()
    }
    limits |= {
        CallClass.FEED: ClassLimit(settings.event_watchers, 0, 0.0),
        CallClass.HEALTH: ClassLimit(_HEALTH_CALLS, 0, 0.0),
        CallClass.HEALTH_WATCH: ClassLimit(_HEALTH_WATCHERS, 0, 0.0),
    }
    quotas = Buckets(
        Quota(settings.money_rate, settings.money_burst), quotas_of(settings.money_quotas)
    )
    access = AccessControl(wired.authenticator, SERVICES)
    admission = Admission(limits, quotas, wired.metrics)
    return [CallInterceptor(wired.metrics.observe_rpc, access, admission, wired.tracer)]


def signer_of(settings: Settings) -> Ed25519Signer | None:
    """Returns what signs exported heads, or None. Raises :class:`WrongSettings`."""
    path = settings.heads_signing_key_file
    try:
        return load_signer(path) if path else None
    except WrongKey as fault:
        raise WrongSettings(f"HEADS_SIGNING_KEY_FILE: {fault}") from None


def verifier_of(public_key: Path | None) -> Ed25519Verifier | None:
    """Returns what checks signatures with the key of a file. Raises :class:`WrongSettings`."""
    try:
        return load_verifier(public_key) if public_key else None
    except WrongKey as fault:
        raise WrongSettings(str(fault)) from None


def open_database(settings: Settings) -> SqlDatabase:
    """Returns the database alone, for a command that neither serves nor calls Stripe."""
    return SqlDatabase(
        settings.require_database_url(),
        write_connections=1,
        read_connections=1,
        pooled=settings.is_pooled,
    )


def _may_be_tested(settings: Settings) -> bool:
    return settings.environment == "development" and settings.is_simulated


class _ByName:
    """Adds services to a server by their names only.

    The generated code also registers each method. Then grpc.aio waits for a call of each by itself,
    so the methods that nobody calls cost every call a tenth.
    """

    def __init__(self, server: aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, *_: object) -> None: ...


def add_services(to: aio.Server, wired: Wired) -> None:
    """Adds every service of the contract to the server."""
    app, operations = wired.app, wired.operations
    server = cast("aio.Server", _ByName(to))
    payments_pb2_grpc.add_PaymentServiceServicer_to_server(PaymentServicer(app, operations), server)
    experts_pb2_grpc.add_ExpertServiceServicer_to_server(ExpertServicer(app, operations), server)
    disputes_pb2_grpc.add_DisputeServiceServicer_to_server(DisputeServicer(app, operations), server)
    onboarding_pb2_grpc.add_OnboardingServiceServicer_to_server(OnboardingServicer(app), server)
    webhooks_pb2_grpc.add_WebhookServiceServicer_to_server(
        WebhookServicer(
            app,
            operations,
            webhook_secrets_of(wired.settings),
            wired.metrics,
        ),
        server,
    )
    events_pb2_grpc.add_EventServiceServicer_to_server(EventServicer(app), server)
    ledger_pb2_grpc.add_LedgerServiceServicer_to_server(LedgerServicer(app), server)
    operations_pb2_grpc.add_OperationsServiceServicer_to_server(
        OperationsServicer(app, operations), server
    )


def webhook_secrets_of(settings: Settings) -> Callable[[str], WebhookSecrets]:
    """Returns what says the secrets of an endpoint that are valid now.

    An endpoint without a secret refuses everything.
    """
    rotated = {
        "platform": RotatedSecrets(settings, "stripe_webhook_secret"),
        "connect": RotatedSecrets(settings, "stripe_connect_webhook_secret"),
    }
    return lambda endpoint: WebhookSecrets(tuple(rotated[endpoint].current()), settings.is_live)
