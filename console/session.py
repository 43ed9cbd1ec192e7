"""Who is signed in: a token in a cookie that only this process can read, and the tokens of forms.

The cookie is encrypted with a key that the process makes at its start. So another server on the
same host, which gets the cookie as well, cannot use it, and a new start asks for a new sign-in.
"""

import base64
import hashlib
import hmac
import json
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from aiohttp import web
from cryptography.fernet import Fernet, InvalidToken

from console.settings import Settings
from marketplace.payments.credentials import expiry_of

#: A browser keeps at most 4096 bytes of a cookie, and encryption makes it longer.
LONGEST_TOKEN: Final = 2600
_ALL_ROLES: Final = frozenset({"OPERATOR", "FINANCE", "OPERATOR_READ_ONLY"})
_NONCE_LENGTH: Final = 32


@dataclass(frozen=True)
class Session:
    """One sign-in of one operator."""

    #: Empty where the core has AUTH=off.
    token: str
    #: The secret of this session's forms.
    nonce: str
    expires: float
    #: What the token says. Only the service checks whether it is true.
    name: str = ""
    roles: frozenset[str] = _ALL_ROLES

    def form_token(self, *covered: str) -> str:
        """Returns the proof that a form with this content was shown to this session."""
        said = json.dumps(covered, ensure_ascii=True).encode()
        return hmac.new(self.nonce.encode(), said, hashlib.sha256).hexdigest()

    def has_shown(self, given: str, covered: Iterable[str]) -> bool:
        """Returns whether a form's token is of this session and of this content."""
        return hmac.compare_digest(given.encode(), self.form_token(*covered).encode())


class Sessions:
    """Writes and reads the cookie."""

    def __init__(self, settings: Settings) -> None:
        self._box = Fernet(Fernet.generate_key())
        self._settings = settings
        # A browser takes a name with this prefix by https only, for this host only.
        self.cookie = "__Host-console" if settings.is_https else "console"

    def begin(self, token: str) -> Session:
        """Returns a new session, at most as long as the token. Nothing is stored here."""
        limit = time.time() + self._settings.console_session_seconds
        expires = min(limit, expiry_of(token) or limit) if token else limit
        return _session(token, secrets.token_hex(_NONCE_LENGTH // 2), expires)

    def read(self, request: web.Request) -> Session | None:
        """Returns the session of the cookie, or None if there is none that counts."""
        try:
            opened = self._box.decrypt(request.cookies.get(self.cookie, "").encode())
            token, nonce, expires = json.loads(opened)
        except (InvalidToken, ValueError):
            return None
        return _session(token, nonce, expires) if expires > time.time() else None

    def write(self, response: web.StreamResponse, session: Session) -> None:
        """Sets the cookie: unreadable for scripts, never sent by another site's pages."""
        said = json.dumps([session.token, session.nonce, session.expires]).encode()
        response.set_cookie(
            self.cookie,
            self._box.encrypt(said).decode(),
            max_age=max(0, int(session.expires - time.time())),
            path="/",
            secure=self._settings.is_https,
            httponly=True,
            samesite="Strict",
        )

    def end(self, response: web.StreamResponse) -> None:
        """Takes the cookie away."""
        response.del_cookie(
            self.cookie,
            path="/",
            secure=self._settings.is_https,
            httponly=True,
            samesite="Strict",
        )


def is_token(text: str) -> bool:
    """Returns whether this can be sent as a bearer token at all."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text


def _session(token: str, nonce: str, expires: float) -> Session:
    if not token:
        return Session("", nonce, expires)
    name, roles = _claims_of(token)
    return Session(token, nonce, expires, name, roles)


def _claims_of(token: str) -> tuple[str, frozenset[str]]:
    try:
        part = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
        name, roles = claims["sub"], claims["roles"]
        return str(name), frozenset(str(role) for role in roles)
    except (IndexError, KeyError, TypeError, ValueError):
        # A token that only the service understands: it decides about each call.
        return "", _ALL_ROLES
