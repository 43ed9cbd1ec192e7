"""Who calls: the authenticated identity, its roles, and the user for whom it acts."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Role(StrEnum):
    """What a caller is to this service. The contract names the roles that may call each RPC."""

    GIG_SERVICE = "GIG_SERVICE"
    USER_SERVICE = "USER_SERVICE"
    NOTIFICATION_SERVICE = "NOTIFICATION_SERVICE"
    GATEWAY = "GATEWAY"
    FINANCE = "FINANCE"
    #: Reads everything that operators read and changes nothing.
    OPERATOR_READ_ONLY = "OPERATOR_READ_ONLY"
    OPERATOR = "OPERATOR"


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated caller. Its name scopes idempotency keys and stands in the audit trail."""

    name: str
    roles: frozenset[Role]
    #: The user for whom the caller acts: it sees and moves only that user's payments. "" means
    #: that it acts for itself.
    act_for: str = ""


#: Every caller while authentication is off: in development, on loopback.
LOCAL: Final = Caller("local", frozenset(Role))
