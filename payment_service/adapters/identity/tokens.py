"""Callers that prove who they are by a signed token: ``authorization: Bearer …``."""

from __future__ import annotations

import hashlib
import re
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import jwt

from payment_service.adapters.identity.callers import NAME, is_reserved
from payment_service.adapters.identity.jwks import ALGORITHMS, Key, KeySource
from payment_service.domain.caller import Caller, Role
from payment_service.domain.errors import unauthenticated

#: Clocks of two machines may differ by this.
LEEWAY_SECONDS: Final = 10
_MAX_TOKEN: Final = 4096
_MAX_VERIFIED: Final = 4096
_TYPES: Final = frozenset({"JWT", "AT+JWT", "APPLICATION/AT+JWT"})
#: Headers by which a token would bring its own key along, or ask for rules that nobody here knows.
_FORBIDDEN_HEADERS: Final = frozenset({"jku", "jwk", "x5u", "x5c", "crit", "b64", "zip", "enc"})
_ACT_FOR: Final = re.compile(r"[!-~]{1,64}")
_BEARER: Final = re.compile(r"bearer +([A-Za-z0-9_.-]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class TokenRules:
    """What a token must say to be taken."""

    issuer: str
    audience: str
    #: The longest time from ``iat`` to ``exp``.
    lifetime: float


@dataclass(frozen=True, slots=True)
class _Verified:
    caller: Caller
    until: float
    key: Key


class TokenAuthenticator:
    """Checks tokens. One that was found right is remembered by its hash until it expires."""

    by_connection = False

    def __init__(self, keys: KeySource, rules: TokenRules) -> None:
        self._keys, self._rules = keys, rules
        self._verified: OrderedDict[bytes, _Verified] = OrderedDict()

    async def ready(self) -> bool:
        return await self._keys.ready()

    async def authenticate(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        token = _token_of(metadata)
        digest = hashlib.sha256(token.encode()).digest()
        known = self._verified.get(digest)
        if known is not None:
            # A key that has left the set takes its tokens with it.
            if known.until > time.time() and self._keys.known().get(known.key.key_id) is known.key:
                return known.caller
            del self._verified[digest]
        verified = await self._verify(token)
        self._verified[digest] = verified
        if len(self._verified) > _MAX_VERIFIED:
            self._verified.popitem(last=False)
        return verified.caller

    async def _verify(self, token: str) -> _Verified:
        key = await self._key_for(token)
        claims = self._claims(token, key)
        return _Verified(_caller(claims), claims["exp"] + LEEWAY_SECONDS, key)

    async def _key_for(self, token: str) -> Key:
        try:
            header = jwt.get_unverified_header(token)
        except (jwt.PyJWTError, ValueError, RecursionError):
            raise unauthenticated("malformed", "the token is not a signed JWT") from None
        algorithm, key_id = header.get("alg"), header.get("kid")
        if algorithm not in ALGORITHMS:
            raise unauthenticated(
                "algorithm", f"the token's alg must be one of {', '.join(ALGORITHMS)}"
            )
        if _FORBIDDEN_HEADERS & header.keys():
            raise unauthenticated(
                "header",
                "the token's header may have alg, kid and typ, and no key of its own",
            )
        if str(header.get("typ", "JWT")).upper() not in _TYPES:
            raise unauthenticated("header", "the token's typ must be JWT or at+jwt")
        if not isinstance(key_id, str) or not key_id:
            raise unauthenticated("key", "the token's header has no kid")
        key = await self._keys.find(key_id)
        if key is None:
            raise unauthenticated("key", "the key set has no key with the token's kid")
        if key.algorithm != algorithm:
            raise unauthenticated("algorithm", "the key with this kid is for another algorithm")
        return key

    def _claims(self, token: str, key: Key) -> dict[str, Any]:
        try:
            claims = jwt.decode(
                token,
                key.public,
                algorithms=[key.algorithm],
                issuer=self._rules.issuer,
                audience=self._rules.audience,
                leeway=LEEWAY_SECONDS,
                options={"require": ["exp", "iat", "iss", "aud", "sub"]},
            )
        except jwt.ExpiredSignatureError:
            raise unauthenticated("expired", "the token has expired") from None
        except jwt.ImmatureSignatureError:
            raise unauthenticated(
                "not_yet_valid", "the token's nbf or iat is in the future: compare the clocks"
            ) from None
        except jwt.InvalidIssuerError:
            raise unauthenticated("issuer", "the token is of another issuer") from None
        except jwt.InvalidAudienceError:
            raise unauthenticated("audience", "the token is for another audience") from None
        except jwt.MissingRequiredClaimError:
            raise unauthenticated(
                "claim", "the token must have exp, iat, iss, aud and sub"
            ) from None
        except jwt.InvalidSignatureError:
            raise unauthenticated("signature", "the token's signature is wrong") from None
        except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
            raise unauthenticated("claim", "the token's claims cannot be read") from None
        exp, iat = claims["exp"], claims["iat"]
        if not all(isinstance(one, int | float) for one in (exp, iat)):
            raise unauthenticated("claim", "the token's exp and iat must be numbers")
        if not 0 < exp - iat <= self._rules.lifetime:
            raise unauthenticated(
                "lifetime", f"the token may live for at most {self._rules.lifetime:.0f} s"
            )
        return claims


def _token_of(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Returns the one token of a call."""
    found = [value for name, value in metadata if name == "authorization"]
    if not found:
        raise unauthenticated(
            "missing", "the call has no token: send it as `authorization: Bearer <token>`"
        )
    if len(found) > 1:
        raise unauthenticated("several", "the call has more than one authorization header")
    header = found[0]
    if len(header) > _MAX_TOKEN:
        raise unauthenticated("too_long", f"a token has at most {_MAX_TOKEN} characters")
    match = _BEARER.fullmatch(header) if isinstance(header, str) else None
    if match is None:
        raise unauthenticated("malformed", "the authorization header must be `Bearer <token>`")
    return match[1]


def _caller(claims: Mapping[str, Any]) -> Caller:
    name, listed, act_for = claims["sub"], claims.get("roles"), claims.get("act_for", "")
    if not isinstance(name, str) or not NAME.fullmatch(name) or is_reserved(name):
        raise unauthenticated("claim", "the token's sub must be the name of a caller")
    if not isinstance(listed, list) or not all(isinstance(role, str) for role in listed):
        raise unauthenticated("claim", "the token's roles must be a list of names")
    # A role that a later release knows is not one here.
    roles = frozenset(role for role in Role if role.value in listed)
    if not roles:
        raise unauthenticated("claim", "the token's roles name no role of this service")
    if not isinstance(act_for, str) or (act_for and not _ACT_FOR.fullmatch(act_for)):
        raise unauthenticated("claim", "the token's act_for must be the id of a user")
    if "act_for" in claims and not act_for:
        # Read as "for itself", an empty id would see everybody's payments.
        raise unauthenticated("claim", "the token's act_for is empty: name a user or leave it out")
    return Caller(name, roles, act_for)
