"""The service's role can do what the service does, and nothing that would rewrite the books."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from dev.postgres import OWNER, SERVICE, EmbeddedPostgres, owner_url
from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.roles import MAY_DELETE, MAY_UPDATE
from payment_service.domain.database_check import Grant, RoleFacts, examine_role
from payment_service.domain.platform_check import Verdict
from tests.support.nursery import Nursery

ADAPTERS = Path(__file__).parents[2] / "payment_service" / "adapters" / "postgres"
#: Tables that hold the books: nothing in them is ever changed.
APPEND_ONLY = (
    *("events", "postings", "movements", "platform_lines"),
    *("expert_events", "erasures", "feed"),
)
_SEEN_BY_TRIGGERS = """
SELECT relname, p.privilege FROM pg_trigger
JOIN pg_class ON pg_class.oid = tgrelid JOIN pg_proc ON pg_proc.oid = tgfoid,
(VALUES (16, 'UPDATE'), (8, 'DELETE'), (32, 'TRUNCATE')) AS p (bit, privilege)
WHERE proname = 'refuse_change' AND tgtype & p.bit > 0
"""


@contextlib.contextmanager
def session(url: str) -> Iterator[Any]:
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor:
        yield cursor
        connection.commit()


def migrate(nursery: Nursery, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "DATABASE_URL": url, **environment}
    return nursery.run("payment_service", "migrate", env=told)


async def role_of(url: str) -> RoleFacts:
    database = SqlDatabase(url, write_connections=1, read_connections=1)
    try:
        return await database.role()
    finally:
        await database.close()


@pytest.mark.parametrize("table", APPEND_ONLY)
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE {} SET time = now()",
        "DELETE FROM {}",
        "TRUNCATE {} CASCADE",
        "ALTER TABLE {} DISABLE TRIGGER ALL",
        "ALTER TABLE {} ADD COLUMN more text",
        "DROP TABLE {} CASCADE",
    ],
)
def test_the_books_cannot_be_rewritten(database_url: str, table: str, statement: str) -> None:
    if statement.startswith("UPDATE") and table == "feed":
        statement = "UPDATE {} SET position = 1"
    with pytest.raises(psycopg2.errors.InsufficientPrivilege), session(database_url) as cursor:
        cursor.execute(statement.format(table))


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE more (n int)",
        (
            "CREATE OR REPLACE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql "
            "AS 'BEGIN RETURN NEW; END'"
        ),
        "SET session_replication_role = replica",
        f"SET ROLE {OWNER}",
        "UPDATE releases SET minimum_writer = 0",
        "UPDATE alembic_version SET version_num = '0'",
        "UPDATE former_accounts SET expert_id = 'other'",
        "DELETE FROM payments",
        "CREATE ROLE more",
        "CREATE TEMPORARY TABLE feed_pending (payment_id text, sequence bigint, time timestamptz)",
    ],
)
def test_the_schema_cannot_be_changed(database_url: str, statement: str) -> None:
    with pytest.raises(psycopg2.errors.InsufficientPrivilege), session(database_url) as cursor:
        cursor.execute(statement)


async def test_the_grants_are_exactly_those(database_url: str) -> None:
    facts = await role_of(database_url)
    assert (facts.name, facts.power, facts.missing) == (SERVICE, "", frozenset())
    assert not facts.may_create_tables


def test_what_a_trigger_refuses_is_not_granted(
    postgres: EmbeddedPostgres, database_url: str
) -> None:
    with session(postgres.admin_url(database_url.rpartition("/")[2])) as cursor:
        cursor.execute(_SEEN_BY_TRIGGERS)
        refused = {(str(table), str(privilege)) for table, privilege in cursor.fetchall()}
    granted = {(table, "UPDATE") for table in MAY_UPDATE} | {(t, "DELETE") for t in MAY_DELETE}
    assert {"events", "postings"} <= {table for table, _ in refused}
    assert refused & granted == set()


def test_what_is_granted_is_used() -> None:
    """A grant that no statement needs is found here; a missing one by every test of the service."""
    source = "\n".join(path.read_text() for path in ADAPTERS.glob("*.py"))
    source = re.sub(r'"\n\s*f?"', "", source)
    deleted = set(re.findall(r"\bDELETE FROM (\w+)", source))
    updated = set(re.findall(r"\bUPDATE (\w+) SET\b", source))
    for table, rest in re.findall(r"\bINSERT INTO (\w+)((?:(?!INSERT INTO)[\s\S]){0,600})", source):
        if "DO UPDATE" in rest:
            updated.add(table)
    locked = {"onboarding_tokens"}  # FOR UPDATE, by the job that deletes old ones
    assert deleted == MAY_DELETE
    assert updated | locked == MAY_UPDATE


def test_migrate_gives_the_grants_and_takes_others(
    nursery: Nursery, new_database: Callable[[], str]
) -> None:
    url = new_database()
    with session(owner_url(url)) as cursor:
        cursor.execute(f"GRANT UPDATE, DELETE, TRUNCATE ON events TO {SERVICE}")
        cursor.execute("GRANT DELETE ON postings TO PUBLIC")
        cursor.execute(f"REVOKE INSERT ON postings FROM {SERVICE}")
    for _ in range(2):
        done = migrate(nursery, owner_url(url), DATABASE_SERVICE_ROLE=SERVICE)
        assert done.returncode == 0, done.stderr
    with session(url) as cursor:
        for privilege in ("UPDATE", "DELETE", "TRUNCATE"):
            cursor.execute("SELECT has_table_privilege('events', %s)", (privilege,))
            assert cursor.fetchone() == (False,)
        cursor.execute(
            "SELECT has_table_privilege('postings', 'DELETE'), "
            "has_table_privilege('postings', 'INSERT')"
        )
        assert cursor.fetchone() == (False, True)


def test_behind_a_pooler_the_service_gets_its_limits_from_the_database(
    nursery: Nursery,
    new_database: Callable[[], str],
) -> None:
    """A pooler passes no limits on, and the owner may not set another role's defaults."""
    url = new_database()
    environment = {"DATABASE_SERVICE_ROLE": SERVICE, "DATABASE_POOLER": "transaction"}
    assert migrate(nursery, owner_url(url), **environment).returncode == 0
    with session(url) as cursor:
        cursor.execute("SELECT current_setting('statement_timeout'), current_setting('TimeZone')")
        assert cursor.fetchone() == ("5s", "UTC")


