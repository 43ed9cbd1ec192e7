"""The embedded PostgreSQL: it comes up, whatever was left behind, and nothing else is touched."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg2
import pytest

from dev import programs
from dev.lock import DirectoryInUseError
from dev.postgres import EmbeddedPostgres, owner_url
from dev.processes import started_at
from dev.programs import PostgresError

ROOT = Path(__file__).parents[2]
IS_ROOT = os.geteuid() == 0
as_root = pytest.mark.skipif(not IS_ROOT, reason="only root can run it as another user")


@contextlib.contextmanager
def reachable_directory() -> Iterator[Path]:
    """A directory that any user can reach, unlike pytest's own temporary ones."""
    directory = Path(tempfile.mkdtemp(prefix="payments-test-"))
    directory.chmod(0o711)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture
def place() -> Iterator[Path]:
    with reachable_directory() as directory:
        yield directory


@pytest.fixture(scope="module")
def directory() -> Iterator[Path]:
    """One cluster that lives through all the accidents below, as a developer's would."""
    with reachable_directory() as parent:
        yield parent / "postgres"


@pytest.fixture
def server(directory: Path) -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(directory, durable=False) as server:
        yield server


def ask(url: str, statement: str) -> list[tuple[object, ...]]:
    with contextlib.closing(psycopg2.connect(url)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def start_out_of_band(directory: Path, then: str) -> subprocess.Popen[str]:
    """Another process that starts a server in the directory, prints its pids, and keeps running."""
    program = f"""
        import os, signal, sys, time
        from pathlib import Path
        from dev.postgres import EmbeddedPostgres, owner_url
        server = EmbeddedPostgres(Path({str(directory)!r}), durable=False)
        server.start()
        print(server.pid, server._guard._process.pid, flush=True)
        {then}
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )


def pids_of(process: subprocess.Popen[str]) -> tuple[int, int]:
    assert process.stdout is not None
    server, guard = process.stdout.readline().split()
    return int(server), int(guard)


def wait_until_gone(pid: int, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while started_at(pid) is not None:
        assert time.monotonic() < deadline, f"process {pid} still runs"
        time.sleep(0.02)


def test_services_connect_as_a_role_that_owns_nothing(server: EmbeddedPostgres) -> None:
    asked = (
        "SELECT current_user, current_database(), rolsuper, rolcreaterole, datdba = pg_roles.oid "
        "FROM pg_roles, pg_database WHERE rolname = current_user AND datname = current_database()"
    )
    assert ask(server.database_url, asked) == [("payments", "payments", False, False, False)]
    assert ask(server.owner_url(), asked) == [("payments_owner", "payments", False, False, True)]
    assert ask(server.admin_url(), asked)[0][2] is True
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        ask(server.database_url, "CREATE TABLE taken AS SELECT 1 AS n")


def test_what_the_services_owned_goes_to_the_owner(directory: Path) -> None:
    """As in a cluster from before there were two roles."""
    with EmbeddedPostgres(directory, durable=False) as server:
        ask(server.owner_url(), "CREATE TABLE old AS SELECT 1 AS n")
        ask(server.admin_url(), "ALTER DATABASE payments OWNER TO payments")
        ask(server.admin_url(), "ALTER TABLE old OWNER TO payments")
    with EmbeddedPostgres(directory, durable=False) as server:
        asked = "SELECT tableowner FROM pg_tables WHERE tablename = 'old'"
        assert ask(server.owner_url(), asked) == [("payments_owner",)]
        ask(server.owner_url(), "CREATE TABLE new AS SELECT 1 AS n")


def test_nobody_enters_without_the_password(server: EmbeddedPostgres) -> None:
    stranger = f"postgresql://postgres@127.0.0.1:{server.port}/postgres"
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(stranger)
    with pytest.raises(psycopg2.OperationalError, match="password"):
        psycopg2.connect(stranger.replace("postgres@", "postgres:guess@"))
    secret = server.directory / "password"
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    command = subprocess.run(
        ["/bin/cat", f"/proc/{server.pid}/cmdline"], capture_output=True, text=True, check=False
    )
    assert secret.read_text() not in command.stdout


def test_address_and_data_stay_over_a_restart(directory: Path) -> None:
    with EmbeddedPostgres(directory, durable=False) as server:
        ask(server.owner_url(), "CREATE TABLE kept AS SELECT 42 AS answer")
        before = server.database_url
        assert server.restart() == before
    with EmbeddedPostgres(directory, durable=False) as server:
        assert server.database_url == before
        assert ask(server.owner_url(), "SELECT answer FROM kept") == [(42,)]


def test_killed_server_recovers_what_was_committed(server: EmbeddedPostgres) -> None:
    ask(server.owner_url(), "CREATE TABLE written AS SELECT generate_series(1, 1000)")
    session = psycopg2.connect(server.database_url)  # a backend that has to notice, too
    url = server.database_url
    for _ in range(3):
        server.kill()
        assert not server.running
        assert server.start() == url
    assert ask(server.owner_url(), "SELECT count(*) FROM written") == [(1000,)]
    session.close()


def test_databases_are_copied_from_a_template_and_dropped_in_use(server: EmbeddedPostgres) -> None:
    ask(owner_url(server.create_database("model")), "CREATE TABLE t AS SELECT 1 AS n")
    copy = server.create_database('odd "name"', template="model")
    assert ask(owner_url(copy), "SELECT n FROM t") == [(1,)]
    with contextlib.closing(psycopg2.connect(copy)):
        server.drop_database('odd "name"')
    with pytest.raises(psycopg2.OperationalError, match="does not exist"):
        psycopg2.connect(copy)


def test_settings_reach_the_server() -> None:
    options = {"max_connections": 61, "settings": {"deadlock_timeout": "123ms"}}
    with EmbeddedPostgres.temporary(**options) as server:
        url = server.database_url
        assert ask(url, "SHOW max_connections") == [("61",)]
        assert ask(url, "SHOW deadlock_timeout") == [("123ms",)]
        assert ask(url, "SHOW fsync") == [("off",)]
        directory = server.directory
    assert not directory.parent.exists()


def test_deep_directory(place: Path) -> None:
    deep = place.joinpath(*["a-directory-name-of-some-length"] * 6)
    with EmbeddedPostgres(deep / "postgres", durable=False) as server:
        assert ask(server.database_url, "SELECT 1") == [(1,)]


def test_taken_port_is_refused_with_its_number(directory: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        server = EmbeddedPostgres(directory, durable=False, port=port)
        with pytest.raises(PostgresError, match=f"port {port}.*(?s:.)*Address already in use"):
            server.start()
    with server:
        assert server.port == port


def test_remembered_port_is_abandoned_when_it_is_taken(directory: Path) -> None:
    with EmbeddedPostgres(directory, durable=False) as server:
        before = server.port
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", before or 0))
        taken.listen()
        with EmbeddedPostgres(directory, durable=False) as server:
            assert server.port != before
            assert ask(server.database_url, "SELECT 1") == [(1,)]


def test_directory_has_one_owner(server: EmbeddedPostgres) -> None:
    with pytest.raises(DirectoryInUseError, match=f"process {os.getpid()}"):
        EmbeddedPostgres(server.directory).start()
    assert ask(server.database_url, "SELECT 1") == [(1,)]


def test_server_of_a_killed_owner_is_ended_and_the_next_start_succeeds(directory: Path) -> None:
    owner = start_out_of_band(directory, "os.kill(os.getpid(), signal.SIGKILL)")
    pid, guard = pids_of(owner)
    owner.wait()
    # At once, while the guard may still be at work: the lock says when it is done.
    with EmbeddedPostgres(directory, durable=False) as server:
        assert started_at(pid) is None
        assert ask(server.database_url, "SELECT 1") == [(1,)]
    wait_until_gone(guard)


def test_server_whose_guard_was_killed_too_is_ended_by_the_next_start(directory: Path) -> None:
    owner = start_out_of_band(directory, "time.sleep(60)")
    pid, guard = pids_of(owner)
    os.kill(guard, signal.SIGKILL)
    owner.kill()
    owner.wait()
    assert started_at(pid) is not None
    with EmbeddedPostgres(directory, durable=False) as server:
        assert server.pid != pid
        assert ask(server.database_url, "SELECT 1") == [(1,)]
    assert started_at(pid) is None


def test_pid_given_out_again_is_left_alone(directory: Path) -> None:
    with EmbeddedPostgres(directory, durable=False) as server:
        server.kill()
        record = server.directory / "cluster" / "postmaster.pid"
        with _other_users_sleep() as bystander:
            _, rest = record.read_text().split("\n", 1)
            record.write_text(f"{bystander.pid}\n{rest}")
            server.start()
            assert bystander.poll() is None
            assert ask(server.database_url, "SELECT 1") == [(1,)]


def test_killed_initdb_leaves_nothing_that_matters(place: Path) -> None:
    directory = place / "postgres"
    owner = start_out_of_band(directory, "pass")
    deadline = time.monotonic() + 10
    while not list(directory.glob("unfinished-*/cluster/PG_VERSION")):
        assert time.monotonic() < deadline
        assert not (directory / "cluster").exists()
        time.sleep(0.001)
    owner.kill()
    owner.wait()
    with EmbeddedPostgres(directory, durable=False) as server:
        assert ask(server.database_url, "SELECT 1") == [(1,)]
        assert not list(directory.glob("unfinished-*"))


@as_root
def test_root_runs_it_as_another_user(server: EmbeddedPostgres) -> None:
    owner = Path(f"/proc/{server.pid}").stat().st_uid
    assert owner == pwd.getpwnam("nobody").pw_uid
    assert (server.directory / "cluster").stat().st_uid == owner


@as_root
def test_root_below_a_closed_directory(place: Path) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    asked = closed / "data" / "postgres"
    with EmbeddedPostgres(asked, durable=False) as server:
        url = server.database_url
        ask(server.owner_url(), "CREATE TABLE kept AS SELECT 42 AS answer")
        elsewhere = asked.readlink()
    try:
        assert stat.S_IMODE(closed.stat().st_mode) == 0o700
        with EmbeddedPostgres(asked, durable=False) as server:
            assert server.database_url == url
            assert ask(server.owner_url(), "SELECT answer FROM kept") == [(42,)]
        asked.unlink()  # as `rm -rf .data` would: the data is not to come back
        with EmbeddedPostgres(asked, durable=False) as server:
            assert ask(server.database_url, "SELECT to_regclass('kept')") == [(None,)]
    finally:
        EmbeddedPostgres(asked).destroy()
    assert not elsewhere.exists()
    assert not asked.is_symlink()


@as_root
def test_root_with_programs_below_a_closed_directory(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = place / "closed"
    closed.mkdir(mode=0o700)
    package = programs._package()
    for source in (package, package.with_name(f"{package.name}.libs")):
        shutil.copytree(source, closed / source.name, copy_function=os.link)
    monkeypatch.setattr(programs, "_package", lambda: closed / package.name)
    with EmbeddedPostgres(place / "postgres", durable=False) as server:
        assert Path(f"/proc/{server.pid}/exe").readlink().is_relative_to(server.directory)
        assert ask(server.database_url, "SELECT 1") == [(1,)]


@contextlib.contextmanager
def _other_users_sleep() -> Iterator[subprocess.Popen[bytes]]:
    """A bystander under the server's own user, which is what makes its pid dangerous."""
    user = {"user": "nobody", "cwd": "/"} if IS_ROOT else {}
    process = subprocess.Popen(["/bin/sleep", "60"], **user)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_grpc_knows_that_servers_are_started_among_its_threads() -> None:
    """gRPC reads the variable when it is imported, and tests/conftest.py is imported before."""
    watch = (
        "import os, sys\n"
        "class Watch:\n"
        "    @staticmethod\n"
        "    def find_spec(name, *_):\n"
        "        if name == 'grpc':\n"
        "            print(os.environ.get('GRPC_ENABLE_FORK_SUPPORT'))\n"
        "sys.meta_path.insert(0, Watch)\n"
        "import tests.conftest, grpc\n"
    )
    environment = {k: v for k, v in os.environ.items() if k != "GRPC_ENABLE_FORK_SUPPORT"}
    done = subprocess.run(
        [sys.executable, "-c", watch],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split() == ["0"], done.stderr
