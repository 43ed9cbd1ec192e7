"""The standard health service, as a caller asks it."""

from __future__ import annotations

import grpc
from grpc_health.v1 import health_pb2

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
HEALTH = "/grpc.health.v1.Health"
PARSE = health_pb2.HealthCheckResponse.FromString


def check(channel: grpc.Channel, service: str) -> health_pb2.HealthCheckResponse:
    ask: grpc.UnaryUnaryMultiCallable[bytes, health_pb2.HealthCheckResponse]
    ask = channel.unary_unary(f"{HEALTH}/Check", response_deserializer=PARSE)
    return ask(health_pb2.HealthCheckRequest(service=service).SerializeToString())
