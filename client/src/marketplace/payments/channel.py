"""Channels to the payment service, with the settings that its promises rest on.

    from marketplace.payments.channel import connect
    from marketplace.payments.v1 import payments_pb2, payments_pb2_grpc

    channel = connect("10.0.0.5:50051", "10.0.0.6:50051")
    payments = payments_pb2_grpc.PaymentServiceStub(channel)

Why not a bare `grpc.aio.insecure_channel`:

* Calls are spread over all addresses (`round_robin`); gRPC's default uses the first only.
* A lost answer is requested again, for the calls where that is safe: reads, and mutations that
  carry an idempotency key, which the service answers identically every time. UNAVAILABLE means
  "repeat the call with the same key". RESOURCE_EXHAUSTED means "later": the retry waits as long
  as the service asks for, and another replica may get it. Retries stop while most calls fail,
  so that callers do not overload a failing service.
* A replica that shuts down gets no new calls. A health watch asks each replica whether it wants
  them; the calls in progress continue.
* Pings detect a dead connection. They are more than 30 s apart, because the server refuses more
  frequent ones.
* A caller that traces by OpenTelemetry, and has imported it before, has its trace continued.
* A server that has restarted is found within a quarter of a second, not after gRPC's default of
  up to two minutes.
* A channel shares its connections with no other channel. With shared ones gRPC may end the process:
  two channels begin one health watch at the same moment (a SIGSEGV, seen with 1.83).
"""

import importlib
import ipaddress
import json
import pkgutil
import re
from collections.abc import Iterator, Sequence
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor import FileDescriptor, MethodDescriptor
from google.protobuf.descriptor_pb2 import MethodOptions

import marketplace.payments.v1
from marketplace.payments._bearer import AioBearer, AioStreamBearer, Bearer
from marketplace.payments._following import AioFollowingChannel, FollowingChannel
from marketplace.payments._tracing import AioTrace, Trace, is_traced
from marketplace.payments.credentials import Tls, Token
from marketplace.payments.v1 import payments_pb2

Option = tuple[str, str | int]

# For a call without a deadline; a shorter one of the caller wins.
DEFAULT_DEADLINE_SECONDS = 30

_READ_PREFIXES = ("Get", "List")

# The ports of the workers of one machine, such as 10.0.0.5:50051-50054.
_PORTS = re.compile(r"(?P<host>.+):(?P<first>[0-9]{1,5})-(?P<last>[0-9]{1,5})", re.ASCII)
_MOST_PORTS = 64

# The first retry comes soon, because usually one replica of several has died and the next one
# works. All retries that gRPC allows last about as long as a replica takes to start: after 0.05,
# 0.2, 0.65 and 1.65 s. With a longer last pause the callers of a single replica would wait longer.
_RETRY_POLICY = {
    "maxAttempts": 5,
    "initialBackoff": "0.05s",
    "maxBackoff": "1s",
    "backoffMultiplier": 3,
    # With RESOURCE_EXHAUSTED the service sends the delay of its RetryInfo as
    # `grpc-retry-pushback-ms`, which replaces the backoff above.
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}


def connect(
    *targets: str,
    tls: Tls | None = None,
    token: Token | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    encrypted_by_mesh: bool = False,
    options: Sequence[Option] = (),
) -> grpc.aio.Channel:
    """Opens a channel for asyncio callers.

    One target may be any name that gRPC resolves (`payments:50051`, `dns:///payments:50051`);
    all addresses behind it are used. Several targets must be IP addresses with ports.
    `10.0.0.5:50051-50054` stands for four: the workers of one machine. `tls` names
    files and follows them; `credentials` are gRPC's own. Without either the channel is plaintext,
    and takes a token on loopback only, or if a service mesh encrypts it. Options given here win
    over the defaults.
    """
    _refuse_contradictions(targets, tls, token, credentials, encrypted_by_mesh)
    target, given = target_of(targets), _options(options, tls)
    passed: list[grpc.aio.ClientInterceptor] = [AioTrace()] if is_traced() else []
    passed += [AioBearer(token), AioStreamBearer(token)] if token is not None else []
    if tls is not None:
        return AioFollowingChannel(
            tls,
            lambda made: grpc.aio.secure_channel(target, made, given, interceptors=passed),
        )
    if credentials is None:
        return grpc.aio.insecure_channel(target, given, interceptors=passed)
    return grpc.aio.secure_channel(target, credentials, given, interceptors=passed)


def connect_sync(
    *targets: str,
    tls: Tls | None = None,
    token: Token | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    encrypted_by_mesh: bool = False,
    options: Sequence[Option] = (),
) -> grpc.Channel:
    """Opens the same channel for callers without asyncio."""
    _refuse_contradictions(targets, tls, token, credentials, encrypted_by_mesh)
    target, given = target_of(targets), _options(options, tls)
    channel: grpc.Channel
    if tls is not None:
        channel = FollowingChannel(tls, lambda made: grpc.secure_channel(target, made, given))
    elif credentials is None:
        channel = grpc.insecure_channel(target, given)
    else:
        channel = grpc.secure_channel(target, credentials, given)
    if is_traced():
        channel = grpc.intercept_channel(channel, Trace())
    return grpc.intercept_channel(channel, Bearer(token)) if token is not None else channel


