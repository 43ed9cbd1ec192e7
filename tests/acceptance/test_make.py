"""`make run`, `make demo` and `make smoke-stripe` as a person types them."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import stripe

from dev import probes
from dev.caller import Mismatch
from dev.chapters import CHAPTERS
from dev.demo import onboard_by_form
from dev.ports import first_free_port
from dev.settings import (
    ROOT,
    SIMULATOR_PUBLISHABLE_KEY,
    SIMULATOR_SECRET_KEY,
)
from dev.story import Story
from dev.stripe_side import StripeSide
from dev.walk import Target, Walk
from tests.acceptance.browser import post, submit
from tests.acceptance.conftest import World, until

PORTS = ("GRPC_PORT", "METRICS_PORT", "GATEWAY_PORT", "STRIPE_SIMULATOR_PORT")
_START_SECONDS = 60.0


@dataclass
class Run:
    """A `python -m dev run` with a terminal's worth of lines to read."""

    process: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                self.lines.append(line.rstrip("\n"))

    @property
    def text(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Ports and a data directory of this test's own, and nothing of Stripe."""
    ours = ("STRIPE_", "DATABASE_URL", "GATEWAY_", "ENVIRONMENT", "SMOKE_", "AUTH", "CORE_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    ports = {name: str(first_free_port(1)) for name in PORTS}
    return {**kept, **ports, "DATA_DIR": str(tmp_path / "data"), "PYTHONUNBUFFERED": "1"}


@contextlib.contextmanager
def running(environment: Mapping[str, str], *command: str) -> Iterator[Run]:
    """The command in a group of its own, as a shell starts it, until it says that it is ready."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    run = Run(process)
    try:
        until(
            lambda: process.poll() is not None or len(commands_in(run.text)) == 4,
            "make run is ready",
            _START_SECONDS,
        )
        assert process.poll() is None, run.text
        yield run
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
        run.reader.join(10)


def test_make_run(environment: dict[str, str]) -> None:
    """Start, paste what it says, stop by Ctrl-C, start again: the payment is still there.

    From the second start on the service asks for tokens, which were not asked for before.
    """
    with running(environment, "make", "--no-print-directory", "run") as run:
        for name in PORTS:
            assert f"127.0.0.1:{environment[name]}" in run.text
        create, initiate, list_payments, _ = commands_in(run.text)
        expert = paste(create)
        assert submit(str(expert["onboarding_url"])).status == 303
        made = paste(initiate)
        simulator = f"http://127.0.0.1:{environment['STRIPE_SIMULATOR_PORT']}"
        assert f"{simulator}/_pages/pay" in run.text
        submit(
            f"{simulator}/_pages/pay",
            client_secret=str(made["client_secret"]),
            number="4242424242424242",
        )

        def states() -> list[str]:
            return [payment["state"] for payment in paste(list_payments)["payments"]]

        until(lambda: states() == ["PAYMENT_STATE_IN_ESCROW"], "the payment is in escrow")
        children = descendants(run.process.pid)
        assert len(children) >= 5
        os.killpg(run.process.pid, signal.SIGINT)
        run.process.wait(60)
        assert "Traceback" not in run.text
        assert not {child for child in children if is_alive(child)}
        for name in PORTS:
            assert not probes.taken(int(environment[name]))
    began = time.monotonic()
    with running({**environment, "AUTH": "jwt"}, sys.executable, "-m", "dev", "run") as run:
        assert time.monotonic() - began < 30
        _asks_for_tokens(run, environment)
        *_, list_payments, _ = commands_in(run.text)
        assert states() == ["PAYMENT_STATE_IN_ESCROW"]
        run.process.send_signal(signal.SIGINT)
        assert run.process.wait(60) == 0
    data = Path(environment["DATA_DIR"])
    token = (data / "access" / "developer.token").read_text()
    assert token not in run.text
    assert token not in (data / "logs" / "run.log").read_text()


def _asks_for_tokens(run: Run, environment: Mapping[str, str]) -> None:
    """What the banner says to paste brings one along."""
    create, *_ = commands_in(run.text)
    assert "authorization: Bearer $(cat " in create
    assert paste(create)["expert"]["expert_id"] == "expert-1"
    bare = re.sub(r'-H "[^"]*" ', "", create)
    done = subprocess.run(
        ["/bin/sh", "-c", bare], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "unauthenticated" in (done.stdout + done.stderr).lower()
    assert probes.answers(int(environment["GATEWAY_PORT"]), "/health")


def commands_in(text: str) -> list[str]:
    """The four commands to paste; the last one, which watches, does not end."""
    return re.findall(r"^    (\S*\.venv/bin/.*)$", text, re.MULTILINE)


def paste(command: str) -> dict[str, Any]:
    done = subprocess.run(
        ["/bin/sh", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def descendants(pid: int) -> set[int]:
    table = subprocess.run(
        ["/bin/ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True
    )
    rows = [line.split() for line in table.stdout.splitlines()]
    parents = {int(child): int(parent) for child, parent in rows}
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found - {pid}


def is_alive(pid: int) -> bool:
    done = subprocess.run(
        ["/bin/ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
    )
    return done.stdout.strip().strip("Z<+sl") != ""


def test_make_demo(environment: dict[str, str]) -> None:
    done = make("demo", {**environment, "DEFAULT_COMMISSION_BASIS_POINTS": "77"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "OK  All 10 payments ended as expected" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("OK ")
    assert "\x1b[" not in done.stdout
    for place in PORTS:
        assert f":{environment[place]}" not in done.stdout  # it has ports of its own
    for chapter in CHAPTERS:
        assert chapter.title in done.stdout
    said = " ".join(done.stdout.split())
    for fact in (
        # three milestones
        "PLATFORM_HOLD OUTLASTS_CARD_HOLD: longer than a card holds",
        "commission 41.67 USD + 41.66 USD + 41.67 USD = 125.00 USD",
        # a refund after the payout, and the sync before the next capture
        "is paid out to the bank 1,239.74 USD 876 JPY",
        "debt 43.75 USD",
        "PAY_EXPERT 61.25 USD",
        "OFFSET_DEBT 43.75 USD",
        "debt 0.00 USD",
        # a hold that is promoted
        "CARD_HOLD PROMOTION: on_deadline=PROMOTE was asked for",
        "acts on the deadline PLATFORM_HOLD: the card is charged",
        "authorized → promote_started → charged → captured (8 events, hash chain intact)",
        # who holds what, after a step and at the end
        "██████████████▓▓░░░░░░░░ Ada 150.00 USD platform 16.67 USD Grace 83.33 USD",
        "together: what Grace paid │ 1,776.66 USD │ 1,001 JPY",
    ):
        assert fact in said


def test_a_walk_that_goes_wrong_says_so(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dev.walk.VISA", "pm_card_visa_chargeDeclinedInsufficientFunds")
    side = StripeSide(
        SIMULATOR_SECRET_KEY,
        publishable_key=SIMULATOR_PUBLISHABLE_KEY,
        api_base=world.stack.simulator_url,
    )
    target = Target(
        channel=world.channel,
        stripe=side,
        onboard=onboard_by_form,
        alone=False,
        patience_seconds=10,
    )
    with pytest.raises(Mismatch, match="expected requires_capture, got declined"):
        Walk(target, Story()).run(CHAPTERS)


def test_smoke_stripe_wants_keys(environment: dict[str, str]) -> None:
    done = make("smoke-stripe", environment)
    assert done.returncode != 0
    assert "STRIPE_SECRET_KEY and STRIPE_PUBLISHABLE_KEY are not set" in done.stdout + done.stderr
    live = {"STRIPE_SECRET_KEY": "sk_live_1", "STRIPE_PUBLISHABLE_KEY": "pk_live_1"}
    done = make("smoke-stripe", {**environment, **live})
    assert done.returncode != 0
    assert "is not a test key" in done.stdout + done.stderr


@contextlib.contextmanager
def another_stripe(environment: Mapping[str, str]) -> Iterator[dict[str, str]]:
    """The simulator stands for Stripe: it calls nobody's webhooks, and has keys of its own.

    Yields the environment of a walk against it.
    """
    port = environment["STRIPE_SIMULATOR_PORT"]
    base = f"http://127.0.0.1:{port}"
    keys = {"STRIPE_SECRET_KEY": "sk_test_another", "STRIPE_PUBLISHABLE_KEY": "pk_test_another"}
    simulator = [sys.executable, "-m", "stripe_simulator", "--port", port]
    simulator += ["--secret-key", "sk_test_another", "--publishable-key", "pk_test_another"]
    with subprocess.Popen(simulator, cwd=ROOT, stdout=subprocess.DEVNULL) as process:
        try:
            until(lambda: probes.answers(int(port), "/_simulator/health"), "the simulator is up")
            yield {**environment, "STRIPE_API_BASE": base, **keys}
        finally:
            process.terminate()


def test_smoke_stripe_against_a_server_with_other_keys(environment: dict[str, str]) -> None:
    with another_stripe(environment) as settings:
        account = onboarded_account(settings["STRIPE_API_BASE"])
        done = make("smoke-stripe", {**settings, "SMOKE_EXPERT_ACCOUNT": account})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Stripe agrees to the minor unit" in done.stdout
    for chapter in CHAPTERS:
        assert (f". {chapter.title}" in done.stdout) is not chapter.needs_simulator


def test_smoke_stripe_says_what_the_platform_lacks(environment: dict[str, str]) -> None:
    with another_stripe(environment) as settings:
        done = make("smoke-stripe", {**settings, "STRIPE_ACCOUNTS_API": "v1"})
    assert done.returncode != 0
    told = " ".join(done.stdout.split())
    assert "enable Accounts v1 support in the Dashboard" in told
    assert "docs/runbook/accounts.md" in told


def onboarded_account(base: str) -> str:
    client = stripe.StripeClient(
        "sk_test_another", base_addresses={"api": base}, max_network_retries=0
    )
    account = client.v2.core.accounts.create(
        {
            "contact_email": "ada@example.com",
            "dashboard": "express",
            "identity": {"country": "us"},
            "configuration": {
                "recipient": {
                    "capabilities": {"stripe_balance": {"stripe_transfers": {"requested": True}}}
                }
            },
            "defaults": {
                "responsibilities": {
                    "fees_collector": "application",
                    "losses_collector": "application",
                }
            },
        }
    )
    done = post(f"{base}/_simulator/accounts/{account.id}/complete_onboarding", b"{}", {})
    assert done.status == 200
    return account.id


def make(target: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", target],  # noqa: S607 - found where the developer's is
        cwd=ROOT,
        env=dict(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
