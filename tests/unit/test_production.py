"""Which environments are right in production: each wrong one is refused with its remedy.

Every row is a complete environment with one thing changed.
"""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path

import pytest

from gateway.settings import load_settings as load_gateway_settings
from payment_service.config import WrongSettings, load_settings
from sidecar.settings import RefusedSettings

EXAMPLE = (Path(__file__).parents[2] / ".env.example").read_text()
#: Every address of the machine.
ANYWHERE = "0.0.0.0"  # noqa: S104 - nothing listens here
SECRET = "oN1ySeenInSecret"
CORE = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": f"postgresql://payments:{SECRET}@127.0.0.1:5432/payments",
    "STRIPE_SECRET_KEY": f"sk_live_{SECRET}",
    "STRIPE_PUBLISHABLE_KEY": "pk_live_1",
    "STRIPE_WEBHOOK_SECRET": f"whsec_{SECRET}a",
    "STRIPE_CONNECT_WEBHOOK_SECRET": f"whsec_{SECRET}b",
    "GATEWAY_PUBLIC_URL": "https://pay.example.com",
    "AUTH": "jwt",
    "AUTH_ISSUER": "https://id.example.com",
    "AUTH_JWKS": "https://id.example.com/.well-known/jwks.json",
    "GRPC_TLS_BY_MESH": "true",
}
TEST_MODE = {"STRIPE_SECRET_KEY": f"rk_test_{SECRET}", "STRIPE_PUBLISHABLE_KEY": "pk_test_1"}
GATEWAY = {
    "ENVIRONMENT": "production",
    "GATEWAY_HOST": ANYWHERE,
    "CORE_ADDRESS": "core.internal:50051",
    "GATEWAY_PUBLIC_URL": "https://pay.example.com",
    "ALLOWED_ORIGINS": "https://app.example.com",
}
ELSEWHERE = f"postgresql://payments:{SECRET}@db.example.com/payments"

