"""`python -m dev.site build|serve`: the documentation as a site that needs no network.

`build` gathers the pages, also those outside of docs/, and writes site/ (mkdocs.yml is its
configuration). A link that leads nowhere fails it. `serve` builds it and shows it on this machine.
"""

import functools
import http.server
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from dev.install import ROOT
from dev.site_check import faults
from dev.supply import install

TOOLS = ROOT / ".venv" / "docs"
SITE = ROOT / "site"
PORT = 8000

#: Pages outside of docs/, and what they are called in the site.
OUTSIDE: Mapping[str, str] = {
    "README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "client/README.md": "client.md",
    "stripe_simulator/README.md": "simulator.md",
}
#: The shim with which the search works from a file. The template asks a foreign host for it.
_SHIM = "https://unpkg.com/iframe-worker/shim"
_OWN_SHIM = "assets/iframe-worker.js"

_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)#\s]*)(#[^)]*)?\)")
_BLOCK = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_DIAGRAM = re.compile(r"^```mermaid\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_ALL_OF = re.compile(r"^( *)- (\S+)/\*$", re.MULTILINE)


class SiteError(Exception):
    """The site cannot be built; the text says what must be corrected."""


def build(site: Path = SITE, work: Path = ROOT / "build" / "site") -> None:
    """Writes the site, or raises SiteError and leaves a former one as it is."""
    install_tools()
    shutil.rmtree(work, ignore_errors=True)
    gather(work)
    done = subprocess.run(
        [TOOLS / "bin" / "zensical", "build", "--strict"],
        cwd=work,
        env={**os.environ, "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SiteError(done.stdout + done.stderr)
    built = work / "site"
    _use_own_shim(built)
    if found := faults(built):
        raise SiteError("\n".join(found))
    shutil.rmtree(site, ignore_errors=True)
    shutil.move(built, site)


def install_tools() -> None:
    """Installs the generator, and again after a change of its lock."""
    locked, installed = ROOT / "locked" / "docs.txt", TOOLS / "installed.txt"
    if not installed.exists() or installed.read_text() != locked.read_text():
        install("docs", TOOLS)
        shutil.copy(locked, installed)


def gather(work: Path) -> None:
    """Writes what the generator reads: the configuration, and a copy of every page."""
    docs = work / "docs"
    shutil.copytree(ROOT / "docs", docs)
    pages = {path: docs / path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md")}
    pages |= {ROOT / name: docs / target for name, target in OUTSIDE.items()}
    # Before the diagrams are drawn, which takes far longer than everything else here.
    configuration = _with_all_pages((ROOT / "mkdocs.yml").read_text(), docs, pages.values())
    texts = {source: _rewritten(source, pages) for source in pages}
    drawn = _draw([d for text in texts.values() for d in _DIAGRAM.findall(text)], docs / "diagrams")
    for source, target in pages.items():
        up = "../" * len(target.relative_to(docs).parent.parts)
        picture = functools.partial(_picture, drawn, up)
        target.write_text(_DIAGRAM.sub(picture, texts[source]))
    (work / "mkdocs.yml").write_text(configuration)


def _picture(drawn: Mapping[str, str], up: str, diagram: re.Match[str]) -> str:
    address = f"{up}diagrams/{drawn[diagram[1]]}"
    return f"[![A diagram of states]({address})]({address})"


def _draw(diagrams: Sequence[str], folder: Path) -> dict[str, str]:
    """Draws diagrams, and returns the name of each one's file."""
    folder.mkdir()
    names = {text: f"{number}.svg" for number, text in enumerate(diagrams, start=1)}
    for text, name in names.items():
        (folder / f"{name}.mmd").write_text(text)
    draw = [TOOLS / "bin" / "python", Path(__file__).with_name("site_diagrams.py"), folder]
    subprocess.run(draw, check=True)
    return names


def _with_all_pages(configuration: str, docs: Path, pages: Iterable[Path]) -> str:
    """Returns the configuration with a line for each page of a folder where it says `folder/*`."""

    def listed(line: re.Match[str]) -> str:
        pages = sorted(path for path in (docs / line[2]).glob("*.md") if path.name != "README.md")
        return "\n".join(f"{line[1]}- {path.relative_to(docs)}" for path in pages)

    complete = _ALL_OF.sub(listed, configuration)
    named = set(re.findall(r"([\w./-]+\.md)$", complete, re.MULTILINE))
    missing = sorted({str(path.relative_to(docs)) for path in pages} - named)
    if missing:
        raise SiteError(f"mkdocs.yml has no place in its nav for: {', '.join(missing)}")
    return complete


def _rewritten(source: Path, pages: Mapping[Path, Path]) -> str:
    """Returns a page with links that are right in the site, and lists as Python-Markdown wants."""
    text, kept = source.read_text(), list[str]()

    def keep(block: re.Match[str]) -> str:
        # Three columns are enough for what belongs to an item elsewhere; here it takes four.
        deeper = " " * ((4 - len(block[1])) % 4)
        kept.append(re.sub(r"^(?=.)", deeper, block[0], flags=re.MULTILINE))
        return f"\0{len(kept) - 1}\0"

    text = _BLOCK.sub(keep, text)
    text = re.sub(r"(?<=\n\n) {2,3}(?=\S)", "    ", text)
    # After a paragraph or a block of an item, the next item is found only behind an empty line.
    text = re.sub(r"(\n\n {4}\S.*(?:\n +\S.*)*\n|\0\n)(?=\d+\. |- )", r"\1\n", text)
    text = _LINK.sub(lambda link: _link(link, source, pages), text)
    return re.sub(r"\0(\d+)\0", lambda number: kept[int(number[1])], text)


def _link(link: re.Match[str], source: Path, pages: Mapping[Path, Path]) -> str:
    picture, text, address, anchor = link[1], link[2], link[3], link[4] or ""
    if not address or re.match(r"[a-z]+:", address):
        return link[0]
    target = (source.parent / address).resolve()
    here = pages[source]
    for readme in (target, target / "README.md"):
        if readme in pages:
            return f"[{text}]({os.path.relpath(pages[readme], here.parent)}{anchor})"
    if target.is_relative_to(ROOT / "docs"):
        copy = pages[ROOT / "docs" / "README.md"].parent / target.relative_to(ROOT / "docs")
        return f"{picture}[{text}]({os.path.relpath(copy, here.parent)})"
    # The site has pages only, so a file of the source is named.
    name = f"`{target.relative_to(ROOT)}`"
    return name if text.strip("`") in name else f"{text} ({name})"


def _use_own_shim(built: Path) -> None:
    for page in built.rglob("*.html"):
        up = "../" * len(page.relative_to(built).parent.parts)
        page.write_text(page.read_text().replace(_SHIM, f"{up}{_OWN_SHIM}"))


def serve() -> None:
    """Shows the site until Ctrl-C. `make docs` beside it brings a change into view."""
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(SITE))
    with http.server.ThreadingHTTPServer(("127.0.0.1", PORT), handler) as server:
        sys.stdout.write(f"http://127.0.0.1:{PORT}/ (Ctrl-C ends it)\n")
        server.serve_forever()


def main(arguments: Sequence[str]) -> int:
    """Returns the exit status."""
    try:
        build()
    except SiteError as error:
        sys.stdout.write(f"{error}\n\nThe site was not built: correct what is named above.\n")
        return 1
    sys.stdout.write(f"{SITE.relative_to(ROOT)}/index.html: open it in a browser\n")
    if arguments[0] == "serve":
        serve()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit(130)
