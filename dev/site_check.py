"""What must be true of a built site: every link leads somewhere, and nothing comes from outside."""

import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

#: Attributes by which a page loads something at once.
_LOADS = {"script": "src", "img": "src", "iframe": "src", "source": "src", "object": "data"}
#: Kinds of <link> that load something, or connect to the host before anything is loaded.
_LOADED = {"stylesheet", "preload", "preconnect", "dns-prefetch", "icon", "modulepreload"}


class Page(HTMLParser):
    """What a page names: its anchors, where it leads, and what it loads."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.leads: list[str] = []
        self.loads: list[str] = []
        self.feed(text)

    def updatepos(self, i: int, j: int) -> int:
        """Counts no lines, which would take a fifth of the time: nobody asks where a tag stands."""
        return j

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if anchor := values.get("id") or values.get("name"):
            self.anchors.add(anchor)
        if tag == "a" and values.get("href"):
            self.leads.append(values["href"])
        # The theme's script fetches mermaid from a foreign host for such an element.
        if "mermaid" in values.get("class", "").split():
            self.loads.append("https://unpkg.com/mermaid")
        if tag in _LOADS and values.get(_LOADS[tag]):
            self.loads.append(values[_LOADS[tag]])
        if tag == "link" and _LOADED.intersection(values.get("rel", "").split()):
            self.loads.append(values.get("href", ""))


def faults(site: Path) -> list[str]:
    """Returns a sentence for each link that leads nowhere, and for each file from outside."""
    pages = {path: Page(path.read_text()) for path in sorted(site.rglob("*.html"))}
    found = [
        f"{style.relative_to(site)} loads {address}"
        for style in site.rglob("*.css")
        for address in re.findall(
            r"(?:@import|url\()\s*[\"']?(?:https?:)?(//[^\"')]+)", style.read_text()
        )
    ]
    for path, page in pages.items():
        name = path.relative_to(site)
        found += [f"{name} loads {one}" for one in page.loads if urlsplit(one).netloc]
        # 404.html has absolute links, because nobody knows where it will be shown.
        if path.name != "404.html":
            for address in (*page.leads, *page.loads):
                found += [
                    f"{name} leads to {address}: {fault}"
                    for fault in _nowhere(path, address, pages)
                ]
    return found


def _nowhere(path: Path, address: str, pages: dict[Path, Page]) -> Iterator[str]:
    parts = urlsplit(address)
    if parts.scheme or parts.netloc:
        return
    # A site has no symbolic link, and most links lead to its pages: the disk is seldom asked.
    target = Path(os.path.normpath(path.parent / unquote(parts.path))) if parts.path else path
    if target not in pages and target.is_dir():
        target /= "index.html"
    if target in pages:
        if parts.fragment and unquote(parts.fragment) not in pages[target].anchors:
            yield "there is no such heading"
    elif not target.exists():
        yield "there is no such file"
