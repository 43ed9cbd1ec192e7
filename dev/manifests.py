"""`make manifests`: writes deploy/kubernetes/ anew from the chart. It needs Helm."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from dev.settings import ROOT

CHART = ROOT / "deploy" / "helm" / "escrow-payments"
MANIFESTS = ROOT / "deploy" / "kubernetes"
#: What the chart needs to be rendered.
VALUES = MANIFESTS / "values.yaml"
#: Each file, and what of the chart is in it. What is optional has a file of its own.
FILES = {
    "escrow-payments.yaml": (),
    "console.yaml": ("--set=console.enabled=true", "--show-only=templates/console.yaml"),
    "relay.yaml": ("--set=relay.enabled=true", "--show-only=templates/relay.yaml"),
}
_MADE = "# Made from the chart by `make manifests`: replace its names by yours. Chart"


def main() -> int:
    """Returns the exit status."""
    helm = shutil.which("helm")
    if helm is None:
        sys.stderr.write(
            "Helm is not installed: go install helm.sh/helm/v3/cmd/helm@v3.22.0, or as its site "
            "says\n"
        )
        return 1
    for name in FILES:
        (MANIFESTS / name).write_text(f"{header()}\n{rendered(helm, name)}")
    return 0


def rendered(helm: str, name: str) -> str:
    """Returns one of the files as the chart makes it now."""
    command = [helm, "template", "escrow-payments", str(CHART), "--kube-version=1.34"]
    return subprocess.run(
        [*command, f"--values={VALUES}", *FILES[name]], capture_output=True, text=True, check=True
    ).stdout


def header() -> str:
    """Returns the first line of each file. It has a digest of all that the file is made from."""
    digest = hashlib.sha256()
    for path in (*sorted(CHART.rglob("*")), VALUES):
        if path.is_file():
            digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + _text(path))
    return f"{_MADE} {digest.hexdigest()[:12]}."


def _text(path: Path) -> bytes:
    return path.read_bytes() + b"\0"


if __name__ == "__main__":
    sys.exit(main())
