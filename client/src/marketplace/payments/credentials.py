"""How a caller proves to the payment service who it is: a token, or a certificate.

    from marketplace.payments.channel import connect
    from marketplace.payments.credentials import Tls, Token

    channel = connect(
        "payments:50051", tls=Tls(Path("/tls/ca.crt")), token=Token(Path("/var/run/token"))
    )

Both follow their source without a restart. A token's file is read again when it changes; a
function is called again before the token expires. With new certificate files new connections are
made, and the calls in progress end on the old ones.
"""

import base64
import json
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc

_LOOK_SECONDS = 1.0
#: A token of a function is renewed when this part of its life is over.
_RENEW_AT = 0.8
#: The pause after a function has failed while its last token is still valid.
_RETRY_SECONDS = 5.0
#: For a token that does not say when it expires.
_UNKNOWN_LIFE_SECONDS = 60.0

Stamp = tuple[tuple[int, int, int], ...]


class NoToken(Exception):
    """There is no token to call with; the sentence says why and shows nothing of it."""


class WrongCertificate(Exception):
    """The files of a certificate cannot be used; the sentence says why."""


class Token:
    """The caller's token, as new as its source: a file, or a function that gets one.

    The function may block: it is called outside of the event loop, by one thread at a time. Every
    thread and every event loop may share this object.
    """

    def __init__(self, source: Path | Callable[[], str]) -> None:
        self._source = source
        self._lock = threading.Lock()
        self._token = ""
        self._renew_at = 0.0
        self._expires = 0.0
        self._stamp: Stamp | None = None

    def at_hand(self) -> str | None:
        """Returns a token that needs no renewal now, or None: call `renewed` then."""
        now = time.time()
        if self._token and now < self._renew_at:
            return self._token
        # One caller renews early; the others need not wait for it.
        return self._token if self._token and now < self._expires and self._lock.locked() else None

    def renewed(self) -> str:
        """Returns a token, after a look at the source. It may block. Raises `NoToken`."""
        with self._lock:
            if self._token and time.time() < self._renew_at:
                return self._token
            if isinstance(self._source, Path):
                self._read(self._source)
            else:
                self._ask(self._source)
            return self._token

    def _read(self, path: Path) -> None:
        try:
            stamp = stamp_of(path)
            if stamp != self._stamp:
                self._keep(path.read_text())
                self._stamp = stamp
        except (OSError, ValueError) as error:
            if not self._token:
                raise NoToken(f"{path} has no token ({type(error).__name__})") from None
        # Whether it has expired is for the service to say: only a new file could change it.
        self._renew_at, self._expires = time.time() + _LOOK_SECONDS, float("inf")

    def _ask(self, get: Callable[[], str]) -> None:
        began = time.time()
        try:
            self._keep(get())
        except Exception as error:
            if not self._token or began >= self._expires:
                raise NoToken(f"no token was issued ({type(error).__name__})") from error
            self._renew_at = min(began + _RETRY_SECONDS, self._expires)
            return
        self._expires = expiry_of(self._token) or began + _UNKNOWN_LIFE_SECONDS
        self._renew_at = began + _RENEW_AT * (self._expires - began)

    def _keep(self, text: str) -> None:
        token = text.strip()
        if not token or not token.isascii() or any(sign.isspace() for sign in token):
            raise ValueError("not a token")
        self._token = token


@dataclass(frozen=True)
class Tls:
    """The files of TLS: who signs the service's certificate, and perhaps a certificate of ours.

    `server_name` is the name in the service's certificate, if the channel is opened by addresses.
    """

    ca: Path
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("a certificate and its key belong together: name both files")

    def stamp(self) -> Stamp:
        """Returns what changes with the files. Raises OSError if one is absent."""
        return stamp_of(*self._files())

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Reads the files. Raises `WrongCertificate` if they do not belong together."""
        try:
            stamp = self.stamp()
            ssl.create_default_context(cafile=str(self.ca))
            if self.certificate is not None and self.key is not None:
                # gRPC would only say that every connection fails.
                ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_cert_chain(
                    self.certificate, self.key, password=""
                )
            contents = [path.read_bytes() for path in self._files()]
            changed = self.stamp() != stamp
        except (OSError, ValueError) as error:
            names = ", ".join(str(path) for path in self._files())
            raise WrongCertificate(
                f"{names}: not a PEM certificate with its key ({type(error).__name__})"
            ) from None
        if changed:
            raise WrongCertificate("the files changed while they were read")
        if len(contents) == 1:
            return grpc.ssl_channel_credentials(contents[0])
        return grpc.ssl_channel_credentials(contents[0], contents[2], contents[1])

    def _files(self) -> list[Path]:
        return [path for path in (self.ca, self.certificate, self.key) if path is not None]


def expiry_of(token: str) -> float | None:
    """Returns when a JWT says that it expires. Only the service checks whether that is true."""
    try:
        claims = token.split(".")[1]
        read = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        return float(read["exp"])
    except (IndexError, KeyError, TypeError, ValueError, OverflowError):
        return None


def stamp_of(*paths: Path) -> Stamp:
    """Returns what changes when files are replaced. Raises OSError if one is absent."""
    found = [path.stat() for path in paths]
    return tuple((one.st_mtime_ns, one.st_size, one.st_ino) for one in found)
