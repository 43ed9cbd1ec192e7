"""`python -m console` as a process: it starts, answers, and stops in good order."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parents[2]
_ENVIRONMENT = {"PATH": os.environ["PATH"], "CONSOLE_PORT": "0", "LOG_FORMAT": "json"}


def test_it_starts_answers_and_stops_on_sigterm() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "console"],
        cwd=ROOT,
        env=_ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            address = process.stdout.readline().removeprefix("console listening on ").strip()
            assert address.startswith("http://127.0.0.1:"), address
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"{address}/waiting?secret=of-the-query", timeout=20) as answer:
                assert answer.url.startswith(f"{address}/sign-in?next=/waiting")
                assert "Paste the token" in answer.read().decode()
            process.send_signal(signal.SIGTERM)
            _, log = process.communicate(timeout=30)
        finally:
            process.kill()
    assert process.returncode == 0
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines][-1] == "stopped"
    assert {line.get("route") for line in lines if line["event"] == "request"} == {
        "/waiting",
        "/sign-in",
    }
    assert "of-the-query" not in log


def test_a_port_that_is_taken_is_said_in_a_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = subprocess.run(
            [sys.executable, "-m", "console"],
            cwd=ROOT,
            env={**_ENVIRONMENT, "CONSOLE_PORT": port},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert f"cannot listen on 127.0.0.1, CONSOLE_PORT={port}" in done.stderr


def test_a_check_says_whether_it_would_start() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "console", "check"],
        cwd=ROOT,
        env=_ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (
        0,
        "environment development, core 127.0.0.1:50051\n",
    )
