"""Everything that brings the services up on one machine: PostgreSQL, the supervisor, the demo.

Nothing here runs in production, and nothing here knows the services' insides: they are started
as processes and asked over their ports.
"""
