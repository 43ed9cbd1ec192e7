"""An issuer of tokens that tests make up, and the settings of a service that takes its tokens."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from payment_service.config import Settings

ISSUER = "https://id.example.com"
AUDIENCE = "payments.marketplace"


class Signer:
    """A signing key of an issuer, with its public half as an entry of a key set."""

    def __init__(self, key_id: str, algorithm: str = "EdDSA") -> None:
        self.key_id, self.algorithm = key_id, algorithm
        self.key: Any
        if algorithm == "EdDSA":
            self.key = ed25519.Ed25519PrivateKey.generate()
            text = OKPAlgorithm.to_jwk(self.key.public_key())
        elif algorithm == "ES256":
            self.key = ec.generate_private_key(ec.SECP256R1())
            text = ECAlgorithm.to_jwk(self.key.public_key())
        else:
            self.key = rsa.generate_private_key(65537, 2048)
            text = RSAAlgorithm.to_jwk(self.key.public_key())
        self.public: dict[str, Any] = {**json.loads(text), "kid": key_id, "alg": algorithm}
        self.public.pop("key_ops", None)

    def token(
        self,
        *,
        header: Mapping[str, Any] | None = None,
        without: tuple[str, ...] = (),
        **claims: Any,
    ) -> str:
        now = int(time.time())
        said = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "gig-service",
            "roles": ["GIG_SERVICE"],
            "iat": now,
            "exp": now + 600,
            **claims,
        }
        said = {name: value for name, value in said.items() if name not in without}
        return jwt.encode(
            said, self.key, self.algorithm, headers={"kid": self.key_id, **(header or {})}
        )


def key_set(*signers: Signer) -> bytes:
    return json.dumps({"keys": [signer.public for signer in signers]}).encode()


def token_settings(source: object, **more: Any) -> Settings:
    given: dict[str, Any] = {"auth": "jwt", "auth_jwks": str(source), "auth_issuer": ISSUER}
    return Settings(**given, **more)
