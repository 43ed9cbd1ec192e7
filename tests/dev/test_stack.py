"""The supervisor, with small stand-ins for the real processes: order, ends, leftovers, refusals."""

import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from dev import probes
from dev.lock import DirectoryInUseError
from dev.processes import started_at
from dev.programs import PostgresError
from dev.settings import RefusedError, StackSettings
from dev.stack import CancelledStartError, ChildFailedError, Stack

ROOT = Path(__file__).parents[2]
FAKES = Path(__file__).parent
COMMANDS = {
    "migrate": [sys.executable, "-c", "print('migrated')"],
    "service": [sys.executable, str(FAKES / "fake_service.py")],
    "gateway": [sys.executable, str(FAKES / "fake_web.py"), "GATEWAY_PORT"],
    "simulator": [sys.executable, str(FAKES / "fake_web.py"), "STRIPE_SIMULATOR_PORT"],
}
TELLS = [
    "DATABASE_URL",
    "GRPC_PORT",
    "METRICS_PORT",
    "CORE_ADDRESS",
    "STRIPE_API_BASE",
    "STRIPE_SECRET_KEY",
    "STRIPE_WEBHOOK_SECRET",
    "PLATFORM_SETTLEMENT_CURRENCIES",
    "GATEWAY_PUBLIC_URL",
    "STRIPE_SIMULATOR_WEBHOOKS",
    "STRIPE_SIMULATOR_SETTLEMENT_CURRENCIES",
]

NewSettings = Callable[..., StackSettings]


