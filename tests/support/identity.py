"""Callers by name: an authenticator that believes what the call says of itself."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final, TypeAlias

from payment_service.domain.caller import LOCAL, Caller, Role
from payment_service.domain.errors import Unauthenticated

#: The header in which a test says who it is.
_HEADER: Final = "x-test-caller"

Metadata: TypeAlias = tuple[tuple[str, str], ...]

#: A call that brings no credentials.
NOBODY: Final[Metadata] = ((_HEADER, ""),)


def as_caller(*roles: Role, act_for: str = "", name: str = "tests") -> Metadata:
    """Returns the metadata of a call by this caller."""
    return ((_HEADER, json.dumps([name, roles, act_for])),)


class BelievingAuthenticator:
    """Vouches for whomever the header names. A call without the header is a local one, so that
    what prepares a test needs no identity.
    """

    by_connection = False

    async def ready(self) -> bool:
        return True

    async def authenticate(
        self,
        metadata: Iterable[tuple[str, str | bytes]],
        peer: Mapping[str, Iterable[bytes]],
    ) -> Caller:
        said = dict(metadata).get(_HEADER)
        if said is None:
            return LOCAL
        if not said:
            raise Unauthenticated("UNAUTHENTICATED", "the call brings no token")
        name, roles, act_for = json.loads(said)
        # As an adapter does: a role that this release does not know counts for nothing.
        known = frozenset(role for role in Role if role.value in roles)
        return Caller(name, known, act_for)
