"""`python -m console`: reads the environment, listens, and stops in good order on SIGTERM.

`python -m console check` only says whether it would start.
"""

import asyncio
import os
import sys

# Before grpc is imported, or it has no effect: its own log would repeat every lost connection.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

from console.app import serve
from console.logs import configure_logging
from console.settings import load_settings
from sidecar.settings import RefusedSettings

REFUSED_SETTINGS = 2
CANNOT_LISTEN = 1


def main() -> int:
    """Returns the exit code."""
    try:
        settings = load_settings()
    except RefusedSettings as refused:
        return _refuse(refused)
    if sys.argv[1:] == ["check"]:
        sys.stdout.write(f"environment {settings.environment}, core {settings.core_address[0]}\n")
        return 0
    configure_logging(settings.log_level, settings.log_format)
    try:
        asyncio.run(serve(settings))
    except RefusedSettings as refused:
        return _refuse(refused)
    except OSError as error:
        sys.stderr.write(
            f"console: cannot listen on {settings.console_host}, CONSOLE_PORT="
            f"{settings.console_port} ({error.strerror}): stop what uses the port, or choose "
            "another one.\n"
        )
        return CANNOT_LISTEN
    return 0


def _refuse(refused: RefusedSettings) -> int:
    sys.stderr.write(f"console: {refused}\n")
    return REFUSED_SETTINGS


if __name__ == "__main__":
    sys.exit(main())
