"""Renders docs/api/ from the protos: a page for each service, and messages, enums and errors."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from payment_service.bootstrap import SERVICES
from payment_service.domain.caller import Role
from payment_service.rpc.access import rules_of
from tests.unit.protos import Block, enums, error_reasons, labelled, messages, reasons_in, services

MADE: Final = (
    "<!-- Made from protos/ by tests/unit/api_reference.py: change the comments there. -->"
)
#: As the pages call the roles, in their order.
ROLES: Final = {
    Role.GIG_SERVICE: "gig",
    Role.USER_SERVICE: "user",
    Role.NOTIFICATION_SERVICE: "notification",
    Role.GATEWAY: "gateway",
    Role.FINANCE: "finance",
    Role.OPERATOR: "operator",
    Role.OPERATOR_READ_ONLY: "reader",
}
_RULES: Final = rules_of(SERVICES)
#: The paragraphs of an RPC's comment that have a label, in their order.
_LABELS: Final = ("Money", "Idempotency", "Errors")
_REASONS: Final = "ErrorReason"
_SHARED: Final = (
    "What several requests and answers have in common. "
    "Those of one RPC are on the page of its service."
)
_OPEN: Final = (
    "A later release can add values. Treat one that you do not know as the unspecified one."
)


def pages() -> dict[str, str]:
    """Returns the text of each page that is made whole, by its name."""
    used = {
        name
        for service in services()
        for rpc in service.parts
        for name in (service.requests[rpc], _answer(service, rpc))
    }
    shared = [block for name, block in messages().items() if name not in used]
    kinds = [block for name, block in enums().items() if name != _REASONS]
    return {
        **{page_of(service): _service_page(service) for service in services()},
        "messages.md": _listing(
            "Messages",
            _SHARED,
            shared,
        ),
        "enums.md": _listing("Enums", _OPEN, kinds),
        "errors.md": _errors_page(),
    }


def index() -> str:
    """Returns a table of the RPCs of each service, for the first page."""
    lines: list[str] = []
    for service in services():
        lines += ["", f"## {service.name}", ""]
        lines += [_first_sentence(service.comment), "", f"[All of it]({page_of(service)})", ""]
        lines += ["| RPC | who | what it does |", "|---|---|---|"]
        for rpc, comment in service.parts.items():
            link = f"[`{rpc}`]({page_of(service)}#{rpc.lower()})"
            lines.append(
                f"| {link} | {callers_of(service.name, rpc)} | {_first_sentence(comment)} |"
            )
    return "\n".join([*lines, ""])


def page_of(service: Block) -> str:
    """Returns the file name of a service's page: `payment-service.md`."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", service.name).lower() + ".md"


def callers_of(service: str, rpc: str) -> str:
    """Returns the roles that may call an RPC, and whether callers that act for a user may."""
    rule = _RULES[f"/marketplace.payments.v1.{service}/{rpc}"]
    names = [name for role, name in ROLES.items() if role in rule.roles]
    if {"operator", "reader"} <= set(names):
        names.remove("reader")
        names[names.index("operator")] = "operators"
    return ", ".join([*names, *(["_for a user_"] if rule.acts_for_user else [])])


def _service_page(service: Block) -> str:
    lines = [f"# {service.name}", "", MADE, "", _prose(service.comment)]
    for rpc, comment in service.parts.items():
        free = re.split(rf"^(?:{'|'.join(_LABELS)}): ", comment, flags=re.MULTILINE)[0]
        lines += ["", f"## {rpc}", "", _prose(free), ""]
        lines.append(f"- **Who:** {callers_of(service.name, rpc)}")
        lines += [
            f"- **{label}:** {_prose(labelled(comment, label))}"
            for label in _LABELS
            if labelled(comment, label)
        ]
        answer = service.types[rpc]
        streams = ", a stream" if answer.startswith("stream ") else ""
        lines += _fields(f"Request: `{service.requests[rpc]}`", service.requests[rpc])
        lines += _fields(f"Answer: `{_answer(service, rpc)}`{streams}", _answer(service, rpc))
    return "\n".join([*lines, ""])


def _answer(service: Block, rpc: str) -> str:
    return service.types[rpc].removeprefix("stream ")


def _fields(title: str, name: str) -> list[str]:
    message = messages()[name]
    return ["", f"**{title}**", "", *(_members(message) or ["It has no fields."])]


def _members(block: Block) -> list[str]:
    """Returns a line for each field of a message, or for each value of an enum."""
    lines = []
    for name, comment in block.parts.items():
        kind = f" ({_type(block.types[name])})" if name in block.types else ""
        lines.append(f"- **`{name}`**{kind}: {_in_a_list(_prose(comment))}")
    return lines


def _in_a_list(text: str) -> str:
    return text.replace("\n", "\n    ")


def _type(written: str) -> str:
    """Returns a type as the proto says it, with a link if it is a message or an enum of ours."""
    words = written.split(" ") if "<" not in written else [written]
    own = words[-1].rpartition(".")[2]
    for page, known in (("messages.md", messages()), ("enums.md", enums())):
        if own in known and "google" not in words[-1]:
            target = "errors.md" if own == _REASONS else f"{page}#{own.lower()}"
            words[-1] = f"[`{own}`]({target})"
            break
    else:
        words[-1] = f"`{words[-1]}`"
    return " ".join(words)


def _listing(title: str, about: str, blocks: list[Block]) -> str:
    lines = [f"# {title}", "", MADE, "", about]
    for block in sorted(blocks, key=lambda block: block.name):
        lines += ["", f"## {block.name}", "", _prose(block.comment), "", *_members(block)]
    return "\n".join([*lines, ""])


def _errors_page() -> str:
    lines = ["# Errors", "", MADE, "", _prose(enums()[_REASONS].comment)]
    for reason, comment in error_reasons().items():
        lines += ["", f"## {reason}", "", _prose(comment)]
    return "\n".join([*lines, ""])


def _first_sentence(comment: str) -> str:
    """Returns the first sentence of a comment, or what is before its colon."""
    text = " ".join(comment.split("\n\n", maxsplit=1)[0].split())
    sentence = re.split(r"(?<=[.:]) ", text)[0]
    return f"{sentence.rstrip('.:')}."


def _prose(comment: str) -> str:
    """Returns a comment as Markdown: samples as code, and reasons of errors as links."""
    known = error_reasons()
    paragraphs = []
    for paragraph in comment.strip().split("\n\n"):
        if paragraph.lstrip().startswith("{"):
            paragraphs.append(f"```json\n{paragraph}\n```")
        else:
            paragraphs.append(_linked(_lines(paragraph), known))
    return "\n\n".join(paragraphs)


def _lines(paragraph: str) -> str:
    """Returns a paragraph on one line, or a list with one line for each item."""
    return re.sub(r"\s*\n(?!- )\s*", " ", paragraph)


def _linked(text: str, known: Mapping[str, str]) -> str:
    """Returns a text in which the reasons of errors lead to their descriptions."""
    for reason in reasons_in(text):
        if reason in known:
            text = re.sub(
                rf"(?<![`\w]){reason}(?![`\w])", f"[{reason}](errors.md#{reason.lower()})", text
            )
    return text
