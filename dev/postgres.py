"""An embedded PostgreSQL: real programs, as our child process, which ends when we end.

    with EmbeddedPostgres(Path(".data/postgres")) as server:
        connect(server.database_url)

What stands in the directory:

    cluster/        the data; made beside and renamed, so that it is whole or not there
    password        of the roles below; readable by its owner only
    port            the one used last, asked for again first
    postgres.log    what the server said
    lock            held while somebody owns the directory

Nobody gets in but by 127.0.0.1 and the password: there is no Unix socket (so no path can be too
long for one) and no trusted user. As in production, services connect as `payments`, which owns
nothing, and migrations as `payments_owner`; `postgres`, the superuser, is for the tests.

Under root the server runs as another user, which must be able to reach the directory. Where it
cannot (anything below a closed home), the directory becomes a link to one that it can, and no
mode of any directory above is ever touched.
"""

import contextlib
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import psycopg2
from psycopg2 import sql

from dev.cluster import (
    FAST_SHUTDOWN,
    end_orphan,
    environment,
    initialize,
    place_for,
    secret_in,
)
from dev.guard import Guard
from dev.lock import DirectoryLock
from dev.ports import first_free_port
from dev.programs import Account, PostgresError, programs_for

SERVICE = "payments"
OWNER = "payments_owner"
DATABASE = "payments"

#: For clusters from before the two roles, in which the services' role owned everything.
_REASSIGN = sql.SQL("REASSIGN OWNED BY {} TO {}").format(
    sql.Identifier(SERVICE), sql.Identifier(OWNER)
)
_MEMBERSHIP = sql.SQL("GRANT {} TO {}").format(sql.Identifier(SERVICE), sql.Identifier(OWNER))
_READY_SECONDS = 60.0
_LOG_BYTES_MAX = 5_000_000

# A power cut would ruin the data; a killed server loses nothing (`synchronous_commit` stays on).
_NOT_DURABLE = {
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    # Small and short-lived: it is not worth cleaning up, compiling or computing in parallel. With
    # many databases the launcher of autovacuum would start a worker several times a second.
    "autovacuum": "off",
    "jit": "off",
    "max_parallel_workers_per_gather": "0",
    "checkpoint_timeout": "1h",
    "shared_buffers": "64MB",
}