#: What is changed, and a piece of the sentence that must be said.
WRONG_CORE: dict[str, tuple[Mapping[str, str], str]] = {
    "no key": ({"STRIPE_SECRET_KEY": ""}, "needs STRIPE_SECRET_KEY"),
    "the simulator's key": (
        {**TEST_MODE, "STRIPE_SECRET_KEY": "sk_test_simulator"},
        "not the simulator's",
    ),
    "the simulator's address and a test key": (
        {
            **TEST_MODE,
            "STRIPE_API_BASE": "http://127.0.0.1:12111",
            "STRIPE_WEBHOOK_SECRET": "",
            "STRIPE_CONNECT_WEBHOOK_SECRET": "",
        },
        "unset STRIPE_API_BASE",
    ),
    "another server by https": (
        {**TEST_MODE, "STRIPE_API_BASE": "https://stripe.example.com"},
        "unset STRIPE_API_BASE",
    ),
    "a live key to another server": (
        {"STRIPE_API_BASE": "http://stripe.example.com"},
        "unset STRIPE_API_BASE",
    ),
    "a key with a space": ({"STRIPE_SECRET_KEY": f"sk_live_{SECRET} x"}, "without spaces"),
    "a key with a line break": ({"STRIPE_SECRET_KEY": f"sk_live_{SECRET}\n"}, "without spaces"),
    "two keys": ({"STRIPE_SECRET_KEY": f"sk_live_{SECRET}\nsk_live_2"}, "without spaces"),
    "a publishable key as secret key": ({"STRIPE_SECRET_KEY": "pk_live_1"}, "must begin with"),
    "a secret key as publishable key": (
        {"STRIPE_PUBLISHABLE_KEY": f"sk_live_{SECRET}"},
        "must never stand here",
    ),
    "a publishable key with a line break": ({"STRIPE_PUBLISHABLE_KEY": "pk_live_1\n"}, "spaces"),
    "no publishable key": ({"STRIPE_PUBLISHABLE_KEY": ""}, "needs STRIPE_PUBLISHABLE_KEY"),
    "modes mixed": ({"STRIPE_PUBLISHABLE_KEY": "pk_test_1"}, "same mode"),
    "no webhook secret": ({"STRIPE_WEBHOOK_SECRET": ""}, "one for each endpoint"),
    "no webhook secret of connected accounts": (
        {"STRIPE_CONNECT_WEBHOOK_SECRET": ""},
        "one for each endpoint",
    ),
    "a webhook secret that is none": ({"STRIPE_WEBHOOK_SECRET": SECRET}, "begin with whsec_"),
    "a webhook secret that is the secret key": (
        {"STRIPE_WEBHOOK_SECRET": CORE["STRIPE_SECRET_KEY"]},
        "begin with whsec_",
    ),
    "a webhook secret without anything after its prefix": (
        {"STRIPE_WEBHOOK_SECRET": "whsec_"},
        "begin with whsec_",
    ),
    "an empty second webhook secret": (
        {"STRIPE_WEBHOOK_SECRET": f"whsec_{SECRET},"},
        "has an empty entry",
    ),
    "a second webhook secret that is none": (
        {"STRIPE_CONNECT_WEBHOOK_SECRET": f"whsec_{SECRET},{SECRET}"},
        "begin with whsec_",
    ),
    "one webhook secret for both": (
        {"STRIPE_CONNECT_WEBHOOK_SECRET": CORE["STRIPE_WEBHOOK_SECRET"]},
        "must differ",
    ),
    "no database": ({"DATABASE_URL": ""}, "DATABASE_URL is not set"),
    "a database of another kind": ({"DATABASE_URL": f"mysql://u:{SECRET}@h/d"}, "a PostgreSQL's"),
    "a database's address with a line break": (
        {"DATABASE_URL": CORE["DATABASE_URL"] + "\n"},
        "line breaks",
    ),
    "a database elsewhere without TLS": ({"DATABASE_URL": ELSEWHERE}, "sslmode=verify-full"),
    "a database elsewhere with TLS off": (
        {"DATABASE_URL": f"{ELSEWHERE}?sslmode=disable"},
        "sslmode=verify-full",
    ),
    "a database elsewhere that proves nothing": (
        {"DATABASE_URL": f"{ELSEWHERE}?sslmode=require"},
        "sslmode=verify-full",
    ),
    "a database elsewhere by its query": (
        {"DATABASE_URL": f"postgresql://payments:{SECRET}@/payments?host=db.example.com"},
        "sslmode=verify-full",
    ),
    "a direct address without TLS": (
        {"DATABASE_DIRECT_URL": ELSEWHERE},
        "DATABASE_DIRECT_URL leads to another machine",
    ),
    "verified by nothing": (
        {"DATABASE_URL": f"{ELSEWHERE}?sslmode=verify-full"},
        "does not say by which certificates",
    ),
    "certificates that are not there": (
        {"DATABASE_URL": f"{ELSEWHERE}?sslmode=verify-full&sslrootcert=/nowhere/ca.pem"},
        "sslrootcert must be a readable file",
    ),
    "a CA file that is not there": (
        {"DATABASE_URL": ELSEWHERE, "DATABASE_CA_FILE": "/nowhere/ca.pem"},
        "DATABASE_CA_FILE must be a readable file",
    ),
    "a CA file without certificates": (
        {"DATABASE_URL": ELSEWHERE, "DATABASE_CA_FILE": __file__},
        "DATABASE_CA_FILE must be a readable file",
    ),
    "a CA file that nothing uses": (
        {"DATABASE_URL": f"{ELSEWHERE}?sslmode=require", "DATABASE_CA_FILE": "system"},
        "does not verify the database",
    ),
    "a service role that is no name": (
        {"DATABASE_SERVICE_ROLE": "payments; DROP"},
        "DATABASE_SERVICE_ROLE",
    ),
    "nobody is authenticated": ({"AUTH": "off"}, "needs AUTH=jwt or AUTH=mtls"),
    "an open port, and nobody is authenticated": (
        {"AUTH": "", "GRPC_HOST": ANYWHERE},
        "needs AUTH=jwt or AUTH=mtls",
    ),
    "tokens in plain text": ({"GRPC_TLS_BY_MESH": ""}, "which others could read"),
    "tokens of nobody's": ({"AUTH_ISSUER": ""}, "needs AUTH_JWKS"),
    "keys of tokens by http": (
        {"AUTH_JWKS": "http://id.example.com/jwks.json"},
        "https address",
    ),
    "adjustments by one person": (
        {"ADJUSTMENTS_BY_ONE_PERSON": "true"},
        "another person approves",
    ),
    "a host that is an address of the web": ({"GRPC_HOST": "http://h"}, "of one interface"),
    "no public address": ({"GATEWAY_PUBLIC_URL": ""}, "needs GATEWAY_PUBLIC_URL"),
    "a public address by http": (
        {"GATEWAY_PUBLIC_URL": "http://pay.example.com"},
        "the https address",
    ),
    "a public address of this machine": (
        {"GATEWAY_PUBLIC_URL": "https://127.0.0.2"},
        "as browsers see it",
    ),
    "a public address of no machine": (
        {"GATEWAY_PUBLIC_URL": "https://0.0.0.0:8005"},
        "as browsers see it",
    ),
    "a public address with a user": (
        {"GATEWAY_PUBLIC_URL": f"https://user:{SECRET}@pay.example.com"},
        "without user",
    ),
    "a public address with a query": (
        {"GATEWAY_PUBLIC_URL": "https://pay.example.com?a=1"},
        "without user, query",
    ),
    "a public address with a fragment": (
        {"GATEWAY_PUBLIC_URL": "https://pay.example.com/#top"},
        "fragment",
    ),
    "a public address with a line break": (
        {"GATEWAY_PUBLIC_URL": "https://pay.example.com\n.evil.example"},
        "line breaks",
    ),
    "a public address with a backslash": (
        {"GATEWAY_PUBLIC_URL": "https://pay.example.com\\@evil.example"},
        "must be an http(s) address",
    ),
    "an origin by http": ({"ALLOWED_ORIGINS": "http://app.example.com"}, "is not https"),
    "an origin with a path": ({"ALLOWED_ORIGINS": "https://a.example/x"}, "is not an origin"),
    "any origin": ({"ALLOWED_ORIGINS": "*"}, "is not an origin"),
    "an origin with a user": (
        {"ALLOWED_ORIGINS": f"https://user:{SECRET}@a.example"},
        "one of them is not an origin",
    ),
    "an origin with a line break": (
        {"ALLOWED_ORIGINS": "https://a.example\nhttps://b.example"},
        "is not an origin",
    ),
    "an endless window": ({"PAYMENT_WINDOW": "inf"}, "PAYMENT_WINDOW"),
    "a window that is no number": ({"PAYMENT_WINDOW": "nan"}, "PAYMENT_WINDOW"),
    "a window of ages": ({"PAYMENT_WINDOW": "1e300"}, "PAYMENT_WINDOW"),
    "a retention of ages": ({"ANSWER_RETENTION": "1e300"}, "ANSWER_RETENTION"),
    "an endless retention": ({"WEBHOOK_EVENT_RETENTION": "inf"}, "WEBHOOK_EVENT_RETENTION"),
    "an endless warning": ({"DEADLINE_WARNING": "inf"}, "DEADLINE_WARNING"),
    "an endless grace": ({"SHUTDOWN_GRACE": "inf"}, "SHUTDOWN_GRACE"),
    "a timeout that is no number": ({"STRIPE_TIMEOUT": "nan"}, "STRIPE_TIMEOUT"),
    "equal ports": ({"METRICS_PORT": "50051"}, "are the same port"),
    "workers up to the metrics": (
        {"WORKERS": "4", "METRICS_PORT": "50054"},
        "WORKERS=4 listen on the ports 50051 to 50054, and METRICS_PORT is among them",
    ),
    "workers up to the gateway": (
        {"WORKERS": "2", "GATEWAY_PORT": "50052"},
        "GATEWAY_PORT is among them",
    ),
    "the gateway's port": ({"GATEWAY_PORT": "50051"}, "GRPC_PORT and GATEWAY_PORT are the same"),
    "the console's port": ({"CONSOLE_PORT": "9464"}, "METRICS_PORT and CONSOLE_PORT are the same"),
    "workers on any free port": ({"WORKERS": "2", "GRPC_PORT": "0"}, "set GRPC_PORT, or WORKERS=1"),
    "workers beyond the last port": (
        {"WORKERS": "4", "GRPC_PORT": "65533"},
        "would listen up to port 65536",
    ),
    "more connections than there are": (
        {"WORKERS": "5"},
        "WORKERS=5 with 21 connections each need 105, more than DATABASE_CONNECTIONS=97",
    ),
    "more connections of one worker": (
        {"DATABASE_WRITE_CONNECTIONS": "100"},
        "lower DATABASE_WRITE_CONNECTIONS",
    ),
    "no worker": ({"WORKERS": "0"}, "WORKERS"),
    "any free port": ({"GRPC_PORT": "0"}, "set a port"),
    "debugging": ({"DEBUG": "true"}, "set DEBUG=false"),
    "a misspelt variable": ({"REFLECTOIN": "false"}, "did you mean REFLECTION?"),
    "a misspelt secret": ({"STRIPE_WEBHOOK_SECRETS": SECRET}, "did you mean STRIPE_WEBHOOK_SECRET"),
    "a misspelt file": (
        {"STRIPE_SECRET_KEYFILE": "/run/secrets/key"},
        "did you mean STRIPE_SECRET_KEY_FILE?",
    ),
}

