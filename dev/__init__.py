"""Starts the services on one machine: installation, PostgreSQL, the supervisor, the demo.

Nothing here runs in production, and nothing here imports the services: they are started as
processes and called on their ports.
"""

import os

# A fork while gRPC's threads run may crash the child in gRPC's fork handlers, before it becomes
# another program (SIGSEGV). We fork only to start programs, so the handlers are not needed. gRPC
# reads this when it is imported, so it stands where everything that starts processes begins.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
