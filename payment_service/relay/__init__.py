"""The relay: publishes the feed's events to NATS JetStream and to signed webhooks.

It is a process of its own, and a caller of the service like any other: it reads the feed by gRPC,
and keeps its place in a schema that the service does not know.
"""
