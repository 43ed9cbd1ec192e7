"""Secrets that are given as files: NAME_FILE beside NAME."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from payment_service.config import Settings, WrongSettings, load_settings

VALUES = {
    "DATABASE_URL": "postgresql://payments:fromAFile@127.0.0.1/payments",
    "DATABASE_DIRECT_URL": "postgresql://payments:fromAFile@127.0.0.1/direct",
    "STRIPE_SECRET_KEY": "sk_test_fromAFile",
    "STRIPE_WEBHOOK_SECRET": "whsec_fromAFile1",
    "STRIPE_CONNECT_WEBHOOK_SECRET": "whsec_fromAFile2\nwhsec_fromAFile3",
}


@pytest.fixture(autouse=True)
def _bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        monkeypatch.delenv(name)
    monkeypatch.setenv("STRIPE_PUBLISHABLE_KEY", "pk_test_1")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Every secret, as editors and mounts write it: with a line break at the end."""
    made = {}
    for name, value in VALUES.items():
        made[name] = tmp_path / name.lower()
        made[name].write_text(value + "\n")
        monkeypatch.setenv(f"{name}_FILE", str(made[name]))
    return made


def test_every_secret_can_be_a_file(files: dict[str, Path]) -> None:
    settings = load_settings()
    assert set(files) == {field.upper() for field in Settings.secret_fields()}
    assert settings.require_database_url() == VALUES["DATABASE_URL"]
    assert settings.effective_direct_url == VALUES["DATABASE_DIRECT_URL"]
    assert settings.effective_stripe_key == VALUES["STRIPE_SECRET_KEY"]
    assert [secret.get_secret_value() for secret in settings.stripe_connect_webhook_secret] == [
        "whsec_fromAFile2",
        "whsec_fromAFile3",
    ]
    assert dict(settings.secret_files) == {name.lower(): path for name, path in files.items()}
    assert "fromAFile" not in repr(settings)


def refused() -> str:
    with pytest.raises(WrongSettings) as fault:
        load_settings()
    said = str(fault.value)
    assert "fromAFile" not in said
    return said


@pytest.mark.parametrize("name", VALUES)
def test_a_secret_has_one_source(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, VALUES[name])
    assert refused() == f"{name} and {name}_FILE are both set: unset one of the two"


def test_a_file_that_cannot_be_read_is_named(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STRIPE_SECRET_KEY_FILE", "/nowhere/key")
    assert "STRIPE_SECRET_KEY_FILE: /nowhere/key cannot be read as text" in refused()
    monkeypatch.setenv("STRIPE_SECRET_KEY_FILE", str(files["DATABASE_URL"].parent))
    assert "cannot be read as text" in refused()


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "is empty or too long"),
        (b"\n \n", "is empty or too long"),
        (b"sk_test_fromAFile\xff", "cannot be read as text"),
        (b"sk_test_" + b"x" * 70_000, "is empty or too long"),
        (b"sk_test_fromAFile\nsk_test_2", "one key without spaces or line breaks"),
    ],
)
def test_a_file_that_holds_something_else_is_refused(
    files: dict[str, Path], content: bytes, sentence: str
) -> None:
    files["STRIPE_SECRET_KEY"].write_bytes(content)
    assert sentence in refused()
