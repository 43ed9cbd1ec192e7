"""The installation: its progress, its failures, and pip's settings for uv."""

import sys
from pathlib import Path

import pytest

from dev.install import translated
from dev.progress import Progress, StepFailedError

LISTING = """\
global.cert='/etc/ssl/company.pem'
global.index-url='https://packages.example.com/simple'
install.find-links='\\n/opt/one\\n/opt/two'
:env:.default-timeout='180'
"""


def test_settings_of_pip_are_translated() -> None:
    assert translated(LISTING, {}) == {
        "SSL_CERT_FILE": "/etc/ssl/company.pem",
        "UV_DEFAULT_INDEX": "https://packages.example.com/simple",
        "UV_FIND_LINKS": "/opt/one,/opt/two",
    }


def test_variables_of_uv_win() -> None:
    given = {"UV_DEFAULT_INDEX": "x", "SSL_CERT_FILE": "y", "UV_FIND_LINKS": "z"}
    assert translated(LISTING, given) == {}


def test_steps_are_numbered_and_timed(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    progress = Progress(steps=1)
    progress.run("Doing it", [sys.executable, "-c", "print('fine')"], cwd=tmp_path)
    progress.done("Installed")
    first, second, last = capsys.readouterr().out.splitlines()
    assert first == "[1/1] Doing it ..."
    assert second.startswith("✓ [1/1] Doing it  ")
    assert last.startswith("Installed (")


def test_a_failed_step_gives_what_the_command_wrote(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    command = [sys.executable, "-c", "raise SystemExit('no such package')"]
    with pytest.raises(StepFailedError, match="no such package"):
        Progress(steps=1).run("Doing it", command, cwd=tmp_path)
    assert "✗ [1/1] Doing it" in capsys.readouterr().out
