"""``python -m payment_service COMMAND``; without one it lists the commands."""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from payment_service.access import authenticator_of, grpc_credentials
from payment_service.application.verify_heads import Verdict
from payment_service.config import Settings, WrongSettings, load_settings
from payment_service.doctor import examine
from payment_service.domain.errors import Refusal
from payment_service.domain.monthly import BooksDoNotSum, month_of
from payment_service.logs import configure_logs
from payment_service.maintenance import CannotRun, adopt_account, recover_books
from payment_service.proofs import check_bundle_file, check_heads, write_heads
from payment_service.relay.commands import relay
from payment_service.server import CannotListen, ServerEnded
from payment_service.server import serve as serve_forever
from payment_service.token_commands import tokens
from payment_service.workers.parent import serve_by_workers

app = typer.Typer(
    help="Escrow payments on Stripe Connect.", no_args_is_help=True, add_completion=False
)
app.add_typer(tokens, name="token")
app.add_typer(relay, name="relay")


@app.command()
def serve(
    workers: Annotated[
        int | None, typer.Option(help="How many processes serve, in place of WORKERS.")
    ] = None,
) -> None:
    """Serve gRPC and run the background loops until SIGTERM.

    Several workers listen on GRPC_PORT and the ports after it, one each. A parent restarts those
    that die, shows the metrics of all on METRICS_PORT, and drains all of them together.
    """
    if workers is not None:
        os.environ["WORKERS"] = str(workers)
    settings = _settings()
    try:
        settings.require_database_url()
        if settings.workers > 1:
            raise typer.Exit(serve_by_workers(settings))
        asyncio.run(serve_forever(settings))
    except (WrongSettings, CannotListen, CannotRun) as fault:
        _refuse(fault)
    except ServerEnded:  # The log says so.
        raise typer.Exit(1) from None


@app.command()
def migrate() -> None:
    """Bring the database to the schema that this code expects."""
    # Alembic and SQLAlchemy take half a second to import, which `serve` has no use for.
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    from payment_service.adapters.postgres.migrate import make_engine  # noqa: PLC0415
    from payment_service.adapters.postgres.migrate import migrate as apply  # noqa: PLC0415
    from payment_service.adapters.postgres.roles import UnknownRole  # noqa: PLC0415

    settings = _settings()
    try:
        url = settings.effective_direct_url or settings.require_database_url()
        engine = make_engine(url)
        revision = apply(
            engine,
            service_role=settings.database_service_role,
            store_limits=settings.is_pooled,
        )
        typer.echo(f"the database is at revision {revision}")
        engine.dispose()
    except (WrongSettings, UnknownRole) as fault:
        _refuse(fault)
    except SQLAlchemyError as error:
        _refuse(
            WrongSettings(
                "the database at DATABASE_URL cannot be migrated "
                f"({type(error).__name__} {_sqlstate(error)}): is it up, and is the role its owner?"
            )
        )


@app.command()
def adopt_stripe_account(account_id: str) -> None:
    """Keep the books at another account of Stripe from now on: that of STRIPE_SECRET_KEY.

    The payments that are open at the former account cannot be continued.
    """
    settings = _settings()
    try:
        settings.require_database_url()
        before = asyncio.run(adopt_account(settings, account_id))
    except (WrongSettings, CannotRun) as fault:
        _refuse(fault)
    typer.echo(f"the books are of {account_id} now; before, they were of {before}")


@app.command()
def recover_after_restore(
    since: Annotated[
        datetime,
        typer.Option(
            formats=["%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S%z"],
            help="When the backup was taken (UTC, such as 2026-11-29T17:00:00Z), or earlier.",
        ),
    ],
) -> None:
    """Bring a restored database up to what Stripe shows, before any replica serves it.

    It may be run again. It sends nothing that moves money.
    """
    settings = _settings()
    since = since.astimezone(UTC) if since.tzinfo else since.replace(tzinfo=UTC)

    try:
        settings.require_database_url()
        asyncio.run(recover_books(settings, since, typer.echo))
    except (WrongSettings, CannotRun) as fault:
        _refuse(fault)


@app.command()
def check() -> None:
    """Check the environment's variables and files, and say what they mean; start nothing."""
    settings = _settings()
    stripe = "the simulator" if settings.is_simulated else "Stripe"
    mode = "live" if settings.is_live else "test"
    try:
        authenticator_of(settings)
        tls = grpc_credentials(settings) is not None or settings.grpc_tls_by_mesh
    except WrongSettings as fault:
        _refuse(fault)
    typer.echo(f"environment {settings.environment}, {stripe} in {mode} mode")
    typer.echo(f"callers: AUTH={settings.effective_auth}, TLS {'on' if tls else 'off'}")


@app.command()
def explain(
    given: Annotated[
        str,
        typer.Argument(
            metavar="ID",
            help="Of the payment, the gig, the client or the expert; or one of Stripe's ids.",
        ),
    ],
) -> None:
    """Tell the whole story of one payment: what happened, what it waits for, what can be done.

    It reads the database of DATABASE_URL and changes nothing. ExplainPayment says the same by gRPC.
    """
    from rich.console import Console  # noqa: PLC0415

    from payment_service import support  # noqa: PLC0415

    settings = _settings(quiet=True)
    try:
        settings.require_database_url()
        asyncio.run(support.explain(settings, given, Console()))
    except WrongSettings as fault:
        _refuse(fault)
    except CannotRun as fault:
        typer.echo(f"{given}: {fault}", err=True)
        raise typer.Exit(1) from None