def _refuse_contradictions(
    targets: Sequence[str],
    tls: Tls | None,
    token: Token | None,
    credentials: grpc.ChannelCredentials | None,
    encrypted_by_mesh: bool,
) -> None:
    if tls is not None and credentials is not None:
        raise ValueError("tls and credentials exclude each other: give one of them")
    plain = tls is None and credentials is None and not encrypted_by_mesh
    if token is not None and plain and not all(is_loopback(target) for target in targets):
        raise ValueError(
            f"a token would be sent to {', '.join(targets)} in plain text, where others can read "
            "it: give tls=Tls(ca), or encrypted_by_mesh=True if a service mesh encrypts it"
        )


def is_loopback(target: str) -> bool:
    """Returns whether a target is certainly on this machine."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    bare = re.sub(r"^(?:dns:(?:///)?|ipv[46]:)", "", target)
    addresses = bare.split(",") if target.startswith("ipv") else [bare]
    for address in addresses:
        host = address.rpartition(":")[0].strip("[]")
        try:
            if not ipaddress.ip_address(host).is_loopback:
                return False
        except ValueError:
            if host != "localhost":
                return False
    return True


def target_of(targets: Sequence[str]) -> str:
    """Returns the one gRPC target that stands for all of these addresses."""
    if not targets:
        raise ValueError("connect() needs at least one target, such as 'payments:50051'")
    targets = [address for target in targets for address in _workers(target)]
    if len(targets) == 1:
        return targets[0]
    schemes = {_address_scheme(target) for target in targets}
    if len(schemes) > 1:
        raise ValueError(f"IPv4 and IPv6 addresses cannot be mixed in one channel: {targets}")
    return f"{schemes.pop()}:{','.join(targets)}"


def service_config() -> dict[str, Any]:
    """Returns load balancing, deadlines and retries, as gRPC's service config.

    Which methods may be retried is read from the stubs themselves, so that a method added to the
    protos cannot be forgotten here.
    """
    retried: list[dict[str, str]] = []
    once: list[dict[str, str]] = []
    for method in _methods():
        name = {"service": method.containing_service.full_name, "method": method.name}
        if method.server_streaming or method.client_streaming:
            continue  # a feed does not end, and its cursor resumes it
        (retried if is_repeatable(method) else once).append(name)
    deadline = f"{DEFAULT_DEADLINE_SECONDS}s"
    return {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": payments_pb2.DESCRIPTOR.package},
        "methodConfig": [
            {"name": retried, "timeout": deadline, "retryPolicy": _RETRY_POLICY},
            {"name": once, "timeout": deadline},
        ],
        # Retries stop after some 50 failures that no successes make up for. With the customary 10
        # tokens a caller of few calls would lose its retries with the second call of an outage.
        "retryThrottling": {"maxTokens": 100, "tokenRatio": 0.5},
    }


def is_repeatable(method: MethodDescriptor) -> bool:
    """Returns whether sending the same request twice has the effect of sending it once."""
    declared: MethodOptions = method.GetOptions()
    return (
        "idempotency_key" in method.input_type.fields_by_name
        or method.name.startswith(_READ_PREFIXES)
        or declared.idempotency_level != MethodOptions.IDEMPOTENCY_UNKNOWN
    )


def _options(extra: Sequence[Option], tls: Tls | None = None) -> list[Option]:
    defaults: dict[str, str | int] = {
        "grpc.service_config": json.dumps(service_config()),
        # The config above is the one that counts, not one that DNS might offer.
        "grpc.service_config_disable_resolution": 1,
        # A shared connection may crash the process, see above.
        "grpc.use_local_subchannel_pool": 1,
        # The service is a neighbour; a proxy for the way out has no part in this.
        "grpc.enable_http_proxy": 0,
        "grpc.keepalive_time_ms": 60_000,
        "grpc.keepalive_timeout_ms": 20_000,
        "grpc.keepalive_permit_without_calls": 1,
        "grpc.http2.max_pings_without_data": 0,
        "grpc.initial_reconnect_backoff_ms": 100,
        # How long one attempt to connect may take, whatever its name says; TLS needs its round
        # trips.
        "grpc.min_reconnect_backoff_ms": 1_000,
        # A retry that comes before the next attempt to connect is a retry lost.
        "grpc.max_reconnect_backoff_ms": 250,
    }
    if tls is not None and tls.server_name:
        defaults["grpc.ssl_target_name_override"] = tls.server_name
    return list((defaults | dict(extra)).items())


def _workers(target: str) -> list[str]:
    """Returns one address for each port of a range, or the target itself."""
    found = _PORTS.fullmatch(target)
    if found is None:
        return [target]
    first, last = int(found["first"]), int(found["last"])
    if not 0 < first <= last < 65536 or last - first >= _MOST_PORTS:
        raise ValueError(
            f"'{target}' is no range of at most {_MOST_PORTS} ports such as '10.0.0.5:50051-50054'"
        )
    return [f"{found['host']}:{port}" for port in range(first, last + 1)]


def _address_scheme(target: str) -> str:
    host, colon, port = target.rpartition(":")
    if not colon or not port.isdigit():
        raise ValueError(f"'{target}' has no port; several targets are given as 'IP:port'")
    if host.startswith("["):
        return "ipv6"
    if all(part.isdigit() for part in host.split(".")):
        return "ipv4"
    raise ValueError(
        f"'{target}' is a name; several targets must be IP addresses "
        "(one name may stand alone, and all its addresses are used)"
    )


def _methods() -> Iterator[MethodDescriptor]:
    for module in pkgutil.iter_modules(marketplace.payments.v1.__path__):
        if module.name.endswith("_pb2"):
            generated = importlib.import_module(f"{marketplace.payments.v1.__name__}.{module.name}")
            file: FileDescriptor = generated.DESCRIPTOR
            for service in file.services_by_name.values():
                yield from service.methods
