"""What people wrote: notes, reasons, descriptions. They can be erased; the audit trail cannot.

An event contains a salted hash of a text, and the text and its salt are stored beside the events.
So a text can be proven for as long as it is there. Once it is erased with its salt, nobody can find
out from the hash what it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

#: What stands in the place of an erased text.
ERASED: Final = "[erased]"

_SEALED: Final = "sealed"


@dataclass(frozen=True, slots=True)
class FreeText:
    """A fact of an event that is somebody's words. An empty one needs no seal."""

    text: str


@dataclass(frozen=True, slots=True)
class KeptText:
    """A text as it is stored beside its event. ``name`` is the name of the fact."""

    name: str
    salt: bytes
    text: str


def seal(
    facts: Mapping[str, object], new_salt: Callable[[], bytes]
) -> tuple[dict[str, object], tuple[KeptText, ...]]:
    """Returns the facts with a hash in the place of each text, and the texts."""
    sealed, kept = dict(facts), []
    for name, value in facts.items():
        if isinstance(value, FreeText):
            sealed[name] = value.text
            if value.text:
                one = KeptText(name, new_salt(), value.text)
                kept.append(one)
                sealed[name] = {_SEALED: seal_of(one)}
    return sealed, tuple(kept)


def seal_of(kept: KeptText) -> str:
    """Returns the hash that an event contains in the place of a text."""
    return hashlib.sha256(kept.salt + kept.text.encode()).hexdigest()


def seals_in(facts: Mapping[str, object]) -> dict[str, str]:
    """Returns the hashes of the texts among the facts of an event, by name."""
    return {
        name: str(value[_SEALED])
        for name, value in facts.items()
        if isinstance(value, Mapping) and value.keys() == {_SEALED}
    }


def texts_to_show(body: str, kept: Mapping[str, str]) -> dict[str, str]:
    """Returns the texts of an event by name. Those that are not kept any more are erased."""
    if f'"{_SEALED}"' not in body:
        return {}
    return {name: kept.get(name, ERASED) for name in seals_in(json.loads(body)["facts"])}
