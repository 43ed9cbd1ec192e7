"""What must be true of the role that the service uses at its database, and of the connection.

Triggers keep the books from being rewritten, but an owner can switch them off. So the service must
be no owner, and must not have the grants that the triggers refuse.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from payment_service.domain.platform_check import Finding, Verdict

_REMEDY: Final = (
    "let the service use a role of its own: CREATE ROLE payments LOGIN PASSWORD '…', run "
    "`python -m payment_service migrate` as the owner with DATABASE_SERVICE_ROLE=payments, and "
    "name that role in DATABASE_URL"
)
#: How many grants a finding names.
_NAMED: Final = 5


@dataclass(frozen=True, slots=True, order=True)
class Grant:
    """One thing that a role may do with a table."""

    table: str
    privilege: str

    def __str__(self) -> str:
        return f"{self.privilege} on {self.table}"


@dataclass(frozen=True, slots=True, kw_only=True)
class RoleFacts:
    """What PostgreSQL shows of the service's role and its connection.

    What the role is a member of counts as its own.
    """

    name: str
    is_superuser: bool
    may_create_roles: bool
    bypasses_row_security: bool
    may_replicate: bool
    #: Whether it may run programs on the database's server, or read or write its files.
    reaches_the_server: bool
    #: Whether the role owns tables or the database, or is a member of the role that does.
    is_owner: bool
    may_create_tables: bool
    is_encrypted: bool
    missing: frozenset[Grant]
    excess: frozenset[Grant]

    @property
    def power(self) -> str:
        """Returns what makes the role too powerful to serve, or ""."""
        if self.is_superuser:
            return "is a superuser"
        if self.is_owner:
            return "owns the tables"
        if self.bypasses_row_security:
            return "bypasses row security"
        if self.may_create_roles:
            return "may create roles"
        if self.may_replicate:
            return "may replicate the whole server"
        if self.reaches_the_server:
            return "reaches files and programs of the database's server"
        if self.excess:
            return f"may do more than the service needs: {_named(self.excess)}"
        return ""

    @property
    def refusal(self) -> str:
        """Returns the sentence with which production refuses this role, or ""."""
        if not self.power:
            return ""
        return f"DATABASE_URL: its role {self.name} {self.power}: {_REMEDY}"


def examine_role(
    facts: RoleFacts, *, production: bool, is_local: bool, is_verified: bool
) -> Iterator[Finding]:
    """Yields a finding about the role, its grants, and the connection."""
    grave = Verdict.FAULT if production else Verdict.WARNING
    if facts.power:
        yield Finding("database role", grave, f"{facts.name} {facts.power}", _REMEDY)
    else:
        said = f"{facts.name} can neither alter the schema nor rewrite the books"
        yield Finding("database role", Verdict.OK, said)
    if facts.missing:
        yield Finding(
            "database grants",
            Verdict.FAULT,
            f"{facts.name} lacks {_named(facts.missing)}",
            f"run `python -m payment_service migrate` with DATABASE_SERVICE_ROLE={facts.name}",
        )
    elif facts.may_create_tables and not facts.power:
        yield Finding(
            "database grants",
            Verdict.WARNING,
            f"{facts.name} may create tables, temporary ones at least",
            f"REVOKE CREATE ON SCHEMA public FROM PUBLIC, {facts.name}, and "
            f"REVOKE TEMPORARY ON DATABASE … FROM PUBLIC, {facts.name}",
        )
    else:
        yield Finding("database grants", Verdict.OK, "nothing is missing")
    if is_local or (facts.is_encrypted and is_verified):
        how = "is encrypted, and the server verified" if facts.is_encrypted else "is local"
        yield Finding("database connection", Verdict.OK, how)
    else:
        how = "the server is not verified" if facts.is_encrypted else "is not encrypted"
        remedy = "add sslmode=verify-full to DATABASE_URL, or set DATABASE_CA_FILE"
        yield Finding("database connection", grave, how, remedy)


def _named(grants: Iterable[Grant]) -> str:
    ordered = sorted(grants)
    rest = f" and {len(ordered) - _NAMED} more" if len(ordered) > _NAMED else ""
    return ", ".join(map(str, ordered[:_NAMED])) + rest
