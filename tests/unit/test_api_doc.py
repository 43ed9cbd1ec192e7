"""docs/api/ against the protos: its pages are made from their comments.

After a change of the contract, write the pages anew:

    python -m tests.unit.test_api_doc
"""

from __future__ import annotations

import re
from typing import Final

import pytest

from tests.unit.api_reference import index, pages
from tests.unit.protos import ROOT, enums, error_reasons, messages, services

FOLDER: Final = ROOT / "docs" / "api"
FIRST: Final = FOLDER / "README.md"
BEGIN: Final = "<!-- generated: services -->"
END: Final = "<!-- /generated -->"
ANEW: Final = "python -m tests.unit.test_api_doc writes it anew"


def first_with(tables: str, page: str) -> str:
    before, _, rest = page.partition(BEGIN)
    after = rest.partition(END)[2]
    return f"{before}{BEGIN}\n{tables}\n{END}{after}"


def test_the_first_page_shows_the_services() -> None:
    page = FIRST.read_text()
    assert page == first_with(index(), page), ANEW


@pytest.mark.parametrize("name", pages())
def test_a_page_shows_the_contract(name: str) -> None:
    assert (FOLDER / name).read_text() == pages()[name], ANEW


def test_there_is_no_page_of_what_is_gone() -> None:
    assert {path.name for path in FOLDER.glob("*.md")} == {*pages(), FIRST.name}


def test_everything_of_the_contract_has_a_place() -> None:
    text = "".join(pages().values())
    headings = set(re.findall(r"^## (\w+)$", text, re.MULTILINE))
    rpcs = {rpc for service in services() for rpc in service.parts}
    assert len(rpcs) > 30
    assert rpcs | set(error_reasons()) | (set(enums()) - {"ErrorReason"}) <= headings
    # A request or an answer is on the page of its service, beside its RPC.
    assert [name for name in messages() if name not in headings and f"`{name}`" not in text] == []


def test_every_field_says_what_it_is() -> None:
    bare = [
        f"{block.name}.{name}"
        for block in (*messages().values(), *enums().values())
        for name, comment in block.parts.items()
        if not comment.strip()
    ]
    assert bare == []


if __name__ == "__main__":
    FIRST.write_text(first_with(index(), FIRST.read_text()))
    for _name, _text in pages().items():
        (FOLDER / _name).write_text(_text)
