"""What a start of the service does not import, because that would delay its first answer."""

from __future__ import annotations

import json
import subprocess
import sys

#: Packages that belong to migrations, traces, other HTTP clients, the relay, or to mypy only.
_NEEDLESS = ("alembic", "httpx", "nats", "opentelemetry", "requests", "sqlalchemy", "stripe.params")


def _printed(order: str) -> str:
    command = [sys.executable, "-c", order]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_a_start_imports_nothing_that_it_does_not_need() -> None:
    order = "import payment_service.__main__, sys, json; print(json.dumps(list(sys.modules)))"
    imported = json.loads(_printed(order))
    assert "stripe" in imported
    needless = tuple(f"{name}." for name in _NEEDLESS)
    assert [name for name in imported if f"{name}.".startswith(needless)] == []


def test_requests_can_be_imported_afterwards() -> None:
    order = "import payment_service.adapters.stripe.client, requests; print(requests.__name__)"
    assert _printed(order) == "requests\n"
