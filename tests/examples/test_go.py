"""The client in Go: generated, vetted, built and run as its README says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, Town
from tests.examples.gigs import walk

HERE = EXAMPLES / "go"
pytestmark = [pytest.mark.proof, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Generates the stubs by the tools that go.mod pins, vets all, and builds."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed; the example in Go needs it")
    program = tmp_path_factory.mktemp("go") / "gigservice"
    go("generate", "./...")
    go("build", "-o", str(program), ".")
    go("vet", "./...")
    return program


def go(*arguments: str) -> None:
    done = subprocess.run(
        ["go", *arguments],  # noqa: S607 - found where the developer's is
        cwd=HERE,
        # buf is where `make` has installed it.
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_gig_in_go(town: Town, expert: str, built: Path, tmp_path: Path) -> None:
    walk(town, tmp_path, [str(built), "gig"], [str(built), "follow"], expert)