RIGHT_CORE: dict[str, Mapping[str, str]] = {
    "as it is": {},
    "test mode": TEST_MODE,
    "a webhook secret that is rolled": {"STRIPE_WEBHOOK_SECRET": f"whsec_{SECRET}1, whsec_2"},
    "a database elsewhere, verified": {
        "DATABASE_URL": f"{ELSEWHERE}?sslmode=verify-full&sslrootcert=system"
    },
    "a database elsewhere with a setting": {
        "DATABASE_URL": ELSEWHERE,
        "DATABASE_DIRECT_URL": f"{ELSEWHERE}?sslmode=verify-ca",
        "DATABASE_CA_FILE": "system",
    },
    "a database by its socket": {"DATABASE_URL": "postgresql:///payments?host=/run/postgresql"},
    "an open port": {"GRPC_HOST": ANYWHERE, "REFLECTION": "false", "METRICS_HOST": ANYWHERE},
    "no metrics": {"METRICS_PORT": "0"},
    "a public address with a path": {"GATEWAY_PUBLIC_URL": "https://example.com:8443/pay/"},
    "https origins": {"ALLOWED_ORIGINS": "https://app.example.com,https://b.example.com:8443"},
    "variables of others": {
        **{"STRIPE_API_KEY": SECRET, "STRIPE_SIMULATOR_HOST": "127.0.0.1", "GRPC_TRACE": "all"},
        **{"GATEWAY_SERVICE_HOST": "10.0.0.1", "GATEWAY_SERVICE_PORT": "80", "METRICS_PATH": "/m"},
        **{
            "DATABASE_USER": "x",
            "DATABASE_HOST": "x",
            "PLATFORM_NAME": "x",
            "DEBUGINFOD_URLS": "x",
        },
    },
    "an empty misspelt variable": {"REFLECTOIN": ""},
}

