"""The keys that tokens are checked with: a JSON Web Key Set, from a file or an https address."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import jwt
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from payment_service.adapters.identity.files import Report, WatchedFiles, WrongFile
from payment_service.domain.errors import callers_unknown

ALGORITHMS: Final = ("EdDSA", "ES256", "RS256")

#: How old a fetched set may be before it is fetched again, while the old one serves.
REFRESH_SECONDS: Final = 300.0
#: An unknown key asks for the set at once, so that a new key works from its first token. A stranger
#: who invents key ids can cause three requests at once, then one in ten seconds.
_BURST: Final = 3
_REFILL_SECONDS: Final = 10.0
#: While there is no set at all.
_FIRST_PAUSE: Final = 1.0
_FETCH_SECONDS: Final = 5.0
_MAX_BYTES: Final = 256 * 1024
_MAX_KEYS: Final = 100
_LEAST_RSA_BITS: Final = 2048
_PRIVATE: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})


@dataclass(frozen=True, slots=True, eq=False)
class Key:
    """A public key with the one algorithm that it may be used for."""

    key_id: str
    algorithm: str
    public: Any


KeySet = Mapping[str, Key]


def parse_key_set(content: bytes) -> KeySet:
    """Returns the keys by id. Raises :class:`WrongFile` if the set must not be used."""
    try:
        read = json.loads(content)
    except (ValueError, RecursionError):
        raise WrongFile("is not JSON") from None
    listed = read.get("keys") if isinstance(read, dict) else None
    if not isinstance(listed, list) or not all(isinstance(one, dict) for one in listed):
        raise WrongFile('is not a JSON Web Key Set: {"keys": [{…}]}')
    if len(listed) > _MAX_KEYS:
        raise WrongFile(f"has more than {_MAX_KEYS} keys")
    keys: dict[str, Key] = {}
    for one in listed:
        if _PRIVATE & one.keys():
            raise WrongFile(
                "contains a private or symmetric key: publish public keys only, and replace it"
            )
        key = _key(one)
        if key is None:
            continue
        if key.key_id in keys:
            raise WrongFile(f"has two keys with the kid {key.key_id[:64]!r}")
        keys[key.key_id] = key
    if not keys:
        raise WrongFile(f"has no key with a kid for one of {', '.join(ALGORITHMS)}")
    return keys


def _key(described: Mapping[str, Any]) -> Key | None:
    """Returns the key, or None for one that is not for tokens of this service."""
    key_id, operations = described.get("kid"), described.get("key_ops", ["verify"])
    if not isinstance(key_id, str) or not 0 < len(key_id) <= 200:
        return None
    if described.get("use", "sig") != "sig":
        return None
    if not isinstance(operations, list) or "verify" not in operations:
        return None
    algorithm = _algorithm(described)
    if algorithm is None or described.get("alg", algorithm) != algorithm:
        return None
    try:
        public = jwt.PyJWK(dict(described), algorithm=algorithm).key
    except Exception:  # noqa: BLE001 - libraries refuse strange keys in many ways
        raise WrongFile(f"has a key that cannot be read: {key_id[:64]!r}") from None
    match public:
        case rsa.RSAPublicKey() if public.key_size < _LEAST_RSA_BITS:
            raise WrongFile(f"has an RSA key below {_LEAST_RSA_BITS} bits: {key_id[:64]!r}")
        case rsa.RSAPublicKey() | ec.EllipticCurvePublicKey() | ed25519.Ed25519PublicKey():
            return Key(key_id, algorithm, public)
    return None


def _algorithm(described: Mapping[str, Any]) -> str | None:
    """Returns what a key of this type is used for. The type decides, never a token."""
    match described.get("kty"), described.get("crv"):
        case "OKP", "Ed25519":
            return "EdDSA"
        case "EC", "P-256":
            return "ES256"
        case "RSA", _:
            return "RS256"
    return None


class KeySource(Protocol):
    """Where keys come from."""

    def known(self) -> KeySet:
        """Returns the keys that are at hand; none if there never were any."""
        ...

    async def find(self, key_id: str) -> Key | None:
        """Returns a key, after a look at the source if it is not at hand."""
        ...

    async def ready(self) -> bool:
        """Returns whether there are keys, and lets them be renewed if it is time."""
        ...


class FileKeys:
    """Keys of a file, which is read again when it changes."""

    def __init__(self, path: Path, report: Report) -> None:
        def parse(contents: Sequence[bytes]) -> KeySet:
            try:
                return parse_key_set(contents[0])
            except WrongFile as fault:
                raise WrongFile(f"{path} {fault}") from None

        self._file = WatchedFiles("AUTH_JWKS", [path], parse, report)

    def known(self) -> KeySet:
        return self._file.current()

    async def find(self, key_id: str) -> Key | None:
        return self._file.current().get(key_id) or self._file.look().get(key_id)

    async def ready(self) -> bool:
        self._file.current()
        return True


class UrlKeys:
    """Keys of an https address. The last good set stays in use while the address is down."""

    def __init__(self, address: str, report: Report, *, refresh: float = REFRESH_SECONDS) -> None:
        self._address, self._report, self._refresh_seconds = address, report, refresh
        self._content = b""
        self._keys: KeySet = {}
        self._fault = ""
        self._tried: float | None = None
        self._task: asyncio.Task[None] | None = None
        self._tokens, self._filled = float(_BURST), time.monotonic()

    def known(self) -> KeySet:
        return self._keys

    async def find(self, key_id: str) -> Key | None:
        key = self._keys.get(key_id)
        if key is not None:
            self._renew_if_old()
            return key
        if self._task is None and self._may_ask():
            self._begin()
        if self._task is not None:
            # Shared by all who wait, so it continues when one of them leaves.
            await asyncio.shield(self._task)
        key = self._keys.get(key_id)
        if key is None and (self._fault or not self._keys):
            # The set at hand may be older than the key: nobody can say that the token is wrong.
            raise callers_unknown()
        return key

    async def ready(self) -> bool:
        self._renew_if_old()
        if not self._keys and self._task is not None:
            await asyncio.shield(self._task)
        return bool(self._keys)

    def _renew_if_old(self) -> None:
        if not self._keys:
            pause = _FIRST_PAUSE
        else:
            pause = _REFILL_SECONDS if self._fault else self._refresh_seconds
        if self._task is None and (self._tried is None or time.monotonic() - self._tried >= pause):
            self._begin()

    def _may_ask(self) -> bool:
        now = time.monotonic()
        self._tokens = min(_BURST, self._tokens + (now - self._filled) / _REFILL_SECONDS)
        self._filled = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True

    def _begin(self) -> None:
        self._tried = time.monotonic()
        self._task = asyncio.get_running_loop().create_task(self._fetch())

    async def _fetch(self) -> None:
        try:
            content = await self._download()
            if content != self._content:
                self._keys, self._content = parse_key_set(content), content
            self._fault = ""
        except WrongFile as fault:
            self._failed(str(fault))
        except Exception as error:  # noqa: BLE001 - the last good keys must serve whatever happens
            self._failed(f"the keys cannot be read ({type(error).__name__})")
        finally:
            self._task = None

    def _failed(self, fault: str) -> None:
        """Reports a fault once, until the address has answered well again."""
        if self._fault != fault:
            self._report("AUTH_JWKS", fault)
        self._fault = fault

    async def _download(self) -> bytes:
        """Returns what the address answers. A redirect is not followed: it could lead anywhere."""
        timeout = aiohttp.ClientTimeout(total=_FETCH_SECONDS)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout) as session,
                session.get(self._address, allow_redirects=False) as answer,
            ):
                if answer.status != 200:
                    raise WrongFile(f"the address answers with the status {answer.status}")
                content = await answer.content.read(_MAX_BYTES + 1)
                while len(content) <= _MAX_BYTES and (more := await answer.content.read(65536)):
                    content += more
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise WrongFile(f"the address does not answer ({type(error).__name__})") from None
        if len(content) > _MAX_BYTES:
            raise WrongFile(f"the address answers with more than {_MAX_BYTES} bytes")
        return content


def key_source(source: str, report: Report) -> KeySource:
    """Returns the keys of an address or a path. Raises :class:`WrongFile` for a wrong file."""
    if source.startswith(("https://", "http://")):
        return UrlKeys(source, report)
    return FileKeys(Path(source), report)
