"""Base backup and archived log, by PostgreSQL's own programs: docs/runbook/restore.md has the same.

The server is restored to a moment in another directory, and takes the place of the former one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import psycopg2

from dev.postgres import EmbeddedPostgres
from dev.programs import Account, programs_for
from tests.reliability.system import System

_SECONDS = 120.0


class Archive:
    """The backups of the system's database."""

    def __init__(self, system: System) -> None:
        server = system.stack.postgres
        assert server is not None
        self._system, self._server = system, server
        self._account = Account.for_cluster(server.directory / "cluster")
        self._programs = programs_for(
            self._account, server.directory / "cluster", server.directory.resolve()
        )
        self._home = system.stack.settings.data_dir / "backup"
        self._home.mkdir()
        self._account.own(self._home)

    @property
    def _log(self) -> Path:
        return self._home / "wal"

    @property
    def _base(self) -> Path:
        return self._home / "base"

    def switch_on(self) -> None:
        """Lets the server copy each full segment of its log. That needs a restart."""
        self._log.mkdir()
        self._account.own(self._log)
        copied = f"test ! -f {self._log}/%f && cp %p {self._log}/%f"
        self._ask("ALTER SYSTEM SET archive_mode = on")
        self._ask(f"ALTER SYSTEM SET archive_command = '{copied}'")
        self._server.restart()

    def take_base(self) -> None:
        """Takes a base backup while the server serves."""
        self._run(
            "pg_basebackup",
            f"--dbname={self._server.admin_url('postgres')}",
            *(f"--pgdata={self._base}", "--wal-method=stream", "--checkpoint=fast"),
        )

    def moment(self) -> datetime:
        """Returns the present time of the server."""
        [(now,)] = self._ask("SELECT clock_timestamp()")
        assert isinstance(now, datetime)
        return now

    def complete(self) -> None:
        """Ends the present segment of the log, and waits until it is in the archive."""
        [(segment,)] = self._ask("SELECT pg_walfile_name(pg_switch_wal())")
        deadline = time.monotonic() + _SECONDS
        while not (self._log / str(segment)).exists():
            assert time.monotonic() < deadline, f"{segment} is not archived"
            time.sleep(0.1)

    def restore(self, moment: datetime) -> None:
        """Loses the server, and puts one of that moment in its place at the same address."""
        self._server.kill()
        self._server.stop()
        home = self._home / "restored"
        home.mkdir()
        home.chmod(0o711)
        shutil.copy2(self._server.directory / "password", home)
        cluster = home / "cluster"
        shutil.copytree(self._base, cluster, symlinks=True)
        for path in (cluster, *cluster.rglob("*")):
            self._account.own(path)
        with (cluster / "postgresql.auto.conf").open("a") as settings:
            settings.write(
                f"restore_command = 'cp {self._log}/%f %p'\n"
                f"recovery_target_time = '{moment.isoformat(sep=' ')}'\n"
                "recovery_target_action = 'promote'\n"
            )
        (cluster / "recovery.signal").touch()
        self._account.own(cluster / "recovery.signal")
        self._recover(cluster)
        restored = EmbeddedPostgres(home, port=self._server.port)
        restored.start()
        self._system.stack.postgres = self._server = restored

    def _recover(self, cluster: Path) -> None:
        """Runs the server until the moment is reached and it takes writes."""
        address = f"-p {self._server.port} -c listen_addresses=127.0.0.1 "
        where = (f"--pgdata={cluster}", f"--log={cluster}/recovery.log")
        options = f"--options={address}-c unix_socket_directories="
        self._run("pg_ctl", "start", "--wait", "--timeout=120", *where, options)
        try:
            deadline = time.monotonic() + _SECONDS
            while self._ask("SELECT pg_is_in_recovery()") == [(True,)]:
                assert time.monotonic() < deadline, (cluster / "recovery.log").read_text()
                time.sleep(0.1)
        finally:
            self._run("pg_ctl", "stop", "--wait", "--mode=fast", *where[:1])

    def _ask(self, statement: str) -> list[tuple[Any, ...]]:
        with contextlib.closing(psycopg2.connect(self._server.admin_url("postgres"))) as session:
            session.autocommit = True
            with session.cursor() as cursor:
                cursor.execute(statement)
                return list(cursor.fetchall()) if cursor.description else []

    def _run(self, program: str, *arguments: str) -> None:
        """Runs one of the server's own programs as its user."""
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            env={"PATH": os.environ["PATH"], "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
            **self._account.popen(),
        )
        assert done.returncode == 0, (program, done.returncode, done.stdout)
