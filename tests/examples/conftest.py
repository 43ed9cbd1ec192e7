"""A stack whose callers need tokens; each example runs as a user runs it, as a process."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from dev.settings import ROOT, StackSettings
from dev.stack import Stack
from marketplace.payments.channel import connect_sync
from marketplace.payments.credentials import Token
from payment_service.adapters.identity.issuing import issue_token, make_keys
from payment_service.domain.caller import Caller, Role
from tests.acceptance.conftest import WEBHOOK_SECRETS, World, until
from tests.support.databases import Databases
from tests.support.nursery import Nursery

EXAMPLES = ROOT / "examples"
ISSUER, AUDIENCE = "https://id.example.com", "payments.marketplace"
#: Each service has the one role that it needs. The test itself onboards experts and reads.
ROLES = {
    "gig-service": [Role.GIG_SERVICE],
    "user-service": [Role.USER_SERVICE],
    "notification-service": [Role.NOTIFICATION_SERVICE],
    "gateway": [Role.GATEWAY],
    "test": [Role.USER_SERVICE],
}
_SECONDS = 90.0


@dataclass
class Program:
    """A running example, and what it has said so far."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))

    def wait_for(self, words: str) -> str:
        """Waits for a line with these words, and returns it."""

        def found() -> list[str]:
            return [line for line in self.lines if words in line]

        until(lambda: bool(found()) or self.process.poll() is not None, words, _SECONDS)
        if not found():
            self._reader.join(_SECONDS)
        assert found(), "it ended: " + "\n".join(self.lines)
        return found()[0]

    def end(self, *, kill: bool = False) -> int:
        """Ends the program, if it still runs, and returns its status."""
        if self.process.poll() is None:
            if kill:
                self.process.kill()
            else:
                self.process.terminate()
        return self.wait()

    def wait(self) -> int:
        """Waits until the program ends by itself, and returns its status."""
        status = self.process.wait(_SECONDS)
        self._reader.join(_SECONDS)
        return status


@dataclass
class Town:
    """The stack, and the services that call it by their own names."""

    world: World
    tokens: Path

    def environment(self, name: str) -> dict[str, str]:
        """Returns the settings of a service, as its deployment would give them."""
        return {
            **os.environ,
            "PAYMENTS_ADDRESS": self.world.address,
            "PAYMENTS_TOKEN_FILE": str(self.tokens / f"{name}.token"),
            "SIMULATOR_URL": self.world.stack.simulator_url,
        }

    def run(
        self, name: str, command: Sequence[str], place: Path, **more: str
    ) -> subprocess.CompletedProcess[str]:
        """Runs an example to its end."""
        return subprocess.run(
            command,
            cwd=place,
            env={**self.environment(name), **more},
            capture_output=True,
            text=True,
            check=False,
            timeout=_SECONDS,
        )

    def start(self, name: str, command: Sequence[str], place: Path, **more: str) -> Program:
        """Starts an example that runs until it is ended."""
        process = subprocess.Popen(
            command,
            cwd=place,
            env={**self.environment(name), **more},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return Program(process)

    def effects(self, kind: str, payment_intent: str) -> int:
        """Counts what really happened at Stripe."""
        found = self.world.control(f"effects?kind={kind}&payment_intent={payment_intent}")
        return len(found["effects"])

    @contextlib.contextmanager
    def silent_stripe(self) -> Iterator[None]:
        """Stripe does what it is asked for, and nobody gets its answers."""
        rule = {"match": {"path": "/payment_intents/"}, "action": "reset", "when": "after"}
        self.world.control("faults", rule)
        try:
            yield
        finally:
            self.world.control("faults", {"rules": [], "replace": True})


@pytest.fixture(scope="package")
def town(
    databases: Databases, nursery: Nursery, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Town]:
    directory = tmp_path_factory.mktemp("examples")
    tokens = directory / "tokens"
    _issue(tokens)
    told = {
        **WEBHOOK_SECRETS,
        "DATABASE_URL": databases.take(),
        "AUTH": "jwt",
        "AUTH_JWKS": str(tokens / "jwks.json"),
        "AUTH_ISSUER": ISSUER,
        "CORE_TOKEN_FILE": str(tokens / "gateway.token"),
    }
    settings = StackSettings.on_free_ports(directory)
    settings = StackSettings.on_free_ports(directory, environment={**settings.environment, **told})
    test = Token(tokens / "test.token")
    with (
        Stack(settings, spawn=nursery.spawn) as stack,
        connect_sync(stack.grpc_target, token=test) as channel,
    ):
        yield Town(World(stack, channel), tokens)


@pytest.fixture(scope="package")
def expert(town: Town) -> str:
    """An expert who can be paid."""
    return town.world.ready_expert()


def _issue(directory: Path) -> None:
    """Issues each service its token, as an identity provider would."""
    make_keys(directory)
    for name, roles in ROLES.items():
        caller = Caller(name, frozenset(roles))
        token = issue_token(directory, caller, issuer=ISSUER, audience=AUDIENCE, lifetime=3600)
        (directory / f"{name}.token").write_text(token)
