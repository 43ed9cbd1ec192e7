"""`python -m dev.supply lock|sbom|audit`: what the services are made of.

`lock` writes locked/: every package that is installed, with the hashes of its files. `sbom`
installs what the services need from it, by wheels alone, and writes dist/sbom.json (CycloneDX); a
licence that is not allowed fails it. `audit` compares the same packages with the published
vulnerabilities.
"""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dev.install import LOCKED, ROOT, UV, uv_environment, wheels_alone

TOOLS = ROOT / ".venv" / "supply"
SBOM = ROOT / "dist" / "sbom.json"

#: Licences under which we may use, change and ship a package without giving our source away.
ALLOWED = frozenset(
    {
        *("MIT", "MIT-0", "ISC", "BSD-2-Clause", "BSD-3-Clause", "Apache-2.0"),
        *("PSF-2.0", "Python-2.0", "MPL-2.0"),
        # As older packages say it.
        "License :: OSI Approved :: Apache Software License",
        "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)",
    }
)
#: Packages that are allowed by name, and why.
EXCEPTIONS: Mapping[str, str] = {
    "Jinja2": "BSD-3-Clause: its file LICENSE says so, its metadata only BSD",
    "psycopg2-binary": "LGPL: used unchanged, as a library that anybody can replace",
    "protobuf": "BSD-3-Clause: its file LICENSE says so, its metadata says nothing",
}
_CANNOT_AUDIT = 2


def lock() -> int:
    """Writes every lock anew from the requirements. Returns the exit status."""
    for name, requirements in LOCKED.items():
        _uv(
            *("pip", "compile", "--quiet", "--universal", "--generate-hashes"),
            *("--no-header", "--no-annotate", "--python-version", "3.11"),
            *wheels_alone(name),
            *(requirements, "-o", f"locked/{name}.txt"),
        )
    return 0


def sbom() -> int:
    """Writes the bill of materials and checks its licences. Returns the exit status."""
    _install_tools()
    with tempfile.TemporaryDirectory(prefix="payments-sbom-") as directory:
        services = Path(directory) / "services"
        install("services", services)
        SBOM.parent.mkdir(exist_ok=True)
        _run(
            *(TOOLS / "bin" / "cyclonedx-py", "environment", "--output-reproducible"),
            *("--output-format", "JSON", "--output-file", SBOM, services / "bin" / "python"),
        )
    components = json.loads(SBOM.read_text())["components"]
    refused = refusals(components)
    sys.stdout.write(f"{SBOM.relative_to(ROOT)}: {len(components)} packages\n")
    for sentence in refused:
        sys.stdout.write(f"✗ {sentence}\n")
    if not refused:
        sys.stdout.write("✓ every licence is allowed\n")
    return 1 if refused else 0


def audit() -> int:
    """Compares the services' packages with published vulnerabilities. Returns the exit status."""
    _install_tools()
    command = [
        *(str(TOOLS / "bin" / "pip-audit"), "--requirement", "locked/services.txt"),
        *("--require-hashes", "--disable-pip", "--progress-spinner", "off"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return judged(done.returncode, done.stdout + done.stderr, sys.stdout.write)


def judged(status: int, said: str, say: Callable[[str], object]) -> int:
    """Says what pip-audit has found. Returns the exit status.

    It ends with 1 for a vulnerability as well as for data that it cannot reach.
    """
    if status == 0:
        say("✓ no known vulnerability\n")
        return 0
    if re.search(r"^Found \d+ known vulnerabilit", said, re.MULTILINE):
        say(said)
        return 1
    last = said.strip().splitlines()[-1][:200] if said.strip() else "it said nothing"
    say(
        "✗ NOT AUDITED: pip-audit could not compare the packages; does this machine reach the "
        f"public data of vulnerabilities?\n    {last}\n"
    )
    return _CANNOT_AUDIT


def refusals(components: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a sentence for each package whose licence is not allowed, or not known."""
    refused = []
    for component in components:
        names = _licences(component)
        is_allowed = bool(names) and all(map(_is_allowed, names))
        if not is_allowed and component["name"] not in EXCEPTIONS:
            said = " and ".join(names) or "no licence"
            refused.append(f"{component['name']} {component['version']}: {said}")
    return refused


def _licences(component: Mapping[str, Any]) -> list[str]:
    found = []
    for entry in component.get("licenses", ()):
        licence = entry.get("license", {})
        found.append(entry.get("expression") or licence.get("id") or licence.get("name", ""))
    return found


def _is_allowed(expression: str) -> bool:
    """Returns whether one of the alternatives has only licences that are allowed."""
    if expression in ALLOWED:
        return True
    alternatives = expression.replace("(", "").replace(")", "").split(" OR ")
    return any(ALLOWED.issuperset(one.strip().split(" AND ")) for one in alternatives)


def _install_tools() -> None:
    if not (TOOLS / "bin" / "pip-audit").exists():
        install("supply", TOOLS)


def install(name: str, place: Path) -> None:
    """Installs a lock into an environment of its own."""
    shutil.rmtree(place, ignore_errors=True)
    _uv("venv", "--quiet", "--python", sys.executable, str(place))
    _uv(
        *("pip", "install", "--quiet", "--python", str(place / "bin" / "python")),
        *("--require-hashes", *wheels_alone(name), "-r", f"locked/{name}.txt"),
    )


def _uv(*arguments: str) -> None:
    subprocess.run([str(UV), *arguments], cwd=ROOT, env=uv_environment(), check=True)


def _run(*command: object) -> None:
    subprocess.run([str(word) for word in command], cwd=ROOT, check=True)


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    return {"lock": lock, "sbom": sbom, "audit": audit}[arguments[0]]()


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as failed:
        sys.exit(f"{Path(str(failed.cmd[0])).name} failed with status {failed.returncode}")
