"""``python -m payment_service serve | migrate | check``."""

from __future__ import annotations

import asyncio
import sys
from typing import NoReturn

import typer
from sqlalchemy.exc import SQLAlchemyError

from payment_service.adapters.postgres.engine import make_engine, sqlstate
from payment_service.config import Settings, WrongSettings, load_settings
from payment_service.logs import configure_logs
from payment_service.server import CannotListen
from payment_service.server import serve as serve_forever

app = typer.Typer(
    help="Escrow payments on Stripe Connect.", no_args_is_help=True, add_completion=False
)


@app.command()
def serve() -> None:
    """Serve gRPC and run the background loops until SIGTERM."""
    settings = _settings()
    try:
        settings.require_database_url()
        asyncio.run(serve_forever(settings))
    except (WrongSettings, CannotListen) as fault:
        _refuse(fault)


@app.command()
def migrate() -> None:
    """Bring the database to the schema that this code expects."""
    # Alembic takes a quarter of a second to import, which `serve` has no use for.
    from payment_service.adapters.postgres.migrate import migrate as apply  # noqa: PLC0415

    settings = _settings()
    try:
        url = settings.effective_direct_url or settings.require_database_url()
        engine = make_engine(url, 1, limits=False)
        revision = apply(engine, store_limits=settings.is_pooled)
        typer.echo(f"the database is at revision {revision}")
        engine.dispose()
    except WrongSettings as fault:
        _refuse(fault)
    except SQLAlchemyError as error:
        _refuse(
            WrongSettings(
                "the database at DATABASE_URL cannot be migrated "
                f"({type(error).__name__} {sqlstate(error)}): is it up, and is the role its owner?"
            )
        )


@app.command()
def check() -> None:
    """Check the environment's variables and say what they mean, without starting anything."""
    settings = _settings()
    stripe = "the simulator" if settings.is_simulated else "Stripe"
    mode = "live" if settings.is_live else "test"
    typer.echo(f"environment {settings.environment}, {stripe} in {mode} mode")


def _settings() -> Settings:
    try:
        settings = load_settings()
    except WrongSettings as fault:
        _refuse(fault)
    configure_logs(settings.effective_log_level, settings.effective_log_format)
    return settings


def _refuse(fault: Exception) -> NoReturn:
    typer.echo(f"payment_service cannot start:\n{fault}", err=True)
    raise typer.Exit(2)


if __name__ == "__main__":
    sys.exit(app())
