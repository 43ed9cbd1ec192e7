"""Keys and tokens for development: what an identity provider does in production."""

from __future__ import annotations

import json
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from jwt.algorithms import OKPAlgorithm

from payment_service.adapters.identity.callers import NAME, is_reserved
from payment_service.adapters.identity.files import WrongFile
from payment_service.domain.caller import Caller

PRIVATE_KEY: Final = "signing-key.pem"
KEY_SET: Final = "jwks.json"
#: How many public keys the set keeps: the new one, and those whose tokens may still be valid.
_KEPT: Final = 3


def make_keys(directory: Path) -> str:
    """Makes a new signing key and adds it to the key set. Returns its kid.

    The set is written first: a token must not be signed by a key that nobody knows yet.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = Ed25519PrivateKey.generate()
    key_id = f"dev-{secrets.token_hex(6)}"
    public = json.loads(OKPAlgorithm.to_jwk(key.public_key()))
    described = {**public, "kid": key_id, "alg": "EdDSA", "use": "sig"}
    former = _keys_in(directory / KEY_SET)[: _KEPT - 1]
    published = json.dumps({"keys": [described, *former]}, indent=2).encode()
    write_whole(directory / KEY_SET, published, 0o644)
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    write_whole(directory / PRIVATE_KEY, pem, 0o600)
    return key_id


def issue_token(
    directory: Path, caller: Caller, *, issuer: str, audience: str, lifetime: float
) -> str:
    """Returns a token for the caller, signed by the newest key of the directory."""
    if not NAME.fullmatch(caller.name) or is_reserved(caller.name):
        raise WrongFile(f"{caller.name[:64]!r} cannot be the name of a caller")
    try:
        key = serialization.load_pem_private_key((directory / PRIVATE_KEY).read_bytes(), None)
    except (OSError, ValueError, TypeError):
        raise WrongFile(
            f"{directory / PRIVATE_KEY} is no private key: make one by "
            "`python -m payment_service token keys`"
        ) from None
    listed = _keys_in(directory / KEY_SET)
    if not isinstance(key, Ed25519PrivateKey) or not listed:
        raise WrongFile(f"{directory / KEY_SET} does not belong to {directory / PRIVATE_KEY}")
    now = int(time.time())
    claims: dict[str, Any] = {
        "iss": issuer,
        "aud": audience,
        "sub": caller.name,
        "roles": sorted(role.value for role in caller.roles),
        "iat": now,
        "exp": now + int(lifetime),
        "jti": secrets.token_hex(8),
    }
    if caller.act_for:
        claims["act_for"] = caller.act_for
    return jwt.encode(claims, key, algorithm="EdDSA", headers={"kid": str(listed[0]["kid"])})


def _keys_in(path: Path) -> list[Mapping[str, object]]:
    try:
        read = json.loads(path.read_text())
        keys = read["keys"]
        return [key for key in keys if isinstance(key, dict) and "kid" in key]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def write_whole(path: Path, content: bytes, mode: int) -> None:
    """Writes a file under another name and renames it, so that no reader sees half of it."""
    unfinished = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    unfinished.replace(path)
