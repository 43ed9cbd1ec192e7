"""`python -m payment_service explain`: the story of a payment, for a terminal."""

from __future__ import annotations

from datetime import datetime
from typing import Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from payment_service.application.explain_payment import Explained, Story, explain_payment
from payment_service.config import Settings
from payment_service.domain.story.entries import Entry, EntryKind
from payment_service.domain.story.outlook import Mover, match_sentence, summary_of
from payment_service.maintenance import wired_app

#: How many events are read at a time.
_PAGE: Final = 200
_STYLES: Final = {
    EntryKind.CALL: "bold cyan",
    EntryKind.EVENT: "bold",
    EntryKind.STRIPE_REQUEST: "magenta",
    EntryKind.STRIPE_OUTCOME: "magenta",
    EntryKind.WEBHOOK: "blue",
    EntryKind.POSTINGS: "bright_black",
    EntryKind.DISCREPANCY: "bold red",
}
_NAMES: Final = {
    EntryKind.CALL: "call",
    EntryKind.EVENT: "event",
    EntryKind.STRIPE_REQUEST: "to Stripe",
    EntryKind.STRIPE_OUTCOME: "Stripe",
    EntryKind.WEBHOOK: "webhook",
    EntryKind.POSTINGS: "books",
    EntryKind.DISCREPANCY: "differs",
}
_MOVERS: Final = {
    Mover.NOBODY: "nobody",
    Mover.CLIENT: "the client",
    Mover.EXPERT: "the expert",
    Mover.CALLER: "the gig service",
    Mover.SERVICE: "this service",
    Mover.STRIPE: "Stripe",
    Mover.OPERATOR: "an operator",
}


async def explain(settings: Settings, given: str, console: Console) -> None:
    """Prints the story of the payment that an id names, or the payments if they are several.

    Raises :class:`CannotRun`.
    """
    async with wired_app(settings) as app:
        explained = await explain_payment(app, given, 0, _PAGE)
        if explained.story is None:
            _print_matches(explained, console)
            return
        story = explained.story
        console.print(Text(f"{story.payment.payment_id}  ", style="bold").append(_version(story)))
        console.print(Text(summary_of(story.payment)))
        console.print()
        while True:
            _print_entries(story, console)
            if not story.next_after:
                break
            following = await explain_payment(
                app, story.payment.payment_id, story.next_after, _PAGE
            )
            assert following.story is not None
            story = following.story
        _print_outlook(story, console)


def _version(story: Story) -> Text:
    return Text(f"{story.payment.state.value}, version {story.payment.version}", style="cyan")


def _print_matches(explained: Explained, console: Console) -> None:
    console.print(Text("Several payments, newest first. Ask again with one of the ids:"))
    for payment in explained.matches:
        line = Text(f"{_moment(payment.create_time)}  ", style="bright_black")
        line.append(payment.payment_id, style="bold").append(f"  {match_sentence(payment)}")
        console.print(line, soft_wrap=True)


def _print_entries(story: Story, console: Console) -> None:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(style="bright_black", no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(ratio=1, overflow="fold")
    for entry in story.entries:
        style = _STYLES[entry.kind]
        grid.add_row(
            _moment(entry.time), Text(_NAMES[entry.kind], style=style), _sentence(entry, style)
        )
    console.print(grid)
    if story.left_out:
        console.print(Text("More happened between these events than is shown.", style="red"))


def _sentence(entry: Entry, style: str) -> Text:
    return Text(entry.sentence, style=style if entry.kind is not EntryKind.CALL else "")


def _print_outlook(story: Story, console: Console) -> None:
    outlook = story.outlook
    console.print()
    console.print(Text("Next: ", style="bold").append(outlook.waits_for, style="yellow"))
    console.print(Text("Whose move it is: ", style="bold").append(_MOVERS[outlook.mover]))
    for timer in outlook.timers:
        console.print(Text(f"{_moment(timer.time)}  ", style="bright_black").append(timer.sentence))
    for option in outlook.options:
        console.print(Text("An operator may: ", style="bold").append(option.sentence))
        console.print(Text(f"    {option.rpc} with {option.id}; {option.page}"), soft_wrap=True)


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S}"
