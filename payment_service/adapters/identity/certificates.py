"""TLS of the gRPC port: its certificate, its key, and who may sign client certificates."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from payment_service.adapters.identity.files import Report, WatchedFiles, WrongFile


@dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files that a port is served with. With a client CA it takes no call without one."""

    certificate: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class _Served:
    """What handshakes are made with, and until when its certificate is valid."""

    configuration: grpc.ServerCertificateConfiguration
    expires: datetime.datetime


def server_credentials(
    files: TlsFiles, report: Report, in_use: Callable[[float], None]
) -> grpc.ServerCredentials:
    """Returns credentials that follow the files. Raises :class:`WrongFile` if they are wrong.

    ``in_use`` gets the time (Unix) at which the certificate in use expires. gRPC asks before each
    handshake. Connections that are open keep what they began with, until the server closes them
    after ten minutes (``grpc.max_connection_age_ms``).
    """
    paths = [files.certificate, files.key, *([files.client_ca] if files.client_ca else [])]
    watched = WatchedFiles("GRPC_TLS_CERTIFICATE_FILE", paths, _Parser(paths), report)
    handed_out = watched.current()
    in_use(handed_out.expires.timestamp())

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        """Runs on a thread of gRPC's. None keeps what is served."""
        nonlocal handed_out
        current = watched.current()
        if current is handed_out:
            return None
        handed_out = current
        in_use(current.expires.timestamp())
        return current.configuration

    return grpc.dynamic_ssl_server_credentials(
        handed_out.configuration,
        fetch,  # type: ignore[arg-type]  # None is documented: no change
        require_client_authentication=bool(files.client_ca),
    )


class _Parser:
    """Checks the files together before gRPC gets them: it would fail every handshake instead."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = paths

    def __call__(self, contents: Sequence[bytes]) -> _Served:
        chain = self._certificates(0, contents[0])
        self._check_key(chain[0], contents[1])
        now = datetime.datetime.now(datetime.UTC)
        if chain[0].not_valid_after_utc <= now:
            raise WrongFile(f"{self._paths[0]} has expired")
        authorities = None
        if len(contents) > 2:
            self._certificates(2, contents[2])
            authorities = contents[2]
        configuration = grpc.ssl_server_certificate_configuration(
            [(contents[1], contents[0])], authorities
        )
        return _Served(configuration, chain[0].not_valid_after_utc)

    def _certificates(self, number: int, content: bytes) -> list[x509.Certificate]:
        try:
            return x509.load_pem_x509_certificates(content)
        except ValueError:
            raise WrongFile(f"{self._paths[number]} has no certificates (PEM)") from None

    def _check_key(self, certificate: x509.Certificate, content: bytes) -> None:
        try:
            key = serialization.load_pem_private_key(content, password=None)
        except (ValueError, TypeError):
            raise WrongFile(
                f"{self._paths[1]} has no private key (PEM, without a password)"
            ) from None
        form = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
        if key.public_key().public_bytes(*form) != certificate.public_key().public_bytes(*form):
            raise WrongFile(f"{self._paths[1]} is not the key of {self._paths[0]}")