class Story:
    """All lines and steps, in the order in which they came."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def sink(self, name: str, line: str) -> None:
        self.lines.append(f"{name}: {line}")

    def step(self, text: str) -> None:
        self.lines.append(text)

    def settings_of(self, name: str) -> Any:
        start = f"{name}: told "
        return next(json.loads(line.removeprefix(start)) for line in self.lines if start in line)

    def place(self, line: str) -> int:
        return self.lines.index(line)


@pytest.fixture
def story() -> Story:
    return Story()


@pytest.fixture
def data_dir() -> Iterator[Path]:
    directory = Path(tempfile.mkdtemp(prefix="payments-test-"))
    directory.chmod(0o711)
    yield directory / "data"
    shutil.rmtree(directory)


@pytest.fixture
def new_settings(data_dir: Path, postgres_url: str) -> NewSettings:
    def create(**environment: str) -> StackSettings:
        replicas = int(environment.pop("replicas", "1"))
        settings = StackSettings.on_free_ports(data_dir, replicas=replicas, commands=COMMANDS)
        tells = {"FAKE_TELLS": json.dumps(TELLS), "DATABASE_URL": postgres_url}
        return replace(settings, environment={**settings.environment, **tells, **environment})

    return create


@pytest.fixture
def postgres_url() -> str:
    """The fakes never connect, so most tests need no server."""
    return "postgresql://nobody@127.0.0.1:1/none"


def test_everything_comes_up_and_ends_in_order(new_settings: NewSettings, story: Story) -> None:
    with Stack(new_settings(FAKE_DRAIN="0.3"), sink=story.sink, progress=story.step) as stack:
        assert probes.serves(stack.grpc_target)
        assert probes.answers(stack.settings.gateway_port, "/health")
        assert probes.answers(stack.settings.simulator_port, "/_simulator/health")
        pids = [child.pid for child in stack.children]
    assert all(started_at(pid) is None for pid in pids)
    happened = [
        "starting the Stripe simulator",
        "migrate: migrated",
        "starting the payment service",
        "starting the gateway",
        "stopping gateway",
        "stopping service",
        "service: drained",
        "stopping simulator",
    ]
    assert [line for line in story.lines if line in happened] == happened


def test_children_receive_only_their_own_settings(new_settings: NewSettings, story: Story) -> None:
    settings = new_settings(replicas="2")
    with Stack(settings, sink=story.sink, progress=story.step) as stack:
        first, second, gateway = map(story.settings_of, ["service-1", "service-2", "gateway"])
        simulator = story.settings_of("simulator")
    assert first["GRPC_PORT"] == str(settings.grpc_port)
    assert second["GRPC_PORT"] == str(settings.grpc_port + 1)
    assert second["METRICS_PORT"] == str(settings.metrics_port + 1)
    assert first["STRIPE_SECRET_KEY"] == "sk_test_simulator"
    assert first["STRIPE_API_BASE"] == stack.simulator_url
    assert first["GATEWAY_PUBLIC_URL"] == stack.gateway_url
    assert first["STRIPE_WEBHOOK_SECRET"].startswith("whsec_")
    hook = f"platform={stack.gateway_url}/api/v1/webhooks/stripe,{first['STRIPE_WEBHOOK_SECRET']}"
    assert hook in simulator["STRIPE_SIMULATOR_WEBHOOKS"].split()
    currencies = first["PLATFORM_SETTLEMENT_CURRENCIES"]
    assert currencies == simulator["STRIPE_SIMULATOR_SETTLEMENT_CURRENCIES"] == "USD,EUR,GBP,JPY"
    assert gateway["CORE_ADDRESS"] == ",".join(settings.grpc_addresses)
    secrets = ["DATABASE_URL", "STRIPE_SECRET_KEY", "STRIPE_WEBHOOK_SECRET"]
    assert [gateway[name] for name in secrets] == [None] * 3
    assert [simulator[name] for name in secrets] == [None] * 3


def test_secrets_are_made_once_and_kept(new_settings: NewSettings, data_dir: Path) -> None:
    first = Stack(new_settings())
    with first:
        pass
    kept = (data_dir / "secrets" / "stripe_webhook_secret").read_text()
    story = Story()
    with Stack(new_settings(), sink=story.sink):
        assert story.settings_of("service")["STRIPE_WEBHOOK_SECRET"] == f"whsec_{kept}"
    story = Story()
    with Stack(new_settings(STRIPE_WEBHOOK_SECRET="whsec_mine"), sink=story.sink):
        assert story.settings_of("service")["STRIPE_WEBHOOK_SECRET"] == "whsec_mine"


def test_own_stripe_key_means_no_simulator(new_settings: NewSettings, story: Story) -> None:
    with Stack(new_settings(STRIPE_SECRET_KEY="sk_test_mine"), sink=story.sink) as stack:
        assert stack.simulator is None
        settings = story.settings_of("service")
    assert settings["STRIPE_SECRET_KEY"] == "sk_test_mine"
    assert settings["STRIPE_API_BASE"] is None


def test_embedded_postgres_is_started_without_database_url(
    new_settings: NewSettings, story: Story, data_dir: Path
) -> None:
    settings = new_settings()
    environment = {n: v for n, v in settings.environment.items() if n != "DATABASE_URL"}
    settings = replace(settings, environment=environment)
    with Stack(settings, sink=story.sink, progress=story.step) as stack:
        assert stack.postgres is not None
        pid = stack.postgres.pid or 0
        assert story.settings_of("service")["DATABASE_URL"] == stack.postgres.database_url
        assert stack.postgres.directory == data_dir / "postgres"
    assert started_at(pid) is None
    assert story.place("service: drained") < story.place("stopping PostgreSQL")


def test_a_command_beside_it_finds_the_database_and_stripe(new_settings: NewSettings) -> None:
    settings = new_settings()
    environment = {n: v for n, v in settings.environment.items() if n != "DATABASE_URL"}
    settings = replace(settings, environment=environment)
    with pytest.raises(PostgresError, match="start it by `make run`"):
        Stack(settings).environment()
    with Stack(settings) as stack:
        found = Stack(settings).environment()
        with contextlib.closing(psycopg2.connect(found["DATABASE_URL"])) as connection:
            assert connection.info.user == "payments"
        assert found["DATABASE_URL"] == stack.database_url
        assert found["STRIPE_API_BASE"] == stack.simulator_url


def test_replica_is_killed_paused_and_restarted_by_its_handle(new_settings: NewSettings) -> None:
    with Stack(new_settings(replicas="2")) as stack:
        first, second = stack.services
        first.kill()
        assert not probes.serves(stack.settings.grpc_addresses[0])
        assert probes.serves(stack.settings.grpc_addresses[1])
        first.restart()
        stack.wait_until_serving(0)
        second.pause()
        assert not probes.serves(stack.settings.grpc_addresses[1])
        second.resume()
        stack.wait_until_serving(1)
        second.pause()  # and a paused one is still stopped in order
    assert first.returncode == second.returncode == 0


def test_child_that_dies_is_named_with_its_last_words(
    new_settings: NewSettings, story: Story
) -> None:
    stack = Stack(new_settings(FAKE_DIES_AFTER="1"), sink=story.sink, progress=story.step)
    with pytest.raises(ChildFailedError, match=r"service ended .*status 7(?s:.)*had enough"), stack:
        stack.wait()
    assert not any(child.running for child in stack.children)


def test_child_that_never_comes_up_is_named(new_settings: NewSettings) -> None:
    broken = {**COMMANDS, "gateway": [sys.executable, "-c", "raise SystemExit('no such thing')"]}
    stack = Stack(replace(new_settings(), commands=broken))
    with pytest.raises(ChildFailedError, match=r"gateway did not come up(?s:.)*no such thing"):
        stack.start()
    assert not any(child.running for child in stack.children)


def test_failed_migration_stops_the_start(new_settings: NewSettings) -> None:
    broken = {**COMMANDS, "migrate": [sys.executable, "-c", "raise SystemExit('bad revision')"]}
    stack = Stack(replace(new_settings(), commands=broken))
    with pytest.raises(ChildFailedError, match=r"migrate failed(?s:.)*bad revision"):
        stack.start()
    assert stack.services == []


def test_taken_ports_are_all_named_with_their_variables(new_settings: NewSettings) -> None:
    settings = new_settings()
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", settings.grpc_port))
        two.bind(("127.0.0.1", settings.simulator_port))
        one.listen()
        two.listen()
        with pytest.raises(RefusedError) as refused:
            Stack(settings).start()
    assert f"port {settings.grpc_port} (GRPC_PORT) is in use" in str(refused.value)
    assert "choose other ports, for example GRPC_PORT=" in str(refused.value)


def test_second_stack_in_the_same_directory_is_refused(new_settings: NewSettings) -> None:
    with Stack(new_settings()), pytest.raises(DirectoryInUseError, match="another DATA_DIR"):
        Stack(new_settings()).start()


def test_start_can_be_called_off(new_settings: NewSettings) -> None:
    slow = {**COMMANDS, "migrate": [sys.executable, "-c", "import time; time.sleep(60)"]}
    stack = Stack(replace(new_settings(), commands=slow))
    threading.Timer(0.7, stack.ask_to_stop).start()
    began = time.monotonic()
    with pytest.raises(CancelledStartError):
        stack.start()
    assert time.monotonic() - began < 10
    assert not any(child.running for child in stack.children)


def test_asking_twice_does_not_wait_for_the_drain(new_settings: NewSettings, story: Story) -> None:
    stack = Stack(new_settings(FAKE_DRAIN="30"), sink=story.sink, progress=story.step)
    stack.start()
    stack.ask_to_stop()
    threading.Timer(0.5, stack.ask_to_stop).start()
    began = time.monotonic()
    stack.stop()
    assert time.monotonic() - began < 10
    assert "killing service" in story.lines
    assert stack.services[0].returncode == -signal.SIGKILL


def run_and_kill(settings: StackSettings, *, also_the_guard: bool) -> list[int]:
    """Start a stack in another process, kill that without a word, and return its children."""
    program = f"""
        import os, signal
        from pathlib import Path
        from dev.settings import StackSettings
        from dev.stack import Stack
        stack = Stack(StackSettings(
            data_dir=Path({str(settings.data_dir)!r}), environment={dict(settings.environment)!r},
            grpc_port={settings.grpc_port}, metrics_port={settings.metrics_port},
            gateway_port={settings.gateway_port}, simulator_port={settings.simulator_port},
            commands={dict(settings.commands)!r}))
        stack.start()
        print(*[child.pid for child in stack.children], flush=True)
        if {also_the_guard}:
            os.kill(stack._guard._process.pid, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    return [int(pid) for pid in done.stdout.split()]


@pytest.mark.parametrize("also_the_guard", [False, True])
def test_killed_stack_leaves_nothing_and_the_next_starts(
    new_settings: NewSettings, *, also_the_guard: bool
) -> None:
    settings = new_settings()
    pids = run_and_kill(settings, also_the_guard=also_the_guard)
    assert len(pids) == 3
    with Stack(settings):  # the same ports and the same directory
        assert all(started_at(pid) is None for pid in pids)


def test_contradictory_settings_are_refused_with_the_remedy(tmp_path: Path) -> None:
    def refused(**environ: str) -> str:
        with pytest.raises(RefusedError) as error:
            StackSettings.from_environment(environ, dotenv=tmp_path / "none")
        return str(error.value)

    assert "set the key" in refused(ENVIRONMENT="production")
    assert "set both" in refused(STRIPE_API_BASE="http://127.0.0.1:1")
    assert "GRPC_PORT=http is no port" in refused(GRPC_PORT="http")
    assert "the same port" in refused(GRPC_PORT="9464")


def test_environment_wins_over_dotenv_and_empty_means_unset(tmp_path: Path) -> None:
    dotenv = tmp_path / ".env"
    dotenv.write_text("GRPC_PORT=5001\nGATEWAY_PORT=5002\nSTRIPE_SECRET_KEY=\n")
    settings = StackSettings.from_environment({"GRPC_PORT": "6001"}, dotenv=dotenv)
    assert (settings.grpc_port, settings.gateway_port) == (6001, 5002)
    assert settings.simulated


def test_a_secret_may_be_in_a_file(tmp_path: Path) -> None:
    file, nowhere = tmp_path / "key", tmp_path / "none"
    file.write_text("sk_test_mine\n")
    environ = {"STRIPE_SECRET_KEY_FILE": str(file)}
    settings = StackSettings.from_environment(environ, dotenv=nowhere)
    assert settings.environment == {"STRIPE_SECRET_KEY": "sk_test_mine"}
    for wrong in ({"STRIPE_SECRET_KEY": "sk_test_2"}, {"STRIPE_SECRET_KEY_FILE": str(nowhere)}):
        with pytest.raises(RefusedError, match="STRIPE_SECRET_KEY_FILE"):
            StackSettings.from_environment({**environ, **wrong}, dotenv=nowhere)


def test_run_refuses_in_one_sentence(new_settings: NewSettings) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dev", "run"],
        cwd=ROOT,
        env={**new_settings().environment, "GRPC_PORT": "not-a-port"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "GRPC_PORT=not-a-port is no port" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_run_shows_what_listens_and_ends_on_a_signal(new_settings: NewSettings) -> None:
    settings = new_settings()
    program = f"""
        import dev.settings
        dev.settings.COMMANDS = {COMMANDS!r}
        from dev.__main__ import app
        app(["run"])
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        env={
            **settings.environment,
            "DATA_DIR": str(settings.data_dir),
            "GRPC_PORT": str(settings.grpc_port),
            "METRICS_PORT": str(settings.metrics_port),
            "GATEWAY_PORT": str(settings.gateway_port),
            "STRIPE_SIMULATOR_PORT": str(settings.simulator_port),
        },
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    shown = ""
    while "ListPayments" not in shown:
        line = process.stdout.readline()
        assert line, shown
        shown += line
    process.terminate()
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 0, rest
    assert f"127.0.0.1:{settings.grpc_port}" in shown
    assert f"http://127.0.0.1:{settings.simulator_port}/_pages/pay" in shown
    assert re.search(r"service +INFO +drained", rest)
    assert rest.endswith("stopped\n")
