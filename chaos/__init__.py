"""Chaos: real processes under load, killed, stopped and lied to; then every promise is checked.

python -m chaos run --seed 1 --seconds 30      one run; exit status 0 only if all holds
python -m chaos run --seed 1 --plan            what that seed will do
python -m chaos mutants                        is the chaos run itself able to fail?
"""

import os

# Whoever forks while gRPC's threads are at work may lose the child in gRPC's fork handlers, before
# it has become another program (seen: SIGSEGV). We fork only to start programs, so none are needed.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
