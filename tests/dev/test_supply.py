"""What is installed is what is locked, with its hashes; licences and vulnerabilities are judged."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dev.install import LOCKED, ROOT
from dev.supply import judged, refusals

_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", re.MULTILINE)


def _pins(path: Path) -> dict[str, str]:
    found = _PINNED.findall(path.read_text())
    return {name.lower().replace("_", "-"): version for name, version in found}


def _asked(requirements: str) -> dict[str, str]:
    """Returns what a file of requirements pins, with the files that it includes."""
    path = ROOT / requirements
    included = re.findall(r"^-r (\S+)", path.read_text(), re.MULTILINE)
    return {name: v for file in included for name, v in _asked(file).items()} | _pins(path)


@pytest.mark.parametrize("name", LOCKED)
def test_the_lock_is_of_the_present_requirements(name: str) -> None:
    locked = _pins(ROOT / "locked" / f"{name}.txt")
    stale = _asked(LOCKED[name]).items() - locked.items()
    assert not stale, "run `make lock`, and commit locked/"
    constrained = _pins(ROOT / "constraints.txt")
    assert {n: v for n, v in locked.items() if constrained.get(n, v) != v} == {}


@pytest.mark.parametrize("name", LOCKED)
def test_every_package_has_hashes_and_no_place(name: str) -> None:
    text = (ROOT / "locked" / f"{name}.txt").read_text()
    blocks = re.split(r"\n(?=\S)", text.strip())
    assert [block for block in blocks if "--hash=sha256:" not in block] == []
    assert "://" not in text
    assert "index" not in text


def _component(name: str, *licences: str) -> dict[str, Any]:
    entries: list[dict[str, Any]] = [
        {"expression": one} if " AND " in one or " OR " in one else {"license": {"name": one}}
        for one in licences
    ]
    return {"name": name, "version": "1", "licenses": entries}


@pytest.mark.parametrize(
    ("licences", "allowed"),
    [
        (("MIT",), True),
        (("MIT OR GPL-3.0-only",), True),
        (("Apache-2.0 AND MIT",), True),
        (("MIT AND GPL-3.0-only",), False),
        (("MIT", "GPL-3.0-only"), False),
        (("MPL-2.0", "License :: OSI Approved :: Mozilla Public License 2.0 (MPL 2.0)"), True),
        (("AGPL-3.0-only",), False),
        ((), False),
    ],
)
def test_a_licence_that_is_not_allowed_is_named(licences: tuple[str, ...], allowed: bool) -> None:
    refused = refusals([_component("good", "MIT"), _component("other", *licences)])
    assert [sentence.split()[0] for sentence in refused] == ([] if allowed else ["other"])


@pytest.mark.parametrize(
    ("status", "said", "expected", "sentence"),
    [
        (0, "No known vulnerabilities found", 0, "no known vulnerability"),
        (1, "Found 2 known vulnerabilities in 1 package\nName", 1, "Found 2 known"),
        (1, "ERROR:pip_audit._cli:Could not connect to the service", 2, "NOT AUDITED"),
        (1, "", 2, "NOT AUDITED"),
    ],
)
def test_an_audit_that_was_not_made_is_no_success(
    status: int, said: str, expected: int, sentence: str
) -> None:
    lines: list[str] = []
    assert judged(status, said, lines.append) == expected
    assert sentence in "".join(lines)