class EmbeddedPostgres:
    """Starts, stops, kills and queries one server. Not thread-safe."""

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        max_connections: int = 100,
        durable: bool = True,
        settings: Mapping[str, str] | None = None,
        guard: Guard | None = None,
    ) -> None:
        """Without a port, uses the last one if it is free, else any free one.

        A guard given here is shared, and remains its giver's to close.
        """
        self.directory = directory.absolute()
        self.port = port
        self._port_is_ours_to_choose = port is None
        self._settings = {
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": str(max_connections),
            "timezone": "UTC",
            "log_timezone": "UTC",
            **({} if durable else _NOT_DURABLE),
            **(settings or {}),
        }
        self._durable = durable
        self._shared_guard = guard
        self._guard: Guard | None = None
        self._lock: DirectoryLock | None = None
        self._account = Account()
        self._programs = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._password = ""

    @classmethod
    @contextlib.contextmanager
    def temporary(cls, **options: Any) -> Iterator["EmbeddedPostgres"]:
        """Yields a server without fsync, in a temporary directory."""
        directory = Path(tempfile.mkdtemp(prefix="payments-postgres-"))
        directory.chmod(0o711)
        server = cls(directory / "postgres", **{"durable": False, **options})
        try:
            server.start()
            yield server
        finally:
            server.destroy()
            shutil.rmtree(directory, ignore_errors=True)

    # The server's life

    def start(self) -> str:
        """Starts the server, whatever an earlier one left, and returns the DATABASE_URL."""
        if self.running:
            return self.database_url
        self.kill()  # for one that ended by itself this only clears the handle
        self._guard = self._guard or self._shared_guard or Guard()
        try:
            home, self._account = place_for(self.directory)
            self._lock = self._lock or DirectoryLock(home / "lock")
            self._lock.acquire(self._guard)
            self._password = secret_in(home / "password")
            self._programs = programs_for(self._account, home / "cluster", home)
            end_orphan(home / "cluster")
            for unfinished in home.glob("unfinished-*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            if not (home / "cluster").is_dir():
                initialize(
                    home,
                    self._programs,
                    self._account,
                    self._guard,
                    password=self._password,
                    durable=self._durable,
                )
            self._launch(home)
            self._ensure_database()
        except BaseException:
            self.stop()
            raise
        return self.database_url

    def stop(self) -> None:
        """Shuts down in PostgreSQL's mode "fast": ends the sessions and writes everything."""
        if self._process is not None and self._guard is not None:
            for number, seconds in FAST_SHUTDOWN:
                self._process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self._process.wait(seconds)
                    break
            self._guard.remove(self._process.pid)
            self._process = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None
        if self._guard is not None:
            if self._guard is not self._shared_guard:
                self._guard.close()
            self._guard = None

    def kill(self) -> None:
        """Kills the server as a crash would. The directory stays locked; `start()` recovers it."""
        if self._process is not None and self._guard is not None:
            self._process.kill()
            self._process.wait()
            self._guard.remove(self._process.pid)
            self._process = None

    def restart(self) -> str:
        """Stops the server if it runs, and starts it again at the same address."""
        self.stop()
        return self.start()

    def destroy(self) -> None:
        """Stops the server and removes every file, also behind a link."""
        self.stop()
        home = self.directory.resolve()
        shutil.rmtree(home, ignore_errors=True)
        if self.directory.is_symlink():
            self.directory.unlink()
            with contextlib.suppress(OSError):  # others may have files there
                home.parent.rmdir()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Returns the postmaster's process id."""
        return self._process.pid if self._process is not None else None

    @property
    def log(self) -> Path:
        return self.directory / "postgres.log"

    # Its databases

    def last_url(self) -> str:
        """Returns the services' URL of a server that another process has started here."""
        port = _number_in(self.directory / "port")
        with contextlib.suppress(OSError):
            if port is not None:
                socket.create_connection(("127.0.0.1", port), timeout=5).close()
                self.port, self._password = port, secret_in(self.directory / "password")
                return self.database_url
        raise PostgresError(f"no database of {self.directory} answers: start it by `make run`")

    @property
    def database_url(self) -> str:
        """Returns the URL of the services' database, for their role."""
        return self.url(DATABASE)

    def url(self, database: str, role: str = SERVICE) -> str:
        return (
            f"postgresql://{role}:{quote(self._password)}@127.0.0.1:{self.port}/{quote(database)}"
        )

    def admin_url(self, database: str = DATABASE) -> str:
        """Returns the superuser's URL, for tests that do what no service may do."""
        return self.url(database, role="postgres")

    def owner_url(self, database: str = DATABASE) -> str:
        """Returns the URL of the role that owns the databases, for migrations."""
        return self.url(database, role=OWNER)

    @property
    def migrating(self) -> dict[str, str]:
        """Returns the variables with which a migration runs as the owner."""
        return {"DATABASE_URL": self.owner_url(), "DATABASE_SERVICE_ROLE": SERVICE}

    def create_database(self, name: str, template: str | None = None) -> str:
        """Creates a database, empty or a copy of another one without connections.

        Returns the URL for the services' role.
        """
        statement = sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(
            sql.Identifier(name), sql.Identifier(OWNER), sql.Identifier(template or "template1")
        )
        # Copying the files is faster than the log, and nothing needs to be durable here.
        self._execute(statement + sql.SQL("" if self._durable else " STRATEGY FILE_COPY"))
        # The grants of a database are not copied with it.
        self._execute(
            sql.SQL("REVOKE TEMPORARY ON DATABASE {} FROM PUBLIC").format(sql.Identifier(name))
        )
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Removes a database and ends its sessions."""
        self._execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name))
        )

    # How it starts

    def _launch(self, home: Path) -> None:
        """Starts the server and waits until it answers.

        Two reasons to fail pass: backends of a killed server that have not noticed yet, and a
        port that somebody took between our choice and the server's start.
        """
        deadline = time.monotonic() + _READY_SECONDS
        while True:
            if self._port_is_ours_to_choose:
                self.port = _free_port(_number_in(home / "port"))
            said = self._attempt(home, deadline)
            if said is None:
                break
            taken = "Address already in use" in said
            passing = self._port_is_ours_to_choose if taken else "shared memory block" in said
            if not passing or time.monotonic() > deadline:
                raise PostgresError(f"PostgreSQL did not start on port {self.port}: {said.strip()}")
            time.sleep(0.1)
        self._port_is_ours_to_choose = False  # callers know its address now
        (home / "port").write_text(str(self.port))

    def _attempt(self, home: Path, deadline: float) -> str | None:
        """Tries to start once. Returns None, or the server's output if it did not start."""
        assert self._guard is not None
        settings = [f"--{name}={value}" for name, value in self._settings.items()]
        if self.log.exists() and self.log.stat().st_size > _LOG_BYTES_MAX:
            self.log.unlink()
        with (home / "postgres.log").open("ab") as log:
            before = log.tell()
            process = subprocess.Popen(
                [
                    str(self._programs / "postgres"),
                    *("-D", str(home / "cluster")),
                    *("-p", str(self.port)),
                    *settings,
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment(),
                # Ctrl-C in the terminal would stop it before the services have drained.
                start_new_session=True,
                **self._account.popen(),
            )
        self._guard.add(process.pid, signal.SIGINT)
        self._process = process
        while process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psycopg2.OperationalError):
                psycopg2.connect(self.admin_url("postgres"), connect_timeout=2).close()
                return None
            time.sleep(0.02)
        self.kill()
        with (home / "postgres.log").open("rb") as log:
            log.seek(before)
            return log.read().decode(errors="replace") or "it said nothing, and did not answer"

    def _ensure_database(self) -> None:
        """Creates the roles and the database of the services, if they are missing."""
        with contextlib.closing(psycopg2.connect(self.admin_url("postgres"))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                for name in (SERVICE, OWNER):
                    cursor.execute("SELECT FROM pg_roles WHERE rolname = %s", (name,))
                    if not cursor.fetchall():
                        role = sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(
                            sql.Identifier(name), sql.Literal(self._password)
                        )
                        cursor.execute(role)
                # So that who works as the owner sees the services' sessions, and can end them.
                cursor.execute(_MEMBERSHIP)
                cursor.execute("SELECT FROM pg_database WHERE datname = %s", (DATABASE,))
                exists = bool(cursor.fetchall())
        if exists:
            self._execute(_REASSIGN, DATABASE)
        else:
            self.create_database(DATABASE)

    def _execute(self, statement: sql.Composable, database: str = "postgres") -> None:
        with contextlib.closing(psycopg2.connect(self.admin_url(database))) as connection:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(statement)


def owner_url(database_url: str) -> str:
    """Returns the owner's URL of an embedded database whose URL for the services is given."""
    return database_url.replace(f"://{SERVICE}:", f"://{OWNER}:", 1)


def _number_in(path: Path) -> int | None:
    with contextlib.suppress(FileNotFoundError):
        if re.fullmatch(r"\d{1,5}", said := path.read_text().strip()):
            return int(said)
    return None


def _free_port(wanted: int | None) -> int:
    if wanted is not None:
        with socket.socket() as probe, contextlib.suppress(OSError, OverflowError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", wanted))
            return wanted
    return first_free_port(1)
