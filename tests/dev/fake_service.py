"""A stand-in for `payment_service serve`: gRPC health, a slow drain, a way to die.

Run as a process by the supervisor's tests. It writes its settings to its first line.
"""

import json
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import FrameType

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> None:
    told = {name: os.environ.get(name) for name in json.loads(os.environ["FAKE_TELLS"])}
    sys.stdout.write(f"told {json.dumps(told)}\n")
    sys.stdout.flush()
    server = grpc.server(ThreadPoolExecutor(2), options=[("grpc.so_reuseport", 0)])
    servicer = health.HealthServicer()
    for name in ("", "marketplace.payments.v1"):
        servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(f"127.0.0.1:{os.environ['GRPC_PORT']}")
    stop = threading.Event()

    def handle(number: int, frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, handle)
    server.start()
    if dies := os.environ.get("FAKE_DIES_AFTER"):
        time.sleep(float(dies))
        sys.stdout.write("the fake has had enough\n")
        sys.exit(7)
    while not stop.wait(0.1):  # the signal may reach another thread, which wakes nobody
        pass
    sys.stdout.write("draining\n")
    sys.stdout.flush()
    time.sleep(float(os.environ.get("FAKE_DRAIN", "0")))
    server.stop(0).wait()
    sys.stdout.write("drained\n")


if __name__ == "__main__":
    main()
