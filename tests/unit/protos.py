"""Reads the comments of the protos, which the generated modules do not keep."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
PROTOS: Final = sorted((ROOT / "protos" / "marketplace" / "payments" / "v1").glob("*.proto"))
#: What a comment belongs to: a service, message or enum; an RPC; a field; a value of an enum.
_BLOCK: Final = re.compile(r"(service|message|enum) (\w+) \{")
_RPC: Final = re.compile(r"  rpc (\w+)\((\w+)\) returns \(((?:stream )?\w+)\)")
_FIELD: Final = re.compile(r"  ((?:repeated |optional )?(?:[\w.]+|map<.+>)) (\w+) = \d+;")
_VALUE: Final = re.compile(r"  ([A-Z_0-9]+) = \d+;")


@dataclass
class Block:
    """A service, message or enum with the comments of what is in it, by name."""

    kind: str
    name: str
    comment: str
    parts: dict[str, str] = field(default_factory=dict)
    #: The request of each RPC.
    requests: dict[str, str] = field(default_factory=dict)
    #: The answer of each RPC, and the type of each field, as the proto says it.
    types: dict[str, str] = field(default_factory=dict)


@cache
def blocks() -> list[Block]:
    """Returns all blocks of all protos, in their order."""
    found: list[Block] = []
    for path in PROTOS:
        comment: list[str] = []
        for line in path.read_text().splitlines():
            stripped = line.strip()
            if stripped.startswith("//"):
                comment.append(stripped.removeprefix("//").removeprefix(" "))
                continue
            text = "\n".join(comment)
            if match := _BLOCK.match(line):
                found.append(Block(match[1], match[2], text))
            elif match := _RPC.match(line):
                found[-1].parts[match[1]] = text
                found[-1].requests[match[1]] = match[2]
                found[-1].types[match[1]] = match[3]
            elif match := _FIELD.match(line):
                found[-1].parts[match[2]] = text
                found[-1].types[match[2]] = match[1]
            elif match := _VALUE.match(line):
                found[-1].parts[match[1]] = text
            comment = []
    return found


def services() -> list[Block]:
    return [block for block in blocks() if block.kind == "service"]


def messages() -> dict[str, Block]:
    return {block.name: block for block in blocks() if block.kind == "message"}


def enums() -> dict[str, Block]:
    return {block.name: block for block in blocks() if block.kind == "enum"}


def error_reasons() -> dict[str, str]:
    """Returns the comment of each error reason, by its name without the prefix."""
    [block] = [block for block in blocks() if block.name == "ErrorReason"]
    return {name.removeprefix("ERROR_REASON_"): text for name, text in block.parts.items()}


def reasons_in(text: str) -> list[str]:
    """Returns the reasons in a text, once each. A word with an underscore counts, known or not."""
    known = error_reasons()
    words = re.findall(r"\b[A-Z][A-Z_]+\b", text)
    return list(dict.fromkeys(word for word in words if "_" in word or word in known))


def labelled(comment: str, label: str) -> str:
    """Returns the paragraph of a comment after a label, such as ``Errors:``, on one line."""
    match = re.search(rf"^{label}: (.+?)(?=^\w+: |\n\n|\Z)", comment, re.MULTILINE | re.DOTALL)
    return " ".join(match[1].split()) if match else ""
