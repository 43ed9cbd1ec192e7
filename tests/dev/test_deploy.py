"""What deployers get: manifests that Kubernetes accepts, and settings that processes accept."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml

from dev.settings import ROOT
from tests.support.certificates import Authority

DEPLOY: Final = ROOT / "deploy"
MANIFESTS: Final = DEPLOY / "kubernetes"
CHART: Final = DEPLOY / "helm" / "escrow-payments"
#: What the chart needs to be rendered for the committed manifests.
VALUES: Final = MANIFESTS / "values.yaml"
#: The oldest release that the chart names, and a new one.
KUBERNETES: Final = ("1.27", "1.34")
_SECRETS: Final = {
    "secret-key": "sk_live_ofTheTest",
    "webhook-secret": "whsec_ofTheTestPlatform",
    "connect-webhook-secret": "whsec_ofTheTestConnect",
    "service-url": "postgresql://payments:x@127.0.0.1/payments",
    "owner-url": "postgresql://owner:x@127.0.0.1/payments",
}


def documents() -> list[dict[str, Any]]:
    texts = [path.read_text() for path in sorted(MANIFESTS.glob("*.yaml")) if path != VALUES]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def named(kind: str) -> Iterator[dict[str, Any]]:
    return (one for one in documents() if one["kind"] == kind)


def pods() -> dict[str, dict[str, Any]]:
    """Returns the pod of each workload by its container's name."""
    found = {}
    for one in documents():
        if one["kind"] in ("Deployment", "Job"):
            spec = one["spec"]["template"]["spec"]
            found[spec["containers"][0]["name"]] = spec
    return found


def checked(module: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    """Lets a process say whether it would start with exactly these settings."""
    return subprocess.run(
        [sys.executable, "-m", module, "check"],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_every_manifest(version: str) -> None:
    kinds = []
    for one in documents():
        kubernetes_validate.validate(one, version, strict=True)
        kinds.append(one["kind"])
    assert {"Deployment", "Job", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= set(kinds)


def test_the_manifests_are_made_from_the_chart() -> None:
    helm = shutil.which("helm")
    if helm is None:
        pytest.skip("helm is not installed: docs/deploying.md says how the manifests are made")
    made = subprocess.run(
        [
            helm,
            "template",
            "escrow-payments",
            str(CHART),
            "--kube-version=1.34",
            f"--values={VALUES}",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert list(filter(None, yaml.safe_load_all(made))) == documents()
    subprocess.run([helm, "lint", "--strict", str(CHART), "--values", str(VALUES)], check=True)


def test_the_chart_has_the_rules_of_prometheus() -> None:
    """A chart cannot read files outside of it."""
    rules = "escrow-payments.rules.yaml"
    assert (CHART / "files" / rules).read_text() == (DEPLOY / "prometheus" / rules).read_text()


def test_no_pod_has_more_rights_than_it_needs() -> None:
    for name, pod in pods().items():
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        for container in pod["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True, name
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"] == {"drop": ["ALL"]}, name
            assert "memory" in container["resources"]["limits"], name


def secrets_of(container: str) -> dict[str, list[str] | None]:
    """Returns each secret that a pod gets, with its keys; None means all of them."""
    found = {}
    for volume in pods()[container]["volumes"]:
        if secret := volume.get("secret"):
            items = secret.get("items")
            found[secret["secretName"]] = [item["key"] for item in items] if items else None
    return found


def test_only_the_migration_gets_the_owners_password() -> None:
    assert secrets_of("service")["escrow-payments-database"] == ["service-url"]
    assert secrets_of("migrate")["escrow-payments-database"] == ["owner-url"]


def test_the_gateway_gets_no_secret_of_the_service() -> None:
    assert secrets_of("gateway") == {
        "escrow-payments-gateway-token": None,
        "escrow-payments-tls": ["ca.crt"],
    }


def test_selectors_find_their_pods_and_probes_their_ports() -> None:
    labels = {
        one["metadata"]["name"]: one["spec"]["template"]["metadata"]["labels"]
        for one in named("Deployment")
    }
    for one in named("Service"):
        selector = one["spec"]["selector"].items()
        assert any(selector <= pod.items() for pod in labels.values()), one["metadata"]["name"]
    for one in named("Deployment"):
        [container] = one["spec"]["template"]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports


@pytest.mark.parametrize(
    ("config", "container", "module"),
    [
        ("escrow-payments-service", "service", "payment_service"),
        ("escrow-payments-service", "migrate", "payment_service"),
        ("escrow-payments-gateway", "gateway", "gateway"),
    ],
)
def test_the_processes_accept_their_settings(
    tmp_path: Path, config: str, container: str, module: str
) -> None:
    """Starts ``check`` with exactly what the pod gets, its secrets as files."""
    [settings] = [one for one in named("ConfigMap") if one["metadata"]["name"] == config]
    environment = dict(settings["data"])
    for variable in pods()[container]["containers"][0].get("env", []):
        environment[variable["name"]] = variable["value"]
    certificate, key = Authority().issue("dns:escrow-payments")
    contents = {**_SECRETS, "tls.crt": certificate.decode(), "tls.key": key.decode()}
    for name, value in environment.items():
        if value.startswith("/run/secrets/"):
            path = tmp_path / value.removeprefix("/run/secrets/")
            path.parent.mkdir(exist_ok=True)
            path.write_text(contents.get(path.name, certificate.decode()))
            environment[name] = str(path)
    if module == "gateway":
        assert not environment.keys() & {"DATABASE_URL_FILE", "STRIPE_SECRET_KEY_FILE"}
    done = checked(module, environment)
    assert done.returncode == 0, done.stderr
    assert "production" in done.stdout


def test_the_compose_file_builds_what_there_is_and_gives_settings_that_are_accepted(
    tmp_path: Path,
) -> None:
    compose = yaml.safe_load((DEPLOY / "compose" / "compose.yaml").read_text())
    stages = (DEPLOY / "Dockerfile").read_text()
    for name, service in compose["services"].items():
        if "build" in service:
            assert f" AS {service['build']['target']}\n" in stages, name
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), name
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / "compose" / source).exists(), volume
    keys = subprocess.run(
        [sys.executable, "-m", "payment_service", "token", "keys", "--directory", str(tmp_path)],
        cwd=ROOT,
        check=False,
    )
    assert keys.returncode == 0
    (tmp_path / "gateway.token").write_text("x")
    for name, module in (
        ("service-1", "payment_service"),
        ("migrate", "payment_service"),
        ("gateway", "gateway"),
    ):
        environment = {
            key: str(value).replace("/keys/", f"{tmp_path}/")
            for key, value in compose["services"][name]["environment"].items()
        }
        done = checked(module, environment)
        assert done.returncode == 0, f"{name}: {done.stderr}"


def test_systemd_accepts_every_unit(tmp_path: Path) -> None:
    """The paths of programs are replaced, because they are not on this machine."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    for unit in (DEPLOY / "systemd").glob("*.service"):
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
