"""The keys and tokens that a stack with AUTH=jwt makes for itself."""

from __future__ import annotations

import stat
import time
from pathlib import Path

import pytest

from dev.access import Access
from dev.settings import RefusedError, StackSettings
from tests.support.certificates import SERVER, Authority, put


def access(tmp_path: Path, **environment: str) -> Access:
    return Access.of(StackSettings(data_dir=tmp_path, environment=environment))


def test_nothing_is_made_unless_tokens_are_asked_for(tmp_path: Path) -> None:
    for environment in ({}, {"AUTH": "off"}, {"AUTH": "jwt", "AUTH_JWKS": "/etc/jwks.json"}):
        made = access(tmp_path, **environment)
        made.prepare()
        made.renew_if_due()
        assert (made.environment, made.token) == ({}, None)
        assert list(tmp_path.iterdir()) == []


def test_tokens_are_made_once_and_renewed_in_time(tmp_path: Path) -> None:
    made = access(tmp_path, AUTH="JWT", AUTH_TOKEN_LIFETIME="600")
    made.prepare()
    assert set(made.environment) == {"AUTH_JWKS", "AUTH_ISSUER", "CORE_TOKEN_FILE"}
    for name in ("gateway.token", "developer.token", "signing-key.pem"):
        assert stat.S_IMODE((made.directory / name).stat().st_mode) == 0o600
    first = made.developer_token.read_text()
    key = (made.directory / "signing-key.pem").read_bytes()
    assert made.token is not None
    assert made.token.renewed() == first
    made.renew_if_due()
    assert made.developer_token.read_text() == first
    assert time.time() + 290 < made._renew_at < time.time() + 310
    made._renew_at = 0.0  # as if five minutes had passed
    made.renew_if_due()
    assert made.developer_token.read_text() != first
    # The next start keeps the key, so that tokens in other terminals stay valid.
    access(tmp_path, AUTH="jwt").prepare()
    assert (made.directory / "signing-key.pem").read_bytes() == key


def test_a_failed_renewal_keeps_the_stack_running(tmp_path: Path) -> None:
    made = access(tmp_path, AUTH="jwt")
    made.directory.mkdir()
    put(made.directory / "signing-key.pem", b"rubbish")
    with pytest.raises(RefusedError, match="token keys"):
        made.prepare()
    made.renew_if_due()
    assert made._renew_at > time.time() + 30


def test_the_probes_speak_tls_as_the_gateway_does(tmp_path: Path) -> None:
    authority = Authority()
    certificate, key = authority.write(tmp_path, "server", *SERVER)
    served = {"GRPC_TLS_CERTIFICATE_FILE": str(certificate), "GRPC_TLS_KEY_FILE": str(key)}
    with pytest.raises(RefusedError, match="without CORE_TLS_CA_FILE"):
        access(tmp_path, **served)
    made = access(tmp_path, **served, CORE_TLS_CA_FILE=str(tmp_path / "ca.pem"))
    assert made.tls is not None
    assert made.tls.ca == tmp_path / "ca.pem"
