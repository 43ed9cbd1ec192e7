"""Signatures of webhooks, as Standard Webhooks defines them."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from payment_service.config.sources import read_secret

_PREFIX: Final = "whsec_"
#: What Standard Webhooks asks for: 24 to 64 random bytes.
_KEY_BYTES: Final = range(24, 65)


def key_of(secret: str) -> bytes:
    """Returns the key of a secret. Raises ValueError, which does not show it."""
    try:
        key = base64.b64decode(secret.strip().removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("is no secret: it must be whsec_ and then base64") from None
    if not secret.strip().startswith(_PREFIX) or len(key) not in _KEY_BYTES:
        raise ValueError("is no secret: it must be whsec_ and then 24 to 64 bytes in base64")
    return key


def read_keys(files: Sequence[Path]) -> list[bytes]:
    """Returns the keys of these files as they are now. Raises ValueError, which names the file.

    They are read for each request, so that a secret is rotated without a restart.
    """
    keys = []
    for path in files:
        try:
            keys.append(key_of(read_secret(path)))
        except ValueError as fault:
            raise ValueError(f"{path} {fault}") from None
    return keys


def headers_of(event_id: str, seconds: int, body: bytes, keys: Sequence[bytes]) -> dict[str, str]:
    """Returns the three headers: one signature for each key, so that either secret verifies."""
    content = f"{event_id}.{seconds}.".encode() + body
    signatures = [
        "v1," + base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
        for key in keys
    ]
    return {
        "webhook-id": event_id,
        "webhook-timestamp": str(seconds),
        "webhook-signature": " ".join(signatures),
    }