def test_migrate_lets_the_service_call_its_functions(
    nursery: Nursery, new_database: Callable[[], str]
) -> None:
    """Some databases take from everybody what PostgreSQL lets everybody call."""
    url = new_database()
    with session(owner_url(url)) as cursor:
        cursor.execute("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM PUBLIC")
        cursor.execute(f"REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA public FROM {SERVICE}")
    with pytest.raises(psycopg2.errors.InsufficientPrivilege), session(url) as cursor:
        cursor.execute("SELECT refuse_concurrent_change()")
    assert migrate(nursery, owner_url(url), DATABASE_SERVICE_ROLE=SERVICE).returncode == 0
    with session(url) as cursor:
        cursor.execute("SELECT FROM open_postings()")
    with pytest.raises(psycopg2.errors.SerializationFailure), session(url) as cursor:
        cursor.execute("SELECT refuse_concurrent_change()")


def test_a_table_that_comes_later_is_append_only(new_database: Callable[[], str]) -> None:
    url = new_database()
    with session(owner_url(url)) as cursor:
        cursor.execute("CREATE TABLE later (n int)")
    with session(url) as cursor:
        cursor.execute("INSERT INTO later VALUES (1)")
        cursor.execute("SELECT n FROM later")
        assert cursor.fetchall() == [(1,)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege), session(url) as cursor:
        cursor.execute("DELETE FROM later")


@pytest.mark.parametrize(
    ("role", "sentence"),
    [("nobody_yet", "there is no role nobody_yet"), (OWNER, "the service needs another one")],
)
def test_a_role_that_cannot_be_the_service_is_refused(
    nursery: Nursery, database_url: str, role: str, sentence: str
) -> None:
    done = migrate(nursery, owner_url(database_url), DATABASE_SERVICE_ROLE=role)
    assert done.returncode == 2
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


