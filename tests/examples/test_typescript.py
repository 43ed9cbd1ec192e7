"""The client in TypeScript: installed, generated, type-checked and run as its README says."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, Town
from tests.examples.gigs import walk

HERE = EXAMPLES / "typescript"
pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def built() -> Path:
    """Installs what package-lock.json pins, unless it is there, and builds."""
    for program in ("node", "npm"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed; the example in TypeScript needs it")
    lock, installed = (HERE / "package-lock.json").read_text(), HERE / "node_modules" / ".lock"
    if not installed.exists() or installed.read_text() != lock:
        npm("ci", "--ignore-scripts", "--no-audit", "--no-fund")
        installed.write_text(lock)
    npm("run", "build")  # tsc is strict
    return HERE / "dist" / "src"


def npm(*arguments: str) -> None:
    done = subprocess.run(
        ["npm", *arguments],  # noqa: S607 - found where the developer's is
        cwd=HERE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_gig_in_typescript(town: Town, expert: str, built: Path, tmp_path: Path) -> None:
    node = shutil.which("node") or ""
    gig, follow = [node, str(built / "gig.js")], [node, str(built / "follow.js")]
    said = walk(town, tmp_path, gig, follow, expert)
    assert "PROCESSOR_RATE_LIMITED: again with the same key in" in said
    assert "ms, as the service asks" in said
    assert "OUTCOME_UNKNOWN: again with the same key in" in said
