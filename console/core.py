"""The service, as the console sees it: calls with the operator's own token, and typed refusals.

The only file here that knows gRPC. The service decides what the operator may do; what this file
reads of the roles only decides which buttons are shown as usable.
"""

import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, TypeVar

import grpc
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions
from grpc import aio

from console.settings import Settings
from marketplace.payments.channel import connect
from marketplace.payments.credentials import Tls, WrongCertificate
from marketplace.payments.errors import refusal_of
from marketplace.payments.v1 import (
    access_pb2,
    disputes_pb2,
    disputes_pb2_grpc,
    events_pb2_grpc,
    experts_pb2,
    experts_pb2_grpc,
    ledger_pb2_grpc,
    operations_pb2,
    operations_pb2_grpc,
    payments_pb2,
    payments_pb2_grpc,
)
from sidecar.settings import RefusedSettings

Q = TypeVar("Q")
A = TypeVar("A")

_FILES: Final = (payments_pb2, operations_pb2, experts_pb2, disputes_pb2)
#: The same request with the same key may be sent again after these.
_REPEATABLE: Final = frozenset({"UNAVAILABLE", "ABORTED", "RESOURCE_EXHAUSTED"})
_NEVER_ARRIVES: Final = frozenset({"UNIMPLEMENTED", "UNAUTHENTICATED", "PERMISSION_DENIED"})
_NOT_REPEATABLE: Final = frozenset({"VERSION_MISMATCH"})


@dataclass(eq=False)  # not frozen: Python itself writes to an exception that passes through it
class Refused(Exception):
    """The service refused a call, or could not be reached."""

    #: gRPC's name of the status code.
    code: str
    #: The reason of `errors.proto`; empty if nobody gave one.
    reason: str = ""
    #: The service's own sentence; never a text of the network's.
    sentence: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    #: Fields with what is wrong with each.
    faults: tuple[tuple[str, str], ...] = ()

    @property
    def may_repeat(self) -> bool:
        """Whether the same request may be sent again with the same key."""
        if not self.reason:  # nobody refused it, so nobody knows whether it arrived
            return self.code not in _NEVER_ARRIVES
        return self.code in _REPEATABLE and self.reason not in _NOT_REPEATABLE


def open_core_channel(settings: Settings) -> aio.Channel:
    """Returns the channel, without an identity: each call brings the operator's own.

    A certificate of the console's own would be an identity that all operators share, so there is
    no setting for one. Raises RefusedSettings if the file of TLS cannot be used.
    """
    tls = None
    if settings.core_tls_ca_file is not None:
        tls = Tls(settings.core_tls_ca_file, server_name=settings.core_tls_server_name)
    try:
        return connect(*settings.core_address, tls=tls, encrypted_by_mesh=settings.core_tls_by_mesh)
    except WrongCertificate as fault:
        raise RefusedSettings(f"CORE_TLS_CA_FILE: {fault}.") from None
    except OSError as error:
        raise RefusedSettings(
            f"CORE_TLS_CA_FILE: {error.filename} cannot be read ({error.strerror})."
        ) from None


class Stubs:
    """One stub for each service that the console uses."""

    def __init__(self, channel: aio.Channel, seconds: float) -> None:
        self.seconds = seconds
        self.payments: payments_pb2_grpc.PaymentServiceAsyncStub
        self.payments = payments_pb2_grpc.PaymentServiceStub(channel)
        self.operations: operations_pb2_grpc.OperationsServiceAsyncStub
        self.operations = operations_pb2_grpc.OperationsServiceStub(channel)
        self.experts: experts_pb2_grpc.ExpertServiceAsyncStub
        self.experts = experts_pb2_grpc.ExpertServiceStub(channel)
        self.disputes: disputes_pb2_grpc.DisputeServiceAsyncStub
        self.disputes = disputes_pb2_grpc.DisputeServiceStub(channel)
        self.ledger: ledger_pb2_grpc.LedgerServiceAsyncStub
        self.ledger = ledger_pb2_grpc.LedgerServiceStub(channel)
        self.events: events_pb2_grpc.EventServiceAsyncStub
        self.events = events_pb2_grpc.EventServiceStub(channel)


class Core:
    """The service for one request of one operator."""

    def __init__(self, stubs: Stubs, token: str) -> None:
        self.stubs = stubs
        self._token = token

    async def ask(self, method: aio.UnaryUnaryMultiCallable[Q, A], request: Q) -> A:
        """Calls the service with the operator's token. Raises Refused."""
        metadata = [("x-request-id", f"console-{secrets.token_hex(8)}")]
        if self._token:
            metadata.append(("authorization", f"Bearer {self._token}"))
        try:
            return await method(request, timeout=self.stubs.seconds, metadata=tuple(metadata))
        except aio.AioRpcError as error:
            raise _refused(error) from None
        except (aio.UsageError, aio.InternalError, grpc.RpcError):
            raise Refused("UNAVAILABLE") from None


def _refused(error: aio.AioRpcError) -> Refused:
    found = refusal_of(error)
    # Without a reason the text is gRPC's own, which names addresses.
    sentence = found.sentence if found.reason else ""
    return Refused(
        found.code.name, found.reason, sentence, found.metadata, tuple(found.fields.items())
    )


def method_named(rpc: str) -> MethodDescriptor:
    """Returns the method of `Service/Method`."""
    service, _, method = rpc.partition("/")
    for module in _FILES:
        found = module.DESCRIPTOR.services_by_name.get(service)
        if found is not None:
            named: MethodDescriptor = found.methods_by_name[method]
            return named
    raise KeyError(rpc)


def roles_of(rpc: str) -> frozenset[str]:
    """Returns the roles that may call an RPC, as the contract says, for example `OPERATOR`."""
    options: MethodOptions = method_named(rpc).GetOptions()
    rule = options.Extensions[access_pb2.access]
    return frozenset(access_pb2.Role.Name(role).removeprefix("ROLE_") for role in rule.roles)
