"""Health, metrics, and the end of a service that is asked to stop."""

import queue
import re
import threading

import grpc
import pytest
from grpc_health.v1 import health_pb2

from dev.caller import call_of
from marketplace.payments.channel import connect_sync
from tests.acceptance.browser import look
from tests.acceptance.conftest import World, until
from tests.acceptance.health import HEALTH, NOT_SERVING, PARSE, SERVING, check
from tests.acceptance.programs import Grpcurl

OURS = "marketplace.payments.v1.PaymentService"


@pytest.mark.parametrize("service", ["", OURS])
def test_health_check(world: World, service: str) -> None:
    assert check(world.channel, service).status == SERVING


def test_health_of_a_stranger(world: World) -> None:
    with pytest.raises(grpc.RpcError) as refused:
        check(world.channel, "nobody")
    assert call_of(refused.value).code() is grpc.StatusCode.NOT_FOUND


def test_health_by_grpcurl(world: World) -> None:
    done = Grpcurl(world.address).run(method="grpc.health.v1.Health/Check")
    assert '"status": "SERVING"' in done.stdout


def test_watch_sees_the_end_and_the_service_drains(world: World) -> None:
    """In a channel of its own: the others of this stack are used further."""
    seen: queue.Queue[int | None] = queue.Queue()

    def watch(channel: grpc.Channel) -> None:
        ask: grpc.UnaryStreamMultiCallable[bytes, health_pb2.HealthCheckResponse]
        ask = channel.unary_stream(f"{HEALTH}/Watch", response_deserializer=PARSE)
        try:
            for answer in ask(health_pb2.HealthCheckRequest(service=OURS).SerializeToString()):
                seen.put(answer.status)
        except grpc.RpcError:
            seen.put(None)

    service = world.stack.services[0]
    with connect_sync(world.address) as channel:
        thread = threading.Thread(target=watch, args=[channel])
        thread.start()
        assert seen.get(timeout=10) == SERVING
        service.ask_to_stop()
        assert seen.get(timeout=10) == NOT_SERVING
        assert service.wait(10), "a watcher holds up the end"
        assert service.returncode == 0
        thread.join(10)
    assert "Traceback" not in "\n".join(service.tail)
    service.restart()
    world.stack.wait_until_serving(0)
    until(lambda: look(f"{world.stack.gateway_url}/health").status == 200, "the gateway follows")
    grpc.channel_ready_future(world.channel).result(20)  # It has lost its connection, too.


FAMILIES = {
    "payments_rpc_seconds": "histogram",
    "payments_transitions_total": "counter",
    "payments_volume_minor_units_total": "counter",
    "payments_commission_minor_units_total": "counter",
    "payments_failed_attempts_total": "counter",
    "payments_webhooks_received_total": "counter",
    "payments_events_found_by_polling_total": "counter",
    "payments_webhooks_refused_total": "counter",
    "payments_operations_parked_total": "counter",
    "payments_webhook_events_parked_total": "counter",
    "payments_discrepancies_total": "counter",
    "payments_held_minor_units": "gauge",
    "payments_backlog_items": "gauge",
    "payments_backlog_oldest_age_seconds": "gauge",
    "payments_overdue_oldest_seconds": "gauge",
    "payments_at_risk_minor_units": "gauge",
    "payments_discrepancies_open": "gauge",
    "payments_stripe_call_seconds": "histogram",
    "payments_stripe_circuit_open": "gauge",
    "payments_database_places": "gauge",
    "payments_database_transaction_seconds": "histogram",
    "payments_event_loop_lag_seconds": "histogram",
    "payments_build_info": "gauge",
}


def test_metrics_tell_of_volume_success_commission_and_latency(world: World, expert: str) -> None:
    world.captured(expert)
    page = look(world.stack.metrics_urls[0])
    assert page.status == 200
    kinds = dict(re.findall(r"^# TYPE (\S+) (\S+)$", page.text, re.MULTILINE))
    assert {name: kinds.get(name) for name in FAMILIES} == FAMILIES
    assert 'payments_volume_minor_units_total{currency="USD",step="captured"}' in page.text
    assert 'payments_commission_minor_units_total{currency="USD",direction="taken"}' in page.text
    assert re.search(
        r'payments_rpc_seconds_count{code="OK",method="[^"]*CapturePayment"}', page.text
    )
    until(
        lambda: (
            re.search(
                r"payments_event_loop_lag_seconds_count [1-9]",
                look(world.stack.metrics_urls[0]).text,
            )
            is not None
        ),
        "the lag of the event loop is measured",
    )
    assert expert not in page.text  # labels are few, whoever calls
