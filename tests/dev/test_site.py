"""The documentation's site: complete, without a network, and found by its own search."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dev import site as site_module
from dev.install import ROOT
from dev.site import SiteError, build, gather
from dev.site_check import Page, faults
from tests.support.chromium import open_chromium

# A build takes some seconds of CPU, which can be minutes beside other work.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

#: Of the build alone, whatever else runs on the machine.
MOST_CPU_SECONDS = 20.0


#: The search is below a shadow root: returns its field, and what is written beside it.
_SHADOWS = '[...document.querySelectorAll("*")].map((e) => e.shadowRoot)'
_FIELD = f'return {_SHADOWS}.map((root) => root?.querySelector("input")).find(Boolean);'
_RESULTS = f'return {_SHADOWS}.map((root) => root?.textContent ?? "").join(" ");'


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    site_module.install_tools()
    folder = tmp_path_factory.mktemp("site")
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    build(folder / "site", folder / "work")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime - before.ru_utime < MOST_CPU_SECONDS
    return folder / "site"


def _renamed(name: str) -> str:
    return "index.html" if name == "README.html" else name


def test_every_page_is_in_the_navigation(built: Path) -> None:
    first = built / "index.html"
    linked = {(built / link).resolve() for link in Page(first.read_text()).leads if ":" not in link}
    pages = {path.with_suffix(".html") for path in (ROOT / "docs").rglob("*.md")}
    missing = {
        path.relative_to(ROOT / "docs")
        for path in pages
        if built / path.relative_to(ROOT / "docs").with_name(_renamed(path.name)) not in linked
    }
    assert len([page for page in pages if "runbook" in page.parts]) > 50
    assert missing == set()


def test_every_item_of_a_list_is_one_in_the_site(built: Path) -> None:
    wrong = {}
    for page in (ROOT / "docs").rglob("*.md"):
        name = page.relative_to(ROOT / "docs").with_suffix(".html")
        prose = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        items = len(re.findall(r"^ *(?:-|\d+\.) ", prose, re.MULTILINE))
        article = (built / name.with_name(_renamed(name.name))).read_text().partition("<article")[2]
        shown = article.partition("</article>")[0].count("<li>")
        if items != shown:
            wrong[str(name)] = (items, shown)
    assert wrong == {}


def test_the_pictures_are_shown(built: Path) -> None:
    shown = {
        Path(source).name
        for page in built.rglob("*.html")
        for source in re.findall(r'<img [^>]*src="([^"]+)"', page.read_text())
    }
    pictures = {path.name for path in built.rglob("*.svg")} - {"favicon.svg"}
    assert {"money.svg", "dashboard.svg", "costs.svg", "1.svg"} <= pictures <= shown


def test_the_search_knows_words_of_each_part(built: Path) -> None:
    index = json.loads((built / "search.json").read_text())
    texts = {item["location"].split("#")[0]: "" for item in index["items"]}
    for item in index["items"]:
        texts[item["location"].split("#")[0]] += f"{item['title']} {item['text']}"
    assert "OUTCOME_UNKNOWN" in texts["api/errors.html"]
    assert "ledger" in texts["LEDGER.html"]
    assert "trail_broken" in texts["runbook/alarms/trail_broken.html"]


@pytest.mark.parametrize(
    ("html", "fault"),
    [
        ('<a href="gone.html">x</a>', "page.html leads to gone.html: there is no such file"),
        ('<a href="#gone">x</a>', "page.html leads to #gone: there is no such heading"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads //cdn.example/x.css"),
        ('<pre class="mermaid">x</pre>', "loads https://unpkg.com/mermaid"),
        ('<a id="here" href="#here">x</a><a href="https://stripe.com">x</a>', None),
    ],
)
def test_a_fault_of_a_page_is_found(tmp_path: Path, html: str, fault: str | None) -> None:
    (tmp_path / "page.html").write_text(html)
    found = faults(tmp_path)
    assert [fault in one for one in found] == [True] if fault else found == []


def test_a_style_from_outside_is_found(tmp_path: Path) -> None:
    (tmp_path / "x.css").write_text("@import url(https://fonts.example/css);")
    assert faults(tmp_path) == ["x.css loads //fonts.example/css"]


def test_a_page_without_a_place_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site_module.install_tools()
    root = tmp_path / "root"
    shutil.copytree(ROOT / "docs", root / "docs")
    for name in ("mkdocs.yml", *site_module.OUTSIDE):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "docs" / "new.md").write_text("# New\n")
    monkeypatch.setattr(site_module, "ROOT", root)
    with pytest.raises(SiteError, match=r"no place in its nav for: new\.md"):
        gather(tmp_path / "work")


@pytest.fixture
def chromium() -> Iterator[Any]:
    browser = open_chromium("--window-size=1280,900")
    yield browser
    browser.quit()


def test_the_search_works_in_a_page_that_is_opened_from_a_file(built: Path, chromium: Any) -> None:
    waits = pytest.importorskip("selenium.webdriver.support.ui")
    chromium.get((built / "index.html").as_uri())
    chromium.find_element("css selector", ".md-search__button").click()
    wait = waits.WebDriverWait(chromium, 60)
    field = wait.until(lambda _: chromium.execute_script(_FIELD))
    field.send_keys("expert_requirements_announced")
    wait.until(lambda _: "wants something of an" in chromium.execute_script(_RESULTS))