WRONG_GATEWAY: dict[str, tuple[Mapping[str, str], str]] = {
    "an origin by http": ({"ALLOWED_ORIGINS": "http://app.example.com"}, "is not https"),
    "an origin with a user": (
        {"ALLOWED_ORIGINS": f"https://user:{SECRET}@a.example"},
        "ALLOWED_ORIGINS",
    ),
    "an origin with a line break": (
        {"ALLOWED_ORIGINS": "https://a.example\nhttps://b.example"},
        "ALLOWED_ORIGINS",
    ),
    "any free port": ({"GATEWAY_PORT": "0"}, "set a port"),
    "equal ports": ({"GATEWAY_METRICS_PORT": "8005"}, "choose another one"),
    "debugging": ({"DEBUG": "true"}, "unset one of the two"),
    "the core by http": ({"CORE_ADDRESS": "http://core:50051"}, "must be host:port"),
    "the core with a user": ({"CORE_ADDRESS": f"u:{SECRET}@core:50051"}, "must be host:port"),
    "an endless timeout": ({"GATEWAY_PAGE_TIMEOUT_SECONDS": "inf"}, "at most 300"),
    "a timeout that is no number": ({"GATEWAY_BODY_TIMEOUT_SECONDS": "nan"}, "at most 300"),
    "a timeout of ages": ({"GATEWAY_SHUTDOWN_SECONDS": "1e300"}, "at most 300"),
    "the core's key": ({"STRIPE_SECRET_KEY": SECRET}, "is a secret of the core's"),
    "the core's database": ({"DATABASE_URL": SECRET}, "is a secret of the core's"),
    "a file of the core's": (
        {"STRIPE_WEBHOOK_SECRET_FILE": "/run/secrets/hook"},
        "is a secret of the core's",
    ),
    "a misspelt variable": ({"ALOWED_ORIGINS": "x"}, "did you mean ALLOWED_ORIGINS?"),
    "a host with a line break": ({"GATEWAY_HOST": "127.0.0.1\n"}, "of one interface"),
}

