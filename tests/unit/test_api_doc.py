"""docs/api.md against the protos: the tables on the page are made from their comments.

After a change of the contract, write the page anew:

    python -m tests.unit.test_api_doc
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from payment_service.bootstrap import SERVICES
from payment_service.domain.caller import Role
from payment_service.rpc.access import rules_of
from tests.unit.protos import ROOT, Block, labelled, messages, reasons_in, services

PAGE: Final = ROOT / "docs" / "api.md"
BEGIN: Final = "<!-- generated: services -->"
END: Final = "<!-- /generated -->"
#: As the page calls the roles, in its order.
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


def fields_of(message: Block) -> str:
    """Returns the fields of a request. Required ones are bold."""
    names = [
        f"**`{name}`**" if comment.startswith("Required") else f"`{name}`"
        for name, comment in message.parts.items()
    ]
    return ", ".join(names)


def errors_of(comment: str) -> str:
    """Returns the reasons that the comment of an RPC lists, then the groups."""
    text = labelled(comment, "Errors")
    groups = [name for name in ("key", "Stripe") if re.search(rf"those of (a )?{name}\b", text)]
    return ", ".join([*(f"`{reason}`" for reason in reasons_in(text)), *groups])


def callers_of(service: str, rpc: str) -> str:
    """Returns the roles that may call an RPC, and whether callers that act for a user may."""
    rule = _RULES[f"/marketplace.payments.v1.{service}/{rpc}"]
    names = [name for role, name in ROLES.items() if role in rule.roles]
    if {"operator", "reader"} <= set(names):
        names.remove("reader")
        names[names.index("operator")] = "operators"
    return ", ".join([*names, *(["_for a user_"] if rule.acts_for_user else [])])


def render() -> str:
    """Returns a table for each service."""
    requests = messages()
    lines: list[str] = []
    for service in services():
        first = service.comment.split("\n\n")[0]
        lines += ["", f"## {service.name}", "", " ".join(first.split()), ""]
        lines += ["| RPC | who | request | idempotency | errors |", "|---|---|---|---|---|"]
        for rpc, comment in service.parts.items():
            idempotency = re.split(r"[.;] ?", labelled(comment, "Idempotency"))[0]
            request = fields_of(requests[service.requests[rpc]])
            who = callers_of(service.name, rpc)
            lines.append(f"| `{rpc}` | {who} | {request} | {idempotency} | {errors_of(comment)} |")
    return "\n".join([*lines, ""])


def page_with(tables: str, page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def test_the_page_shows_the_contract() -> None:
    page = PAGE.read_text()
    assert page == page_with(render(), page), "python -m tests.unit.test_api_doc writes it anew"


def test_the_page_has_every_rpc() -> None:
    page = Path(PAGE).read_text()
    rpcs = [rpc for service in services() for rpc in service.parts]
    assert len(rpcs) > 30
    assert [rpc for rpc in rpcs if f"| `{rpc}` |" not in page] == []


if __name__ == "__main__":
    PAGE.write_text(page_with(render(), PAGE.read_text()))
