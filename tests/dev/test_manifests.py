"""What Kubernetes gets: manifests that it accepts, with settings that the processes accept."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import kubernetes_validate  # type: ignore[import-untyped]  # it has no types
import pytest
import yaml

from dev.manifests import CHART, FILES, MANIFESTS, VALUES, header, rendered
from dev.settings import ROOT
from tests.support.certificates import Authority
from tests.support.deploying import checked
from tests.support.nursery import Nursery

#: The oldest release that the chart names, and a new one.
KUBERNETES: Final = ("1.27", "1.34")
_SECRETS: Final = {
    "secret-key": "sk_live_ofTheTest",
    "webhook-secret": "whsec_ofTheTestPlatform",
    "connect-webhook-secret": "whsec_ofTheTestConnect",
    "service-url": "postgresql://payments:x@127.0.0.1/payments",
    "owner-url": "postgresql://owner:x@127.0.0.1/payments",
    "database-url": "postgresql://relay:x@127.0.0.1/payments",
    "nats-url": "tls://nats.example.com:4222",
    "mail": "whsec_b2ZUaGVUZXN0b2ZUaGVUZXN0b2ZUaGVUZXN0",
}
#: What each process is started with, and what answers for it whether it would start.
_MODULES: Final = {
    "service": ("payment_service",),
    "migrate": ("payment_service",),
    "gateway": ("gateway",),
    "console": ("console",),
    "relay": ("payment_service", "relay"),
}


def documents() -> list[dict[str, Any]]:
    texts = [(MANIFESTS / name).read_text() for name in FILES]
    return [one for text in texts for one in yaml.safe_load_all(text) if one]


def named(kind: str) -> Iterator[dict[str, Any]]:
    return (one for one in documents() if one["kind"] == kind)


def templates() -> dict[str, dict[str, Any]]:
    """Returns the pod's template of each workload by its container's name."""
    found = {}
    for one in documents():
        if one["kind"] in ("Deployment", "Job"):
            template = one["spec"]["template"]
            found[template["spec"]["containers"][0]["name"]] = template
    return found


def pods() -> dict[str, dict[str, Any]]:
    return {name: template["spec"] for name, template in templates().items()}


@pytest.mark.parametrize("version", KUBERNETES)
def test_kubernetes_accepts_every_manifest(version: str) -> None:
    kinds = []
    for one in documents():
        kubernetes_validate.validate(one, version, strict=True)
        kinds.append(one["kind"])
    assert {"Deployment", "Job", "Service", "NetworkPolicy", "PodDisruptionBudget"} <= set(kinds)
    assert pods().keys() == _MODULES.keys()


def test_the_manifests_are_of_this_chart() -> None:
    """Without Helm, a digest shows that somebody has changed the chart and not the manifests."""
    for name in FILES:
        first, *_ = (MANIFESTS / name).read_text().splitlines()
        assert first == header(), f"{name}: run make manifests"


@pytest.fixture
def helm() -> str:
    found = shutil.which("helm")
    if found is None:
        pytest.skip("Helm is not installed")
    return found


@pytest.mark.parametrize("name", FILES)
def test_the_manifests_are_made_from_the_chart(helm: str, name: str) -> None:
    made = rendered(helm, name)
    assert (MANIFESTS / name).read_text() == f"{header()}\n{made}"
    everything = ["--set", "console.enabled=true,relay.enabled=true,monitoring.enabled=true"]
    subprocess.run(
        [helm, "lint", "--strict", str(CHART), "--values", str(VALUES), *everything], check=True
    )


@pytest.mark.parametrize(
    ("given", "refusal"),
    [
        ("console.enabled=true,console.from=null", "console.from: where operators come from"),
        ("console.enabled=true,console.publicUrl=", "console.publicUrl: the https address"),
        ("console.enabled=true,auth.mode=mtls", "console.enabled needs auth.mode=jwt"),
        (
            "relay.enabled=true,relay.nats=false,relay.endpoints=null",
            "relay.enabled needs somewhere to publish to",
        ),
        ("auth.issuer=", "auth.issuer: the iss of the callers' tokens"),
        (
            "environment.OTEL_EXPORTER_OTLP_ENDPOINT=http://traces.example.com:4317",
            "networkPolicy.collector: where the collector of traces is",
        ),
    ],
)
def test_the_chart_names_what_is_missing(helm: str, given: str, refusal: str) -> None:
    done = subprocess.run(
        [
            *(helm, "template", "x", str(CHART), "--kube-version=1.34"),
            *(f"--values={VALUES}", "--set", given),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert refusal in done.stderr


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [
        ("http://collector.tracing:4317/", 4317),
        ("https://[fd00::5]:4317", 4317),
        ("https://10.0.0.5", 443),  # gRPC's own, where none is given
    ],
)
def test_every_process_reaches_the_collector_of_traces(helm: str, endpoint: str, port: int) -> None:
    collector = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "tracing"}}}
    given = {
        "environment": {
            "OTEL_EXPORTER_OTLP_ENDPOINT": endpoint,
            "OTEL_TRACES_SAMPLER": "always_on",
        },
        "networkPolicy": {"collector": [collector]},
        "console": {"enabled": True},
        "relay": {"enabled": True},
    }
    text = subprocess.run(
        [
            *(helm, "template", "x", str(CHART), "--kube-version=1.34"),
            *(f"--values={VALUES}", "--values=-"),
        ],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    made = [one for one in yaml.safe_load_all(text) if one]
    for process in ("service", "gateway", "console", "relay"):
        [data] = [
            one["data"]
            for one in made
            if one["kind"] == "ConfigMap" and one["metadata"]["name"] == f"x-{process}"
        ]
        assert data["OTEL_EXPORTER_OTLP_ENDPOINT"] == endpoint
        assert data["OTEL_TRACES_SAMPLER"] == "always_on"
    limited = [
        one["spec"]["egress"]
        for one in made
        if one["kind"] == "NetworkPolicy" and "Egress" in one["spec"]["policyTypes"]
    ]
    assert len(limited) == 2, "of the gateway and of the console"
    for egress in limited:
        assert {"ports": [{"port": port, "protocol": "TCP"}], "to": [collector]} in egress


def test_the_chart_has_the_rules_of_prometheus() -> None:
    """A chart cannot read files outside of it."""
    rules = "escrow-payments.rules.yaml"
    kept = ROOT / "deploy" / "prometheus" / rules
    assert (CHART / "files" / rules).read_text() == kept.read_text()


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


@pytest.mark.parametrize(
    ("container", "secrets"),
    [
        # Not the owner's address: an intruder in the service must not find it.
        ("service", {"database": ["service-url"], "stripe": None, "tls": None}),
        ("migrate", {"database": ["owner-url"], "stripe": None, "tls": None}),
        ("gateway", {"gateway-token": None, "tls": ["ca.crt"]}),
        ("console", {"console-tls": None, "tls": ["ca.crt"]}),
        (
            "relay",
            {"relay": None, "relay-token": None, "relay-webhooks": None, "tls": ["ca.crt"]},
        ),
    ],
)
def test_each_pod_gets_its_own_secrets_alone(
    container: str, secrets: dict[str, list[str] | None]
) -> None:
    found = {}
    for volume in pods()[container]["volumes"]:
        if secret := volume.get("secret"):
            items = secret.get("items")
            name = secret["secretName"].removeprefix("escrow-payments-")
            found[name] = [item["key"] for item in items] if items else None
            assert secret["defaultMode"] == 0o440
    assert found == secrets
    mounted = {mount["name"] for mount in pods()[container]["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pods()[container]["volumes"]}


def test_selectors_find_their_pods_and_probes_their_ports() -> None:
    labels = [template["metadata"]["labels"].items() for template in templates().values()]
    for one in (*named("Service"), *named("PodDisruptionBudget")):
        selector = one["spec"]["selector"]
        wanted = selector.get("matchLabels", selector).items()
        assert any(wanted <= pod for pod in labels), one["metadata"]["name"]
    for one in named("Deployment"):
        [container] = one["spec"]["template"]["spec"]["containers"]
        ports = {port["name"] for port in container["ports"]}
        for probe in ("livenessProbe", "readinessProbe"):
            assert container[probe]["httpGet"]["port"] in ports


def test_every_port_is_closed_except_to_those_who_need_it() -> None:
    """An empty `from` would let everybody in; only the gateway's own port may be so."""
    policies = {
        one["spec"]["podSelector"]["matchLabels"]["app.kubernetes.io/component"]: one["spec"]
        for one in named("NetworkPolicy")
    }
    served = {
        one["metadata"]["labels"]["app.kubernetes.io/component"] for one in named("Deployment")
    }
    assert policies.keys() == served
    for name, policy in policies.items():
        for rule in policy["ingress"]:
            [port] = rule["ports"]
            assert rule.get("from") or (name, port["port"]) == ("gateway", "http"), name
    [grpc] = [rule for rule in policies["service"]["ingress"] if rule["ports"][0]["port"] == "grpc"]
    callers = {
        labels.get("app.kubernetes.io/component", "others")
        for peer in grpc["from"]
        for labels in [peer["podSelector"]["matchLabels"]]
    }
    assert callers == {"gateway", "console", "relay", "others"}
    for name in ("gateway", "console"):  # They face people, and reach the service alone.
        service, dns = policies[name]["egress"]
        assert service["ports"] == [{"port": 50051, "protocol": "TCP"}]
        assert {port["port"] for port in dns["ports"]} == {53}


