"""The operators' console: a small web page, served by a process of its own.

It sees the service by gRPC only, and calls it with the identity of the operator who is signed in.
It has no database, no secret of the service and no rights of its own.
"""
