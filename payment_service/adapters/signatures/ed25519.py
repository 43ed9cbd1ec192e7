"""Ed25519 signatures with keys in PEM files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)


class WrongKey(Exception):
    """A key file cannot be used. The text names the file and the fact, never its content."""


class Ed25519Verifier:
    """Checks signatures with a public key."""

    def __init__(self, key: Ed25519PublicKey) -> None:
        self._key = key
        self.key_id = hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]

    def is_signed(self, message: bytes, signature: bytes) -> bool:
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class Ed25519Signer:
    """Signs with a private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.key_id = Ed25519Verifier(key.public_key()).key_id

    def sign(self, message: bytes) -> bytes:
        return self._key.sign(message)


def load_signer(path: Path) -> Ed25519Signer:
    """Reads a private key without a password. Raises :class:`WrongKey`."""
    try:
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError, TypeError) as fault:
        raise WrongKey(
            f"{path} is no readable private key in PEM ({type(fault).__name__})"
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise WrongKey(
            f"{path} is no Ed25519 key: make one by `openssl genpkey -algorithm ed25519`"
        )
    return Ed25519Signer(key)


def load_verifier(path: Path) -> Ed25519Verifier:
    """Reads a public key. Raises :class:`WrongKey`."""
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as fault:
        raise WrongKey(
            f"{path} is no readable public key in PEM ({type(fault).__name__})"
        ) from None
    if not isinstance(key, Ed25519PublicKey):
        raise WrongKey(f"{path} is no Ed25519 key")
    return Ed25519Verifier(key)
