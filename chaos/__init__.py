"""Chaos: real processes under load are killed, stopped and misled; then every promise is checked.

python -m chaos run --seed 1 --seconds 30      one run; exit status 0 only if all holds
python -m chaos run --seed 1 --plan            what that seed will do
python -m chaos mutants                        is the chaos run itself able to fail?
"""

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
