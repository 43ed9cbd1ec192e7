"""The grants of the role that the service runs as: what it must be able to do, and nothing else.

Another role owns the tables and migrates them. So an intruder in the service, or a bug of it, can
neither switch off the triggers that keep the books, nor rewrite what they protect.
"""

from __future__ import annotations

from typing import Final

from psycopg2 import extensions

from payment_service.adapters.postgres.schema import EXPECTED_REVISION, stored_schema
from payment_service.domain.database_check import Grant, RoleFacts

#: Every table can be read, and rows can be added to it, except to these.
READ_ONLY: Final = frozenset(
    {"alembic_version", "installation", "releases", "accounts", "ledger_span"}
)
#: In these, rows change. FOR UPDATE needs the grant, too: it is why onboarding_tokens are here.
MAY_UPDATE: Final = frozenset(
    {
        "adjustments",
        "comparisons",
        "debt_checks",
        "discrepancies",
        "disputes",
        "event_cursors",
        "experts",
        "former_accounts",
        "idempotency_keys",
        "installation",
        "job_backoff",
        "jobs",
        "ledger_balances",
        "ledger_families",
        "ledger_span",
        "onboarding_tokens",
        "operations",
        "payment_polls",
        "payments",
        "payouts",
        "webhook_events",
    }
)
#: Of these, rows are deleted: by jobs that have finished with them, by pruning and by erasing.
MAY_DELETE: Final = frozenset(
    {
        "comparisons",
        "debt_checks",
        "feed_pending",
        "job_backoff",
        "onboarding_tokens",
        "payment_polls",
        "texts",
        "webhook_events",
    }
)
#: The functions that statements of the service call, and the constraints of what they write. It
#: needs no grant for those of triggers.
CALLED: Final = ("keeps_the_rules", "open_postings", "refuse_concurrent_change")
#: Of these tables, only these columns change.
_COLUMNS: Final = {"former_accounts": "deauthorize_time"}
_PRIVILEGES: Final = ("SELECT", "INSERT", "UPDATE", "DELETE", "TRUNCATE", "TRIGGER", "REFERENCES")

_TABLES: Final = (
    "SELECT relname FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND relkind IN ('r', 'p', 'v') ORDER BY relname"
)
_HELD: Final = (
    "SELECT relname, privilege FROM pg_class, "
    "unnest(CAST(%(privileges)s AS text[])) AS p (privilege) "
    "WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p', 'v') "
    # A grant of a single column counts.
    "AND CASE WHEN privilege IN ('SELECT', 'INSERT', 'UPDATE', 'REFERENCES') "
    "THEN has_any_column_privilege(session_user, pg_class.oid, privilege) "
    "ELSE has_table_privilege(session_user, pg_class.oid, privilege) END"
)
#: Predefined roles that reach files and programs of the database's server, and so every table.
_OF_THE_SERVER: Final = "pg_execute_server_program pg_read_server_files pg_write_server_files"
#: A member may become what it is a member of (SET ROLE), so that counts as its own.
_ROLE: Final = (
    "SELECT session_user AS name, bool_or(rolsuper) AS is_superuser, "
    "bool_or(rolcreaterole) AS may_create_roles, bool_or(rolbypassrls) AS bypasses_row_security, "
    "bool_or(rolreplication) AS may_replicate, "
    f"bool_or(rolname = ANY (string_to_array('{_OF_THE_SERVER}', ' '))) AS reaches_the_server, "
    "EXISTS (SELECT FROM pg_class WHERE relnamespace = current_schema()::regnamespace "
    "AND relkind IN ('r', 'p', 'v') AND pg_has_role(session_user, relowner, 'MEMBER')) "
    "OR pg_has_role(session_user, (SELECT datdba FROM pg_database "
    "WHERE datname = current_database()), 'MEMBER') AS is_owner, "
    "has_schema_privilege(session_user, current_schema(), 'CREATE') "
    "OR has_database_privilege(session_user, current_database(), 'TEMPORARY') "
    "AS may_create_tables, "
    "coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS is_encrypted "
    "FROM pg_roles WHERE pg_has_role(session_user, oid, 'MEMBER')"
)


