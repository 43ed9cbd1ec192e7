"""The part of the environment that decides who may call, and by which proof."""

from __future__ import annotations

from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings

from payment_service.config.values import is_loopback


class AccessSettings(BaseSettings):
    """How callers are authenticated, and TLS of the gRPC port."""

    #: None: off in development on loopback, else the start is refused.
    auth: Literal["jwt", "mtls", "off"] | None = None
    #: A file or an https address with a JSON Web Key Set.
    auth_jwks: str = ""
    auth_issuer: str = Field("", max_length=200)
    auth_audience: str = Field("payments.marketplace", min_length=1, max_length=200)
    #: The longest lifetime of a token that is taken.
    auth_token_lifetime: float = Field(3600.0, ge=60, le=24 * 3600.0)
    #: Which certificate is which caller, as JSON.
    auth_callers_file: Path | None = None

    grpc_tls_certificate_file: Path | None = None
    grpc_tls_key_file: Path | None = None
    #: Who signs client certificates. With it, no call comes in without one.
    grpc_tls_client_ca_file: Path | None = None
    #: A service mesh encrypts what comes to the port, and nothing passes it by.
    grpc_tls_by_mesh: bool = False

    @field_validator("auth", mode="before")
    @classmethod
    def _lower_auth(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("auth_jwks")
    @classmethod
    def _key_set(cls, value: str) -> str:
        if "://" not in value:
            return value
        parts = urlsplit(value)
        plain = parts.scheme == "http" and is_loopback(parts.hostname or "")
        if (parts.scheme != "https" and not plain) or not parts.hostname or parts.username:
            raise ValueError(
                "must be a file or an https address such as "
                "https://id.example.com/.well-known/jwks.json"
            )
        return value

    def access_rules(self, *, production: bool, host: str) -> list[tuple[bool, str]]:
        """Returns every rule of this part: whether it is broken, and how to fix it."""
        local = is_loopback(host)
        auth = self.auth or ("off" if local and not production else None)
        certificate, key = self.grpc_tls_certificate_file, self.grpc_tls_key_file
        encrypted = bool(certificate) or self.grpc_tls_by_mesh
        return [
            (
                production and auth in (None, "off"),
                (
                    "ENVIRONMENT=production needs AUTH=jwt or AUTH=mtls: otherwise everybody who "
                    "reaches the port moves money (docs/access.md)"
                ),
            ),
            (
                not production and not local and auth in (None, "off"),
                (
                    f"GRPC_HOST={host} can be reached from other machines, so callers must be "
                    "authenticated: set AUTH=jwt or AUTH=mtls (docs/access.md), or "
                    "GRPC_HOST=127.0.0.1"
                ),
            ),
            (
                auth == "jwt" and not (self.auth_jwks and self.auth_issuer),
                (
                    "AUTH=jwt needs AUTH_JWKS, the file or https address of the issuer's public "
                    "keys, and AUTH_ISSUER, the iss of its tokens"
                ),
            ),
            (
                production and self.auth_jwks.startswith("http://"),
                "AUTH_JWKS must be an https address in production: keys decide who may call",
            ),
            (
                auth == "mtls"
                and not (certificate and self.grpc_tls_client_ca_file and self.auth_callers_file),
                (
                    "AUTH=mtls needs GRPC_TLS_CERTIFICATE_FILE, GRPC_TLS_KEY_FILE, "
                    "GRPC_TLS_CLIENT_CA_FILE and AUTH_CALLERS_FILE"
                ),
            ),
            (
                bool(certificate) != bool(key),
                "GRPC_TLS_CERTIFICATE_FILE and GRPC_TLS_KEY_FILE belong together: set both",
            ),
            (
                bool(self.grpc_tls_client_ca_file) and not certificate,
                "GRPC_TLS_CLIENT_CA_FILE needs GRPC_TLS_CERTIFICATE_FILE and GRPC_TLS_KEY_FILE",
            ),
            (
                self.grpc_tls_by_mesh and bool(certificate),
                (
                    "GRPC_TLS_BY_MESH=true and GRPC_TLS_CERTIFICATE_FILE exclude each other: "
                    "either the mesh ends TLS or this service does"
                ),
            ),
            (
                (production or not local) and auth == "jwt" and not encrypted,
                (
                    "AUTH=jwt sends tokens, which others could read: set GRPC_TLS_CERTIFICATE_FILE "
                    "and GRPC_TLS_KEY_FILE, or GRPC_TLS_BY_MESH=true if a service mesh encrypts "
                    "every connection to the port"
                ),
            ),
        ]

    def auth_of(self, host: str) -> Literal["jwt", "mtls", "off"]:
        """Returns AUTH. The rules have made sure that it is only unset on loopback."""
        assert self.auth or is_loopback(host)
        return self.auth or "off"
