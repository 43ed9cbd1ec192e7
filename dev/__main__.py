"""`python -m dev`: the commands behind make run, demo, bench, smoke-stripe and reset."""

import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Annotated

import typer

from dev.bench_idle import bench_idle
from dev.bench_million import bench_million
from dev.bench_postgres import bench_postgres
from dev.console import Lines, summarize
from dev.demo import Ending, Failed, demo, smoke_stripe
from dev.guard import Guard
from dev.lock import DirectoryInUseError, DirectoryLock
from dev.ports import NoFreePortError
from dev.postgres import SERVICE, EmbeddedPostgres
from dev.programs import PostgresError
from dev.settings import RefusedError, StackSettings
from dev.soak import soak
from dev.stack import CancelledStartError, ChildFailedError, Stack

app = typer.Typer(
    help="Starts the services on this machine.", add_completion=False, no_args_is_help=True
)

_FAILED = 1
_REFUSED = 2


@app.command()
def run(
    replicas: Annotated[int, typer.Option(min=1, max=16, help="Payment services to start.")] = 1,
) -> None:
    """Start everything and stay until Ctrl-C."""
    lines = Lines()
    began = time.monotonic()

    def work() -> None:
        nonlocal lines
        settings = StackSettings.from_environment(replicas=replicas)
        lines = Lines.for_run(settings)
        stack = Stack(settings, sink=lines.child, progress=lines.step)
        _on_signals(stack.ask_to_stop)
        if settings.simulated:
            lines.step("STRIPE_SECRET_KEY is not set: Stripe is simulated, no money moves")
        with stack:
            summarize(lines, stack, time.monotonic() - began)
            stack.wait()
        lines.step("stopped")

    _report(lambda: lines, work)


@app.command("beside", context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def run_beside(context: typer.Context) -> None:
    """Run a command of the service, such as `explain gig-1`, on the stack of `make run`."""

    def work() -> None:
        environment = Stack(StackSettings.from_environment()).environment()
        command = [sys.executable, "-m", "payment_service", *context.args]
        if status := subprocess.run(command, env=environment, check=False).returncode:
            raise typer.Exit(status)

    _report(Lines, work)


@app.command("demo")
def run_demo() -> None:
    """Walk payments through escrow on a stack of their own, and exit."""
    _walk(demo)


@app.command("smoke-stripe")
def run_smoke_stripe() -> None:
    """Walk the same payments through Stripe's own test mode."""
    _walk(smoke_stripe)


@app.command("bench")
def run_bench(
    quick: Annotated[bool, typer.Option(help="Compare with the figures that are kept.")] = False,
) -> None:
    """Measure what a call costs, side by side with bare handlers."""
    # It needs what only tests and checks need, too.
    from dev.bench.command import bench  # noqa: PLC0415

    _report(Lines, lambda: bench(quick=quick))


@app.command("bench-idle")
def run_bench_idle(
    replicas: Annotated[int, typer.Option(min=1, max=20, help="Payment services.")] = 1,
    payments: Annotated[int, typer.Option(min=1, max=800, help="The load.")] = 100,
    each: Annotated[bool, typer.Option("--each", help="Name the statements at rest.")] = False,
) -> None:
    """Measure what replicas cost while nobody calls, for two minutes."""
    _report(Lines, lambda: bench_idle(replicas=replicas, payments=payments, each=each))


@app.command("bench-postgres")
def run_bench_postgres(
    seconds: Annotated[int, typer.Option(min=2, max=600, help="For each number.")] = 20,
) -> None:
    """Measure what one PostgreSQL carries, by pgbench with the service's own statements."""
    _report(Lines, lambda: bench_postgres(seconds=seconds))


@app.command("soak")
def run_soak(
    seconds: Annotated[float, typer.Option(min=20, max=3600, help="How long.")] = 600.0,
    workers: Annotated[int, typer.Option(min=1, max=8, help="Processes that serve.")] = 2,
    per_second: Annotated[float, typer.Option(min=0.1, max=200, help="Payments.")] = 5.0,
) -> None:
    """Load workers for minutes, and measure whether their memory stays small and flat."""
    _report(Lines, lambda: soak(seconds=seconds, workers=workers, per_second=per_second))


@app.command("bench-million")
def run_bench_million(
    payments: Annotated[int, typer.Option(min=1000, help="How many payments.")] = 1_000_000,
) -> None:
    """Measure reads and background work in a store full of history; takes many minutes."""
    _report(Lines, lambda: bench_million(payments=payments))


def _walk(walk: Callable[[Ending], None]) -> None:
    ending = Ending()
    _on_signals(ending.ask)
    _report(Lines, lambda: walk(ending))


@app.command()
def postgres() -> None:
    """Start only the embedded PostgreSQL, and print its DATABASE_URL and that of migrations."""
    lines = Lines()

    def work() -> None:
        settings = StackSettings.from_environment()
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        stop = threading.Event()
        _on_signals(stop.set)
        with EmbeddedPostgres(settings.data_dir / "postgres") as server:
            lines.say(f"service     {server.database_url}")
            lines.say(f"migrations  {server.owner_url()}  (with DATABASE_SERVICE_ROLE={SERVICE})")
            while server.running and not stop.wait(0.2):
                pass
            if not server.running:
                raise PostgresError(f"PostgreSQL ended by itself: see {server.log}")

    _report(lambda: lines, work)


@app.command()
def reset() -> None:
    """Delete the embedded database and the simulator's state."""
    lines = Lines()

    def work() -> None:
        data_dir = StackSettings.from_environment().data_dir
        if data_dir.is_dir():
            guard = Guard()
            lock = DirectoryLock(data_dir / "stack.lock")
            try:
                lock.acquire(guard)
                EmbeddedPostgres(data_dir / "postgres").destroy()
                shutil.rmtree(data_dir)
            finally:
                lock.release()
                guard.close()
        lines.say(f"{data_dir} is deleted; the next start begins with an empty database")

    _report(lambda: lines, work)


def _on_signals(ask_to_stop: Callable[[], None]) -> None:
    def handle(number: int, frame: FrameType | None) -> None:
        ask_to_stop()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, handle)


def _report(lines_now: Callable[[], Lines], work: Callable[[], None]) -> None:
    """Turns a failure into a sentence and an exit status, without a traceback."""
    try:
        work()
    except CancelledStartError:
        lines_now().step("stopped before everything was ready")
    except (RefusedError, NoFreePortError, DirectoryInUseError) as refused:
        lines_now().fail(f"Cannot start: {refused}.")
        sys.exit(_REFUSED)
    except ChildFailedError as failed:
        lines_now().explain(failed)
        sys.exit(_FAILED)
    except PostgresError as failed:
        lines_now().fail(f"{failed}.")
        sys.exit(_FAILED)
    except Failed:  # the reason has been printed
        sys.exit(_FAILED)
    finally:
        lines_now().close()


if __name__ == "__main__":
    app()