async def test_production_is_not_ready_with_a_powerful_role(
    postgres: EmbeddedPostgres, database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = {
        "": database_url,
        "owns the tables": owner_url(database_url),
        "is a superuser": postgres.admin_url(database_url.rpartition("/")[2]),
    }
    for power, url in urls.items():
        database = SqlDatabase(url, write_connections=1, read_connections=1, guarded=True)
        try:
            assert await database.ping() is (power == "")
        finally:
            await database.close()
        said = capsys.readouterr().out
        assert ("database_role_refused" in said) is (power != "")
        assert power in said


async def test_grants_of_a_newer_release_send_no_caller_away(database_url: str) -> None:
    """During an upgrade the former release serves on, and after it one can go back."""
    with session(owner_url(database_url)) as cursor:
        cursor.execute("CREATE TABLE of_the_newer_release (n int)")
        cursor.execute(f"GRANT UPDATE ON of_the_newer_release TO {SERVICE}")
    assert "UPDATE on of_the_newer_release" in (await role_of(database_url)).refusal
    with session(owner_url(database_url)) as cursor:
        cursor.execute("UPDATE alembic_version SET version_num = '9999'")
    assert (await role_of(database_url)).refusal == ""
    database = SqlDatabase(database_url, write_connections=1, read_connections=1, guarded=True)
    try:
        assert await database.ping()
    finally:
        await database.close()
    assert "owns the tables" in (await role_of(owner_url(database_url))).refusal


@pytest.mark.parametrize(
    ("attributes", "power"),
    [
        ("SUPERUSER", "is a superuser"),
        ("CREATEROLE", "may create roles"),
        ("BYPASSRLS", "bypasses row security"),
        ("REPLICATION", "may replicate"),
        ("IN ROLE pg_execute_server_program", "files and programs"),
    ],
)
async def test_what_the_role_may_become_counts(
    nursery: Nursery,
    postgres: EmbeddedPostgres,
    new_database: Callable[[], str],
    attributes: str,
    power: str,
) -> None:
    """A member of a powerful role is not powerful until it says SET ROLE."""
    url = new_database()
    name = url.rpartition("/")[2]
    with session(postgres.admin_url(name)) as cursor:
        cursor.execute("SELECT rolpassword FROM pg_authid WHERE rolname = %s", (SERVICE,))
        cursor.execute("CREATE ROLE member_of_much LOGIN PASSWORD %s", cursor.fetchone())
        cursor.execute(f"CREATE ROLE much {attributes}")
        cursor.execute("GRANT much TO member_of_much")
    try:
        done = migrate(nursery, owner_url(url), DATABASE_SERVICE_ROLE="member_of_much")
        assert done.returncode == 0, done.stderr
        assert power in (await role_of(url.replace(f"://{SERVICE}:", "://member_of_much:"))).power
    finally:
        with session(postgres.admin_url(name)) as cursor:
            cursor.execute("DROP OWNED BY member_of_much; DROP ROLE member_of_much, much")


async def test_migrate_takes_temporary_tables_from_the_service(
    nursery: Nursery, postgres: EmbeddedPostgres, new_database: Callable[[], str]
) -> None:
    url = new_database()
    with session(owner_url(url)) as cursor:
        cursor.execute(f"GRANT TEMPORARY ON DATABASE {url.rpartition('/')[2]} TO PUBLIC, {SERVICE}")
    assert (await role_of(url)).may_create_tables
    assert migrate(nursery, owner_url(url), DATABASE_SERVICE_ROLE=SERVICE).returncode == 0
    assert not (await role_of(url)).may_create_tables


@pytest.mark.parametrize("power", ["is a superuser", "owns the tables"])
def test_production_does_not_start_with_a_powerful_role(
    nursery: Nursery, postgres: EmbeddedPostgres, database_url: str, power: str
) -> None:
    name = database_url.rpartition("/")[2]
    url = postgres.admin_url(name) if "super" in power else owner_url(database_url)
    done = nursery.run(
        "payment_service",
        "serve",
        env={
            **os.environ,
            "DATABASE_URL": url,
            "ENVIRONMENT": "production",
            "STRIPE_SECRET_KEY": "sk_test_x",
            "STRIPE_PUBLISHABLE_KEY": "pk_test_x",
            "STRIPE_WEBHOOK_SECRET": "whsec_a",
            "STRIPE_CONNECT_WEBHOOK_SECRET": "whsec_b",
            "GATEWAY_PUBLIC_URL": "https://pay.example.com",
            "AUTH": "jwt",
            "AUTH_ISSUER": "https://id.example.com",
            "AUTH_JWKS": "https://127.0.0.1:1/jwks.json",
            "GRPC_TLS_BY_MESH": "true",
        },
    )
    assert done.returncode == 2, done.stdout + done.stderr
    assert power in done.stderr
    assert "DATABASE_SERVICE_ROLE=payments" in done.stderr
    assert url.partition("//")[2].partition("@")[0].partition(":")[2] not in done.stderr


def facts(**changes: Any) -> RoleFacts:
    right: dict[str, Any] = {
        **{"name": "payments", "is_superuser": False, "may_create_roles": False},
        **{"bypasses_row_security": False, "is_owner": False, "may_create_tables": False},
        **{"may_replicate": False, "reaches_the_server": False},
        **{"is_encrypted": True, "missing": frozenset(), "excess": frozenset()},
    }
    return RoleFacts(**{**right, **changes})


@pytest.mark.parametrize(
    ("changes", "subject", "said"),
    [
        ({"is_superuser": True}, "database role", "is a superuser"),
        ({"is_owner": True}, "database role", "owns the tables"),
        ({"may_create_roles": True}, "database role", "may create roles"),
        ({"bypasses_row_security": True}, "database role", "bypasses row security"),
        ({"may_replicate": True}, "database role", "replicate the whole server"),
        ({"reaches_the_server": True}, "database role", "files and programs"),
        ({"excess": frozenset({Grant("events", "DELETE")})}, "database role", "DELETE on events"),
        ({"missing": frozenset({Grant("jobs", "UPDATE")})}, "database grants", "UPDATE on jobs"),
        ({"is_encrypted": False}, "database connection", "is not encrypted"),
    ],
)
def test_doctor_says_what_is_wrong_in_production(
    changes: dict[str, Any], subject: str, said: str
) -> None:
    place = {"production": True, "is_local": False, "is_verified": True}
    assert {one.verdict for one in examine_role(facts(), **place)} == {Verdict.OK}
    [fault] = [one for one in examine_role(facts(**changes), **place) if one.verdict != "ok"]
    assert (fault.subject, fault.verdict) == (subject, Verdict.FAULT)
    assert said in fault.said
    assert fault.remedy
