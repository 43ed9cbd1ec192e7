"""``python -m payment_service relay …``: the relay's process, and its log of deliveries."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, NoReturn, TypeVar

import psycopg2
import typer

from payment_service.config.settings import WrongSettings
from payment_service.logs import configure_logs
from payment_service.relay import deliveries
from payment_service.relay.settings import RelaySettings, load_relay_settings
from payment_service.relay.store import NoSchema, Sql, Store, StoreLost

_T = TypeVar("_T")

relay = typer.Typer(
    help="Publish the feed's events to NATS JetStream and to webhooks.",
    invoke_without_command=True,
)


class State(StrEnum):
    """Where a delivery is."""

    WAITING = "WAITING"
    DELIVERED = "DELIVERED"
    PARKED = "PARKED"


@relay.callback()
def run(context: typer.Context) -> None:
    """Publish events until SIGTERM. Several relays may run; one of them is active."""
    if context.invoked_subcommand is not None:
        return
    # NATS's client is of no use to the other commands.
    from payment_service.relay.process import serve  # noqa: PLC0415

    settings = _settings()
    configure_logs(settings.log_level, settings.effective_log_format)
    try:
        asyncio.run(serve(settings))
    except (WrongSettings, NoSchema) as fault:
        _refuse(fault)
    except OSError as error:
        _refuse(
            WrongSettings(
                f"RELAY_METRICS_PORT={settings.relay_metrics_port} cannot be used "
                f"({error.strerror}): stop what uses the port, or choose another one"
            )
        )


@relay.command()
def check() -> None:
    """Check the relay's settings and the file of endpoints; start nothing."""
    settings = _settings()
    try:
        settings.require_database_url()
        endpoints = settings.endpoints()
    except WrongSettings as fault:
        _refuse(fault)
    typer.echo(f"environment {settings.environment}")
    typer.echo(f"NATS {'on' if settings.relay_nats_url is not None else 'off'}")
    for endpoint in endpoints:
        typer.echo(f"endpoint {endpoint.name}: {endpoint.host}")


@relay.command("deliveries")
def show(
    endpoint: Annotated[str, typer.Option(help="Only of this endpoint.")] = "",
    state: Annotated[State | None, typer.Option(help="Only those in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most this many.")] = 50,
) -> None:
    """List the newest deliveries of webhooks."""
    wanted = state.value if state is not None else ""
    for line in _in_store(lambda sql: deliveries.log_lines(sql, endpoint, wanted, limit)):
        when = line.attempt_time.isoformat(timespec="seconds") if line.attempt_time else "-"
        typer.echo(
            f"{line.id} {line.endpoint} {line.event_id} {line.kind} {line.state} "
            f"attempts={line.attempts} {line.outcome or '-'} {when}"
        )


@relay.command()
def redeliver(delivery: Annotated[int, typer.Argument(help="Its number in the log.")]) -> None:
    """Deliver a webhook again, with the same id. The payment's later ones wait for it."""
    if not _in_store(lambda sql: deliveries.redeliver(sql, delivery)):
        _refuse(WrongSettings(f"there is no delivery {delivery}"))
    typer.echo(f"delivery {delivery} is due now")


@relay.command()
def enable(endpoint: Annotated[str, typer.Argument(help="Its name.")]) -> None:
    """Let an endpoint be tried again that was disabled because it failed for too long."""
    if not _in_store(lambda sql: deliveries.enable(sql, endpoint)):
        _refuse(WrongSettings(f"no endpoint {endpoint} is disabled"))
    typer.echo(f"endpoint {endpoint} is tried again")


def _in_store(phase: Callable[[Sql], _T]) -> _T:
    settings = _settings()

    async def work() -> _T:
        store = Store(settings.require_database_url())
        try:
            await store.open()
            return await store.run(phase)
        finally:
            await store.close()

    try:
        return asyncio.run(work())
    except (WrongSettings, NoSchema) as fault:
        _refuse(fault)
    except (StoreLost, psycopg2.Error) as error:
        _refuse(WrongSettings(f"RELAY_DATABASE_URL does not answer ({type(error).__name__})"))


def _settings() -> RelaySettings:
    try:
        return load_relay_settings()
    except WrongSettings as fault:
        _refuse(fault)


def _refuse(fault: Exception) -> NoReturn:
    typer.echo(f"relay: {fault}", err=True)
    raise typer.Exit(2)
