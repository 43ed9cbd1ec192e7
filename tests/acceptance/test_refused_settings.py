"""A wrong environment is refused at start: status 2, the sentence that mends it, no traceback."""

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from payment_service.__main__ import app
from tests.support.nursery import Nursery

INHERITED = ("PATH", "HOME", "PYTHON", "PYTEST", "COV", "LANG", "TMPDIR")
SECRET = "oN1ySeenInSecret"
DATABASE = {"DATABASE_URL": f"postgresql://user:{SECRET}@127.0.0.1:1/payments"}
TEST = {
    **DATABASE,
    "STRIPE_SECRET_KEY": f"sk_test_{SECRET}",
    "STRIPE_PUBLISHABLE_KEY": "pk_test_1",
    "STRIPE_WEBHOOK_SECRET": f"whsec_{SECRET}1",
    "STRIPE_CONNECT_WEBHOOK_SECRET": f"whsec_{SECRET}2",
}
LIVE = {
    **TEST,
    "ENVIRONMENT": "production",
    "STRIPE_SECRET_KEY": f"sk_live_{SECRET}",
    "STRIPE_PUBLISHABLE_KEY": "pk_live_1",
    "GATEWAY_PUBLIC_URL": "https://pay.example.com",
}

#: What is set, and a piece of the sentence that must be said.
REFUSED: dict[str, tuple[Mapping[str, str], str]] = {
    "no database": ({}, "DATABASE_URL is not set"),
    "production without a key": (
        {**DATABASE, "ENVIRONMENT": "production"},
        "ENVIRONMENT=production needs STRIPE_SECRET_KEY",
    ),
    "production with the simulator's key": (
        {**LIVE, "STRIPE_SECRET_KEY": "sk_test_simulator", "STRIPE_PUBLISHABLE_KEY": "pk_test_1"},
        "not the simulator's",
    ),
    "a live key to another server": (
        {**LIVE, "STRIPE_API_BASE": "http://127.0.0.1:12111"},
        "STRIPE_API_BASE",
    ),
    "a live key in development": (
        {**LIVE, "ENVIRONMENT": "development"},
        "needs ENVIRONMENT=production",
    ),
    "modes mixed": ({**LIVE, "STRIPE_PUBLISHABLE_KEY": "pk_test_1"}, "same mode"),
    "modes mixed the other way": ({**TEST, "STRIPE_PUBLISHABLE_KEY": "pk_live_1"}, "same mode"),
    "no key at all": ({**TEST, "STRIPE_SECRET_KEY": SECRET}, "must begin with sk_test_"),
    "no publishable key": ({**TEST, "STRIPE_PUBLISHABLE_KEY": ""}, "STRIPE_PUBLISHABLE_KEY"),
    "no webhook secret": ({**TEST, "STRIPE_WEBHOOK_SECRET": ""}, "STRIPE_WEBHOOK_SECRET"),
    "one webhook secret for both": (
        {**TEST, "STRIPE_CONNECT_WEBHOOK_SECRET": TEST["STRIPE_WEBHOOK_SECRET"]},
        "must differ",
    ),
    "an origin with a path": (
        {**TEST, "ALLOWED_ORIGINS": "https://app.example.com/x"},
        "is not an origin",
    ),
    "any origin": ({**TEST, "ALLOWED_ORIGINS": "*"}, "is not an origin"),
    "no https in production": (
        {**LIVE, "GATEWAY_PUBLIC_URL": "http://pay.example.com"},
        "GATEWAY_PUBLIC_URL, the https address",
    ),
    "debugging in production": ({**LIVE, "DEBUG": "true"}, "DEBUG=true"),
    "an unknown currency": ({**TEST, "DEFAULT_CURRENCY": "XXX"}, "DEFAULT_CURRENCY"),
    "an unknown settlement currency": (
        {**TEST, "PLATFORM_SETTLEMENT_CURRENCIES": "USD,XXX"},
        "PLATFORM_SETTLEMENT_CURRENCIES",
    ),
    "too much commission": (
        {**TEST, "DEFAULT_COMMISSION_BASIS_POINTS": "10000"},
        "DEFAULT_COMMISSION_BASIS_POINTS",
    ),
    "no number": ({**TEST, "GRPC_PORT": "many"}, "GRPC_PORT"),
    "no such port": ({**TEST, "GRPC_PORT": "70000"}, "GRPC_PORT"),
    "no such environment": ({**TEST, "ENVIRONMENT": "staging"}, "ENVIRONMENT"),
    "another database": ({**TEST, "DATABASE_URL": f"oracle://{SECRET}"}, "DATABASE_URL"),
    "no database's address": (
        {**TEST, "DATABASE_URL": f"postgresql://u:{SECRET}@host:port/payments"},
        "DATABASE_URL",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_environment(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command itself, in this process: starting one takes a second."""
    environment, sentence = REFUSED[case]

    def serve(settings: object) -> None:
        raise AssertionError("it would have started")

    def configure(level: str, form: str | None) -> None:
        """Not here: the runner's output is closed when it ends, and other tests log too."""

    monkeypatch.setattr("payment_service.__main__.serve_forever", serve)
    monkeypatch.setattr("payment_service.__main__.configure_logs", configure)
    for name in os.environ:
        if not name.startswith(INHERITED):
            monkeypatch.delenv(name)
    done = CliRunner(env=environment).invoke(app, ["serve"])
    judge(done.exit_code, done.output, sentence)
    assert done.exception is None or isinstance(done.exception, SystemExit)


@pytest.mark.parametrize("case", ["no database", "a live key to another server"])
def test_wrong_environment_of_a_process(case: str) -> None:
    refuses(*REFUSED[case])


@pytest.mark.parametrize(
    "command", [["explain", "pay_1"], ["report", "--month", "2026-11"], ["export-heads", "--out"]]
)
def test_a_command_without_its_database_may_be_run_again(
    nursery: Nursery, command: list[str], tmp_path: Path
) -> None:
    """A caller asks again with its key. A command has none."""
    if command[-1] == "--out":
        command = [*command, str(tmp_path / "heads")]
    done = nursery.run("payment_service", *command, env=alone(TEST))
    assert done.returncode != 0
    assert "the database is away or busy; run the command again later" in done.stderr
    assert "key" not in done.stderr
    assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["GRPC_PORT", "METRICS_PORT"])
def test_port_taken(nursery: Nursery, name: str, database_url: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        others = {"GRPC_PORT": "0", "METRICS_PORT": "0", "DATABASE_URL": database_url}
        process = nursery.serve(alone({**others, name: port}))
        with process.stdout as output:
            said = output.read().decode()
        judge(process.wait(30), said, name)


def refuses(environment: Mapping[str, str], sentence: str) -> None:
    """Run `serve` with this environment alone."""
    done = subprocess.run(
        [sys.executable, "-m", "payment_service", "serve"],
        env=alone(environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    judge(done.returncode, done.stdout + done.stderr, sentence)


def alone(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment without whatever else is set here."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(INHERITED)}
    return {**kept, **environment}


def judge(status: int, said: str, sentence: str) -> None:
    assert status == 2, said
    assert sentence in said
    assert "Traceback" not in said
    assert SECRET not in said
