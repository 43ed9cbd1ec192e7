"""What one value must look like: addresses, origins, keys, secrets, lists.

One strict pattern decides, not a forgiving parser. ``urlsplit`` for example drops line breaks, so
an address could mean one thing here and another one to a browser.
"""

from __future__ import annotations

import ipaddress
import re
import ssl
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, quote, urlsplit

_WEB: Final = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9](?:[a-z0-9._-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>(?:/[a-z0-9._~%!$&'()*+,;=:@/-]*)?)",
    re.ASCII | re.IGNORECASE,
)
_LISTENER: Final = re.compile(r"[A-Za-z0-9._-]+|\[?[0-9A-Fa-f:.]+\]?", re.ASCII)
_KEY: Final = re.compile(r"(?:sk|rk)_(?:test|live)_[!-~]+", re.ASCII)
_PUBLISHABLE_KEY: Final = re.compile(r"pk_(?:test|live)_[!-~]+", re.ASCII)
_WEBHOOK_SECRET: Final = re.compile(r"whsec_[!-~]+", re.ASCII)
#: All of them are connected to by psycopg2.
_DATABASE_SCHEMES: Final = ("postgresql", "postgres", "postgresql+psycopg2")
_VERIFYING: Final = ("verify-full", "verify-ca")
#: The CA file that means the certificates of the operating system.
SYSTEM_CA: Final = "system"


@dataclass(frozen=True, slots=True)
class WebAddress:
    """The parts of an http(s) address without user, query or fragment."""

    scheme: str
    host: str
    path: str

    @property
    def is_public(self) -> bool:
        """Returns whether a browser on another machine can reach it."""
        return not is_loopback(self.host) and not listens_everywhere(self.host)


@dataclass(frozen=True, slots=True)
class DatabaseAddress:
    """Where a database is, and how the connection is protected. It has no password."""

    hosts: tuple[str, ...]
    sslmode: str
    ca_file: str

    @property
    def is_local(self) -> bool:
        """Returns whether the connection stays on this machine. A path is a Unix socket."""
        return all(not host or host.startswith("/") or is_loopback(host) for host in self.hosts)

    @property
    def is_verified(self) -> bool:
        """Returns whether the server must prove who it is."""
        return self.sslmode in _VERIFYING


def web_address(value: str) -> WebAddress:
    """Returns the parts of an address. Raises ValueError with the sentence how to fix it."""
    found = _WEB.fullmatch(value)
    if found is None or ".." in found["host"] or not _is_port(found["port"]):
        raise ValueError(
            "must be an http(s) address such as https://pay.example.com, without user, query, "
            "fragment, spaces or line breaks"
        )
    return WebAddress(found["scheme"].lower(), found["host"].lower(), found["path"])


def origin(value: str) -> str:
    """Returns an origin in a browser's spelling. Raises ValueError."""
    found = _WEB.fullmatch(value)
    if found is None or found["path"] or ".." in found["host"] or not _is_port(found["port"]):
        # What stands before an @ is a user and a password, which nobody may see.
        shown = f"{value!r}" if "@" not in value else "one of them"
        raise ValueError(
            f"{shown} is not an origin; write scheme and host alone, such as https://app.example.com"
        )
    return value.lower()


def listener(value: str) -> str:
    """Returns the host to listen on. Raises ValueError."""
    if _LISTENER.fullmatch(value) is None:
        raise ValueError("must be the name or address of one interface, such as 127.0.0.1")
    return value


def secret_key(value: str) -> str:
    """Returns a secret key of Stripe. Raises ValueError, never with the key in it."""
    if not value.startswith(("sk_test_", "sk_live_", "rk_test_", "rk_live_")):
        raise ValueError("must begin with sk_test_, sk_live_, rk_test_ or rk_live_")
    if _KEY.fullmatch(value) is None:
        raise ValueError("must be one key without spaces or line breaks: copy it again")
    return value


def publishable_key(value: str) -> str:
    """Returns a publishable key. Raises ValueError: browsers get it, so it may be nothing else."""
    if value and _PUBLISHABLE_KEY.fullmatch(value) is None:
        raise ValueError(
            "must be one key that begins with pk_test_ or pk_live_, without spaces or line breaks; "
            "it is handed to browsers, so a secret key must never stand here"
        )
    return value


def webhook_secrets(value: str) -> tuple[str, ...]:
    """Returns the secrets of a list that is separated by commas or lines. Raises ValueError."""
    secrets = tuple(part.strip() for part in re.split(r"[,\n]", value))
    if not all(secrets):
        raise ValueError("has an empty entry: remove the comma or the line that is too much")
    if not all(map(_WEBHOOK_SECRET.fullmatch, secrets)):
        raise ValueError(
            "must be signing secrets that begin with whsec_ (Stripe shows one for each endpoint); "
            "several are separated by commas or lines"
        )
    return secrets


def database_address(value: str) -> DatabaseAddress:
    """Returns where a database is. Raises ValueError, never with the password in it."""
    fault = "must be a PostgreSQL's address: postgresql://user:password@host/name"
    if re.search(r"[\s\x00-\x1f]", value):
        raise ValueError(f"{fault}, without spaces or line breaks (write %20 for a space)")
    try:
        parts = urlsplit(value)
        query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        if parts.scheme not in _DATABASE_SCHEMES or parts.port == 0:
            raise ValueError(fault)
    except ValueError:  # The port is no number. The error's own text would show the password.
        raise ValueError(fault) from None
    named = query.get("hostaddr") or query.get("host") or parts.hostname or ""
    return DatabaseAddress(
        tuple(
            host.rpartition(":")[0] if host.count(":") == 1 else host for host in named.split(",")
        ),
        query.get("sslmode", ""),
        query.get("sslrootcert", ""),
    )


def verified(url: str, ca_file: str) -> str:
    """Returns the address of a database with the CA file that proves who answers there."""
    if not ca_file:
        return url
    address = database_address(url)
    added = [
        *(["sslmode=verify-full"] if not address.sslmode else []),
        *([f"sslrootcert={quote(ca_file)}"] if not address.ca_file else []),
    ]
    separator = "&" if "?" in url else "?"
    return url + separator + "&".join(added) if added else url


def has_certificates(ca_file: str) -> bool:
    """Returns whether the file is readable and holds certificates."""
    if ca_file == SYSTEM_CA:
        return True
    try:
        return bool(ssl.create_default_context(cafile=ca_file).get_ca_certs())
    except (OSError, ValueError):  # An SSLError is an OSError, too.
        return False


def is_loopback(host: str) -> bool:
    """Returns whether the host is this machine, by name or by number."""
    address = _ip_address(host)
    return host == "localhost" if address is None else address.is_loopback


def listens_everywhere(host: str) -> bool:
    """Returns whether the host stands for all addresses of the machine, such as 0.0.0.0."""
    address = _ip_address(host)
    return address is not None and address.is_unspecified


def _ip_address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return None


def _is_port(text: str | None) -> bool:
    return text is None or 0 < int(text) < 65536