RIGHT_GATEWAY: dict[str, Mapping[str, str]] = {
    "as it is": {},
    "no origins": {"ALLOWED_ORIGINS": ""},
    "several cores": {"CORE_ADDRESS": "10.0.0.1:50051,10.0.0.2:50051"},
    "metrics": {"GATEWAY_METRICS_PORT": "9465"},
    "the core's other variables": {"GATEWAY_PUBLIC_URL": "https://pay.example.com"},
    "an empty secret": {"STRIPE_SECRET_KEY": ""},
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        monkeypatch.delenv(name)


def put(monkeypatch: pytest.MonkeyPatch, *environments: Mapping[str, str]) -> None:
    for environment in environments:
        for name, value in environment.items():
            monkeypatch.setenv(name, value)


@pytest.mark.parametrize("case", WRONG_CORE)
def test_a_wrong_core_is_refused(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    changes, remedy = WRONG_CORE[case]
    put(monkeypatch, CORE, changes)
    with pytest.raises(WrongSettings) as refused:
        load_settings()
    assert remedy in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("case", RIGHT_CORE)
def test_a_right_core_is_accepted(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    put(monkeypatch, CORE, RIGHT_CORE[case])
    assert SECRET not in repr(load_settings())


@pytest.mark.parametrize("case", WRONG_GATEWAY)
def test_a_wrong_gateway_is_refused(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    changes, remedy = WRONG_GATEWAY[case]
    put(monkeypatch, GATEWAY, changes)
    with pytest.raises(RefusedSettings) as refused:
        load_gateway_settings()
    assert remedy in str(refused.value)
    assert SECRET not in str(refused.value)


@pytest.mark.parametrize("case", RIGHT_GATEWAY)
def test_a_right_gateway_is_accepted(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    put(monkeypatch, GATEWAY, RIGHT_GATEWAY[case])
    load_gateway_settings()


def test_every_fault_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    put(monkeypatch, CORE, {"REFLECTOIN": "no", "GRPC_PORT": "0", "DEBUG": "true"})
    with pytest.raises(WrongSettings) as refused:
        load_settings()
    assert len(str(refused.value).splitlines()) == 3


@pytest.mark.parametrize("read", [load_settings, load_gateway_settings])
def test_no_variable_of_ours_is_taken_for_another(
    monkeypatch: pytest.MonkeyPatch, read: object
) -> None:
    """One file of variables may be given to all processes."""
    assert callable(read)
    put(monkeypatch, dict(re.findall(r"^([A-Z_]+)=(.+)$", EXAMPLE, re.MULTILINE)))
    for name in re.findall(r"^([A-Z_]+)=$", EXAMPLE, re.MULTILINE):
        monkeypatch.setenv(name, "")
    read()


def test_a_database_is_verified_by_the_setting(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The setting is added to the address, as PostgreSQL's own library reads it."""
    bundle = Path(str(ssl.get_default_verify_paths().cafile))
    if not bundle.exists():
        pytest.skip("this system has no certificates")
    ca_file = tmp_path / "a ca.pem"
    ca_file.write_bytes(bundle.read_bytes())
    put(monkeypatch, CORE, {"DATABASE_URL": ELSEWHERE, "DATABASE_CA_FILE": str(ca_file)})
    url = load_settings().require_database_url()
    assert url.startswith(f"{ELSEWHERE}?sslmode=verify-full&sslrootcert=/")
    assert url.endswith("/a%20ca.pem")
