"""Starts the services on one machine: installation, PostgreSQL, the supervisor, the demo.

Nothing here runs in production, and nothing here imports the services: they are started as
processes and called on their ports.
"""
