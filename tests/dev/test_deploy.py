"""What deployers get beside the chart: the image, the compose file and the units of systemd."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from dev.settings import ROOT
from tests.support.deploying import checked
from tests.support.go_programs import built
from tests.support.nursery import Nursery

DEPLOY: Final = ROOT / "deploy"
COMPOSE: Final = DEPLOY / "compose" / "compose.yaml"
UNITS: Final = sorted((DEPLOY / "systemd").glob("*.service"))
#: What of systemd's measure of exposure, from 0 to 10, each unit may have.
_MOST_EXPOSED: Final = 2.0


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load(COMPOSE.read_text())
    return parsed


@pytest.fixture(scope="module")
def loader() -> Path:
    """The loader of Docker Compose itself, with its schema."""
    found = built("github.com/compose-spec/compose-go/v2/cmd", "v2.16.2", "compose-loader")
    if found is None:
        pytest.skip("Go is not installed, which builds the loader of Docker Compose")
    return found


@pytest.mark.parametrize(
    ("was", "becomes", "fault"),
    [
        ("name: escrow-payments", "name: escrow-payments", ""),
        (
            "healthcheck:\n      test: [CMD, test",
            "helthcheck:\n      test: [CMD, test",
            "helthcheck",
        ),
        ("service_healthy}\n      tokens", "healthy}\n      tokens", "postgres.condition"),
    ],
)
def test_docker_compose_loads_the_file(
    tmp_path: Path, loader: Path, was: str, becomes: str, fault: str
) -> None:
    """It loads as it is, and a mistake in it would be found."""
    text = COMPOSE.read_text()
    assert text.count(was) == 1, was
    (tmp_path / "compose.yaml").write_text(text.replace(was, becomes))
    done = subprocess.run(
        [str(loader), "compose.yaml"],
        cwd=tmp_path,
        env={**os.environ, "COMPOSE_PROFILES": "console,relay"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode == 0) == (not fault), done.stderr
    assert fault in done.stderr + done.stdout


def test_the_compose_file_builds_and_mounts_what_there_is(compose: dict[str, Any]) -> None:
    stages = (DEPLOY / "Dockerfile").read_text()
    services = compose["services"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= services.keys(), name
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in stages, name
            assert service["read_only"] is True, name
            assert service["cap_drop"] == ["ALL"], name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (COMPOSE.parent / source).exists(), volume
            else:
                assert source in compose["volumes"], volume


def test_console_and_relay_start_on_request_alone(compose: dict[str, Any]) -> None:
    optional = {
        name: service["profiles"]
        for name, service in compose["services"].items()
        if "profiles" in service
    }
    assert optional == {"console": ["console"], "relay": ["relay"], "nats": ["relay"]}


@pytest.fixture(scope="module")
def keys(compose: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys, tokens and a certificate, made by the file's own commands in place of a provider."""
    directory = tmp_path_factory.mktemp("keys")
    [script] = compose["services"]["tokens"]["command"]
    assert "sleep 1800" in script
    done = subprocess.run(
        # Once, and not every half hour.
        ["/bin/sh", "-ec", script.replace("sleep 1800", "break").replace("/keys", str(directory))],
        cwd=ROOT,
        env={"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return directory


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("service-1", ("payment_service",)),
        ("migrate", ("payment_service",)),
        ("gateway", ("gateway",)),
        ("console", ("console",)),
        ("relay", ("payment_service", "relay")),
    ],
)
def test_the_processes_accept_the_settings_of_the_compose_file(
    nursery: Nursery, compose: dict[str, Any], keys: Path, name: str, module: tuple[str, ...]
) -> None:
    environment = {
        key: str(value).replace("/keys/", f"{keys}/")
        for key, value in compose["services"][name]["environment"].items()
    }
    for variable, value in environment.items():
        if variable.endswith("_FILE"):
            assert Path(value).read_text(), variable
    done = checked(nursery, module, environment)
    assert done.returncode == 0, f"{name}: {done.stderr}"


