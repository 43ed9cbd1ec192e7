"""The files of a server that knows its callers by their certificates."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from payment_service.config import Settings
from tests.support.certificates import SERVER, Authority, put

GIG = "spiffe://example.org/ns/shop/sa/gig"
USER = "dns:users.internal"
CALLERS = [
    {"identity": GIG, "name": "gig-service", "roles": ["GIG_SERVICE"]},
    {"identity": USER, "name": "user-service", "roles": ["USER_SERVICE"], "act_for": "client-1"},
]


@dataclass
class Site:
    """The files of a server, and its authority."""

    directory: Path
    authority: Authority = field(default_factory=Authority)
    reports: list[tuple[str, str]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.authority.write(self.directory, "server", *SERVER)
        put(self.directory / "ca.pem", self.authority.pem)
        self.put_callers(CALLERS)

    def put_callers(self, callers: object) -> None:
        put(self.directory / "callers.json", json.dumps({"callers": callers}).encode())

    def settings(self, **more: Any) -> Settings:
        given: dict[str, Any] = {
            "auth": "mtls",
            "grpc_tls_certificate_file": self.directory / "server.pem",
            "grpc_tls_key_file": self.directory / "server-key.pem",
            "grpc_tls_client_ca_file": self.directory / "ca.pem",
            "auth_callers_file": self.directory / "callers.json",
        }
        return Settings(**{**given, **more})

    def credentials(self, *names: str, authority: Authority | None = None, days: float = 1) -> Any:
        """Returns the channel credentials of a caller with these names; without any, of none."""
        if not names:
            return grpc.ssl_channel_credentials(self.authority.pem)
        certificate, key = (authority or self.authority).issue(*names, days=days)
        return grpc.ssl_channel_credentials(self.authority.pem, key, certificate)
