"""Who may call a stack: with AUTH=jwt its keys and tokens, made by the service's own commands.

With a key set of your own (AUTH_JWKS) nothing is made here; then CORE_TOKEN_FILE is the gateway's
token, and yours is for you to get.
"""

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dev.settings import ROOT, RefusedError, StackSettings
from marketplace.payments.credentials import Tls, Token

_LIFETIME_SECONDS = 3600
#: The pause after a renewal that failed.
_RETRY_SECONDS = 60.0
_ROLES = (
    *("GIG_SERVICE", "USER_SERVICE", "NOTIFICATION_SERVICE"),
    *("FINANCE", "OPERATOR_READ_ONLY", "OPERATOR"),
)


@dataclass
class Access:
    """The credentials with which the gateway, the probes and a developer call a stack."""

    directory: Path
    #: Whether keys and tokens are made here.
    issues: bool
    #: As the gateway speaks to the service; None is plain text.
    tls: Tls | None
    given: Mapping[str, str] = field(default_factory=dict)
    _renew_at: float = 0.0

    @classmethod
    def of(cls, settings: StackSettings) -> "Access":
        given = settings.environment
        issues = given.get("AUTH", "").lower() == "jwt" and "AUTH_JWKS" not in given
        return cls(settings.data_dir / "access", issues, _tls(given), given)

    @property
    def environment(self) -> dict[str, str]:
        """Returns the variables of the service and the gateway."""
        if not self.issues:
            return {}
        return {
            "AUTH_JWKS": str(self.directory / "jwks.json"),
            "AUTH_ISSUER": self._issuer,
            "CORE_TOKEN_FILE": str(self.directory / "gateway.token"),
        }

    @property
    def _issuer(self) -> str:
        return self.given.get("AUTH_ISSUER", "development")

    @property
    def developer_token(self) -> Path:
        """Returns the file of a token with all roles of people and services."""
        return self.directory / "developer.token"

    @property
    def token(self) -> Token | None:
        """Returns the developer's token for a channel; None where none is made."""
        return Token(self.developer_token) if self.issues else None

    def prepare(self) -> None:
        """Makes a key, unless there is one, and the tokens."""
        if not self.issues:
            return
        if not (self.directory / "signing-key.pem").exists():
            self._run("keys")
        self._issue()

    def renew_if_due(self) -> None:
        """Issues the tokens again in time. The clock is that of their expiry: a machine sleeps."""
        if self.issues and time.time() >= self._renew_at:
            try:
                self._issue()
            except RefusedError:
                self._renew_at = time.time() + _RETRY_SECONDS

    def _issue(self) -> None:
        life = min(_LIFETIME_SECONDS, int(float(self.given.get("AUTH_TOKEN_LIFETIME", "3600"))))
        for name, roles, file in (
            ("gateway", ("GATEWAY",), self.directory / "gateway.token"),
            ("developer", _ROLES, self.developer_token),
        ):
            asked = [word for role in roles for word in ("--role", role)]
            self._run("issue", "--name", name, *asked, "--lifetime", f"{life}", "--output", file)
        self._renew_at = time.time() + life / 2

    def _run(self, command: str, *arguments: object) -> None:
        told = {name: value for name, value in self.given.items() if name == "AUTH_AUDIENCE"}
        done = subprocess.run(
            [
                *(sys.executable, "-m", "payment_service.token_commands", command),
                *(str(argument) for argument in arguments),
                *("--directory", str(self.directory)),
            ],
            cwd=ROOT,
            env={**os.environ, "AUTH_ISSUER": self._issuer, **told},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        if done.returncode != 0:
            raise RefusedError(f"no keys and tokens could be made: {done.stderr.strip()}")


def _tls(given: Mapping[str, str]) -> Tls | None:
    """Returns how the gateway speaks to the service; the probes do the same."""
    served, ca = given.get("GRPC_TLS_CERTIFICATE_FILE"), given.get("CORE_TLS_CA_FILE")
    if served and not ca:
        raise RefusedError(
            "GRPC_TLS_CERTIFICATE_FILE is set without CORE_TLS_CA_FILE: the gateway and the probes "
            "need the authority that signed it"
        )
    if ca is None:
        return None
    certificate, key = given.get("CORE_TLS_CERTIFICATE_FILE"), given.get("CORE_TLS_KEY_FILE")
    return Tls(
        ROOT / ca,
        ROOT / certificate if certificate else None,
        ROOT / key if key else None,
        given.get("CORE_TLS_SERVER_NAME", ""),
    )
