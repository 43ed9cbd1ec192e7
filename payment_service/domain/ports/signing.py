"""The port that signs what leaves the house."""

from __future__ import annotations

from typing import Protocol


class Signer(Protocol):
    """Signs statements with a private key."""

    @property
    def key_id(self) -> str:
        """Returns the name of the key, which the public key determines."""

    def sign(self, message: bytes) -> bytes: ...


class Verifier(Protocol):
    """Checks signatures with a public key."""

    @property
    def key_id(self) -> str:
        """Returns the name of the key, which the public key determines."""

    def is_signed(self, message: bytes, signature: bytes) -> bool: ...
