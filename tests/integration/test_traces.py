"""Traces, as a collector receives them: from caller to Stripe, and from webhook to transition."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from marketplace.payments.channel import connect, connect_sync
from marketplace.payments.v1 import operations_pb2, operations_pb2_grpc, payments_pb2
from tests.support.requests import capture_request
from tests.support.running import running_world
from tests.support.traces import Collector, running_collector

TRACE = "0af7651916cd43dd8448eb211c80319c"
SPAN = "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{SPAN}-01"


async def test_a_capture_is_one_trace_from_the_caller_to_stripe_and_its_webhook_is_linked(
    new_database: Callable[[], str],
) -> None:
    async with running_collector() as collector:
        async with running_world(
            new_database(), otel_exporter_otlp_endpoint=collector.address
        ) as world:
            payment = await world.escrowed()
            with structlog.testing.capture_logs(
                processors=[structlog.contextvars.merge_contextvars]
            ) as lines:
                await world.payments.CapturePayment(
                    capture_request(payment.payment_id),
                    metadata=(("traceparent", TRACEPARENT), ("x-request-id", "req-of-the-caller")),
                )
            await world.settle_down()
        # Everything was sent when the service and the gateway had ended.
        _judge_the_call(collector, payment.payment_id)
        _judge_the_webhooks(collector)
        _judge_what_is_not_said(collector, payment)
        changed = [line for line in lines if line["event"] == "payment_changed"]
        ours = [line for line in changed if line.get("request_id") == "req-of-the-caller"]
        assert ours, changed
        for line in ours:
            assert line["trace_id"] == TRACE
            assert line["payment"] == payment.payment_id
            assert line["caller"] == "local"


def _judge_the_call(collector: Collector, payment_id: str) -> None:
    calls = [s for s in collector.named("marketplace.payments.v1") if s.trace == TRACE]
    assert [call.name.rpartition("/")[2] for call in calls] == ["CapturePayment"]
    call = calls[0]
    assert call.service == "payment_service"
    assert call.span.parent_span_id.hex() == SPAN
    assert call.facts["rpc.response.status_code"] == "OK"
    assert call.facts["payments.request_id"] == "req-of-the-caller"
    assert call.facts["payments.payment"] == payment_id
    steps = collector.children(call)
    names = [step.name for step in steps]
    assert any(name.startswith("transaction ") for name in names), names
    requests = [step for step in steps if step.name.startswith("stripe ")]
    assert "stripe POST /v1/payment_intents/{id}/capture" in [step.name for step in requests]
    for request in requests:
        assert str(request.facts["stripe.request_id"]).startswith("req_")
        assert request.facts["http.response.status_code"] == 200


def _judge_the_webhooks(collector: Collector) -> None:
    deliveries = {s.span.span_id: s for s in collector.named("deliver webhook")}
    assert deliveries
    assert {one.service for one in deliveries.values()} == {"payment_gateway"}
    stored = {
        (s.span.trace_id, s.span.span_id): s
        for s in collector.named("marketplace.payments.v1.WebhookService/IngestEvent")
    }
    assert {s.span.parent_span_id for s in stored.values()} <= set(deliveries)
    applied = [s for s in collector.named("apply events of a payment") if s.span.links]
    assert applied
    for one in applied:
        assert {(link.trace_id, link.span_id) for link in one.span.links} <= set(stored)
    phases = {child.name for one in applied for child in collector.children(one)}
    assert any(name.startswith("transaction ") for name in phases), phases


def _judge_what_is_not_said(collector: Collector, payment: payments_pb2.Payment) -> None:
    for secret in (
        *(payment.client_id, payment.description, payment.gig_id, "client-1"),
        *("sk_test", "whsec_", "_secret_"),
    ):
        assert secret.encode() not in collector.sent, secret
    facts = {fact for seen in collector.spans for fact in seen.facts.values()}
    assert not facts & {10_000, "10000", 1_000, "1000"}, "an amount"


async def test_without_a_trace_of_the_caller_a_call_begins_one_and_jobs_that_find_nothing_do_not(
    new_database: Callable[[], str],
) -> None:
    async with running_collector() as collector:
        async with running_world(
            new_database(), otel_exporter_otlp_endpoint=collector.address
        ) as world:
            await world.operations.ListOperations(operations_pb2.ListOperationsRequest())
            for bad in ("junk", f"00-{'0' * 32}-{SPAN}-01", f"ff-{TRACE}-{SPAN}-01"):
                await world.operations.ListOperations(
                    operations_pb2.ListOperationsRequest(), metadata=(("traceparent", bad),)
                )
        calls = collector.named("marketplace.payments.v1.OperationsService/ListOperations")
        assert len(calls) == 4
        assert all(call.span.parent_span_id == b"" for call in calls)
        assert len({call.trace for call in calls}) == 4
        assert not [s for s in collector.named("transaction ") if not s.span.parent_span_id]


async def test_a_collector_that_is_gone_stops_nothing(new_database: Callable[[], str]) -> None:
    async with running_world(
        new_database(), otel_exporter_otlp_endpoint="http://127.0.0.1:9"
    ) as world:
        await world.captured()


def test_opentelemetry_is_imported_only_if_it_is_switched_on() -> None:
    code = (
        "import sys, json, gateway.app, payment_service.server, marketplace.payments.channel;"
        "print(json.dumps([name for name in sys.modules if name.startswith('opentelemetry')]))"
    )
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert json.loads(found.stdout) == []


async def test_the_client_passes_the_callers_trace_on(new_database: Callable[[], str]) -> None:
    async with running_collector() as collector:
        async with running_world(
            new_database(), otel_exporter_otlp_endpoint=collector.address, loops=False
        ) as world:
            tracer = TracerProvider().get_tracer("a caller")
            async with connect(world.address) as channel:
                stub: Any = operations_pb2_grpc.OperationsServiceStub(channel)
                with tracer.start_as_current_span("a caller's work") as span:
                    await stub.ListOperations(operations_pb2.ListOperationsRequest())
        call = collector.named("marketplace.payments.v1.OperationsService/ListOperations")[0]
        wanted: trace.SpanContext = span.get_span_context()
        assert call.span.trace_id == wanted.trace_id.to_bytes(16)
        assert call.span.parent_span_id == wanted.span_id.to_bytes(8)


async def test_a_caller_with_threads_passes_its_trace_on_and_its_own_header_wins(
    new_database: Callable[[], str],
) -> None:
    async with running_collector() as collector:
        async with running_world(
            new_database(), otel_exporter_otlp_endpoint=collector.address, loops=False
        ) as world:
            tracer = TracerProvider().get_tracer("a caller")

            def call() -> trace.SpanContext:
                with connect_sync(world.address) as channel:
                    stub = operations_pb2_grpc.OperationsServiceStub(channel)
                    with tracer.start_as_current_span("a caller's work") as span:
                        stub.ListOperations(operations_pb2.ListOperationsRequest())
                        stub.ListOperations(
                            operations_pb2.ListOperationsRequest(),
                            metadata=(("traceparent", TRACEPARENT),),
                        )
                    return span.get_span_context()

            wanted = await asyncio.to_thread(call)
        calls = collector.named("marketplace.payments.v1.OperationsService/ListOperations")
        assert [one.trace for one in calls] == [f"{wanted.trace_id:032x}", TRACE]
