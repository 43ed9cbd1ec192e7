"""What must be true of the database before a replica wants calls."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from payment_service.adapters.postgres.limits import MISSING_LIMITS
from payment_service.adapters.postgres.roles import read_role
from payment_service.adapters.postgres.schema import EXPECTED_REVISION, stored_schema
from payment_service.adapters.postgres.statements import Statements
from payment_service.domain.audit_trail import WRITER

log = structlog.get_logger(__name__)

_TAKES_WRITES: Final = (
    "NOT pg_is_in_recovery() AND NOT CAST(current_setting('transaction_read_only') AS bool)"
)


@dataclass(frozen=True, slots=True)
class Readiness:
    """What must be true of the database before this replica wants calls."""

    takes_writes: bool
    revision: str
    #: The limits of a session that are not in force.
    missing_limits: str
    minimum_writer: int
    #: Why the service's role is refused, or "".
    role_refusal: str

    @property
    def is_ready(self) -> bool:
        migrated = self.revision >= EXPECTED_REVISION
        wrong = self.missing_limits or self.role_refusal
        return self.takes_writes and migrated and self.may_write and not wrong

    @property
    def may_write(self) -> bool:
        """Returns whether what this release writes is still understood."""
        return self.minimum_writer <= WRITER

    def report(self) -> None:
        """Says in the log what must be done."""
        if self.revision < EXPECTED_REVISION:
            log.error(
                "database_not_migrated",
                revision=self.revision,
                expected=EXPECTED_REVISION,
                remedy="run: python -m payment_service migrate",
            )
        if not self.may_write:
            log.error(
                "release_too_old",
                writer=WRITER,
                minimum=self.minimum_writer,
                remedy="end this replica: a newer release has taken over",
            )
        if self.role_refusal:
            log.error("database_role_refused", why=self.role_refusal)
        if self.missing_limits:
            log.error(
                "database_limits_missing",
                missing=self.missing_limits,
                remedy="a pooler drops them: set DATABASE_POOLER=transaction, run "
                "python -m payment_service migrate, then RECONNECT at the pooler",
            )


def read_readiness(reader: Statements, *, migrated: bool, guarded: bool) -> Readiness:
    """Reads it; by one statement if the database is known to be ``migrated``.

    The grants of the role are read only if they are to be ``guarded``.
    """
    with reader.connection.cursor() as cursor:
        revision, writer, takes_writes, missing = stored_schema(
            cursor, _TAKES_WRITES, MISSING_LIMITS, migrated=migrated
        )
    refusal = read_role(reader.connection).refusal if guarded else ""
    return Readiness(bool(takes_writes), str(revision), str(missing), int(writer), refusal)
