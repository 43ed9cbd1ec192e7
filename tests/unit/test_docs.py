"""The pages that people read: short cells, links that lead somewhere, one language."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from payment_service.domain.discrepancies import DiscrepancyKind

ROOT: Final = Path(__file__).resolve().parents[2]
DOCS: Final = ROOT / "docs"
RUNBOOK: Final = DOCS / "runbook"
PAGES: Final = sorted(
    [
        *DOCS.rglob("*.md"),
        *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
        ROOT / "client" / "README.md",
        *ROOT.glob("examples/*/README.md"),
        ROOT / "stripe_simulator" / "README.md",
    ]
)
SOURCES: Final = sorted(
    path for package in ("payment_service", "gateway") for path in (ROOT / package).rglob("*.py")
)
_MOST_WORDS: Final = 40

#: What a page of this project does not say, and what it says instead (docs/glossary.md).
OLD_WORDS: Final = {
    r"by hand|by hands|hands at|somebody's hand|elsewhere": "out of band",
    r"is told|are told|was told|were told|told of|told by": "gets, is reported, is recorded",
    r"look again|looks again|looked again|after a look": "sync, re-check",
    r"gives? way|gave way|given way|makes? way|stands? back": "is superseded, pre-empts",
    r"carry out|carries out|carried out|in vain": "execute, without effect",
    r"the sweep|sweeps": "recovery",
    r"quiet payments?|lapsed holds?": "stale payment, expired authorization",
    r"the rest|a rest|its rest": "the remainder",
    r"whoever|burnt": "a caller that, a spent key",
    r"mend|mends|mended|cure|cures": "fix, remediation",
    r"is away|being away|are away|is well|well again|unwell": "is unavailable, is ready again",
    r"contested|contests": "disputed, disputes",
    r"but for|of which|so many|so long before": "except, whose, a number of",
    r"given up|gives? up|give up|gave up": "abandoned",
    r"handed on|hands on|vouch|vouches|owed settled|let pass": "a plain verb",
    r"inbox": "webhook events",
}


def _id(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose_of(page: Path) -> str:
    """Returns a page without its blocks of code, so that output and commands are left alone."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_a_cell_of_a_table_is_short(page: Path) -> None:
    rows = [line for line in prose_of(page).splitlines() if line.startswith("|")]
    cells = [cell for row in rows for cell in re.split(r"(?<!\\)\|", row)]
    assert [cell for cell in cells if len(cell.split()) > _MOST_WORDS] == []


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_link_leads_somewhere(page: Path) -> None:
    links = re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text())
    local = [link for link in links if not re.match(r"[a-z]+:", link)]
    assert [link for link in local if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_every_anchor_is_a_heading(page: Path) -> None:
    for link, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)]+)\)", page.read_text()):
        target = (page.parent / link) if link else page
        headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
        anchors = {
            re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
        }
        assert anchor in anchors, f"{link or page.name} has no heading for #{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_a_file_that_is_named_exists(page: Path) -> None:
    packages = r"(?:payment_service|gateway|stripe_simulator|client|dev|chaos|tests|docs|protos)"
    named = re.findall(rf"`({packages}/[\w./-]*)`", page.read_text())
    assert [name for name in named if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=_id)
def test_the_page_speaks_the_language_of_the_glossary(page: Path) -> None:
    found = {
        match.group(0): instead
        for words, instead in OLD_WORDS.items()
        for match in re.finditer(rf"\b(?:{words})\b", prose_of(page), re.IGNORECASE)
    }
    assert found == {}, "say instead what stands after each"


def _calls() -> Iterator[tuple[Path, str, ast.Call]]:
    """Yields every call of the production code, with its file and the callee's last name."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "attr", getattr(node.func, "id", ""))
                yield path, name, node


def _word(node: ast.expr) -> str:
    """Returns a constant, or the member of an enum in lower case; empty for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    member = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    if member and isinstance(node, ast.Attribute) and node.attr.isupper():
        return node.attr.lower()
    return ""


def kinds_in_use() -> set[str]:
    """Returns the members of DiscrepancyKind that the code outside of the enum names."""
    return {
        node.attr
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "DiscrepancyKind"
    }


def alarms() -> set[str]:
    """Returns every log event of the level ``error``, and the warnings that have a metric."""
    metrics = ROOT / "payment_service" / "metrics"
    return {
        _word(call.args[0])
        for path, name, call in _calls()
        if name == "error" or (name == "warning" and path.parent == metrics)
        if getattr(getattr(call.func, "value", None), "id", "") == "log"
    }


def _pages_of(folder: str) -> set[str]:
    return {path.stem for path in (RUNBOOK / folder).glob("*.md")}


def test_every_discrepancy_has_a_page() -> None:
    # All invariants share a page.
    kinds = {kind.value for kind in DiscrepancyKind if not kind.is_invariant}
    assert _pages_of("discrepancies") == kinds | {"invariant"}


def test_every_kind_of_discrepancy_can_be_reported() -> None:
    assert {kind.name for kind in DiscrepancyKind} == kinds_in_use()


def test_an_invariant_says_so_in_its_name() -> None:
    named = {kind for kind in DiscrepancyKind if kind.startswith("invariant_")}
    assert named == {kind for kind in DiscrepancyKind if kind.is_invariant}


def test_every_alarm_has_a_page() -> None:
    assert _pages_of("alarms") == alarms()


def test_the_index_of_the_runbook_names_every_page() -> None:
    index = (RUNBOOK / "index.md").read_text()
    named = set(re.findall(r"\]\(([\w./-]+\.md)\)", index))
    pages = {str(path.relative_to(RUNBOOK)) for path in RUNBOOK.rglob("*.md")} - {"index.md"}
    assert pages - named == set()


@pytest.mark.parametrize(
    "page", [*RUNBOOK.glob("alarms/*.md"), *RUNBOOK.glob("discrepancies/*.md")], ids=_id
)
def test_a_page_of_the_runbook_answers_the_four_questions(page: Path) -> None:
    headings = re.findall(r"^\*\*(.+?)\*\*", page.read_text(), re.MULTILINE)
    assert headings == ["Means.", "Look at.", "Do.", "Why."]


def test_a_metric_that_is_named_exists() -> None:
    sources = [
        *(ROOT / "payment_service" / "metrics").glob("*.py"),
        ROOT / "payment_service" / "relay" / "metrics.py",
    ]
    known = {name for s in sources for name in re.findall(r'"(payments_\w+)"', s.read_text())}
    named = {
        name.removesuffix("_total").removesuffix("_info")
        for page in DOCS.rglob("*.md")
        for name in re.findall(r"`(payments_\w+)(?:\{[^`]*\})?`", page.read_text())
    }
    assert named - known == set()
