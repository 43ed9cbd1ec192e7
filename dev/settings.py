"""The settings of a stack: the environment first, then a `.env` file, then defaults."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from dotenv import dotenv_values

from dev.ports import first_free_port

ROOT = Path(__file__).resolve().parents[1]

SIMULATOR_SECRET_KEY = "sk_test_simulator"
SIMULATOR_PUBLISHABLE_KEY = "pk_test_simulator"

#: The secrets of the service. Each can be given by a file, as NAME_FILE.
SECRETS = (
    "DATABASE_URL",
    "DATABASE_DIRECT_URL",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "STRIPE_CONNECT_WEBHOOK_SECRET",
)

_PORTS = {
    "GRPC_PORT": 50051,
    "METRICS_PORT": 9464,
    "GATEWAY_PORT": 8005,
    "STRIPE_SIMULATOR_PORT": 12111,
}


class RefusedError(RuntimeError):
    """The stack cannot start with these settings; the text says what to change."""


#: The command of each process. Tests replace them with small fakes.
COMMANDS: Mapping[str, Sequence[str]] = {
    "migrate": [sys.executable, "-m", "payment_service", "migrate"],
    "service": [sys.executable, "-m", "payment_service", "serve"],
    "gateway": [sys.executable, "-m", "gateway"],
    "simulator": [sys.executable, "-m", "stripe_simulator"],
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StackSettings:
    """Replica n of the service listens on `grpc_port + n * workers` and `metrics_port + n`.

    Each further worker of a replica listens on the next port.
    """

    data_dir: Path
    #: The children inherit this; what the stack decides overrides it.
    environment: Mapping[str, str] = field(default_factory=dict)
    grpc_port: int = _PORTS["GRPC_PORT"]
    metrics_port: int = _PORTS["METRICS_PORT"]
    gateway_port: int = _PORTS["GATEWAY_PORT"]
    simulator_port: int = _PORTS["STRIPE_SIMULATOR_PORT"]
    replicas: int = 1
    #: Processes of each replica (`serve --workers`).
    workers: int = 1
    #: False for tests: the embedded PostgreSQL then runs without fsync.
    durable: bool = True
    #: More arguments for the simulator's command line, such as `--seed 7`.
    simulator_arguments: Sequence[str] = ()
    commands: Mapping[str, Sequence[str]] = field(default_factory=lambda: COMMANDS)

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        dotenv: Path = ROOT / ".env",
        **changes: Any,
    ) -> Self:
        """Reads the environment, then `.env`; an empty variable counts as unset."""
        given = {**dotenv_values(dotenv), **(os.environ if environ is None else environ)}
        environment = _without_files({name: value for name, value in given.items() if value})
        settings = cls(
            data_dir=(ROOT / environment.get("DATA_DIR", ".data")).absolute(),
            environment=environment,
            grpc_port=_port(environment, "GRPC_PORT"),
            metrics_port=_port(environment, "METRICS_PORT"),
            gateway_port=_port(environment, "GATEWAY_PORT"),
            simulator_port=_port(environment, "STRIPE_SIMULATOR_PORT"),
            workers=_workers(environment),
        )
        settings = replace(settings, **changes)
        settings.refuse_contradictions()
        return settings

    @classmethod
    def on_free_ports(
        cls, data_dir: Path, *, replicas: int = 1, workers: int = 1, **changes: Any
    ) -> Self:
        """Returns settings for tests, without the caller's Stripe, database, ports and access."""
        ours = (
            *("DATABASE_URL", "DATA_DIR", "STRIPE_", "GATEWAY_", "GRPC_PORT", "METRICS_PORT"),
            *("AUTH", "CORE_", "GRPC_HOST", "GRPC_TLS_", "WORKERS"),
        )
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        grpc_port, metrics_port = first_free_port(replicas * workers), first_free_port(replicas)
        settings = cls(
            data_dir=data_dir.absolute(),
            environment=inherited,
            grpc_port=grpc_port,
            metrics_port=metrics_port,
            gateway_port=first_free_port(1),
            simulator_port=first_free_port(1),
            replicas=replicas,
            workers=workers,
            durable=False,
        )
        return replace(settings, **changes)

    @property
    def database_url(self) -> str | None:
        """None means the embedded PostgreSQL."""
        return self.environment.get("DATABASE_URL")

    @property
    def simulated(self) -> bool:
        """Whether Stripe is the simulator."""
        return "STRIPE_SECRET_KEY" not in self.environment

    @property
    def grpc_addresses(self) -> list[str]:
        """Returns the address of every worker of every replica."""
        return [
            f"127.0.0.1:{port}"
            for replica in range(self.replicas)
            for port in self.grpc_ports(replica)
        ]

    def grpc_ports(self, replica: int) -> range:
        first = self.grpc_port + replica * self.workers
        return range(first, first + self.workers)

    @property
    def ports(self) -> dict[int, str]:
        """Returns every port that the stack listens on, with the variable that sets it."""
        ports = {self.gateway_port: "GATEWAY_PORT"}
        for replica in range(self.replicas):
            ports |= dict.fromkeys(self.grpc_ports(replica), "GRPC_PORT")
            ports[self.metrics_port + replica] = "METRICS_PORT"
        if self.simulated:
            ports[self.simulator_port] = "STRIPE_SIMULATOR_PORT"
        return ports

    def refuse_contradictions(self) -> None:
        if self.simulated and self.environment.get("ENVIRONMENT") == "production":
            raise RefusedError(
                "ENVIRONMENT=production without STRIPE_SECRET_KEY would pay with simulated money: "
                "set the key, or leave ENVIRONMENT unset"
            )
        if self.simulated and "STRIPE_API_BASE" in self.environment:
            raise RefusedError(
                "STRIPE_API_BASE is set without STRIPE_SECRET_KEY: set both to use that server, "
                "or neither to use the simulator that is started here"
            )
        expected = self.replicas * (self.workers + 1) + 1 + self.simulated
        if len(self.ports) != expected:
            names = ", ".join(_PORTS)
            raise RefusedError(f"two of {names} are the same port: give each a port of its own")


def _without_files(environment: Mapping[str, str]) -> dict[str, str]:
    """Returns the environment with the contents of the secrets' files in place of their paths."""
    found = dict(environment)
    for name in SECRETS:
        path = found.pop(f"{name}_FILE", None)
        if path is None:
            continue
        if name in found:
            raise RefusedError(f"{name} and {name}_FILE are both set: unset one of the two")
        try:
            found[name] = Path(path).read_text().rstrip("\r\n")
        except (OSError, UnicodeDecodeError):
            raise RefusedError(f"{name}_FILE: {path} cannot be read: check the path") from None
    return found


def _workers(environment: Mapping[str, str]) -> int:
    said = environment.get("WORKERS", "1")
    if not said.isdecimal() or not 0 < int(said) <= 64:
        raise RefusedError(f"WORKERS={said} is no number of workers: give one from 1 to 64")
    return int(said)


def _port(environment: Mapping[str, str], name: str) -> int:
    said = environment.get(name, str(_PORTS[name]))
    if not said.isdecimal() or not 0 < int(said) < 65536:
        raise RefusedError(f"{name}={said} is no port: give a number from 1 to 65535")
    return int(said)
