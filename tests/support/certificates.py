"""Certificates of an authority that tests make up."""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

SERVER = ("dns:localhost", "ip:127.0.0.1")


class Authority:
    """Signs certificates. Names begin with ``dns:`` or ``ip:``; another one is a URI."""

    def __init__(self, name: str = "authority") -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _named(name)
        self._certificate = self._build(self._name, self._key, (), authority=True)
        self.pem = self._certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, *names: str, days: float = 1) -> tuple[bytes, bytes]:
        """Returns a certificate and its private key as PEM."""
        key = ec.generate_private_key(ec.SECP256R1())
        made = self._build(_named("leaf"), key, names, days=days)
        return made.public_bytes(serialization.Encoding.PEM), key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )

    def write(self, directory: Path, name: str, *names: str, days: float = 1) -> tuple[Path, Path]:
        """Writes a certificate and its key. Returns both files."""
        certificate, key = self.issue(*names, days=days)
        put(directory / f"{name}.pem", certificate)
        put(directory / f"{name}-key.pem", key)
        return directory / f"{name}.pem", directory / f"{name}-key.pem"

    def _build(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: Sequence[str],
        *,
        authority: bool = False,
        days: float = 1,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=2))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(authority, None), critical=True)
        )
        if names:
            extension = x509.SubjectAlternativeName([_general(name) for name in names])
            builder = builder.add_extension(extension, critical=False)
        return builder.sign(self._key, hashes.SHA256())


def put(path: Path, content: bytes) -> None:
    """Replaces a file at once, as whatever rotates secrets does."""
    unfinished = path.with_name(f".{path.name}.new")
    unfinished.write_bytes(content)
    unfinished.replace(path)


def _named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _general(name: str) -> x509.GeneralName:
    kind, _, rest = name.partition(":")
    if kind == "dns":
        return x509.DNSName(rest)
    if kind == "ip":
        return x509.IPAddress(ipaddress.ip_address(rest))
    return x509.UniformResourceIdentifier(name)
