"""When `make bench-quick` fails: a call must have grown in two measurements, not in one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.bench import command, report
from dev.bench.bare import named_only
from dev.demo import Failed
from marketplace.payments.v1 import payments_pb2_grpc

_KEPT = {"CapturePayment": 6.0, "GetPayment": 1.5}


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "bench.json"
    file.write_text(json.dumps({"multiples": _KEPT}))
    monkeypatch.setattr(report, "KEPT", file)


def _measured(monkeypatch: pytest.MonkeyPatch, *found: dict[str, float]) -> Iterator[Any]:
    left = iter(found)

    async def measure(size: object, say: object) -> dict[str, Any]:
        at_rest = {"process_ms_per_second": 3.0, "postgres_ms_per_second": 1.0}
        return {"multiples": _KEPT | next(left), "at_rest": at_rest}

    monkeypatch.setattr(command, "measure", measure)
    return left


def test_a_call_that_costs_a_little_more_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    left = _measured(monkeypatch, {"CapturePayment": 7.9})
    command.bench(quick=True)
    assert list(left) == []


@pytest.mark.parametrize("again", [{}, {"GetPayment": 3.0}])
def test_one_dear_measurement_passes(
    monkeypatch: pytest.MonkeyPatch, again: dict[str, float]
) -> None:
    left = _measured(monkeypatch, {"CapturePayment": 9.0}, again)
    command.bench(quick=True)
    assert list(left) == []


def test_a_call_that_has_grown_fails_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _measured(monkeypatch, {"CapturePayment": 9.0}, {"CapturePayment": 8.1})
    with pytest.raises(Failed):
        command.bench(quick=True)
    assert "CapturePayment costs 8.10 times its measure; 6.00 are kept" in capsys.readouterr().out


class _Server:
    """Keeps in which ways handlers were added."""

    def __init__(self) -> None:
        self.added: list[str] = []

    def add_generic_rpc_handlers(self, _: object) -> None:
        self.added.append("by name")

    def add_registered_method_handlers(self, *_: object) -> None:
        self.added.append("registered")


def test_the_bare_handlers_are_found_by_name_as_the_services_are() -> None:
    """Registered methods would make them slower, and the service's multiples too small."""
    server = _Server()
    servicer = payments_pb2_grpc.PaymentServiceServicer()  # type: ignore[abstract]  # not called
    payments_pb2_grpc.add_PaymentServiceServicer_to_server(servicer, named_only(server))
    assert server.added == ["by name"]
