"""The directory and the files of a database cluster, used by dev.postgres."""

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

from dev.guard import Guard
from dev.processes import end, started_at, works_in
from dev.programs import Account, PostgresError

FAST_SHUTDOWN = [(signal.SIGINT, 15.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0)]


def place_for(directory: Path) -> tuple[Path, Account]:
    """Returns the directory and the server's user; creates a directory that this user can reach."""
    account = Account.for_cluster(directory / "cluster")
    if directory.is_symlink() and not directory.exists():
        directory.unlink()
    mode = 0o700 if account.uid is None else 0o711
    if not directory.exists():
        directory.mkdir(parents=True, exist_ok=True)
        directory.chmod(mode)
    if account.can_enter(directory.resolve()):
        return directory.resolve(), account
    if any(directory.iterdir()):
        raise PostgresError(
            f"{directory} holds data, but user {account.uid}, as which PostgreSQL "
            "must run, cannot enter it: allow it again, or delete it with make reset"
        )
    elsewhere = _reachable_base() / hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    if elsewhere.exists():  # its link was deleted, as by `rm -rf .data`, so it is unused
        end_orphan(elsewhere / "cluster")
        shutil.rmtree(elsewhere)
    elsewhere.mkdir()
    elsewhere.chmod(mode)
    directory.rmdir()
    directory.symlink_to(elsewhere)
    return elsewhere, account


def end_orphan(cluster: Path) -> None:
    """Stops the server of an owner that was killed together with its guard.

    The file names a process, which may be anybody's by now: only one that works in this very
    directory is touched. If it is somebody else's, PostgreSQL would take it for a running
    server and refuse to start. Naming ourselves instead lets it pass (it ignores its parent)
    and keeps the rest of the file, by which it makes sure that no old backend is left.
    """
    record = cluster / "postmaster.pid"
    try:
        first, rest = record.read_text().split("\n", 1)
        pid = int(first)
    except (FileNotFoundError, ValueError):
        return
    since = started_at(pid)
    if since is not None and works_in(pid, cluster):
        end(pid, since, FAST_SHUTDOWN)
    elif since is not None or pid == os.getpid():
        with record.open("r+") as file:
            file.write(f"{os.getpid()}\n{rest}")
            file.truncate()


def initialize(
    home: Path, programs: Path, account: Account, guard: Guard, *, password: str, durable: bool
) -> None:
    """Creates the cluster under another name and renames it, so that it is complete or absent."""
    unfinished = Path(tempfile.mkdtemp(prefix="unfinished-", dir=home))
    unfinished.chmod(0o711)
    cluster, password_file = unfinished / "cluster", unfinished / "password"
    cluster.mkdir(mode=0o700)
    password_file.touch(mode=0o600)
    password_file.write_text(password)
    account.own(cluster)
    account.own(password_file)
    _run(
        account,
        guard,
        programs / "initdb",
        f"--pgdata={cluster}",
        f"--pwfile={password_file}",
        "--username=postgres",
        "--auth-local=reject",
        "--auth-host=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        *([] if durable else ["--no-sync"]),
    )
    cluster.rename(home / "cluster")
    shutil.rmtree(unfinished)


def _run(account: Account, guard: Guard, *command: object) -> None:
    process = subprocess.Popen(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment(),
        start_new_session=True,
        **account.popen(),
    )
    guard.add(process.pid, signal.SIGINT)
    try:
        said, _ = process.communicate()
    except BaseException:
        process.kill()
        process.wait()
        raise
    finally:
        guard.remove(process.pid)
    if process.returncode != 0:
        raise PostgresError(f"{command[0]} failed: {said.decode(errors='replace').strip()}")


def environment() -> dict[str, str]:
    """Returns an environment without PG* variables and locale, which would change the server."""
    return {"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LC_ALL": "C"}


def secret_in(path: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        if secret := path.read_text():
            return secret
    secret = secrets.token_urlsafe(24)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.unlink(missing_ok=True)
    unfinished.touch(mode=0o600)
    unfinished.write_text(secret)
    unfinished.rename(path)
    return secret


def _reachable_base() -> Path:
    """Returns a directory where only root may write, for files that another user must reach."""
    for parent in ("/var/lib", "/var/tmp"):  # noqa: S108 - made by us, and refused if it is not ours
        base = Path(parent) / "marketplace-payments"
        with contextlib.suppress(OSError):
            base.mkdir(exist_ok=True)
            if base.is_symlink() or base.stat().st_uid != 0:
                continue
            base.chmod(0o755)
            return base
    raise PostgresError("neither /var/lib nor /var/tmp can be written: set DATABASE_URL")