@app.command()
def report(
    month: Annotated[str, typer.Option(help="A month of UTC, such as 2026-11.")],
    currency: Annotated[str, typer.Option(help="Only this one.")] = "",
    expert: Annotated[str, typer.Option(help="The statement of this expert.")] = "",
    directory: Annotated[
        Path | None, typer.Option("--csv", help="Write CSV files into this directory, too.")
    ] = None,
) -> None:
    """Report a month of the books, or what one expert earned in it.

    It reads the database of DATABASE_URL, and Stripe's balance for the present month. It changes
    nothing. GetMonthlyReport and GetExpertStatement say the same by gRPC.
    """
    from rich.console import Console  # noqa: PLC0415

    from payment_service import finance  # noqa: PLC0415

    found = month_of(month)
    if found is None:
        raise typer.BadParameter(f"{month} is no month: give one such as 2026-11")
    settings = _settings(quiet=True)
    try:
        settings.require_database_url()
        asyncio.run(
            finance.statement(settings, found, expert, directory, Console())
            if expert
            else finance.report(settings, found, currency.upper(), directory, Console())
        )
    except WrongSettings as fault:
        _refuse(fault)
    except (CannotRun, BooksDoNotSum) as fault:
        typer.echo(str(fault), err=True)
        raise typer.Exit(1) from None
    except OSError as error:
        typer.echo(f"{directory} cannot be written ({type(error).__name__})", err=True)
        raise typer.Exit(1) from None


@app.command()
def doctor(
    round_trip: Annotated[
        bool | None,
        typer.Option(help="Wait for a webhook that Stripe is made to send."),
    ] = None,
    patience: Annotated[float, typer.Option(help="Seconds that the webhook may take.")] = 30.0,
) -> None:
    """Look at the database's role and the Stripe account: what is right, what must be changed.

    The round trip creates a payment intent that nobody pays and cancels it. It needs the gateway
    and the service to be running, and is made in test mode unless you say otherwise. The exit code
    is 1 if something must be changed.
    """
    settings = _settings()
    wanted = not settings.is_live if round_trip is None else round_trip
    try:
        ready = asyncio.run(examine(settings, typer.echo, patience=patience if wanted else None))
    except (WrongSettings, Refusal) as fault:
        _refuse(fault)
    raise typer.Exit(0 if ready else 1)


@app.command(name="export-heads")
def write_exported_heads(
    out: Annotated[Path, typer.Option(help="The file; it is replaced when it is whole.")],
) -> None:
    """Write the heads of the audit trail into a file, with every event that they cover.

    Keep the file where nobody who can change the database can change it.
    """
    settings = _settings()
    try:
        settings.require_database_url()
        asyncio.run(write_heads(settings, out, typer.echo))
    except (WrongSettings, CannotRun) as fault:
        _refuse(fault)


@app.command()
def verify(
    heads: Annotated[
        Path | None, typer.Option(help="Hold the database against this file of export-heads.")
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Check this bundle of a payment, without a database.")
    ] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="The public key (PEM) that must have signed the heads.")
    ] = None,
) -> None:
    """Check exported heads or a payment's bundle.

    The exit code is 0 if everything agrees, 1 if something was changed, and 3 if the database is of
    an earlier moment than the heads, as after the restore of a backup, or if heads of the public
    key cover nothing of the bundle, or only a part of it.
    """
    try:
        if (heads is None) == (bundle is None):
            raise CannotRun("give either --heads or --bundle")
        if bundle is not None:
            checked = check_bundle_file(bundle, public_key, typer.echo)
            # Who gives a key wants to know whether its heads cover all of the bundle.
            unproven = public_key is not None and checked.unproven
            raise typer.Exit(1 if checked.faults else 3 if unproven else 0)
        assert heads is not None
        settings = _settings()
        settings.require_database_url()
        verdict = asyncio.run(check_heads(settings, heads, public_key, typer.echo))
    except (WrongSettings, CannotRun) as fault:
        _refuse(fault)
    raise typer.Exit({Verdict.AGREES: 0, Verdict.DIFFERS: 1, Verdict.OLDER: 3}[verdict])


def _sqlstate(error: Exception) -> str:
    return str(getattr(getattr(error, "orig", None), "pgcode", None) or "")


def _settings(*, quiet: bool = False) -> Settings:
    """Returns the settings. ``quiet`` keeps all but errors out of what a person reads."""
    try:
        settings = load_settings()
    except WrongSettings as fault:
        _refuse(fault)
    level = "ERROR" if quiet else settings.effective_log_level
    configure_logs(level, settings.effective_log_format)
    return settings


def _refuse(fault: Exception) -> NoReturn:
    typer.echo(f"payment_service cannot run:\n{fault}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    sys.exit(app())