class UnknownRole(Exception):
    """The role that shall get the grants cannot get them. The text says why."""


def expected_of(table: str) -> frozenset[str]:
    """Returns what the service's role may do with a table. A new table is append-only."""
    return frozenset(
        {
            "SELECT",
            *(["INSERT"] if table not in READ_ONLY else []),
            *(["UPDATE"] if table in MAY_UPDATE else []),
            *(["DELETE"] if table in MAY_DELETE else []),
        }
    )


def grant_to(connection: extensions.connection, role: str) -> None:
    """Gives the role exactly the grants that the service needs, whatever it had before.

    All of it belongs to one transaction, so there is no moment without grants.
    """
    with connection.cursor() as cursor:
        _grant(cursor, role)


def _grant(cursor: extensions.cursor, role: str) -> None:
    cursor.execute(
        "SELECT rolname = current_user, quote_ident(rolname), quote_ident(current_schema()), "
        "quote_ident(current_database()) FROM pg_roles WHERE rolname = %(role)s",
        {"role": role},
    )
    found = cursor.fetchone()
    if found is None:
        raise UnknownRole(
            f"DATABASE_SERVICE_ROLE: there is no role {role}; make it first: "
            f"CREATE ROLE {role} LOGIN PASSWORD '…'"
        )
    is_own, name, schema, database = found
    if is_own:
        raise UnknownRole(
            f"DATABASE_SERVICE_ROLE: {role} is the role that migrates, which owns the tables; the "
            "service needs another one"
        )
    statements = [
        f"GRANT CONNECT ON DATABASE {database} TO {name}",
        f"REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC, {name}",
        # A temporary table is found before one of ours with the same name, by triggers, too. At a
        # pooler it would wait in the connection for the next session.
        f"REVOKE TEMPORARY ON DATABASE {database} FROM PUBLIC, {name}",
        f"GRANT USAGE ON SCHEMA {schema} TO {name}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} REVOKE ALL ON TABLES FROM {name}",
        f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema} GRANT SELECT, INSERT ON TABLES TO {name}",
    ]
    cursor.execute(_TABLES)
    for (table,) in cursor.fetchall():
        statements.append(f"REVOKE ALL ON {schema}.{table} FROM PUBLIC, {name}")
        granted = ", ".join(
            f"{privilege} ({_COLUMNS[table]})"
            if privilege == "UPDATE" and table in _COLUMNS
            else privilege
            for privilege in sorted(expected_of(table))
        )
        statements.append(f"GRANT {granted} ON {schema}.{table} TO {name}")
    # Some databases let nobody call a function without a grant.
    statements += [f"GRANT EXECUTE ON FUNCTION {schema}.{one} TO {name}" for one in CALLED]
    # The end of a span of postings is the last id that was given (`balances`).
    statements.append(f"GRANT SELECT ON SEQUENCE {schema}.postings_posting_id_seq TO {name}")
    for statement in statements:
        cursor.execute(statement)


def read_role(connection: extensions.connection) -> RoleFacts:
    """Returns what the present session's role is, and may do.

    Grants that a newer release has made are judged by that release: this one does not know its
    tables, and has to serve beside it.
    """
    with connection.cursor() as cursor:
        cursor.execute(_ROLE)
        names = [column[0] for column in cursor.description or ()]
        role = dict(zip(names, cursor.fetchone() or (), strict=True))
        cursor.execute(_HELD, {"privileges": list(_PRIVILEGES)})
        held = {Grant(table, privilege) for table, privilege in cursor.fetchall()}
        cursor.execute(_TABLES)
        tables = [table for (table,) in cursor.fetchall()]
        revision, *_ = stored_schema(cursor)
    if revision > EXPECTED_REVISION:
        return RoleFacts(**role, missing=frozenset(), excess=frozenset())
    expected = {Grant(table, privilege) for table in tables for privilege in expected_of(table)}
    return RoleFacts(**role, missing=frozenset(expected - held), excess=frozenset(held - expected))
