"""The console's settings, read once from the environment and never changed after.

Every field's description is the sentence that corrects a wrong value: it ends the message with
which a start is refused.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from marketplace.payments.channel import is_loopback
from sidecar.settings import CoreSettings, load


class Settings(CoreSettings):
    """What the environment sets; an empty variable counts as unset."""

    console_host: str = Field(
        default="127.0.0.1",
        pattern=r"^[A-Za-z0-9.:_-]+$",
        description="the name or address of one interface, for example 127.0.0.1",
    )
    console_port: int = Field(
        default=8006,
        ge=0,
        le=65535,
        description="a port from 1 to 65535, or 0 for any free one, for example 8006",
    )
    console_sign_in: Literal["token", "off"] = Field(
        default="token", description="token, or off for a core on this machine with AUTH=off"
    )
    console_session_seconds: int = Field(
        default=28_800,
        ge=60,
        le=86_400,
        description="a number of seconds from 60 to 86400",
    )
    console_public_url: str = Field(
        default="",
        description="the https address under which operators open it, without a path, for example "
        "https://console.example.com",
    )
    console_tls_certificate_file: Path | None = Field(
        default=None, description="the file (PEM) of the console's own certificate"
    )
    console_tls_key_file: Path | None = Field(
        default=None, description="the file (PEM) of the key of CONSOLE_TLS_CERTIFICATE_FILE"
    )
    console_tls_by_mesh: bool = Field(default=False, description="true or false")
    console_runbook_url: str = Field(
        default="",
        pattern=r"^(https?://[^\s\"'<>?#]+)?$",
        description="the http or https address of docs/runbook, for example "
        "https://git.example.com/payments/docs/runbook",
    )
    console_call_seconds: float = Field(
        default=20.0,
        gt=0,
        le=300,
        allow_inf_nan=False,
        description="a number of seconds above 0, at most 300",
    )

    @field_validator("console_public_url")
    @classmethod
    def _check_public_url(cls, value: str) -> str:
        if not value:
            return value
        parts = urlsplit(value)
        port = parts.port  # raises ValueError if it is no number
        host = parts.hostname or ""
        named = f"[{host}]" if ":" in host else host
        origin = f"https://{named}" + (f":{port}" if port not in (None, 443) else "")
        if parts.scheme != "https" or not host or parts.path not in ("", "/"):
            raise ValueError("not an https origin")
        if parts.username is not None or parts.query or parts.fragment or not value.isprintable():
            raise ValueError("not an https origin")
        return origin

    @model_validator(mode="after")
    def _agree(self) -> Self:
        for fault in self._faults():
            raise ValueError(fault)
        return self

    def _faults(self) -> Iterator[str]:
        yield from self._faults_of_the_listener()
        yield from self._faults_of_the_core()
        if self.console_sign_in == "off":
            if self.environment == "production":
                yield (
                    "CONSOLE_SIGN_IN=off lets everybody act: ENVIRONMENT=production needs "
                    "CONSOLE_SIGN_IN=token"
                )
            if not self.listens_on_loopback or self.console_public_url:
                yield (
                    "CONSOLE_SIGN_IN=off lets everybody act who reaches the console: it must be on "
                    "loopback, so set CONSOLE_HOST=127.0.0.1 and unset CONSOLE_PUBLIC_URL"
                )
            if not self.core_on_loopback:
                yield (
                    "CONSOLE_SIGN_IN=off is for a core with AUTH=off on this machine, and "
                    "CORE_ADDRESS is another machine: set CONSOLE_SIGN_IN=token"
                )

    def _faults_of_the_listener(self) -> Iterator[str]:
        certificate, key = self.console_tls_certificate_file, self.console_tls_key_file
        if (certificate is None) != (key is None):
            yield "CONSOLE_TLS_CERTIFICATE_FILE and CONSOLE_TLS_KEY_FILE belong together: set both"
        if certificate is not None and self.console_tls_by_mesh:
            yield (
                "CONSOLE_TLS_CERTIFICATE_FILE and CONSOLE_TLS_BY_MESH=true exclude each other: "
                "either the console encrypts or the mesh does"
            )
        if not self.listens_on_loopback:
            if certificate is None and not self.console_tls_by_mesh:
                yield (
                    f"CONSOLE_HOST={self.console_host} can be reached from other machines, and "
                    "tokens would come to it in plain text: set CONSOLE_TLS_CERTIFICATE_FILE and "
                    "CONSOLE_TLS_KEY_FILE, or CONSOLE_TLS_BY_MESH=true if a service mesh or a "
                    "proxy encrypts"
                )
            if not self.console_public_url:
                yield (
                    f"CONSOLE_HOST={self.console_host} needs CONSOLE_PUBLIC_URL, the https address "
                    "under which operators open it: calls for any other name are refused"
                )
        elif self.console_public_url and certificate is None and not self.console_tls_by_mesh:
            yield (
                "CONSOLE_PUBLIC_URL is https, and nothing encrypts: set "
                "CONSOLE_TLS_CERTIFICATE_FILE, or CONSOLE_TLS_BY_MESH=true if a proxy on this "
                "machine does"
            )
        if self.environment == "production" and not self.console_port:
            yield "CONSOLE_PORT=0 is any free port, where nobody would find the console: set a port"

    def _faults_of_the_core(self) -> Iterator[str]:
        tls = self.core_tls_ca_file is not None
        if not tls and self.core_tls_server_name:
            yield "CORE_TLS_SERVER_NAME needs CORE_TLS_CA_FILE beside it"
        if tls and self.core_tls_by_mesh:
            yield (
                "CORE_TLS_CA_FILE and CORE_TLS_BY_MESH=true exclude each other: either the "
                "console encrypts or the mesh does"
            )
        if not (tls or self.core_tls_by_mesh or self.core_on_loopback):
            yield (
                "the operators' tokens would be sent to CORE_ADDRESS in plain text: set "
                "CORE_TLS_CA_FILE, or CORE_TLS_BY_MESH=true if a service mesh encrypts it"
            )

    @property
    def listens_on_loopback(self) -> bool:
        """Whether only this machine reaches the console."""
        host = self.console_host
        return is_loopback(f"[{host}]:1" if ":" in host else f"{host}:1")

    @property
    def core_on_loopback(self) -> bool:
        """Whether the core is certainly on this machine."""
        return all(is_loopback(address) for address in self.core_address)

    @property
    def is_https(self) -> bool:
        """Whether browsers reach the console by https."""
        return bool(self.console_public_url) or self.console_tls_certificate_file is not None


def load_settings() -> Settings:
    """Reads the environment; raises RefusedSettings with one sentence for each fault."""
    return load(Settings, "the console's environment", prefix="CONSOLE")
