"""The code speaks the language of docs/glossary.md: words of an older dialect stay out.

Each of these words once meant several things, or needed to be learned before the code could be
read. What stands after each is said instead.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parents[2]
SOURCES: Final = sorted(
    path
    for pattern in (
        *("payment_service/**/*.py", "gateway/**/*.py", "protos/**/*.proto"),
        *("console/**/*.py", "console/**/*.html", "sidecar/**/*.py"),
    )
    for path in ROOT.glob(pattern)
)
OLD_WORDS: Final = {
    r"by hand|hands|elsewhere": "out of band",
    r"told|is told of": "returned, reported, recorded",
    r"gives? way|gave way|makes? way|stands? back": "is superseded, pre-empts, must not be sent",
    r"goes on|go on|carry out|carries out|in vain": "continues, executes, without effect",
    r"sweeps?": "recovery",
    r"slept|whoever": "a stale lease holder, a caller that",
    r"burnt": "spent",
    r"mends?|mended|cures?": "fix, remediation",
    r"but for|of which|so many": "except, whose, a number of",
    r"contested|contests": "disputed",
    r"give up|gives up|given up|gave up": "abandon",
    r"inbox": "webhook events",
    r"the rest of the amount|at rest": "the remainder, idle",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_speaks_the_language_of_the_glossary(path: Path) -> None:
    text = path.read_text().replace("_", " ")
    found = {
        match.group(0): instead
        for words, instead in OLD_WORDS.items()
        for match in re.finditer(rf"\b(?:{words})\b", text, re.IGNORECASE)
    }
    assert found == {}, "say instead what stands after each"
