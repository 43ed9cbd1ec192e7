"""The RPCs of the contract, and who may call them, as the descriptors say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor

from marketplace.payments.v1 import access_pb2
from payment_service.bootstrap import SERVICES

#: Every RPC, the feed included.
METHODS: Final[Sequence[MethodDescriptor]] = [
    method
    for service in SERVICES
    for method in descriptor_pool.Default().FindServiceByName(service).methods
]


def path_of(method: MethodDescriptor) -> str:
    """Returns the path that a call of the RPC has."""
    return f"/{method.containing_service.full_name}/{method.name}"


def said_of(method: MethodDescriptor) -> tuple[set[str], bool]:
    """Returns the roles that the contract names, and whether it is open to acting callers."""
    access = method.GetOptions().Extensions[access_pb2.access]
    roles = {access_pb2.Role.Name(role).removeprefix("ROLE_") for role in access.roles}
    return roles, access.acts_for_user
