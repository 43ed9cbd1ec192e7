"""Draws each `*.mmd` of a folder as SVG. Runs with the Python of .venv/docs, which has mermaidx."""

import sys
from pathlib import Path

import mermaidx  # type: ignore[import-not-found]  # it is installed in .venv/docs only

_GROUND = "background-color: white"


def main(folder: Path) -> None:
    for source in sorted(folder.glob("*.mmd")):
        picture = source.with_suffix("")
        mermaidx.render(source.read_text()).save(str(picture))
        # Its lines are dark, and the page behind it may be dark as well.
        picture.write_text(picture.read_text().replace("background-color: transparent", _GROUND))
        source.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