def test_prometheus_and_grafana_read_what_is_mounted(compose: dict[str, Any]) -> None:
    """Every target is a service on a port that its process listens on, and every path a mount."""
    services = compose["services"]
    prometheus = yaml.safe_load((COMPOSE.parent / "prometheus.yaml").read_text())
    targets = [
        target
        for job in prometheus["scrape_configs"]
        for config in job.get("static_configs", [])
        for target in config["targets"]
    ]
    targets += [
        f"{name}:{found['port']}"
        for job in prometheus["scrape_configs"]
        for found in job.get("dns_sd_configs", [])
        for name in found["names"]
    ]
    ports = {"service": "9464", "gateway": "9465", "relay": "9466"}
    assert sorted(targets) == ["gateway:9465", "relay:9466", "service-1:9464", "service-2:9464"]
    for target in targets:
        name, _, port = target.partition(":")
        assert name in services
        assert port == ports[name.partition("-")[0]]
    assert services["gateway"]["environment"]["GATEWAY_METRICS_PORT"] == ports["gateway"]
    mounts = _mounts(services["prometheus"])
    [pattern] = prometheus["rule_files"]
    directory = Path(pattern).parent
    rules = [file.name for file in mounts[directory].glob(Path(pattern).name)]
    assert rules == ["escrow-payments.rules.yaml"]
    assert mounts[Path("/etc/prometheus/prometheus.yml")] == COMPOSE.parent / "prometheus.yaml"
    mounts = _mounts(services["grafana"])
    provisioning = mounts[Path("/etc/grafana/provisioning")]
    [provider] = yaml.safe_load((provisioning / "dashboards" / "dashboards.yaml").read_text())[
        "providers"
    ]
    boards = mounts[Path(provider["options"]["path"])]
    assert [file.name for file in boards.glob("*.json")] == ["escrow-payments.json"]
    [source] = yaml.safe_load((provisioning / "datasources" / "prometheus.yaml").read_text())[
        "datasources"
    ]
    assert source["url"] == "http://prometheus:9090"


def test_promtool_accepts_the_settings_of_prometheus() -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [promtool, "check", "config", "--syntax-only", str(COMPOSE.parent / "prometheus.yaml")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _mounts(service: dict[str, Any]) -> dict[Path, Path]:
    """Returns what is mounted from this tree, by its place in the container."""
    pairs = [volume.split(":")[:2] for volume in service["volumes"]]
    return {Path(place): (COMPOSE.parent / source).resolve() for source, place in pairs}


@pytest.fixture(scope="module")
def analyze() -> str:
    found = shutil.which("systemd-analyze")
    if found is None:
        pytest.skip("systemd is not installed")
    return found


def test_systemd_accepts_every_unit(tmp_path: Path, analyze: str) -> None:
    """The paths of programs are replaced, because they are not on this machine."""
    for unit in UNITS:
        text = unit.read_text().replace("/opt/escrow-payments/.venv/bin/python", sys.executable)
        text = text.replace("/opt/escrow-payments", str(ROOT))
        (tmp_path / unit.name).write_text(text)
    done = subprocess.run(
        [analyze, "verify", "--man=no", *map(str, tmp_path.glob("*.service"))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{tmp_path}:"},
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_no_unit_is_exposed(analyze: str, unit: Path) -> None:
    done = subprocess.run(
        [analyze, "security", "--offline=true", "--no-pager", str(unit)],
        capture_output=True,
        text=True,
        check=False,
    )
    level = re.search(r"Overall exposure level for \S+: ([0-9.]+)", done.stdout)
    assert level, done.stdout + done.stderr
    assert float(level[1]) <= _MOST_EXPOSED, done.stdout


def test_every_unit_has_the_same_hardening() -> None:
    hardening = {
        unit.name: unit.read_text().partition("\nNoNewPrivileges")[2].partition("\n\n")[0].strip()
        for unit in UNITS
    }
    assert len(set(hardening.values())) == 1, hardening
    assert {unit.stem for unit in UNITS} == {
        "payment-console",
        "payment-gateway",
        "payment-relay",
        "payment-service",
        "payment-service-migrate",
    }


def test_the_image_has_every_package_that_its_processes_import() -> None:
    """A package that .dockerignore keeps out, or that no line copies, is absent in production."""
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    sent = (ROOT / ".dockerignore").read_text().split()
    for package in ("payment_service", "gateway", "console", "sidecar"):
        assert f"\nCOPY {package} {package}\n" in dockerfile
        assert f"!{package}" in sent
