"""Which addresses a browser may be sent to.

One strict pattern decides, not a forgiving parser: browsers and parsers disagree about
backslashes, user names, control characters and missing slashes, and every such disagreement is
an open redirect. What the pattern does not know is nowhere to go.
"""

import ipaddress
import re
from collections.abc import Collection
from dataclasses import dataclass

_URL = re.compile(
    r"(?P<scheme>https?)://"
    r"(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])"
    r"(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<rest>(?:[/?#][!-\[\]-~]*)?)",  # visible ASCII without the backslash
    re.ASCII | re.IGNORECASE,
)
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class WebAddress:
    """The parts of an http(s) address that decide where a browser ends up."""

    scheme: str
    host: str
    port: int
    rest: str

    @property
    def origin(self) -> str:
        """The origin as a browser writes it in its `Origin` header: no default port."""
        if self.port == _DEFAULT_PORTS[self.scheme]:
            return f"{self.scheme}://{self.host}"
        return f"{self.scheme}://{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        """Whether the host is this very machine, by name or by number."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host.strip("[]")).is_loopback
        except ValueError:
            return False


def parse_web_address(url: str) -> WebAddress | None:
    """The address, or None if a browser could read it in more than one way."""
    match = _URL.fullmatch(url)
    if match is None or ".." in match["host"]:
        return None
    scheme, host = match["scheme"].lower(), match["host"].lower()
    if host.startswith("["):
        try:
            host = f"[{ipaddress.IPv6Address(host[1:-1])}]"
        except ValueError:
            return None
    port = int(match["port"]) if match["port"] else _DEFAULT_PORTS[scheme]
    if not 0 < port < 65536:
        return None
    return WebAddress(scheme, host, port, match["rest"])


def parse_origin(text: str) -> str | None:
    """The origin in a browser's spelling, or None if `text` is not one (`*`, a path, `null`)."""
    address = parse_web_address(text)
    return address.origin if address is not None and not address.rest else None


def may_go_onward(url: str, allowed_origins: Collection[str]) -> bool:
    """Whether a page may link or redirect to `url`: its origin is one of ALLOWED_ORIGINS."""
    address = parse_web_address(url)
    return address is not None and address.origin in allowed_origins


def may_go_to_onboarding(url: str, *, simulated: bool) -> bool:
    """Whether `url` can be Stripe's onboarding: a host of Stripe's.

    While Stripe is `simulated`, which production never does, this very machine counts, too.
    """
    address = parse_web_address(url)
    if address is None:
        return False
    if simulated and address.is_loopback:
        return True
    is_stripe = address.host == "stripe.com" or address.host.endswith(".stripe.com")
    return is_stripe and address.scheme == "https" and address.port == 443
