"""Settings: what is read, and what is refused with the sentence that mends it."""

import os
import subprocess
import sys

import pytest
from pydantic import ValidationError

from gateway.settings import Settings, load_settings
from sidecar.settings import RefusedSettings


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def test_defaults() -> None:
    settings = load_settings()
    assert (settings.gateway_host, settings.gateway_port) == ("127.0.0.1", 8005)
    assert settings.core_address == ("127.0.0.1:50051",)
    assert settings.allowed_origins == frozenset()
    assert settings.gateway_max_body_bytes == 4_194_304
    assert settings.effective_log_level == "INFO"


def test_what_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "CORE_ADDRESS": "127.0.0.1:50051, 127.0.0.1:50052",
        "ALLOWED_ORIGINS": "https://App.example:443,http://localhost:3000",
        "GATEWAY_PORT": "",
        "DEBUG": "true",
        "log_level": "warning",
    }.items():
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert settings.core_address == ("127.0.0.1:50051", "127.0.0.1:50052")
    assert settings.allowed_origins == {"https://app.example", "http://localhost:3000"}
    assert settings.gateway_port == 8005
    assert settings.effective_log_level == "WARNING"


def test_the_workers_of_one_machine_are_a_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORE_ADDRESS", "10.0.0.1:50051-50054")
    assert load_settings().core_address == ("10.0.0.1:50051-50054",)
    for wrong in ("payments:50051-50052", "10.0.0.1:50052-50051", "10.0.0.1:50051-"):
        monkeypatch.setenv("CORE_ADDRESS", wrong)
        with pytest.raises(RefusedSettings, match="CORE_ADDRESS"):
            load_settings()


def test_debug_implies_the_debug_log_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "1")
    assert load_settings().effective_log_level == "DEBUG"


def test_settings_do_not_change() -> None:
    settings = load_settings()
    with pytest.raises(ValidationError):
        settings.gateway_port = 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("GATEWAY_PORT", "80x"),
        ("GATEWAY_PORT", "65536"),
        ("GATEWAY_PORT", "-1"),
        ("GATEWAY_METRICS_PORT", "8005"),
        ("GATEWAY_HOST", "a host"),
        ("CORE_ADDRESS", "127.0.0.1"),
        ("CORE_ADDRESS", "http://127.0.0.1:50051"),
        ("CORE_ADDRESS", "127.0.0.1:0"),
        ("CORE_ADDRESS", ","),
        ("CORE_ADDRESS", "payments:50051,payments:50052"),
        ("CORE_ADDRESS", "127.0.0.1:50051,[::1]:50051"),
        ("ALLOWED_ORIGINS", "*"),
        ("ALLOWED_ORIGINS", "app.example"),
        ("ALLOWED_ORIGINS", "https://app.example/"),
        ("ALLOWED_ORIGINS", "https://app.example,ftp://app.example"),
        ("ALLOWED_ORIGINS", "https://*.app.example"),
        ("LOG_LEVEL", "loud"),
        ("DEBUG", "perhaps"),
        ("ENVIRONMENT", "staging"),
        ("GATEWAY_MAX_BODY_BYTES", "0"),
        ("GATEWAY_BODY_TIMEOUT_SECONDS", "0"),
        ("GATEWAY_KEEPALIVE_SECONDS", "inf"),
        ("GATEWAY_MAX_CONNECTIONS", "many"),
    ],
)
def test_wrong_values_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(RefusedSettings) as refused:
        load_settings()
    text = str(refused.value)
    assert text.startswith(name)
    assert text.endswith(".")
    assert "\n" not in text
    assert "must" in text


def test_debug_is_not_for_production(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEBUG", "true")
    monkeypatch.setenv("ENVIRONMENT", "production")
    with pytest.raises(RefusedSettings, match=r"DEBUG=true .* unset one of the two"):
        load_settings()


@pytest.mark.parametrize("url", ["", "http://pay.example.com"])
def test_production_needs_the_public_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("ENVIRONMENT", "production")
    monkeypatch.setenv("GATEWAY_PUBLIC_URL", url)
    with pytest.raises(RefusedSettings, match="needs the https address of the gateway"):
        load_settings()


@pytest.mark.parametrize("url", ["pay.example.com", "https://user@pay.example.com", "ftp://x"])
def test_the_public_address_is_a_web_address(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.setenv("GATEWAY_PUBLIC_URL", url)
    with pytest.raises(RefusedSettings, match=r"GATEWAY_PUBLIC_URL=.* cannot be used"):
        load_settings()


def test_every_setting_says_how_to_correct_it() -> None:
    assert all(field.description for field in Settings.model_fields.values())


def test_start_is_refused_with_one_sentence_and_no_trace() -> None:
    environment = {**os.environ, "GATEWAY_PORT": "eighty", "LOG_LEVEL": "INFO"}
    done = subprocess.run(
        [sys.executable, "-m", "gateway"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == (
        'gateway: GATEWAY_PORT="eighty" cannot be used: it must be a port from 1 to 65535, '
        "or 0 for any free one, for example 8005.\n"
    )
