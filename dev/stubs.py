"""`python -m dev.stubs`: generates the client's messages and stubs from protos/."""

import os
import shutil
import sys
from pathlib import Path

from dev.progress import Progress, StepFailedError

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = Path("marketplace/payments/v1")
_PROTOS = ROOT / "protos" / PACKAGE
_STUBS = ROOT / "client" / "src" / PACKAGE
_DOCSTRING = (
    '"""Messages and stubs, generated from protos/: change those, then run make stubs."""\n'
)


def main() -> int:
    """Returns the exit status.

    The stubs are generated in a directory of their own and then exchanged, so that a process that
    imports them meanwhile gets either the old ones or the new ones.
    """
    out = ROOT / "client" / "build" / "stubs"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    # Relative paths, because protoc compares them with those of -I letter by letter.
    protos = sorted(f"protos/{PACKAGE}/{path.name}" for path in _PROTOS.glob("*.proto"))
    plugins = Path(sys.executable).parent  # protoc finds the plugins of mypy-protobuf here
    environment = {**os.environ, "PATH": f"{plugins}:{os.environ.get('PATH', '')}"}
    command = [sys.executable, "-m", "grpc_tools.protoc", "-Iprotos"]
    command += [f"--python_out={out}", f"--grpc_python_out={out}"]
    command += [f"--mypy_out=quiet:{out}", f"--mypy_grpc_out=quiet:{out}", *protos]
    try:
        title = "Generating the client's stubs from protos/"
        Progress(steps=1).run(title, command, cwd=ROOT, environment=environment)
    except StepFailedError as failed:
        sys.stdout.write(f"{failed}\n\nThe stubs were not generated: correct the file above.\n")
        return 1
    made = out / PACKAGE
    (made / "__init__.py").write_text(_DOCSTRING)
    for name in ("py.typed", ".generated"):
        (made / name).touch()
    shutil.rmtree(_STUBS, ignore_errors=True)
    made.rename(_STUBS)
    shutil.rmtree(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
