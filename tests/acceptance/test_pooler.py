"""Behind a real PgBouncer in transaction mode all limits are in force, and no lock is left."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psycopg2
import pytest

from dev.ports import first_free_port
from dev.postgres import EmbeddedPostgres, owner_url
from payment_service.adapters.postgres.engine import SqlDatabase
from payment_service.adapters.postgres.transaction import SqlTransaction
from payment_service.domain.errors import Unavailable
from tests.acceptance.conftest import new_name
from tests.support.nursery import Nursery

_PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
pytestmark = pytest.mark.skipif(
    _PGBOUNCER is None, reason="pgbouncer is not installed (Debian's package of that name)"
)


@contextlib.contextmanager
def pooler(directory: Path, direct_url: str, ignored: str) -> Iterator[str]:
    """Runs PgBouncer before a database, and yields the address of the pool."""
    assert _PGBOUNCER is not None
    parts, port = urlsplit(direct_url), first_free_port(1)
    database = parts.path.lstrip("/")
    settings = directory / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{database} = host={parts.hostname} port={parts.port} "
        f"dbname={database} user={parts.username} password={parts.password}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nauth_type = any\n"
        f"admin_users = {parts.username}\n"
        f"pool_mode = transaction\ndefault_pool_size = 3\nunix_socket_dir =\n"
        f"ignore_startup_parameters = {ignored}\n"
    )
    directory.chmod(0o755)
    # It refuses to run as root.
    command = [_PGBOUNCER, *(("-u", "nobody") if os.geteuid() == 0 else ()), str(settings)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
            yield f"postgresql://{parts.username}@127.0.0.1:{port}/{database}"
        finally:
            process.terminate()


def wait_for(url: str) -> None:
    end = time.monotonic() + 20
    while True:
        try:
            psycopg2.connect(url).close()
        except psycopg2.OperationalError:
            assert time.monotonic() < end, "the pooler does not listen"
            time.sleep(0.05)
        else:
            return


def run(nursery: Nursery, url: str, **environment: str) -> subprocess.CompletedProcess[str]:
    told = {**os.environ, "DATABASE_URL": url, **environment}
    return nursery.run("payment_service", "migrate", env=told)


def reconnect(url: str) -> None:
    """The pooler's sessions are from before the migration, so they have the former defaults."""
    console = psycopg2.connect(f"{url.rpartition('/')[0]}/pgbouncer")
    with contextlib.closing(console), console.cursor() as cursor:
        console.autocommit = True
        cursor.execute("RECONNECT")


@pytest.fixture
def direct(postgres: EmbeddedPostgres) -> str:
    return owner_url(postgres.create_database(new_name("pooled").replace("-", "_")))


@pytest.fixture
def pooled(tmp_path: Path, direct: str) -> Iterator[str]:
    with pooler(tmp_path, direct, "extra_float_digits,options") as url:
        wait_for(url)
        yield url


def _limits(tx: SqlTransaction) -> list[str]:
    names = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout", "timezone")
    return [str(*tx._one(f"SHOW {name}").values()) for name in names]


async def test_a_migration_through_the_pooler_leaves_no_lock_and_sets_the_limits(
    nursery: Nursery, pooled: str, direct: str
) -> None:
    for _ in range(2):  # The second waits for ever if the first leaves its lock behind.
        done = run(nursery, pooled, DATABASE_POOLER="transaction")
        assert done.returncode == 0, done.stderr
    with contextlib.closing(psycopg2.connect(direct)) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'")
        assert cursor.fetchone() == (0,)
    reconnect(pooled)
    database = SqlDatabase(pooled, write_connections=2, read_connections=1, pooled=True)
    try:
        assert await database.ping()
        assert await database.transact(_limits) == ["5s", "2s", "10s", "UTC"]
    finally:
        await database.close()


async def test_a_pooler_that_drops_the_limits_is_noticed(
    nursery: Nursery, pooled: str, direct: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(nursery, direct).returncode == 0
    database = SqlDatabase(pooled, write_connections=1, read_connections=1)
    try:
        assert not await database.ping()
        said = capsys.readouterr().out
        assert "database_limits_missing" in said
        assert "DATABASE_POOLER=transaction" in said
    finally:
        await database.close()


async def test_without_the_setting_a_strict_pooler_refuses_the_connection(
    nursery: Nursery, tmp_path: Path, direct: str
) -> None:
    assert run(nursery, direct).returncode == 0
    with pooler(tmp_path, direct, "extra_float_digits") as url:
        wait_for(url)
        plain = SqlDatabase(url, write_connections=1, read_connections=1)
        try:
            with pytest.raises(Unavailable):
                await plain.transact(_limits)
        finally:
            await plain.close()
        # With the setting nothing is asked of it that it cannot give.
        pooled = SqlDatabase(url, write_connections=1, read_connections=1, pooled=True)
        try:
            assert await pooled.transact(_limits)
        finally:
            await pooled.close()
