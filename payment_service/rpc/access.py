"""What a caller may do: the roles that the contract names for each RPC, held at the door.

The rules are read once from the descriptors of the services. So a caller reads them where it reads
the RPC, and a new RPC without the option ``access`` is refused to everybody.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

import structlog
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import MethodDescriptor
from grpc_health.v1 import health
from grpc_reflection.v1alpha import reflection

from marketplace.payments.v1 import access_pb2
from payment_service.domain.caller import Caller, Role
from payment_service.domain.errors import Denied
from payment_service.domain.ports.identity import Authenticator
from payment_service.rpc.call_context import CALLER, Context

log = structlog.get_logger(__name__)

Metadata = Iterable[tuple[str, str | bytes]]


@dataclass(frozen=True, slots=True)
class Rule:
    """Who may call one RPC: a caller with any of the roles."""

    roles: frozenset[Role] = frozenset()
    acts_for_user: bool = False
    #: Whether nobody is asked who calls.
    is_public: bool = False


#: Of an RPC that names no roles.
NOBODY: Final = Rule()
#: Probes have no credentials, and the answer says nothing but whether this replica serves.
_PUBLIC: Final = Rule(is_public=True)
#: Reflection shows the contract to people with a command line.
_REFLECTION: Final = Rule(frozenset({Role.OPERATOR, Role.OPERATOR_READ_ONLY}))
_REFLECTION_SERVICES: Final = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")


def rule_of(method: MethodDescriptor) -> Rule:
    """Returns what the contract says of an RPC."""
    options = method.GetOptions()
    if not options.HasExtension(access_pb2.access):
        return NOBODY
    access = options.Extensions[access_pb2.access]
    roles = (access_pb2.Role.Name(number).removeprefix("ROLE_") for number in access.roles)
    return Rule(frozenset(Role(name) for name in roles), access.acts_for_user)


def rules_of(services: Iterable[str]) -> Mapping[str, Rule]:
    """Returns the rule of every method of a server, by its path: ``/package.Service/Method``."""
    rules = {path: rule_of(method) for path, method in _methods(services)}
    rules |= {path: _PUBLIC for path, _ in _methods([health.SERVICE_NAME])}
    rules |= {f"/{name}/ServerReflectionInfo": _REFLECTION for name in _REFLECTION_SERVICES}
    return rules


def _methods(services: Iterable[str]) -> Iterator[tuple[str, MethodDescriptor]]:
    pool = descriptor_pool.Default()
    for name in services:
        for method in pool.FindServiceByName(name).methods:
            yield f"/{name}/{method.name}", method


class AccessControl:
    """Lets in whom the contract lets in, and says to the handler who calls."""

    def __init__(self, authenticator: Authenticator, services: Iterable[str]) -> None:
        self._authenticator = authenticator
        self._rules = rules_of(services)

    def is_public(self, method: str) -> bool:
        """Returns whether nobody is asked who calls."""
        return self._rules.get(method, NOBODY).is_public

    async def admit_by_headers(self, method: str, metadata: Metadata) -> None:
        """Finds out who calls before the message is received, and sets :data:`CALLER`.

        Raises :class:`Refusal` unless the contract lets the caller in. With certificates the
        connection says who calls (:meth:`admit_by_connection`).
        """
        rule = self._rules.get(method, NOBODY)
        if not rule.is_public and not self._authenticator.by_connection:
            await self._admit(rule, method, metadata, {})

    async def admit_by_connection(self, method: str, context: Context) -> None:
        """Does the same with the client's certificate, which gRPC shows with the message.

        A stranger does not get as far: TLS asks for a certificate of the right authority.
        """
        rule = self._rules.get(method, NOBODY)
        if not rule.is_public and self._authenticator.by_connection:
            metadata = context.invocation_metadata() or ()
            await self._admit(rule, method, metadata, context.auth_context())

    async def _admit(
        self, rule: Rule, method: str, metadata: Metadata, peer: Mapping[str, Iterable[bytes]]
    ) -> None:
        caller = await self._authenticator.authenticate(metadata, peer)
        _check(rule, method, caller)
        CALLER.set(caller)


def _check(rule: Rule, method: str, caller: Caller) -> None:
    """Raises :class:`Denied` unless the rule lets the caller in."""
    rpc = method.rpartition(".")[2]
    if rule.roles.isdisjoint(caller.roles):
        _log_denial(rpc, caller)
        raise Denied(
            "ROLE_REQUIRED",
            "none of your roles may call this",
            {"rpc": rpc, "roles": ",".join(sorted(rule.roles))},
        )
    if caller.act_for and not rule.acts_for_user:
        _log_denial(rpc, caller)
        raise Denied(
            "NOT_OPEN_TO_USERS", "a caller that acts for a user may not call this", {"rpc": rpc}
        )


def check_client(client_id: str) -> None:
    """Raises :class:`Denied` if the caller acts for another user than this client.

    Who initiates a payment gets the secret that lets its holder pay it, so that is the client.
    """
    if CALLER.get().act_for not in ("", client_id):
        raise Denied(
            "OTHER_CLIENT",
            "you act for a user, who must be the client of the payment",
            {"field": "client_id"},
        )


def _log_denial(rpc: str, caller: Caller) -> None:
    """Logs who was refused: a wrong configuration, or somebody who tries doors."""
    log.warning(
        "access_denied",
        rpc=rpc,
        caller=caller.name,
        acts_for_user=bool(caller.act_for),
        roles=",".join(sorted(caller.roles)),
    )
