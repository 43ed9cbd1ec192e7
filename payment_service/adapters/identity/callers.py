"""Callers that prove who they are by a client certificate, and the file that names them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from payment_service.adapters.identity.files import Report, WatchedFiles, WrongFile
from payment_service.domain.caller import LOCAL, Caller, Role
from payment_service.domain.errors import unauthenticated

#: A caller's name stands in the audit trail and scopes idempotency keys.
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,99}")
#: Names that the audit trail has for others: this service, Stripe, and callers without a name.
_RESERVED: Final = frozenset({LOCAL.name, "payment_service", "stripe", "operator"})
_FIELDS: Final = frozenset({"identity", "name", "roles", "act_for"})
#: gRPC's names for the names in a certificate, each with the prefix that they have in the file.
_SANS: Final = {"peer_uri": "", "peer_dns": "dns:"}
_IDENTITY: Final = re.compile(r"[a-z][a-z0-9+.-]*://[!-~]{1,2000}|dns:[A-Za-z0-9._*-]{1,253}")

Callers = Mapping[str, Caller]


def is_reserved(name: str) -> bool:
    """Returns whether a name is that of somebody else, in whatever case: people read the trail."""
    return name.casefold() in _RESERVED


class CertificateAuthenticator:
    """Finds the caller by the names in its certificate, which the TLS handshake has checked."""

    by_connection = True

    def __init__(self, callers_file: Path, report: Report) -> None:
        def parse(contents: Sequence[bytes]) -> Callers:
            try:
                return parse_callers(contents[0])
            except WrongFile as fault:
                raise WrongFile(f"{callers_file} {fault}") from None

        self._callers = WatchedFiles("AUTH_CALLERS_FILE", [callers_file], parse, report)

    async def ready(self) -> bool:
        self._callers.current()
        return True

    async def authenticate(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        if not peer.get("x509_pem_cert"):
            raise unauthenticated("certificate", "the call came without a client certificate")
        callers = self._callers.current()
        found = {
            callers[identity]
            for kind, prefix in _SANS.items()
            for name in peer.get(kind, ())
            if (identity := prefix + name.decode("utf-8", "replace")) in callers
        }
        if not found:
            raise unauthenticated(
                "identity",
                "no caller has a name (SAN) of this client certificate: add it to the callers file",
            )
        if len(found) > 1:
            raise unauthenticated(
                "identity", "the names of this client certificate belong to different callers"
            )
        return found.pop()


def parse_callers(content: bytes) -> Callers:
    """Returns the callers by identity. Raises :class:`WrongFile` that names the wrong entry."""
    try:
        read = json.loads(content)
    except (ValueError, RecursionError):
        raise WrongFile("is not JSON") from None
    listed = read.get("callers") if isinstance(read, dict) else None
    if not isinstance(listed, list) or not listed:
        raise WrongFile('must be {"callers": [{"identity": …, "name": …, "roles": […]}]}')
    callers: dict[str, Caller] = {}
    for number, entry in enumerate(listed, 1):
        try:
            identity, caller = _entry(entry)
            if identity in callers:
                raise WrongFile("has an identity that another entry has")
        except WrongFile as fault:
            raise WrongFile(f"entry {number} {fault}") from None
        callers[identity] = caller
    return callers


def _entry(entry: object) -> tuple[str, Caller]:
    if not isinstance(entry, dict):
        raise WrongFile("is not an object")
    if unknown := sorted(entry.keys() - _FIELDS):
        raise WrongFile(f"has the unknown field {str(unknown[0])[:64]!r}")
    identity, name = entry.get("identity"), entry.get("name")
    roles, act_for = entry.get("roles"), entry.get("act_for", "")
    if not isinstance(identity, str) or not _IDENTITY.fullmatch(identity):
        raise WrongFile(
            "needs an identity: a URI such as spiffe://example.org/gig, or dns:gig.internal"
        )
    if "*" in identity:
        raise WrongFile("has a wildcard as its identity: name one caller")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise WrongFile("needs a name of letters, digits and ._:/@-")
    if is_reserved(name):
        raise WrongFile(f"has the name {name!r}, which the audit trail uses for others")
    if not isinstance(roles, list) or not roles:
        raise WrongFile("needs a list of roles")
    if wrong := [role for role in roles if role not in [known.value for known in Role]]:
        raise WrongFile(f"has the unknown role {str(wrong[0])[:64]!r}; there are {', '.join(Role)}")
    if not isinstance(act_for, str) or not re.fullmatch(r"[!-~]{0,64}", act_for):
        raise WrongFile("has an act_for that is no id of a user")
    return identity, Caller(name, frozenset(Role(role) for role in roles), act_for)
