"""Chaos: real processes under load are killed, stopped and misled; then every promise is checked.

python -m chaos run --seed 1 --seconds 30      one run; exit status 0 only if all holds
python -m chaos run --seed 1 --plan            what that seed will do
python -m chaos mutants                        is the chaos run itself able to fail?
"""

import os

# A fork while gRPC's threads run may crash the child in gRPC's fork handlers, before it becomes
# another program (SIGSEGV). We fork only to start programs, so the handlers are not needed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