@pytest.mark.timeout(300)
@pytest.mark.parametrize("container", _MODULES)
def test_the_processes_accept_their_settings(
    nursery: Nursery, tmp_path: Path, container: str
) -> None:
    """Starts ``check`` with exactly what the pod gets, its secrets as files."""
    [started] = pods()[container]["containers"]
    assert started["args"][: len(_MODULES[container])] == [*_MODULES[container]]
    maps = {one["metadata"]["name"]: one["data"] for one in named("ConfigMap")}
    environment = dict(maps[started["envFrom"][0]["configMapRef"]["name"]])
    for variable in started.get("env", []):
        environment[variable["name"]] = variable["value"]
    certificate, key = Authority().issue("dns:escrow-payments")
    contents = {**_SECRETS, "tls.crt": certificate.decode(), "tls.key": key.decode()}
    endpoints = maps["escrow-payments-relay-endpoints"]["endpoints.json"]
    paths = [value for value in environment.values() if value.startswith("/run/secrets/")]
    if "RELAY_ENDPOINTS_FILE" in environment:
        listed = json.loads(endpoints)["endpoints"]
        paths += [path for endpoint in listed for path in endpoint["secret_files"]]
        contents["endpoints.json"] = endpoints.replace("/run/secrets", str(tmp_path))
        paths.append(environment["RELAY_ENDPOINTS_FILE"])
    for path in paths:
        mounts = [mount["mountPath"] for mount in started["volumeMounts"]]
        assert str(Path(path).parent) in mounts, path
        file = tmp_path / Path(path).parent.name / Path(path).name
        file.parent.mkdir(exist_ok=True)
        file.write_text(contents.get(file.name, certificate.decode()))
        environment = {n: str(file) if v == path else v for n, v in environment.items()}
    if container in ("gateway", "console", "relay"):
        assert not environment.keys() & {"DATABASE_URL_FILE", "STRIPE_SECRET_KEY_FILE"}
    done = checked(nursery, _MODULES[container], environment)
    assert done.returncode == 0, done.stderr
    assert "production" in done.stdout
