"""Parts of a page that are read by themselves: one that cannot be read leaves the others alone."""

from dataclasses import dataclass, field
from typing import Any, Final

from console.core import Core, Refused
from console.refusals import Explained, explain
from console.subjects import pages

#: How many entries one part of a page shows.
MOST: Final = 200


@dataclass(frozen=True)
class Answered:
    """An answer, or why there is none."""

    answer: Any = None
    refusal: Explained | None = None


@dataclass(frozen=True)
class Section:
    """The entries of a list, or why there are none."""

    entries: list[Any] = field(default_factory=list)
    #: Whether there are more than are shown.
    cut: bool = False
    refusal: Explained | None = None


async def attempt(core: Core, method: Any, request: Any) -> Answered:
    """Returns the answer or the refusal; only a token that does not count is raised."""
    try:
        return Answered(await core.ask(method, request))
    except Refused as refused:
        _raise_if_signed_out(refused)
        return Answered(refusal=explain(refused))


async def gathered(core: Core, method: Any, request: Any, name: str) -> Section:
    """Returns a list's entries, at most MOST of them."""
    entries: list[Any] = []
    try:
        async for entry in pages(core, method, request, name):
            if len(entries) == MOST:
                return Section(entries, cut=True)
            entries.append(entry)
    except Refused as refused:
        _raise_if_signed_out(refused)
        return Section(entries, refusal=explain(refused))
    return Section(entries)


def _raise_if_signed_out(refused: Refused) -> None:
    if refused.reason == "UNAUTHENTICATED":
        raise refused
