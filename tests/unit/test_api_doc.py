"""docs/api.md against the protos: the tables on the page are made from their comments.

After a change of the contract, write the page anew:

    python -m tests.unit.test_api_doc
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from tests.unit.protos import ROOT, Block, labelled, messages, reasons_in, services

PAGE: Final = ROOT / "docs" / "api.md"
BEGIN: Final = "<!-- generated: services -->"
END: Final = "<!-- /generated -->"


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


def render() -> str:
    """Returns a table for each service."""
    requests = messages()
    lines: list[str] = []
    for service in services():
        first = service.comment.split("\n\n")[0]
        lines += ["", f"## {service.name}", "", " ".join(first.split()), ""]
        lines += ["| RPC | request | idempotency | errors |", "|---|---|---|---|"]
        for rpc, comment in service.parts.items():
            idempotency = re.split(r"[.;] ?", labelled(comment, "Idempotency"))[0]
            request = fields_of(requests[service.requests[rpc]])
            lines.append(f"| `{rpc}` | {request} | {idempotency} | {errors_of(comment)} |")
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
