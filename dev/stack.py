"""PostgreSQL, the Stripe simulator, the service and the gateway as one thing.

    with Stack(StackSettings.on_free_ports(tmp_path, replicas=2)) as stack:
        call(stack.settings.grpc_addresses)
        stack.services[0].kill()
        stack.services[0].restart()

Started in the order in which they need each other, each waited for; stopped in the reverse, so
that the service can still reach its database and Stripe while it drains.
"""

import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import Self

from dev import probes
from dev.access import Access
from dev.child import Child, Sink, SpawnCommand
from dev.cluster import secret_in
from dev.guard import Guard
from dev.lock import DirectoryLock
from dev.ports import first_free_port
from dev.postgres import EmbeddedPostgres
from dev.processes import Leftovers
from dev.programs import PostgresError
from dev.registered_events import REGISTERED_EVENTS
from dev.settings import (
    SECRETS,
    SIMULATOR_PUBLISHABLE_KEY,
    SIMULATOR_SECRET_KEY,
    RefusedError,
    StackSettings,
)

_READY_SECONDS = 60.0
_LOCK_SECONDS = 90.0

# How long each may take to finish its work. The service waits for Stripe's answers.
_GATEWAY_GRACE_SECONDS = 15.0
_SERVICE_GRACE_SECONDS = 40.0
_SIMULATOR_GRACE_SECONDS = 5.0


class ChildFailedError(RuntimeError):
    """A process of the stack ended by itself, or did not become ready."""

    def __init__(self, child: Child, what: str) -> None:
        self.child = child
        self.sentence = f"{child.name} {what}."
        lines = "\n".join(f"    {line}" for line in child.tail) or "    (it wrote nothing)"
        super().__init__(f"{self.sentence} Its last lines:\n{lines}")


class CancelledStartError(RuntimeError):
    """A signal asked for the end before the stack was ready."""


