"""docs/state_machine.md against TRANSITIONS: the diagrams on the page are drawn from the code.

After a change of the state machine, or of the names of its events, write the page anew:

    python -m tests.unit.test_state_machine_doc
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from payment_service.domain.payment import State
from payment_service.domain.state_machine import TRANSITIONS

PAGE: Final = Path(__file__).resolve().parents[2] / "docs" / "state_machine.md"
BEGIN: Final = "<!-- generated: transitions -->"
END: Final = "<!-- /generated -->"

#: A diagram each. An edge belongs to the first diagram whose pattern its event's name matches.
DIAGRAMS: Final = (
    ("The client pays, or does not", r"intent|creation|attempt|authorized|expired"),
    ("A refund before the card is charged", r"cancel"),
    ("Out of band", r"elsewhere|out_of_band"),
    ("A card hold becomes a platform hold, and captures", r"promot|charged|captur"),
    ("A failed refund is paid again", r"repa(id|yment)|resent"),
    ("Refunds after the card was charged", r"refund|reversed|owes|debt"),
    ("A lost dispute", r"dispute"),
)

Edge = tuple[str, str, str]  # the event, the state before and the state after


def edges() -> Iterator[Edge]:
    """Yields every edge that changes the state."""
    order = {state: place for place, state in enumerate(State)}
    for kind, targets_of in TRANSITIONS.items():
        event = kind.value.removeprefix("payment.")
        for source in sorted(targets_of, key=order.__getitem__):
            for target in sorted(targets_of[source] - {source}, key=order.__getitem__):
                yield event, source.value, target.value


def quiet_events() -> list[str]:
    """Returns the events that never change the state."""
    moving = {event for event, _, _ in edges()}
    names = (kind.value.removeprefix("payment.") for kind in TRANSITIONS)
    return [name for name in names if name not in moving]


def diagram_of(event: str) -> str:
    """Returns the title of the diagram that shows an event."""
    titles = [title for title, pattern in DIAGRAMS if re.search(pattern, event)]
    assert titles, f"{event} belongs to no diagram: add its name to a pattern of DIAGRAMS"
    return titles[0]


def render() -> str:
    """Returns what stands between the two markers."""
    lines: list[str] = []
    for title, _ in DIAGRAMS:
        shown: dict[tuple[str, str], list[str]] = {}
        for event, source, target in edges():
            if diagram_of(event) == title:
                shown.setdefault((source, target), []).append(event)
        lines += [f"### {title}", "", "```mermaid", "stateDiagram-v2", "    direction LR"]
        lines += [
            f"    {source} --> {target}: {'<br/>'.join(events)}"
            for (source, target), events in shown.items()
        ]
        lines += ["```", ""]
    lines += ["### Events that never change the state", ""]
    lines += [f"- `{event}`" for event in quiet_events()]
    return "\n".join([BEGIN, "", *lines, "", END])


def test_the_page_shows_the_state_machine_of_the_code() -> None:
    page = PAGE.read_text()
    begin, end = page.index(BEGIN), page.index(END) + len(END)
    assert page[begin:end] == render(), "run: python -m tests.unit.test_state_machine_doc"


def test_every_edge_is_drawn_once() -> None:
    drawn = re.findall(r"^    (\w+) --> (\w+): (.+)$", render(), re.MULTILINE)
    found = [
        (event, source, target)
        for source, target, events in drawn
        for event in events.split("<br/>")
    ]
    assert sorted(found) == sorted(edges())


def test_the_usual_paths_exist() -> None:
    overview = PAGE.read_text().partition(BEGIN)[0]
    drawn = re.findall(r"^    ([A-Z_]+) --> ([A-Z_]+):", overview, re.MULTILINE)
    assert drawn
    assert set(drawn) - {(source, target) for _, source, target in edges()} == set()


def test_every_state_is_explained_and_drawn() -> None:
    page = PAGE.read_text()
    explained = set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE))
    assert explained == {state.value for state in State}
    touched = {state for _, source, target in edges() for state in (source, target)}
    assert touched == {state.value for state in State}


def write_page() -> None:
    """Replaces what stands between the markers."""
    page = PAGE.read_text()
    begin, end = page.index(BEGIN), page.index(END) + len(END)
    PAGE.write_text(page[:begin] + render() + page[end:])


if __name__ == "__main__":
    write_page()
