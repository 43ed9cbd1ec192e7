"""Runs the tests: `python -m dev.testing test|proofs|coverage|prove [pytest arguments]`."""

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence

# Two files at a time, because many tests wait for sockets and processes.
_AT_ONCE = ("--numprocesses=2", "--dist=loadfile", "--no-loadscope-reorder")
_PROOFS = ("-m", "proof", "tests/chaos/test_run.py", "tests/reliability")

_RELIABILITY = "tests/reliability"
_MODEL = f"{_RELIABILITY}/test_model.py"


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    what, *more = arguments
    if what == "prove":
        return _prove(more)
    if what == "proofs":
        return _pytest(*_AT_ONCE, *_PROOFS, *more)
    if what == "coverage":
        return _pytest(*_AT_ONCE, "--cov", "--cov-report=term", "tests", *more)
    if more:
        return _pytest(*more)
    return _pytest(*_AT_ONCE, "-m", "not proof")


def _prove(more: Sequence[str]) -> int:
    """Runs the proofs in full. The two halves of the model run side by side, before the rest."""
    full = {**os.environ, "PROVE": "full"}
    arguments = ("--capture=no", *more)
    first = subprocess.Popen(_command(*arguments, _MODEL, "-k", "model_says and 0"), env=full)
    statuses = [_pytest(*arguments, _MODEL, "-k", "model_says and 1", environment=full)]
    statuses.append(first.wait())
    statuses.append(_pytest(*arguments, _RELIABILITY, f"--ignore={_MODEL}", environment=full))
    return int(any(statuses))


def _pytest(*arguments: str, environment: Mapping[str, str] | None = None) -> int:
    return subprocess.run(_command(*arguments), env=environment, check=False).returncode


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", *arguments]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
