"""The environment: every variable explained, every contradiction refused with its cure."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from console.settings import Settings as ConsoleSettings
from console.settings import load_settings as load_console_settings
from gateway.settings import Settings as GatewaySettings
from gateway.settings import load_settings as load_gateway_settings
from payment_service.config import Settings, WrongSettings, load_settings
from payment_service.relay.settings import RelaySettings, load_relay_settings

EXAMPLE = (Path(__file__).parents[2] / ".env.example").read_text()
READ = (
    *Settings.model_fields,
    *GatewaySettings.model_fields,
    *ConsoleSettings.model_fields,
    *RelaySettings.model_fields,
)
LIVE = {
    "ENVIRONMENT": "production",
    "DATABASE_URL": "postgresql://payments:x@127.0.0.1/payments",
    "STRIPE_SECRET_KEY": "sk_live_x",
    "STRIPE_PUBLISHABLE_KEY": "pk_live_x",
    "STRIPE_WEBHOOK_SECRET": "whsec_a",
    "STRIPE_CONNECT_WEBHOOK_SECRET": "whsec_b",
    "GATEWAY_PUBLIC_URL": "https://pay.example.com",
    "AUTH": "jwt",
    "AUTH_JWKS": "https://id.example.com/jwks.json",
    "AUTH_ISSUER": "https://id.example.com",
    "GRPC_TLS_CERTIFICATE_FILE": "/tls/tls.crt",
    "GRPC_TLS_KEY_FILE": "/tls/tls.key",
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in READ:
        monkeypatch.delenv(name.upper(), raising=False)


def test_every_variable_is_explained_in_the_example() -> None:
    explained = set(re.findall(r"^([A-Z_]+)=", EXAMPLE, re.MULTILINE))
    assert explained - {"DATA_DIR", "SMOKE_EXPERT_ACCOUNT"} == {name.upper() for name in READ}


def test_the_example_says_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded() -> tuple[object, ...]:
        return load_settings(), load_console_settings(), load_relay_settings()

    bare = loaded()
    for name, value in re.findall(r"^([A-Z_]+)=(.*)$", EXAMPLE, re.MULTILINE):
        monkeypatch.setenv(name, value)
    assert loaded() == bare


def test_a_complete_production_is_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LIVE.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert (settings.is_live, settings.is_simulated, settings.effective_api_base) == (
        True,
        False,
        None,
    )


@pytest.mark.parametrize(
    ("changes", "cure"),
    [
        ({"STRIPE_SECRET_KEY": ""}, "needs STRIPE_SECRET_KEY"),
        ({"STRIPE_SECRET_KEY": "sk_test_x"}, "same mode"),
        ({"STRIPE_SECRET_KEY": "nonsense"}, "must begin with sk_test_"),
        ({"STRIPE_SECRET_KEY": "sk_test_simulator"}, "not the simulator's"),
        ({"STRIPE_API_BASE": "http://127.0.0.1:1"}, "unset STRIPE_API_BASE"),
        ({"ENVIRONMENT": "development"}, "needs ENVIRONMENT=production"),
        ({"ENVIRONMENT": "staging"}, "ENVIRONMENT"),
        ({"STRIPE_PUBLISHABLE_KEY": ""}, "needs STRIPE_PUBLISHABLE_KEY"),
        ({"STRIPE_WEBHOOK_SECRET": ""}, "one for each endpoint"),
        ({"STRIPE_CONNECT_WEBHOOK_SECRET": "whsec_a"}, "must differ"),
        ({"GATEWAY_PUBLIC_URL": "http://pay.example.com"}, "https address"),
        ({"GATEWAY_PUBLIC_URL": "pay.example.com"}, "must be an http(s) address"),
        ({"DEBUG": "true"}, "set DEBUG=false"),
        ({"DEFAULT_CURRENCY": "XYZ"}, "must be a currency"),
        ({"PLATFORM_SETTLEMENT_CURRENCIES": "USD,NOPE"}, "must be currencies"),
        ({"ALLOWED_ORIGINS": "https://a.example.com/path"}, "is not an origin"),
        ({"DEFAULT_COMMISSION_BASIS_POINTS": "10000"}, "DEFAULT_COMMISSION_BASIS_POINTS"),
        ({"GRPC_PORT": "70000"}, "GRPC_PORT"),
        ({"AUTH": ""}, "needs AUTH=jwt or AUTH=mtls"),
        ({"AUTH": "off"}, "needs AUTH=jwt or AUTH=mtls"),
        ({"AUTH": "basic"}, "AUTH"),
        ({"AUTH_JWKS": ""}, "AUTH=jwt needs AUTH_JWKS"),
        ({"AUTH_ISSUER": ""}, "and AUTH_ISSUER"),
        ({"AUTH_JWKS": "http://id.example.com/jwks.json"}, "https address"),
        ({"AUTH_JWKS": "http://127.0.0.1/jwks.json"}, "https address in production"),
        ({"AUTH_JWKS": "https://user:secret@id.example.com/"}, "https address"),
        ({"AUTH_TOKEN_LIFETIME": "1000000"}, "AUTH_TOKEN_LIFETIME"),
        ({"AUTH": "mtls"}, "GRPC_TLS_CLIENT_CA_FILE and AUTH_CALLERS_FILE"),
        ({"GRPC_TLS_KEY_FILE": ""}, "belong together"),
        ({"GRPC_TLS_BY_MESH": "true"}, "exclude each other"),
        (
            {"GRPC_TLS_CERTIFICATE_FILE": "", "GRPC_TLS_KEY_FILE": ""},
            "or GRPC_TLS_BY_MESH=true if a service mesh",
        ),
        (
            {
                "GRPC_TLS_CERTIFICATE_FILE": "",
                "GRPC_TLS_KEY_FILE": "",
                "GRPC_TLS_CLIENT_CA_FILE": "/tls/ca.crt",
            },
            "GRPC_TLS_CLIENT_CA_FILE needs",
        ),
    ],
)
def test_a_contradiction_is_refused_with_its_cure(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, str], cure: str
) -> None:
    for name, value in {**LIVE, **changes}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings) as refused:
        load_settings()
    assert cure in str(refused.value)
    assert "sk_live_x" not in str(refused.value)


@pytest.mark.parametrize("read", [load_settings, load_gateway_settings])
@pytest.mark.parametrize(
    ("environment", "form"),
    [
        ({}, None),  # a terminal decides
        ({"DEBUG": "true"}, "console"),
        ({"DEBUG": "true", "LOG_FORMAT": "JSON"}, "json"),
        ({"ENVIRONMENT": "production"}, "json"),
        ({"ENVIRONMENT": "production", "LOG_FORMAT": "console"}, "console"),
    ],
)
def test_the_log_is_json_in_production_and_on_request(
    monkeypatch: pytest.MonkeyPatch,
    read: Callable[[], Settings | GatewaySettings],
    environment: dict[str, str],
    form: str | None,
) -> None:
    # The gateway must not hold the core's secrets, without which the core does not start.
    needs = LIVE if read is load_settings else {"GATEWAY_PUBLIC_URL": LIVE["GATEWAY_PUBLIC_URL"]}
    needed = needs if "ENVIRONMENT" in environment else {}
    for name, value in {**needed, **environment}.items():
        monkeypatch.setenv(name, value)
    settings = read()
    assert settings.effective_log_format == form
    assert settings.effective_log_level == ("DEBUG" if "DEBUG" in environment else "INFO")


def test_a_missing_database_is_refused_with_its_cure() -> None:
    with pytest.raises(WrongSettings, match="use `make run`"):
        load_settings().require_database_url()


def test_secrets_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LIVE.items():
        monkeypatch.setenv(name, value)
    shown = repr(load_settings())
    assert "sk_live_x" not in shown
    assert "whsec_a" not in shown


@pytest.mark.parametrize(
    ("environment", "auth"),
    [
        ({}, "off"),
        ({"AUTH": "off", "GRPC_HOST": "localhost"}, "off"),
        ({"GRPC_HOST": "127.0.0.2"}, "off"),
        ({"GRPC_HOST": "[::1]"}, "off"),
        ({"AUTH": "JWT", "AUTH_JWKS": "jwks.json", "AUTH_ISSUER": "dev"}, "jwt"),
        ({**LIVE, "GRPC_HOST": "0.0.0.0"}, "jwt"),  # noqa: S104 - what a container sets
        (
            {
                **LIVE,
                "GRPC_TLS_CERTIFICATE_FILE": "",
                "GRPC_TLS_KEY_FILE": "",
                "GRPC_TLS_BY_MESH": "true",
            },
            "jwt",
        ),
        (
            {
                **LIVE,
                "AUTH": "mtls",
                "GRPC_TLS_CLIENT_CA_FILE": "/tls/ca.crt",
                "AUTH_CALLERS_FILE": "/etc/callers.json",
            },
            "mtls",
        ),
    ],
)
def test_callers_are_authenticated_unless_only_this_machine_can_call(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], auth: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert load_settings().effective_auth == auth


@pytest.mark.parametrize(
    ("environment", "fix"),
    [
        ({"GRPC_HOST": "0.0.0.0"}, "set AUTH=jwt or AUTH=mtls"),  # noqa: S104
        ({"GRPC_HOST": "10.0.0.5", "AUTH": "off"}, "or GRPC_HOST=127.0.0.1"),
        (
            {"GRPC_HOST": "::", "AUTH": "jwt", "AUTH_JWKS": "a", "AUTH_ISSUER": "dev"},
            "sends tokens, which others could read",
        ),
    ],
)
def test_a_port_that_others_reach_is_not_open_in_development(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], fix: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(WrongSettings, match=re.escape(fix)):
        load_settings()
