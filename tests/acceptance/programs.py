"""The programs that call the service by reflection alone: grpcurl, `buf curl`."""

import base64
import json
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from google.rpc import code_pb2, error_details_pb2

PACKAGE = "marketplace.payments.v1"
TOOLS = Path(sys.executable).parent
_SECONDS = 30


@dataclass(frozen=True)
class Answer:
    """What a call came to, whichever program made it."""

    code: str
    response: Mapping[str, Any] = field(default_factory=dict)
    message: str = ""
    reason: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    fields: tuple[str, ...] = ()


class Program(Protocol):
    """Makes calls; knows the contract by reflection alone."""

    #: Every RPC that was called so far, as `Service/Method`.
    driven: set[str]

    def ask(self, method: str, request: Mapping[str, Any]) -> Answer: ...


class Grpcurl:
    def __init__(self, address: str) -> None:
        self.address = address
        self.driven: set[str] = set()

    def ask(self, method: str, request: Mapping[str, Any]) -> Answer:
        self.driven.add(method)
        done = self.run("-format-error", "-d", json.dumps(request), method=f"{PACKAGE}.{method}")
        if done.returncode == 0:
            return Answer("OK", _snake(json.loads(done.stdout)))
        assert done.stderr.startswith("{"), done.stderr
        status = json.loads(done.stderr)
        info: dict[str, Any] = {}
        fields: list[str] = []
        for detail in status.get("details", ()):
            kind = detail["@type"].rpartition(".")[2]
            if kind == "ErrorInfo":
                info = detail
            elif kind == "BadRequest":
                fields = [violation["field"] for violation in detail["field_violations"]]
        return Answer(
            code_pb2.Code.Name(status["code"]),
            message=status["message"],
            reason=info.get("reason", ""),
            facts=info.get("metadata", {}),
            fields=tuple(fields),
        )

    def run(self, *flags: str, method: str) -> subprocess.CompletedProcess[str]:
        """The bare program; `method` is its last word, a command such as `list` included."""
        command = [str(TOOLS / "grpcurl"), "-plaintext", *flags, self.address, *method.split()]
        return _run(command)


class BufCurl:
    def __init__(self, address: str) -> None:
        self.address = address
        self.driven: set[str] = set()

    def ask(self, method: str, request: Mapping[str, Any]) -> Answer:
        self.driven.add(method)
        done = self.run("-d", json.dumps(request), path=f"/{PACKAGE}.{method}")
        if done.returncode == 0:
            return Answer("OK", _snake(json.loads(done.stdout)))
        assert done.stderr.startswith("{"), done.stderr
        status = json.loads(done.stderr)
        info = error_details_pb2.ErrorInfo()
        bad = error_details_pb2.BadRequest()
        for detail in status.get("details", ()):
            value = base64.b64decode(detail["value"] + "==")
            if detail["type"] == "google.rpc.ErrorInfo":
                info.ParseFromString(value)
            elif detail["type"] == "google.rpc.BadRequest":
                bad.ParseFromString(value)
        return Answer(
            status["code"].upper(),
            message=status["message"],
            reason=info.reason,
            facts=dict(info.metadata),
            fields=tuple(violation.field for violation in bad.field_violations),
        )

    def run(self, *flags: str, path: str = "") -> subprocess.CompletedProcess[str]:
        protocol = ["--protocol", "grpc", "--http2-prior-knowledge"]
        return _run([str(TOOLS / "buf"), "curl", *protocol, *flags, f"http://{self.address}{path}"])


def _snake(value: Any) -> Any:
    """Fields by the names of the protos: grpcurl writes those, buf writes them in camelCase."""
    if isinstance(value, dict):
        return {
            re.sub("[A-Z]", lambda found: f"_{found[0].lower()}", name): _snake(part)
            for name, part in value.items()
        }
    return [_snake(part) for part in value] if isinstance(value, list) else value


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_SECONDS)