class Stack:
    """The processes of a running stack, which callers may pause, kill and restart."""

    def __init__(
        self,
        settings: StackSettings,
        *,
        sink: Sink = lambda name, line: None,
        progress: Callable[[str], None] = lambda text: None,
        spawn: SpawnCommand | None = None,
    ) -> None:
        """`sink` gets every line of a child, `progress` a sentence for each step.

        `spawn` starts the processes in another way than by running their commands.
        """
        self.settings = settings
        self.postgres: EmbeddedPostgres | None = None
        self.simulator: Child | None = None
        self.services: list[Child] = []
        self.gateway: Child | None = None
        self.database_url = ""
        self._sink = sink
        self._progress = progress
        self._spawn = spawn
        self._leftovers = Leftovers(settings.data_dir / "stack.pids")
        self.access = Access.of(settings)
        self._guard: Guard | None = None
        self._lock: DirectoryLock | None = None
        self._stop_asked = threading.Event()
        self._force_asked = threading.Event()

    # The stack as a whole

    def start(self) -> None:
        """Starts everything and waits until it answers. After a failure nothing keeps running."""
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stops everything: the gateway, the service after its calls in flight, the rest."""
        if self.gateway is not None:
            self._end([self.gateway], _GATEWAY_GRACE_SECONDS)
        self._end(self.services, _SERVICE_GRACE_SECONDS)
        if self.simulator is not None:
            self._end([self.simulator], _SIMULATOR_GRACE_SECONDS)
        if self.postgres is not None:
            self._progress("stopping PostgreSQL")
            self.postgres.stop()
        if self._lock is not None:
            self._leftovers.forget()
            self._lock.release()
            self._lock = None
        if self._guard is not None:
            self._guard.close()
            self._guard = None

    def ask_to_stop(self) -> None:
        """Ends `wait` or a start in progress; for signal handlers and other threads.

        A second request kills the processes that are still running.
        """
        if self._stop_asked.is_set():
            self._force_asked.set()
        self._stop_asked.set()

    def wait(self) -> None:
        """Returns after a request to stop; raises when a child ends by itself."""
        while not self._stop_asked.wait(0.2):
            for child in self.children:
                if not child.running:
                    child.wait()
                    self._progress(f"{child.name} ended by itself: stopping everything else")
                    raise ChildFailedError(child, f"ended by itself ({_ending(child.returncode)})")
            if self.postgres is not None and not self.postgres.running:
                raise PostgresError(f"PostgreSQL ended by itself: see {self.postgres.log}")
            self.access.renew_if_due()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    # Its parts

    @property
    def children(self) -> list[Child]:
        """Returns the processes that run as long as the stack, without PostgreSQL."""
        return [
            *([self.simulator] if self.simulator else []),
            *self.services,
            *([self.gateway] if self.gateway else []),
        ]

    @property
    def grpc_target(self) -> str:
        """Returns the address of the first replica, for tools that take one address."""
        return self.settings.grpc_addresses[0]

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.gateway_port}"

    @property
    def simulator_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.simulator_port}"

    @property
    def metrics_urls(self) -> list[str]:
        first = self.settings.metrics_port
        return [f"http://127.0.0.1:{first + n}/metrics" for n in range(self.settings.replicas)]

    def wait_until_serving(self, replica: int = 0, seconds: float = _READY_SECONDS) -> None:
        """Waits for one replica, for example after `services[replica].restart()`."""
        service = self.services[replica]
        for port in self.settings.grpc_ports(replica):
            serves = partial(probes.serves, f"127.0.0.1:{port}", self.access.tls)
            self._await(service, serves, seconds)

    # How it starts

    def _start(self) -> None:
        settings = self.settings
        settings.refuse_contradictions()
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._guard = Guard()
        self._lock = DirectoryLock(settings.data_dir / "stack.lock")
        self._lock.acquire(self._guard, _LOCK_SECONDS)
        self._leftovers.end()
        self._refuse_taken_ports()
        # Commands of the service, which take some seconds; meanwhile the database comes up.
        pool = ThreadPoolExecutor(1)
        access = pool.submit(self.access.prepare)
        pool.shutdown(wait=False)
        self._start_postgres()
        if settings.simulated:
            self._start_simulator()
        self._migrate()  # meanwhile the simulator comes up
        if self.simulator is not None:
            port = settings.simulator_port
            self._await(self.simulator, lambda: probes.answers(port, "/_simulator/health"))
        access.result()
        self._start_services()
        self._start_gateway()

    def _start_postgres(self) -> None:
        if self.settings.database_url is not None:
            self.database_url = self.settings.database_url
            return
        self._progress("starting PostgreSQL")
        self.postgres = EmbeddedPostgres(
            self.settings.data_dir / "postgres", durable=self.settings.durable, guard=self._guard
        )
        self.database_url = self.postgres.start()

    def _start_simulator(self) -> None:
        self._progress("starting the Stripe simulator")
        webhooks = f"{self.gateway_url}/api/v1/webhooks/stripe"
        platform = self._secret("STRIPE_WEBHOOK_SECRET")
        connect = self._secret("STRIPE_CONNECT_WEBHOOK_SECRET")
        inherited = self._without_secrets()
        # In the environment, because every user can read a command line.
        told = {
            "STRIPE_SIMULATOR_HOST": "127.0.0.1",
            "STRIPE_SIMULATOR_PORT": str(self.settings.simulator_port),
            "STRIPE_SIMULATOR_SECRET_KEY": SIMULATOR_SECRET_KEY,
            "STRIPE_SIMULATOR_PUBLISHABLE_KEY": SIMULATOR_PUBLISHABLE_KEY,
            "STRIPE_SIMULATOR_WEBHOOKS": f"platform={webhooks},{platform} "
            f"connect={webhooks}/connect,{connect}",
            "STRIPE_SIMULATOR_WEBHOOK_EVENTS": ",".join(REGISTERED_EVENTS),
            # The service and the simulator must agree on the platform.
            "STRIPE_SIMULATOR_COUNTRY": inherited["PLATFORM_COUNTRY"],
            "STRIPE_SIMULATOR_SETTLEMENT_CURRENCIES": inherited["PLATFORM_SETTLEMENT_CURRENCIES"],
            "STRIPE_SIMULATOR_STATE": str(self.settings.data_dir / "simulator.sqlite"),
        }
        self.simulator = self._child(
            "simulator",
            [*self.settings.commands["simulator"], *self.settings.simulator_arguments],
            inherited | told,
        )
        self.simulator.start()

    def _migrate(self) -> None:
        self._progress("migrating the database")
        environment = self._environment() | (self.postgres.migrating if self.postgres else {})
        child = self._child("migrate", self.settings.commands["migrate"], environment)
        child.start()
        while not child.wait(0.1):
            if self._stop_asked.is_set():
                child.kill()
                raise CancelledStartError
        if child.returncode != 0:
            raise ChildFailedError(child, f"failed ({_ending(child.returncode)})")

    def _start_services(self) -> None:
        self._progress("starting the payment service")
        for replica in range(self.settings.replicas):
            environment = {
                **self._environment(),
                "GRPC_PORT": str(self.settings.grpc_ports(replica).start),
                "METRICS_PORT": str(self.settings.metrics_port + replica),
            }
            name = "service" if self.settings.replicas == 1 else f"service-{replica + 1}"
            self.services.append(self._child(name, self.settings.commands["service"], environment))
            self.services[-1].start()
        for replica in range(self.settings.replicas):
            self.wait_until_serving(replica)

    def _start_gateway(self) -> None:
        self._progress("starting the gateway")
        self.gateway = self._child(
            "gateway", self.settings.commands["gateway"], self._without_secrets()
        )
        self.gateway.start()
        port = self.settings.gateway_port
        self._await(self.gateway, lambda: probes.answers(port, "/health"))

    def environment(self) -> dict[str, str]:
        """Returns what a command beside this stack needs, which another process has started."""
        self.settings.data_dir.mkdir(parents=True, exist_ok=True)
        database = EmbeddedPostgres(self.settings.data_dir / "postgres")
        self.database_url = self.settings.database_url or database.last_url()
        return self._environment()

    def _environment(self) -> dict[str, str]:
        """Returns the service's environment. The caller's settings override the defaults here."""
        settings = self.settings
        defaults = {
            "ENVIRONMENT": "development",
            "GATEWAY_PUBLIC_URL": self.gateway_url,
            "STRIPE_WEBHOOK_SECRET": self._secret("STRIPE_WEBHOOK_SECRET"),
            "STRIPE_CONNECT_WEBHOOK_SECRET": self._secret("STRIPE_CONNECT_WEBHOOK_SECRET"),
            **self.access.environment,
        }
        decided = {
            "CORE_ADDRESS": ",".join(settings.grpc_addresses),
            "DATABASE_URL": self.database_url,
            "DATA_DIR": str(settings.data_dir),
            "GATEWAY_PORT": str(settings.gateway_port),
            "GRPC_PORT": str(settings.grpc_port),
            "METRICS_PORT": str(settings.metrics_port),
            "WORKERS": str(settings.workers),
            "PYTHONUNBUFFERED": "1",
            # The processes write JSON; whoever takes their lines makes them readable.
            "LOG_FORMAT": "json",
        }
        if settings.simulated:
            defaults |= {
                "PLATFORM_COUNTRY": "US",
                "PLATFORM_SETTLEMENT_CURRENCIES": "USD,EUR,GBP,JPY",
            }
            decided |= {
                "STRIPE_API_BASE": self.simulator_url,
                "STRIPE_PUBLISHABLE_KEY": SIMULATOR_PUBLISHABLE_KEY,
                "STRIPE_SECRET_KEY": SIMULATOR_SECRET_KEY,
                "STRIPE_SIMULATOR_PORT": str(settings.simulator_port),
            }
        return defaults | dict(settings.environment) | decided

    def _without_secrets(self) -> dict[str, str]:
        """Returns what the gateway and the simulator get: they need no secret of the service."""
        return {n: value for n, value in self._environment().items() if n not in SECRETS}

    def _secret(self, name: str) -> str:
        """Returns the caller's secret, or one that is generated once and kept for later runs."""
        if given := self.settings.environment.get(name):
            return given
        directory = self.settings.data_dir / "secrets"
        directory.mkdir(mode=0o700, exist_ok=True)
        return "whsec_" + secret_in(directory / name.lower())

    def _child(self, name: str, command: Sequence[str], environment: dict[str, str]) -> Child:
        assert self._guard is not None
        child = Child(
            name,
            command,
            environment,
            guard=self._guard,
            sink=self._sink,
            on_start=lambda child: self._leftovers.note(child.pid),
        )
        if self._spawn is not None:
            child.spawn = partial(self._spawn, child.command)
        return child

    def _await(
        self, child: Child, ready: Callable[[], bool], seconds: float = _READY_SECONDS
    ) -> None:
        deadline = time.monotonic() + seconds
        while not ready():
            if not child.running:
                child.wait()
                raise ChildFailedError(child, f"did not come up ({_ending(child.returncode)})")
            if time.monotonic() > deadline:
                raise ChildFailedError(child, f"was not ready after {seconds:.0f} s")
            if self._stop_asked.wait(0.05):
                raise CancelledStartError

    def _refuse_taken_ports(self) -> None:
        taken = {port: name for port, name in self.settings.ports.items() if probes.taken(port)}
        if taken:
            names = sorted(set(taken.values()))
            raise RefusedError(
                "; ".join(f"port {port} ({name}) is in use" for port, name in taken.items())
                + ": stop the program that listens there, or choose other ports, for example "
                + " ".join(f"{name}={first_free_port(1)}" for name in names)
            )

    # How it ends

    def _end(self, children: list[Child], grace_seconds: float) -> None:
        """Asks all to end and waits; kills those that take too long, or all if forced."""
        running = [child for child in children if child.running]
        if running:
            self._progress("stopping " + ", ".join(child.name for child in running))
        for child in running:
            child.ask_to_stop()
        deadline = time.monotonic() + grace_seconds
        for child in children:
            while not child.wait(0.1):
                if time.monotonic() > deadline or self._force_asked.is_set():
                    self._progress(f"killing {child.name}")
                    child.kill()


def _ending(returncode: int | None) -> str:
    if returncode is not None and returncode < 0:
        return f"killed by {signal.Signals(-returncode).name}"
    return f"exit status {returncode}"
