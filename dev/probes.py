"""Checks of running processes: is the port in use, is the server ready."""

import contextlib
import http.client
import socket

import grpc
from grpc_health.v1 import health_pb2

from marketplace.payments.credentials import Tls, WrongCertificate


def taken(port: int) -> bool:
    """Whether the port is in use. Connects and binds: systems treat wildcards differently."""
    with socket.socket() as probe:
        probe.settimeout(1)
        if probe.connect_ex(("127.0.0.1", port)) == 0:
            return True
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def answers(port: int, path: str) -> bool:
    """Whether a GET on this machine is answered with 200. It never uses a proxy."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=2)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def serves(address: str, tls: Tls | None = None) -> bool:
    """Whether the gRPC health service says that the whole server is SERVING. It needs no token."""
    try:
        channel = _channel(address, tls)
    except (OSError, WrongCertificate):
        return False
    with channel, contextlib.suppress(grpc.RpcError):
        check = channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        answer = check(health_pb2.HealthCheckRequest(), timeout=2)
        return answer.status == health_pb2.HealthCheckResponse.SERVING
    return False


def _channel(address: str, tls: Tls | None) -> grpc.Channel:
    options: list[tuple[str, str | int]] = [
        ("grpc.enable_http_proxy", 0),
        ("grpc.use_local_subchannel_pool", 1),
    ]
    if tls is None:
        return grpc.insecure_channel(address, options)
    if tls.server_name:
        options.append(("grpc.ssl_target_name_override", tls.server_name))
    return grpc.secure_channel(address, tls.channel_credentials(), options)
