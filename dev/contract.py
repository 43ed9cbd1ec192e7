"""`python -m dev.contract`: fails, and names each RPC of the protos that says no roles.

`buf lint` knows no rule for an option of ours. Without this check an RPC that forgot it would be
found by a test only, or by a caller: it is refused to everybody.
"""

import subprocess
import sys
from pathlib import Path
from typing import Final

from google.protobuf import descriptor_pb2

from dev.settings import ROOT
from marketplace.payments.v1 import access_pb2

_BUF: Final = Path(sys.executable).with_name("buf")


def without_roles(protos: Path) -> list[str]:
    """Returns file and name of each RPC in a directory of protos that names no roles."""
    built = subprocess.run(
        [_BUF, "build", protos, "--exclude-imports", "-o", "-#format=binpb"],
        check=True,
        stdout=subprocess.PIPE,
    )
    return [
        f"{file.name}: {service.name}.{method.name}"
        for file in descriptor_pb2.FileDescriptorSet.FromString(built.stdout).file
        for service in file.service
        for method in service.method
        if not method.options.Extensions[access_pb2.access].roles
    ]


def main() -> int:
    """Returns the exit status."""
    found = without_roles(ROOT / "protos")
    for rpc in found:
        sys.stderr.write(f"{rpc} names no roles: add option (access)\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
